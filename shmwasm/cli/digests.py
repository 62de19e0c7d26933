"""The demo's job: files are read into a shared heap and digested there by a pool of guests.

Theory
------
Files travel in batches, because a call costs more than a small file's digest, and because the guest digests four messages at
once. A batch is one block of the heap: a table of jobs, then the files, each read straight to its place (`readv` into the block's
view). What goes to an instance is the block's address and the number of jobs.

The heap is the only buffer. When it has no room for the next batch, that waits for a result and the block that it frees: reading
never runs ahead of digesting by more than the heap. A file that does not fit even into the empty heap is not read at all: it is
mapped as a preallocated, read-only heap of its own.
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
"""A batch's block, unless its only file needs more or the heap is small."""

BATCHES_OF_A_HEAP = 16

_JOB = struct.Struct("<II32s")  # struct job of sha256.c: address, length, digest
_TABLE_SIZE = _JOB.size * BATCH_FILES
_DIGEST_SIZE = 32
_ARGUMENT_SIZE = 8  # a number in a call

Progress = Callable[[int], None]
"""Told how many more bytes are done."""


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


@dataclass(frozen=True)
class _Placed:
    path: Path
    modified_ns: int
    length: int


@dataclass
class _Batch:
    block: Block
    files: list[_Placed] = field(default_factory=list)
    filled: int = _TABLE_SIZE

    def has_room(self, size: int) -> bool:
        return len(self.files) < BATCH_FILES and self.filled + size <= self.block.size

    def place(self, path: Path, file: BinaryIO, status: os.stat_result) -> None:
        """Read the file into the block, as much of it as there was when its status was taken."""
        length = _read_into(file, self.block.view[self.filled : self.filled + status.st_size])
        _JOB.pack_into(self.block.view, len(self.files) * _JOB.size, self.block.address + self.filled, length, b"")
        self.files.append(_Placed(path, status.st_mtime_ns, length))
        self.filled += length

    def results(self) -> Iterator[Digested]:
        for file, job in zip(self.files, _JOB.iter_unpack(self.block.view[: len(self.files) * _JOB.size]), strict=True):
            yield Digested(file.path, file.length, file.modified_ns, job[2])


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
            self._collect(wait_for_one=True)

    def _add(self, path: Path, file: BinaryIO) -> None:
        status = os.fstat(file.fileno())
        batch = self._batch_for(status.st_size)
        if batch is None:
            self._digest_mapped(path, status)
        else:
            batch.place(path, file, status)

    def _batch_for(self, size: int) -> _Batch | None:
        """Return a batch with room for a file, once there is one; None if even the empty heap has no room for it."""
        if self._batch is not None and self._batch.has_room(size):
            return self._batch
        self._send()
        self._collect(wait_for_one=False)
        usual = min(BATCH_BYTES, self._heap.size // BATCHES_OF_A_HEAP)
        while True:
            try:
                self._batch = _Batch(self._heap.malloc(max(usual, _TABLE_SIZE + size)))
            except HeapExhaustedError:
                if not self._running:
                    return None
                self._collect(wait_for_one=True)
            else:
                return self._batch

    def _send(self) -> None:
        """Send the batch at hand to the pool, if there is one."""
        batch, self._batch = self._batch, None
        if batch is not None:
            arguments = (batch.block, len(batch.files))
            self.tally.count_call(arguments)
            self._running[self._pool.submit("digest_many", *arguments)] = batch

    def _collect(self, *, wait_for_one: bool) -> None:
        """Take the results that are there, and free their batches' blocks."""
        done, _ = wait(self._running, timeout=None if wait_for_one else 0, return_when=FIRST_COMPLETED)
        for future in done:
            batch = self._running.pop(future)
            future.result()
            self.tally.digested.extend(batch.results())
            self._progress(batch.filled - _TABLE_SIZE)
            batch.block.free()

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


def _read_into(file: BinaryIO, view: memoryview) -> int:
    """Read as much of the file as the view has room for; return how much that was."""
    filled = 0
    while filled < len(view):
        count = os.readv(file.fileno(), [view[filled:]])
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
