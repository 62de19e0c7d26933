"""The demo's job as one would do it without shared heaps: `multiprocessing.Pool`, each file pickled through a pipe."""

from __future__ import annotations

import hashlib
import multiprocessing
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from shmwasm.cli.digests import Progress


@dataclass(frozen=True)
class PeerRun:
    """What the pool did, and how many bytes of files went through its pipes."""

    files: int
    bytes: int
    startup_seconds: float
    seconds: float
    content_bytes: int


def digest_by_multiprocessing(paths: Iterable[Path], processes: int, progress: Progress) -> PeerRun:
    """Digest every file in a `multiprocessing.Pool`; this process reads them, as it does for the shared heap.

    The pool forks, so this must be called while no other Python thread runs, that is, after the runtime was closed.
    """
    sent = 0

    def contents() -> Iterator[bytes]:
        nonlocal sent
        for path in paths:
            try:
                content = path.read_bytes()
            except OSError:
                continue
            sent += len(content)
            yield content

    start = time.perf_counter()
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        pool.map(_digest, [b""] * processes, chunksize=1)
        ready = time.perf_counter()
        files = total = 0
        for length, _ in pool.imap_unordered(_digest, contents(), chunksize=16):
            files += 1
            total += length
            progress(length)
        end = time.perf_counter()
        pool.close()
        pool.join()
    return PeerRun(files, total, ready - start, end - ready, sent)


def _digest(content: bytes) -> tuple[int, bytes]:
    return len(content), hashlib.sha256(content).digest()
