"""The demo's job: files are read into a shared heap and digested there by a pool of guests.

Theory
------
A file is read straight into a block of the heap (`readinto` its view); what goes to an instance is the block's address. Files
travel in batches, because a call costs more than a small file's digest, and because the guest digests four messages at once.

The heap is the only buffer. When it has no room, the batch at hand is sent on its way, and the next one waits for a result and
the blocks that it frees: reading never runs ahead of digesting by more than the heap. A file that does not fit even into the
empty heap is not read at all: it is mapped as a preallocated, read-only heap of its own.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from shmwasm import Block, InstancePool, Module, Runtime, SharedHeap
from shmwasm.errors import ArgumentError, ChainError, HeapExhaustedError

GUEST = Path(__file__).parent.parent / "guests" / "sha256.wasm"
"""The guest that comes with the package, compiled from sha256.c beside it."""

BATCH_FILES = 256
BATCH_BYTES = 1 << 20

_JOB = struct.Struct("<II32s")  # struct job of sha256.c: address, length, digest
_DIGEST_SIZE = 32
_ARGUMENT_SIZE = 8  # a number in a call

Progress = Callable[[int], None]
"""Is told how many more bytes are done."""


@dataclass(frozen=True)
class Digested:
    """One file's digest, and what the file was when it was read."""

    path: Path
    length: int
    modified_ns: int
    digest: bytes


@dataclass
class Tally:
    """What the job did.

    Attributes:
        digested: Every digest.
        skipped: Files that could not be read or mapped, with the reason.
        content_bytes: Bytes of files that went to an instance as an argument: counted call by call.
        argument_bytes: Bytes of numbers (addresses, lengths, counts) that went to an instance as arguments.
        mapped: How many files were mapped as heaps of their own.
    """

    digested: list[Digested] = field(default_factory=list)
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    content_bytes: int = 0
    argument_bytes: int = 0
    mapped: int = 0

    def count_call(self, arguments: Iterable[object]) -> None:
        """Count what the arguments of a call carry: a block or a number is a number, a buffer is content."""
        for argument in arguments:
            if isinstance(argument, bytes | bytearray | memoryview):
                self.content_bytes += memoryview(argument).nbytes
            else:
                self.argument_bytes += _ARGUMENT_SIZE


@dataclass
class _Placed:
    path: Path
    modified_ns: int
    length: int
    block: Block | None  # None: an empty file


@dataclass
class _Batch:
    table: Block
    files: list[_Placed] = field(default_factory=list)

    @property
    def length(self) -> int:
        return sum(file.length for file in self.files)


