"""`shmwasm demo`: the main job on real input, checked, and beside it the same job by `multiprocessing.Pool`."""

from __future__ import annotations

import os
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from shmwasm import Runtime
from shmwasm.addresses import MAXIMUM_CHAIN_SIZE
from shmwasm.cli import digests
from shmwasm.cli.peer import PeerRun, digest_by_multiprocessing
from shmwasm.cli.reporting import print_json, reported
from shmwasm.cli.sizes import format_size, size_between

_NOT_THE_LIBRARY = frozenset({"site-packages", "dist-packages"})
_SHOWN = 10  # how many paths a list in the text shows


@dataclass(frozen=True)
class SharedRun:
    """What the pool over the shared heap did."""

    tally: digests.Tally
    startup_seconds: float
    seconds: float

    @property
    def bytes(self) -> int:
        """The bytes digested."""
        return sum(one.length for one in self.tally.digested)


@dataclass(frozen=True)
class Outcome:
    """All that the demo has to tell."""

    root: Path
    instances: int
    heap: int
    shared: SharedRun
    verdict: digests.Verdict
    peer: PeerRun


@click.command(
    epilog="""\b
Examples:
  shmwasm demo
  shmwasm demo --path ~/pictures --instances 8 --heap 256M
"""
)
@click.option(
    "--path",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="The directory whose files to digest. By default Python's standard library.",
)
@click.option(
    "--instances",
    type=click.IntRange(2),
    help="How many instances share the work. By default one for each processor, at least 2.",
)
@click.option(
    "--heap",
    type=size_between(1 << 20, MAXIMUM_CHAIN_SIZE),
    metavar="SIZE",
    default="64M",
    show_default=True,
    help="The shared heap's size.",
)
@click.option(
    "--guest",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=digests.GUEST,
    metavar="WASM",
    help="Another build of the guest, with the same exports. By default the one that comes with shmwasm.",
)
@reported
def demo(*, path: Path | None, instances: int | None, heap: int, guest: Path, as_json: bool) -> None:
    """Digest real files (SHA-256) in a pool of instances that share one heap.

    Every file is read into a shared heap, and digested there by a guest compiled from C, in one of several processes. No file's
    bytes are copied from process to process. Each digest is compared with hashlib's; exits with 1 if one differs. Then the same
    job is done by multiprocessing.Pool, for comparison: its workers digest with hashlib, in native code.
    """
    root = path if path is not None else Path(sysconfig.get_path("stdlib"))
    count = instances if instances is not None else max(2, len(os.sched_getaffinity(0)))
    paths = list(digests.find_files(root, skip=_NOT_THE_LIBRARY if path is None else frozenset()))

    show = _Bars(Console(stderr=True), hidden=as_json)
    total = sum(_size(one) for one in paths)
    with show.bar("reading once, so that both find the files cached", total) as progress:
        for one in paths:
            progress(_read_through(one))
    with show.bar(f"shmwasm, {count} instances", total) as progress:
        shared = _digest_in_shared_heap(paths, guest, count, heap, progress)
    with show.bar("checking with hashlib", shared.bytes) as progress:
        verdict = digests.check(shared.tally.digested, progress)
    with show.bar(f"multiprocessing.Pool, {count} workers", total) as progress:
        peer = digest_by_multiprocessing(paths, count, progress)

    outcome = Outcome(root, count, heap, shared, verdict, peer)
    if as_json:
        print_json(_facts(outcome))
    else:
        _print(outcome)
    if verdict.differing:
        sys.exit(1)


def _digest_in_shared_heap(paths: list[Path], guest: Path, instances: int, heap: int, progress: digests.Progress) -> SharedRun:
    start = time.perf_counter()
    with Runtime() as runtime:
        module = runtime.load(guest)
        shared_heap = runtime.create_shared_heap(heap)
        with runtime.pool(module, size=instances, shared_heap=shared_heap) as pool:
            ready = time.perf_counter()
            feeder = digests.Feeder(runtime, module, shared_heap, pool, progress)
            feeder.feed(paths)
            end = time.perf_counter()
    return SharedRun(feeder.tally, ready - start, end - ready)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _read_through(path: Path) -> int:
    read = 0
    try:
        with path.open("rb", buffering=0) as file:
            while part := file.read(1 << 20):
                read += len(part)
    except OSError:
        pass  # the job itself will say so
    return read


