"""Calls: their round trip with 1 MiB by address, hot and parked, beside those who copy it; many in flight; and fresh ones."""

from __future__ import annotations

import functools
import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, Final

import numpy as np
import wasmtime

from benchmarks.answering import increment, touch
from benchmarks.calling_fresh import fresh_rows
from benchmarks.context import MIB, Context, guest
from benchmarks.echoing import ECHO, echo
from benchmarks.measuring import elapsed, interleave, percentile, round_trips
from benchmarks.rows import Row, at_most, compare, ratio_at_most
from shmwasm import Block, Instance, Runtime

TOPIC: Final = "calling"
WHAT: Final = "call round trip with 1 MiB"
POOL: Final = "multiprocessing.Pool.apply"
SIZE: Final = MIB
PARKED_AFTER: Final = 1e-3
"""Seconds without a call, after which a worker sleeps for certain."""

IN_FLIGHT: Final = (1, 2, 4, 8, 16, 32, 64)
MEDIAN: Final = 0.5
HUNDREDTH: Final = 0.99


def rows(context: Context) -> Iterator[Row]:
    """Yield round trips, hot and parked, calls a second by how many are in flight, and what fresh ones take."""
    # Both peers first, while this process has one thread and may be forked.
    with multiprocessing.get_context("fork").Pool(1) as pool, echo() as round_trip, Runtime() as runtime:
        heap = runtime.create_shared_heap(16 * MIB)
        block = heap.malloc(SIZE)
        block.ndarray("u1")[:] = 0
        instance = runtime.spawn(runtime.load(guest("calls")), shared_heap=heap)
        yield from _hot(context, instance, block, lambda array: pool.apply(touch, (array,)))
        yield from _parked(context, instance, block, round_trip)
        yield from _in_flight(context, instance)
        yield from fresh_rows(context, runtime, TOPIC)


def _hot(context: Context, instance: Instance, block: Block, apply: Callable[[Any], int]) -> Iterator[Row]:
    """Yield the round trips of calls that follow each other closely."""
    times = context.scaled(5_000)
    array = np.zeros(SIZE, np.uint8)
    bound = functools.partial(instance.exports.touch, block.address, SIZE)
    named = functools.partial(instance.call, "touch", block, SIZE)
    with_block = functools.partial(instance.exports.touch, block, SIZE)
    exported, by_name, by_block, pooled, copied = interleave(
        _quantile(bound, times, MEDIAN),
        _quantile(named, times, MEDIAN),
        _quantile(with_block, times, MEDIAN),
        _quantile(lambda: apply(array), max(5, times // 500), MEDIAN),
        _quantile(_copying(array.tobytes()), times // 10, MEDIAN),
        rounds=context.rounds,
    )
    late, late_by_name = interleave(_quantile(bound, times, HUNDREDTH), _quantile(named, times, HUNDREDTH), rounds=context.rounds)
    yield compare(TOPIC, f"{WHAT}, bound export, p50", exported, budget=at_most(2e-6))
    yield compare(TOPIC, f"{WHAT}, bound export, p99", late, budget=at_most(20e-6))
    yield compare(TOPIC, f"{WHAT}, call(name), p50", by_name, budget=at_most(3e-6))
    yield compare(TOPIC, f"{WHAT}, call(name), p99", late_by_name, budget=at_most(20e-6))
    yield compare(TOPIC, f"{WHAT}, bound export of a Block, p50", by_block)
    yield compare(TOPIC, f"{WHAT}, bound export", exported, POOL, pooled, budget=ratio_at_most(1e-3))
    yield compare(TOPIC, f"{WHAT}, bound export", exported, "wasmtime-py, Memory.write and read", copied)


def _parked(context: Context, instance: Instance, block: Block, round_trip: Callable[[], object]) -> Iterator[Row]:
    """Yield the round trip of a call that wakes its worker, beside a message that wakes its reader."""
    times = context.scaled(100)

    def subject(work: Callable[[], object]) -> Callable[[], float]:
        def once() -> float:
            time.sleep(PARKED_AFTER)
            return elapsed(work)

        return lambda: percentile(sorted(once() for _ in range(times)), MEDIAN)

    call = functools.partial(instance.exports.touch, block.address, SIZE)
    ours, peers = interleave(subject(call), subject(round_trip), rounds=context.few_rounds)
    yield compare(TOPIC, f"{WHAT}, parked, p50", ours, ECHO, peers, budget=at_most(40e-6))


def _in_flight(context: Context, instance: Instance) -> Iterator[Row]:
    """Yield calls a second while so many are in flight, beside an executor of Python's."""
    times = context.scaled(5_000)
    peer = "concurrent.futures.ProcessPoolExecutor"
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        for count in IN_FLIGHT:
            ours, peers = interleave(
                _rate(lambda number: instance.submit("increment", number), count, times),
                _rate(lambda number: executor.submit(increment, number), count, times // 10),
                rounds=context.few_rounds,
            )
            what = f"submitted calls, {count} in flight"
            yield compare(
                TOPIC, what, ours, peer, peers, unit="1/s", curve="submitted calls by calls in flight", point=str(count)
            )
    bound = instance.exports.increment
    (waited,) = interleave(lambda: times / elapsed(lambda: [bound(number) for number in range(times)]), rounds=context.few_rounds)
    yield compare(TOPIC, "calls of a bound export, one after the other", waited, unit="1/s")


def _rate(submit: Callable[[int], Future[Any]], count: int, times: int) -> Callable[[], float]:
    """Return a subject: how many calls end in a second while `count` of them are in flight."""

    def work() -> None:
        flying: deque[Future[Any]] = deque()
        for number in range(times):
            if len(flying) == count:
                _take(flying, number - count)
            flying.append(submit(number))
        for number in range(max(0, times - count), times):
            _take(flying, number)

    return lambda: times / elapsed(work)


def _take(flying: deque[Future[Any]], number: int) -> None:
    result = flying.popleft().result()
    if result != number + 1:
        raise ValueError(f"increment({number}) gave {result}")


def _quantile(call: Callable[[], object], times: int, share: float) -> Callable[[], float]:
    return lambda: percentile(round_trips(call, times), share)


def _copying(data: bytes) -> Callable[[], object]:
    """Return a call of the peer in one process: the data is copied into the guest's memory, and back."""
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

    return call
