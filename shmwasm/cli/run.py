"""`shmwasm run`: call a function of a module, in one or several instances."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from shmwasm import Module, Runtime, SharedHeap, WasiOptions
from shmwasm.addresses import MAXIMUM_CHAIN_SIZE
from shmwasm.cli.reporting import print_json, readable, reported
from shmwasm.cli.sizes import size_between
from shmwasm.cli.values import Value, parse_values, plain
from shmwasm.errors import GuestExitError, listed

_EXAMPLES = """\b
Examples:
  shmwasm run add.wasm --invoke add 2 40
  shmwasm run list.wasm --invoke build 1000 --heap 16M --instances 4
  shmwasm run program.wasm --dir .::/data --env LANG=C -- --verbose /data/input.txt
"""


def _split(pairs: Sequence[str], separator: str, option: str) -> dict[str, str]:
    split = {}
    for pair in pairs:
        left, found, right = pair.partition(separator)
        if not left or not found or not right:
            raise click.BadParameter(f"{pair!r} has no {separator!r} with something on both sides", param_hint=option)
        split[left] = right
    return split


@click.command(context_settings={"ignore_unknown_options": True}, epilog=_EXAMPLES)
@click.argument("module", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--invoke", metavar="NAME", help="The exported function to call. By default a WASI command's _start.")
@click.option(
    "--instances", type=click.IntRange(1), default=1, show_default=True, help="How many instances make the call, all at once."
)
@click.option(
    "--heap",
    type=size_between(1, MAXIMUM_CHAIN_SIZE),
    metavar="SIZE",
    help="Attach a new shared heap of this size, such as 64M, to all of them.",
)
@click.option("--timeout", type=click.FloatRange(0, min_open=True), help="Seconds after which a call is interrupted.")
@click.option(
    "--dir", "directories", multiple=True, metavar="HOST::GUEST", help="Let a WASI guest use a directory. May be repeated."
)
@click.option("--env", "environment", multiple=True, metavar="NAME=VALUE", help="Give a WASI guest a variable. May be repeated.")
@reported
def run(
    *,
    module: Path,
    arguments: tuple[str, ...],
    invoke: str | None,
    instances: int,
    heap: int | None,
    timeout: float | None,
    directories: tuple[str, ...],
    environment: tuple[str, ...],
    as_json: bool,
) -> None:
    """Call a function of MODULE and print its results.

    ARGUMENTS are numbers, read as the function's parameter types demand. A WASI command (a program with main) gets them as its
    command line instead; write `--` before arguments that look like options. A WASI guest is granted nothing but its output and
    what --dir and --env give it; its standard input is empty. The exit code of a WASI command is that of `shmwasm run`.
    """
    grants = WasiOptions(
        args=[str(module), *arguments],
        env=_split(environment, "=", "--env"),
        stdout="inherit",
        stderr="inherit",
        preopens=_split(directories, "::", "--dir"),
    )
    with Runtime() as runtime:
        loaded = runtime.load(module)
        name, values = _choose_call(loaded, invoke, arguments)
        shared = runtime.create_shared_heap(heap) if heap is not None else None
        wasi = grants if loaded.needs_wasi else None
        try:
            results = _call_all(runtime, loaded, name, values, instances=instances, shared=shared, timeout=timeout, wasi=wasi)
        except GuestExitError as ended:
            if as_json:
                print_json({"function": name, "exit_code": ended.exit_code})
            raise SystemExit(ended.exit_code) from None
    if as_json:
        print_json({"function": name, "results": [[plain(value) for value in result] for result in results]})
    else:
        for result in results:
            if result:
                click.echo(" ".join(str(value) for value in result))


def _choose_call(module: Module, invoke: str | None, arguments: Sequence[str]) -> tuple[str, list[Value]]:
    """Return the function to call, and its arguments."""
    if invoke is None and module.is_wasi_command:
        return "_start", []
    known = readable(listed(sorted(module.exports)))
    if invoke is None:
        raise click.UsageError(f"--invoke is missing: the module is no WASI command; its functions are: {known}")
    if invoke not in module.exports:
        raise click.UsageError(f"the module exports no function {invoke!r}; its functions are: {known}")
    try:
        return invoke, parse_values(arguments, module.exports[invoke].parameters)
    except ValueError as error:
        raise click.UsageError(f"{invoke}: {error}") from None


def _call_all(
    runtime: Runtime,
    module: Module,
    name: str,
    values: Sequence[Value],
    *,
    instances: int,
    shared: SharedHeap | None,
    timeout: float | None,
    wasi: WasiOptions | None,
) -> list[list[Value]]:
    """Make the call in every instance at once; return each one's results."""
    with ExitStack() as stack:
        spawned = [stack.enter_context(runtime.spawn(module, shared_heap=shared, wasi=wasi)) for _ in range(instances)]
        futures = [instance.submit(name, *values, timeout=timeout) for instance in spawned]
        return [_as_list(future.result()) for future in futures]


def _as_list(result: Any) -> list[Value]:
    if result is None:
        return []
    return list(result) if isinstance(result, list | tuple) else [result]