class _Bars:
    """Progress bars on a terminal; nothing elsewhere."""

    def __init__(self, console: Console, *, hidden: bool) -> None:
        self._console = console
        self._hidden = hidden or not console.is_terminal

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[digests.Progress]:
        """Show a bar of `total` bytes; gives the function that moves it."""
        if self._hidden:
            yield lambda _done: None
            return
        columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task(title, total=total)
            yield lambda done: progress.advance(task, done)


def _facts(outcome: Outcome) -> dict[str, Any]:
    shared, peer, tally = outcome.shared, outcome.peer, outcome.shared.tally
    return {
        "path": str(outcome.root),
        "instances": outcome.instances,
        "heap_bytes": outcome.heap,
        "files": len(tally.digested),
        "bytes": shared.bytes,
        "files_mapped": tally.mapped,
        "startup_seconds": shared.startup_seconds,
        "seconds": shared.seconds,
        "bytes_per_second": _rate(shared.bytes, shared.seconds),
        "bytes_copied": tally.content_bytes,
        "argument_bytes": tally.argument_bytes,
        "differing": outcome.verdict.differing,
        "changed": outcome.verdict.changed,
        "skipped": [{"path": path, "reason": reason} for path, reason in tally.skipped],
        "multiprocessing": {
            "workers": outcome.instances,
            "files": peer.files,
            "bytes": peer.bytes,
            "startup_seconds": peer.startup_seconds,
            "seconds": peer.seconds,
            "bytes_per_second": _rate(peer.bytes, peer.seconds),
            "bytes_copied": peer.content_bytes,
        },
    }


def _print(outcome: Outcome) -> None:
    shared, peer, tally, verdict = outcome.shared, outcome.peer, outcome.shared.tally, outcome.verdict
    table = Table(title=f"SHA-256 of the files in {outcome.root}")
    table.add_column("")
    table.add_column("shmwasm", justify="right")
    table.add_column("multiprocessing.Pool", justify="right")
    table.add_row("digested by", "guest from C (wasm)", "hashlib (native)")
    table.add_row("processes", str(outcome.instances), str(outcome.instances))
    table.add_row("files", f"{len(tally.digested):,}", f"{peer.files:,}")
    table.add_row("bytes", f"{shared.bytes:,}", f"{peer.bytes:,}")
    table.add_row("start-up", f"{shared.startup_seconds:.3f} s", f"{peer.startup_seconds:.3f} s")
    table.add_row("time", f"{shared.seconds:.3f} s", f"{peer.seconds:.3f} s")
    table.add_row("throughput", _speed(shared.bytes, shared.seconds), _speed(peer.bytes, peer.seconds))
    table.add_row("bytes copied between processes", f"{tally.content_bytes:,}", f"{peer.content_bytes:,}")
    Console().print(table)
    click.echo(
        f"Counted at every call: bytes of files among its arguments. The {format_size(outcome.heap)} heap's guests got "
        f"{tally.argument_bytes:,} bytes of addresses and counts instead."
    )
    if tally.mapped:
        click.echo(f"{tally.mapped} files did not fit into the heap; each was mapped as a read-only heap of its own.")
    _print_list("skipped", [f"{path}: {reason}" for path, reason in tally.skipped])
    _print_list("changed while this ran, and not compared", [str(path) for path in verdict.changed])
    _print_list("DIFFERENT from hashlib", [str(path) for path in verdict.differing])
    if not verdict.differing:
        click.echo(f"All {len(tally.digested) - len(verdict.changed):,} digests are those of hashlib.")


def _print_list(title: str, lines: list[str]) -> None:
    if lines:
        click.echo(f"{len(lines)} {title}:")
        for line in lines[:_SHOWN]:
            click.echo(f"  {line}")
        if len(lines) > _SHOWN:
            click.echo(f"  and {len(lines) - _SHOWN} more; --json lists them all")


def _rate(size: int, seconds: float) -> float:
    return size / seconds if seconds > 0 else 0.0


def _speed(size: int, seconds: float) -> str:
    return f"{format_size(_rate(size, seconds))}/s"
