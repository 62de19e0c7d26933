"""What a hot call must not notice: how many workers there are, how many heaps are in the chain, how many blocks live."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from benchmarks.context import MIB, Context, guest
from benchmarks.measuring import interleave, percentile, round_trips
from benchmarks.rows import Budget, Row, compare
from shmwasm import Instance, Runtime

WORKERS: Final = (1, 4, 16, 64)
HEAPS: Final = (1, 4, 16)
LIVE_BLOCKS: Final = (1_000, 10_000, 100_000, 1_000_000)
SIZE: Final = 64
TIMES: Final = 20_000
QUICK: Final = 0.1
"""The share of calls that are no slower than what is compared: they met nothing else that the machine was doing."""


def call_rows(context: Context, runtime: Runtime, topic: str, flat: Budget) -> Iterator[Row]:
    """Yield the curves, each beside its first point."""
    for what, points, subjects in (
        ("workers", WORKERS, _by_workers),
        ("heaps in the chain", HEAPS, _by_heaps),
        ("live blocks", LIVE_BLOCKS, _by_live_blocks),
    ):
        with contextlib.ExitStack() as stack:
            calls = subjects(stack, runtime)
            values = interleave(*[_quick(call, context.scaled(TIMES)) for call in calls], rounds=context.few_rounds)
        curve = f"hot call by number of {what}"
        for place, point in enumerate(points):
            peer = (f"{points[0]:,}", values[0]) if place else ("", None)
            budget = flat if place else None
            name = f"hot call, p10, {what}: {point:,}"
            yield compare(topic, name, values[place], *peer, budget=budget, curve=curve, point=f"{point:,}")


def _quick(call: Callable[[], object], times: int) -> Callable[[], float]:
    return lambda: percentile(round_trips(call, times), QUICK)


def _touching(instance: Instance, address: int) -> Callable[[], object]:
    return functools.partial(instance.exports.touch, address, SIZE)


def _by_workers(stack: contextlib.ExitStack, runtime: Runtime) -> Sequence[Callable[[], object]]:
    """Return calls of one of so many workers of a client; those of the other sizes are another client's."""
    calls = []
    for count in WORKERS:
        other = stack.enter_context(Runtime(connect=runtime.address))
        heap = stack.enter_context(other.create_shared_heap(MIB))
        guests = other.load(guest("calls"))
        workers = [stack.enter_context(other.spawn(guests, shared_heap=heap)) for _ in range(count)]
        calls.append(_touching(workers[-1], heap.malloc_address(SIZE)))
    return calls


def _by_heaps(stack: contextlib.ExitStack, runtime: Runtime) -> Sequence[Callable[[], object]]:
    """Return calls on a block in the last heap of a chain of so many."""
    module = runtime.load(guest("calls"))
    calls = []
    for count in HEAPS:
        heaps = [runtime.create_shared_heap(MIB) for _ in range(count)]
        chain = last = heaps.pop()
        while heaps:
            chain = runtime.chain_shared_heaps(heaps.pop(), chain)
        instance = stack.enter_context(runtime.spawn(module, shared_heap=chain))
        calls.append(functools.partial(instance.exports.touch, last.malloc(SIZE), SIZE))
    return calls


def _by_live_blocks(stack: contextlib.ExitStack, runtime: Runtime) -> Sequence[Callable[[], object]]:
    """Return calls on the last block of so many in a heap."""
    module = runtime.load(guest("calls"))
    calls = []
    for count in LIVE_BLOCKS:
        heap = stack.enter_context(runtime.create_shared_heap(256 * MIB, reserve=False))
        instance = stack.enter_context(runtime.spawn(module, shared_heap=heap))
        address = 0
        for _ in range(count):
            address = heap.malloc_address(SIZE)
        calls.append(_touching(instance, address))
    return calls
