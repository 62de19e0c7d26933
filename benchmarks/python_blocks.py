"""malloc and free from Python, beside ctypes calls of the C library's."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator
from typing import Final

from benchmarks.context import MIB, Context
from benchmarks.measuring import elapsed, interleave
from benchmarks.rows import Row, at_most, compare
from shmwasm import Runtime, SharedHeap

TOPIC: Final = "python-blocks"
SIZE: Final = 64
PEER: Final = "ctypes: malloc, free"


def rows(context: Context) -> Iterator[Row]:
    """Yield a row for each way to free a raw address, and one for `Block` objects."""
    times = context.scaled(200_000)
    with Runtime() as runtime:
        heap = runtime.create_shared_heap(16 * MIB)
        malloc = heap.malloc_address
        raw, either, blocks, peers = interleave(
            _timed(_addresses(malloc, heap.free_address), times),
            _timed(_addresses(malloc, heap.free), times),
            _timed(_blocks(heap), times),
            _timed(_libc(), times),
            rounds=context.rounds,
        )
    yield compare(TOPIC, "malloc_address + free_address, 64 B", raw, PEER, peers, budget=at_most(1.0e-6))
    yield compare(TOPIC, "malloc_address + free, 64 B", either, PEER, peers, budget=at_most(1.0e-6))
    yield compare(TOPIC, "malloc + free of a Block, 64 B", blocks, PEER, peers, budget=at_most(2.0e-6))


def _timed(loop: Callable[[int], None], times: int) -> Callable[[], float]:
    return lambda: elapsed(lambda: loop(times), clock=time.thread_time) / times


def _addresses(malloc: Callable[[int], int], free: Callable[[int], None]) -> Callable[[int], None]:
    def loop(times: int) -> None:
        for _ in range(times):
            free(malloc(SIZE))

    return loop


def _blocks(heap: SharedHeap) -> Callable[[int], None]:
    def loop(times: int) -> None:
        malloc = heap.malloc
        for _ in range(times):
            malloc(SIZE).free()

    return loop


def _libc() -> Callable[[int], None]:
    library = ctypes.CDLL(None)
    malloc, free = library.malloc, library.free
    malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    free.restype, free.argtypes = None, [ctypes.c_void_p]
    return _addresses(malloc, free)
