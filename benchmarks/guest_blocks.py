"""malloc and free in guests, beside the same loops compiled natively on glibc's."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from typing import Final

from benchmarks.context import EMPTY_CALLS, MIB, NO_COMPILER, Context, compile_natively, guest, loop_work
from benchmarks.measuring import elapsed, interleave, median_elapsed, process_clock
from benchmarks.rows import Budget, Row, compare, ratio_at_most
from shmwasm import Instance, Runtime, SharedHeap

TOPIC: Final = "guest-blocks"
SIZE: Final = 64
WHAT: Final = "malloc + free, 64 B"
LIVE: Final = 1024
BATCH: Final = 100_000
GLIBC: Final = "glibc"


def rows(context: Context) -> Iterator[Row]:
    """Yield the rows of one worker alone, of two at once, and of blocks that one allocates and the other frees."""
    times = context.scaled(5_000_000)
    native = compile_natively("blocks")
    with Runtime() as runtime:
        module = runtime.load(guest("blocks"))
        heap = runtime.create_shared_heap(256 * MIB)
        first, second = (runtime.spawn(module, shared_heap=heap) for _ in range(2))
        elsewhere = runtime.spawn(module, shared_heap=runtime.create_shared_heap(64 * MIB))
        for what, size in ((WHAT, SIZE), ("malloc + free, 1 KiB", 1024)):
            call = ("pairs", times, size)
            yield beside_glibc(context, TOPIC, what, (first, native), call, budget=ratio_at_most(1.0))
        yield beside_glibc(context, TOPIC, "replace one of 1024 at random, 16..527 B", (first, native), ("churn", times, LIVE))
        first.call("drop")
        if native is not None:
            native.drop()
        yield from _two_at_once(context, first, second, elsewhere, times)
        yield _freed_elsewhere(context, heap, first, second, times)


def beside_glibc(
    context: Context,
    topic: str,
    what: str,
    sides: tuple[Instance, ctypes.CDLL | None],
    call: tuple[str, int, int],
    *,
    budget: Budget | None = None,
) -> Row:
    """Return the row of one call of the guest, divided by its first argument, beside the same source compiled natively."""
    instance, native = sides
    export, times, argument = call
    ours = loop_work(instance, export, times, argument)
    if native is None:
        (measured,) = interleave(ours, rounds=context.rounds)
        return compare(topic, what, measured, NO_COMPILER, budget=budget)
    function = native[export]

    def peer() -> float:
        return elapsed(lambda: function(times, argument), clock=time.thread_time) / times

    measured, peers = interleave(ours, peer, rounds=context.rounds)
    return compare(topic, what, measured, GLIBC, peers, budget=budget)


def _two_at_once(context: Context, first: Instance, second: Instance, elsewhere: Instance, times: int) -> Iterator[Row]:
    """Yield what a pair takes while another worker does the same, on the same heap and, to judge the machine, on another."""
    clock = process_clock(first.pid)

    def beside(other: Instance | None) -> float:
        # The other one does half as much again, so that it is busy from before the first begins until after it ends.
        busy = None if other is None else other.submit("pairs", times + times // 2, SIZE)
        taken = elapsed(lambda: first.call("pairs", times, SIZE), clock=clock) / times
        if busy is not None:
            busy.result()
        return taken

    together, apart, alone = interleave(
        lambda: beside(second), lambda: beside(elsewhere), lambda: beside(None), rounds=context.rounds
    )
    what = f"{WHAT}, two workers at once on one heap"
    yield compare(TOPIC, what, together, "alone", alone, budget=ratio_at_most(1.05))
    yield compare(TOPIC, what, together, "at once, a heap each", apart)


def _freed_elsewhere(context: Context, heap: SharedHeap, first: Instance, second: Instance, times: int) -> Row:
    """Return what a block takes that one worker allocates and another frees: the time of both, in batches."""
    count = context.scaled(BATCH)
    blocks = heap.malloc(4 * count)
    clocks = [process_clock(instance.pid) for instance in (first, second)]

    def both() -> float:
        return sum(clock() for clock in clocks)

    def batch(size: int) -> None:
        if first.call("allocate", blocks, size, SIZE) != size:
            raise MemoryError(f"the heap has no room for {size} blocks of {SIZE} bytes")
        second.call("release", blocks, size)

    empty = median_elapsed(lambda: batch(0), EMPTY_CALLS, clock=both)

    def elsewhere() -> float:
        return (elapsed(lambda: batch(count), clock=both) - empty) / count

    own = loop_work(first, "pairs", times, SIZE)
    measured, pairs = interleave(elsewhere, own, rounds=context.rounds, warmups=3)
    blocks.free()
    return compare(
        TOPIC, "malloc in one worker, free in another, 64 B", measured, "own malloc + free", pairs, budget=ratio_at_most(3.0)
    )