def find_files(root: Path, *, skip: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Yield every regular file below `root` (no symbolic links), but for directories named in `skip`; sorted."""
    for directory, subdirectories, names in os.walk(root):
        subdirectories[:] = sorted(set(subdirectories) - skip)
        for name in sorted(names):
            path = Path(directory, name)
            if path.is_file() and not path.is_symlink():
                yield path


class Feeder:
    """Feeds files to a pool through a heap, and gathers their digests in `tally`."""

    def __init__(self, runtime: Runtime, module: Module, heap: SharedHeap, pool: InstancePool, progress: Progress) -> None:
        self.tally = Tally()
        self._runtime = runtime
        self._module = module
        self._heap = heap
        self._pool = pool
        self._progress = progress
        self._batch: _Batch | None = None
        self._running: dict[Future[Any], _Batch] = {}

    def feed(self, paths: Iterable[Path]) -> None:
        """Digest every file.

        Raises:
            InstanceError: An instance trapped or died.
        """
        for path in paths:
            try:
                with path.open("rb", buffering=0) as file:
                    self._add(path, file)
            except OSError as error:
                self.tally.skipped.append((path, error.strerror or str(error)))
        self._send()
        while self._running:
            self._collect(FIRST_COMPLETED)
        if self._batch is not None:
            self._batch.table.free()

    def _add(self, path: Path, file: BinaryIO) -> None:
        status = os.fstat(file.fileno())
        room = self._make_room(status.st_size)
        if room is None:
            self._digest_mapped(path, status)
            return
        batch, block = room
        length = _read_into(file, block) if block is not None else 0
        batch.files.append(_Placed(path, status.st_mtime_ns, length, block))
        if len(batch.files) == BATCH_FILES or batch.length >= BATCH_BYTES:
            self._send()
            self._collect(None)

    def _make_room(self, size: int) -> tuple[_Batch, Block | None] | None:
        """Return the batch at hand and a block for its next file, once there is room; None if the empty heap has none."""
        while True:
            batch = self._open_batch()
            try:
                return batch, self._heap.malloc(size) if size else None
            except HeapExhaustedError:
                if batch.files:
                    self._send()
                elif self._running:
                    self._collect(FIRST_COMPLETED)
                else:
                    return None

    def _open_batch(self) -> _Batch:
        while self._batch is None:
            try:
                self._batch = _Batch(self._heap.malloc(_JOB.size * BATCH_FILES))
            except HeapExhaustedError:
                if not self._running:
                    raise
                self._collect(FIRST_COMPLETED)
        return self._batch

    def _send(self) -> None:
        """Send the batch at hand to the pool, if there is anything in it."""
        batch = self._batch
        if batch is None or not batch.files:
            return
        self._batch = None
        for index, file in enumerate(batch.files):
            _JOB.pack_into(batch.table.view, index * _JOB.size, file.block.address if file.block else 0, file.length, b"")
        arguments = (batch.table, len(batch.files))
        self.tally.count_call(arguments)
        self._running[self._pool.submit("digest_many", *arguments)] = batch

    def _collect(self, until: str | None) -> None:
        """Take the results that are there; wait for one with `until=FIRST_COMPLETED`."""
        done, _ = wait(self._running, timeout=0 if until is None else None, return_when=FIRST_COMPLETED)
        for future in done:
            batch = self._running.pop(future)
            future.result()
            for index, file in enumerate(batch.files):
                digest = _JOB.unpack_from(batch.table.view, index * _JOB.size)[2]
                self.tally.digested.append(Digested(file.path, file.length, file.modified_ns, digest))
                if file.block is not None:
                    file.block.free()
            batch.table.free()
            self._progress(batch.length)

    def _digest_mapped(self, path: Path, status: os.stat_result) -> None:
        runtime = self._runtime
        try:
            with (
                runtime.create_shared_heap(pre_allocated=path, read_only=True) as content,
                runtime.create_shared_heap(_DIGEST_SIZE) as result,
                runtime.spawn(self._module, shared_heap=runtime.chain_shared_heaps(result, content)) as instance,
            ):
                block = result.malloc(_DIGEST_SIZE)
                arguments = (content.start, status.st_size, block)
                self.tally.count_call(arguments)
                instance.call("digest", *arguments)
                digest = bytes(block.view[:_DIGEST_SIZE])
        except (ArgumentError, ChainError) as error:
            self.tally.skipped.append((path, str(error)))
            return
        self.tally.mapped += 1
        self.tally.digested.append(Digested(path, status.st_size, status.st_mtime_ns, digest))
        self._progress(status.st_size)


def _read_into(file: BinaryIO, block: Block) -> int:
    """Read as much of the file as the block has room for; return how much that was."""
    filled = 0
    while filled < len(block):
        count = os.readv(file.fileno(), [block.view[filled : len(block)]])
        if count == 0:
            break
        filled += count
    return filled


@dataclass
class Verdict:
    """How the digests compare with `hashlib`'s of the files on disk."""

    differing: list[Path] = field(default_factory=list)
    changed: list[Path] = field(default_factory=list)
    """Files that changed since they were read, which nothing can be said about."""


def check(digested: Iterable[Digested], progress: Progress) -> Verdict:
    """Compare every digest with what `hashlib` makes of the file itself."""
    verdict = Verdict()
    for one in digested:
        try:
            with one.path.open("rb") as file:
                expected = hashlib.file_digest(file, "sha256").digest()
                status = os.fstat(file.fileno())
        except OSError:
            verdict.changed.append(one.path)
        else:
            if (status.st_size, status.st_mtime_ns) != (one.length, one.modified_ns):
                verdict.changed.append(one.path)
            elif expected != one.digest:
                verdict.differing.append(one.path)
        progress(one.length)
    return verdict
