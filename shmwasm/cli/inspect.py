"""`shmwasm inspect`: what is in a module, and what is rewritten of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shmwasm.cli.inspection import Inspection, MemoryLine, inspection_of, memory_type
from shmwasm.cli.reporting import print_json, readable, reported
from shmwasm.engine.compiling import rewritten
from shmwasm.engine.config import new_engine
from shmwasm.engine.modules import read_module, validate
from shmwasm.wasm.decoding import decode

_MOST_LINES = 50
"""How many imports or exports are shown to people."""


@click.command(
    epilog="""\b
Examples:
  shmwasm inspect filter.wasm
  shmwasm inspect filter.wasm --json
"""
)
@click.argument("module", type=click.Path(path_type=Path))
@reported
def inspect(*, module: Path, as_json: bool) -> None:
    """Tell what MODULE imports and exports, which WebAssembly proposals it uses, and what is rewritten of it and why.

    Nothing is compiled or run. Exits with 1 if MODULE cannot be loaded.
    """
    name, content = read_module(module)
    validate(new_engine(parallel_compilation=False), name, content)
    report = rewritten(name, content).report
    found = inspection_of(name, decode(content), report)
    if as_json:
        print_json(found.facts())
    else:
        _print(Console(highlight=False, soft_wrap=True), found)


def _print(console: Console, found: Inspection) -> None:
    console.print(Text(f"{found.module}: {found.size} bytes, of which {found.code_size} are code; functions: {found.functions}"))
    _print_table(
        console,
        "imports",
        ("name", "kind", "type", "provided by"),
        [(f"{one.module}.{one.name}", one.kind, one.type, one.provided_by) for one in found.imports],
    )
    _print_table(console, "exports", ("name", "kind", "type"), [(one.name, one.kind, one.type) for one in found.exports])
    _print_table(
        console,
        "memories",
        ("type", "names", "role"),
        [(memory_type(one), _names(one), "shared heaps are mapped into it" * one.is_heap_memory) for one in found.memories],
    )
    _print_table(console, "WebAssembly proposals used", ("name", "about"), list(found.features.items()))
    _print_table(
        console,
        "rewritten at load",
        ("what", "count", "why"),
        [(change["what"], str(change["count"]), change["why"]) for change in found.changes],
    )
    console.print(Text(f"\nneeds a shared heap: {_yes(found.needs_shared_heap)}    needs WASI: {_yes(found.needs_wasi)}"))


def _print_table(console: Console, title: str, columns: Sequence[str], rows: Sequence[Iterable[str]]) -> None:
    if not rows:
        console.print(Text(f"\n{title}: none", "bold"))
        return
    console.print(Text(f"\n{title}", "bold"))
    table = Table(box=None, pad_edge=False, header_style="italic")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows[:_MOST_LINES]:
        table.add_row(*(Text(readable(cell).replace("\n", r"\n")) for cell in row))
    console.print(table)
    if len(rows) > _MOST_LINES:
        console.print(Text(f"... and {len(rows) - _MOST_LINES} more; --json lists all"))


def _names(memory: MemoryLine) -> str:
    return ", ".join([*memory.exported_as, *["imported"] * memory.imported]) or "none"


def _yes(answer: bool) -> str:  # noqa: FBT001  the answer is all it is about
    return "yes" if answer else "no"
