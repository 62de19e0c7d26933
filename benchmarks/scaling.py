"""What must not grow: the cost of malloc, of attaching, of a call, as heaps, live blocks and workers do."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Final

from benchmarks.context import MIB, Context, compile_natively, guest, loop_work
from benchmarks.guest_blocks import beside_glibc
from benchmarks.measuring import elapsed, interleave, median_elapsed, process_clock
from benchmarks.rows import Budget, Row, at_most, compare, ratio_at_most
from benchmarks.scaling_calls import call_rows
from shmwasm import Instance, Module, Runtime, SharedHeap

TOPIC: Final = "scaling"
SIZE: Final = 64
FLAT: Final = ratio_at_most(1.25)
"""Flat, as far as a busy machine shows."""

LIVE_BLOCKS: Final = (1_000, 10_000, 100_000, 1_000_000)
WORKERS: Final = (2, 4, 8)
CHAINS: Final = (1, 4, 16)
HEAP_SIZES: Final = (64 * MIB, 256 * MIB, 1024 * MIB, 2048 * MIB)


def rows(context: Context) -> Iterator[Row]:
    """Yield one curve after the other."""
    with Runtime() as runtime:
        module = runtime.load(guest("blocks"))
        yield from _live_blocks(context, runtime, module)
        yield from _workers(context, runtime, module)
    with Runtime() as runtime:
        yield from _heap_sizes(context, runtime)
        yield from _chains(context, runtime)
    with Runtime() as runtime:
        yield from call_rows(context, runtime, TOPIC, FLAT)


def _curve(what: str, points: list[str], values: list[list[float]], budget: Budget = FLAT) -> Iterator[Row]:
    yield compare(TOPIC, f"{what}, {points[0]}", values[0], curve=what, point=points[0])
    for point, measured in zip(points[1:], values[1:], strict=True):
        yield compare(TOPIC, f"{what}, {point}", measured, points[0], values[0], budget=budget, curve=what, point=point)


def _live_blocks(context: Context, runtime: Runtime, module: Module) -> Iterator[Row]:
    """Malloc and free while so many other blocks live: of one size, and of many at random places beside glibc's."""
    times = context.scaled(2_000_000)
    native = compile_natively("blocks")
    pairs: list[Callable[[], float]] = []
    with contextlib.ExitStack() as stack:
        instances: list[Instance] = []
        for live in LIVE_BLOCKS:
            heap = stack.enter_context(runtime.create_shared_heap(512 * MIB, reserve=False))
            instance = stack.enter_context(runtime.spawn(module, shared_heap=heap))
            if instance.call("keep", live, SIZE) != live:
                raise MemoryError(f"the heap has no room for {live} blocks of {SIZE} bytes")
            instances.append(instance)
            pairs.append(loop_work(instance, "pairs", times, SIZE))
        points = [f"{live:,} live" for live in LIVE_BLOCKS]
        yield from _curve("guest malloc + free, 64 B", points, interleave(*pairs, rounds=context.rounds))
        for live, instance, point in zip(LIVE_BLOCKS, instances, points, strict=True):
            instance.call("drop")
            instance.call("churn", 4 * live, live)
            if native is not None:
                native.churn(4 * live, live)
            # This misses the caches as the number of live blocks grows, for glibc too.
            what = f"guest: replace one at random, 16..527 B, {point}"
            yield beside_glibc(context, TOPIC, what, (instance, native), ("churn", times, live))
            if native is not None:
                native.drop()


def _workers(context: Context, runtime: Runtime, module: Module) -> Iterator[Row]:
    """Malloc and free in several workers at once: on one heap, beside as many workers that have a heap each."""
    times = context.scaled(2_000_000)
    with contextlib.ExitStack() as stack:

        def start(heap: SharedHeap) -> Instance:
            return stack.enter_context(runtime.spawn(module, shared_heap=heap))

        def new_heap() -> SharedHeap:
            return stack.enter_context(runtime.create_shared_heap(16 * MIB))

        heap = new_heap()
        together = [start(heap) for _ in range(max(WORKERS))]
        apart = [start(new_heap()) for _ in range(max(WORKERS))]
        for count in WORKERS:
            sides = (_at_once(together[:count], times), _at_once(apart[:count], times))
            ours, peers = interleave(*sides, rounds=context.rounds)
            what = f"guest malloc + free, 64 B, {count} workers on one heap"
            yield compare(TOPIC, what, ours, "a heap each", peers, budget=FLAT)


def _at_once(instances: list[Instance], times: int) -> Callable[[], float]:
    """Return a subject: what a pair takes each of the instances while all of them do the same."""
    clocks = [process_clock(instance.pid) for instance in instances]

    def work() -> None:
        for call in [instance.submit("pairs", times, SIZE) for instance in instances]:
            call.result()

    return lambda: elapsed(work, clock=lambda: sum(clock() for clock in clocks)) / times / len(instances)


def _heap_sizes(context: Context, runtime: Runtime) -> Iterator[Row]:
    """Creating a heap, which is linear as its memory is reserved, and attaching it, which is flat."""
    gibibyte = 1024 * MIB

    def create() -> float:
        with contextlib.ExitStack() as stack:
            return elapsed(lambda: stack.enter_context(runtime.create_shared_heap(gibibyte)))

    (created,) = interleave(create, rounds=context.rounds)
    yield compare(TOPIC, "create a heap of 1 GiB, reserved", created, budget=at_most(0.5))
    module = runtime.load(guest("calls"))
    times = context.scaled(200)
    with contextlib.ExitStack() as stack:

        def attaching(size: int) -> Callable[[], float]:
            heap = stack.enter_context(runtime.create_shared_heap(size))
            return _attaching(stack.enter_context(runtime.spawn(module)), heap, times)

        subjects = [attaching(size) for size in HEAP_SIZES]
        values = interleave(*subjects, rounds=context.rounds)
    yield from _curve("attach, call, detach", [f"{size // MIB} MiB" for size in HEAP_SIZES], values)


def _chains(context: Context, runtime: Runtime) -> Iterator[Row]:
    """Attaching a chain, whose cost is at most that of attaching each of its heaps."""
    module = runtime.load(guest("calls"))
    subjects = []
    with contextlib.ExitStack() as stack:
        for length in CHAINS:
            chain = runtime.create_shared_heap(MIB)
            for _ in range(length - 1):
                chain = runtime.chain_shared_heaps(runtime.create_shared_heap(MIB), chain)
            subjects.append(_attaching(stack.enter_context(runtime.spawn(module)), chain, context.scaled(200)))
        first, *others = interleave(*subjects, rounds=context.few_rounds)
    curve = "attach, call, detach a chain"
    yield compare(TOPIC, f"{curve} of 1 heap", first, curve=curve, point="1")
    for length, values in zip(CHAINS[1:], others, strict=True):
        what, limit = f"{curve} of {length} heaps", ratio_at_most(length)
        yield compare(TOPIC, what, values, "1 heap", first, budget=limit, curve=curve, point=str(length))


def _attaching(instance: Instance, heap: SharedHeap, times: int) -> Callable[[], float]:
    """Return a subject: how long it takes to attach a chain, call once, and detach it."""
    block = heap.malloc(16).address

    def attach() -> None:
        instance.attach_shared_heap(heap)
        instance.call("touch", block, 1)
        instance.detach_shared_heap()

    return lambda: median_elapsed(attach, times)
