"""A call that works on 1 MiB, passed by address, beside those who copy it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import wasmtime

from benchmarks.context import MIB, Context, guest
from benchmarks.measuring import interleave, median_elapsed
from benchmarks.rows import Row, at_most, compare
from shmwasm import Runtime

TOPIC: Final = "calling"
WHAT: Final = "call round trip with 1 MiB"
SIZE: Final = MIB


def touch(array: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> int:
    """Do in a process of multiprocessing what the guest's `touch` does."""
    array[0] += 1
    return int(array[0]) + int(array[-1])


def rows(context: Context) -> Iterator[Row]:
    """Yield the medians of round trips, by name and through a bound export."""
    times = context.scaled(500)
    array = np.zeros(SIZE, np.uint8)
    # First, while this process has one thread and may be forked.
    with multiprocessing.get_context("fork").Pool(1) as pool, Runtime() as runtime:
        heap = runtime.create_shared_heap(16 * MIB)
        block = heap.malloc(SIZE)
        block.ndarray("u1")[:] = 0
        instance = runtime.spawn(runtime.load(guest("calls")), shared_heap=heap)
        bound = instance.exports.touch
        named, exported, pooled, copied = interleave(
            lambda: median_elapsed(lambda: instance.call("touch", block, SIZE), times),
            lambda: median_elapsed(lambda: bound(block, SIZE), times),
            lambda: median_elapsed(lambda: pool.apply(touch, (array,)), max(3, times // 50)),
            _copying(array.tobytes(), times),
            rounds=context.rounds,
        )
    yield compare(TOPIC, f"{WHAT}: call(name)", named, "multiprocessing.Pool.apply", pooled, budget=at_most(40e-6, binding=False))
    yield compare(
        TOPIC, f"{WHAT}: bound export", exported, "multiprocessing.Pool.apply", pooled, budget=at_most(40e-6, binding=False)
    )
    yield compare(TOPIC, f"{WHAT}: call(name)", named, "wasmtime-py, Memory.write and read", copied)


def _copying(data: bytes, times: int) -> Callable[[], float]:
    """Return the peer in one process: the data is copied into the guest's memory, and back."""
    store = wasmtime.Store()
    instance = wasmtime.Instance(store, wasmtime.Module.from_file(store.engine, str(guest("calls"))), [])
    exports = instance.exports(store)
    memory, function, place = exports["memory"], exports["touch"], exports["private_memory"]
    assert isinstance(memory, wasmtime.Memory)
    assert isinstance(function, wasmtime.Func)
    assert isinstance(place, wasmtime.Func)
    address = place(store)

    def call() -> None:
        memory.write(store, data, address)
        function(store, address, SIZE)
        memory.read(store, address, address + SIZE)

    return lambda: median_elapsed(call, times)
