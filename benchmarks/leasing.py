"""The one thing about malloc that asks the coordinator: a lease of slabs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from benchmarks.context import MIB, Context, guest
from benchmarks.echoing import ECHO, echo
from benchmarks.measuring import elapsed, interleave, median_elapsed
from benchmarks.rows import Row, at_most, compare
from shmwasm import Instance, Runtime, SharedHeap

TOPIC: Final = "leasing"
LARGE: Final = 40_000
"""Bytes of a block that is a slab of its own, so that each malloc is a lease as long as none is freed."""


def rows(context: Context) -> Iterator[Row]:
    """Yield a lease's round trip, as a malloc that needs one takes it."""
    times = context.scaled(500)
    # First, while this process has one thread and may be forked.
    with echo() as round_trip, Runtime() as runtime:
        heap = runtime.create_shared_heap(256 * MIB)
        instance = runtime.spawn(runtime.load(guest("blocks")), shared_heap=heap)
        client, worker, peers = interleave(
            lambda: _in_client(heap, times),
            lambda: _in_worker(instance, times),
            lambda: median_elapsed(round_trip, times),
            rounds=context.rounds,
        )
    yield compare(TOPIC, "malloc with a lease, from Python", client, ECHO, peers, budget=at_most(100e-6))
    yield compare(TOPIC, "malloc with a lease, in a guest", worker, ECHO, peers, budget=at_most(100e-6))


def _in_client(heap: SharedHeap, times: int) -> float:
    blocks: list[int] = []
    taken = median_elapsed(lambda: blocks.append(heap.malloc_address(LARGE)), times)
    for block in blocks:
        heap.free(block)
    return taken


def _in_worker(instance: Instance, times: int) -> float:
    taken = elapsed(lambda: instance.call("keep", times, LARGE)) / times
    instance.call("drop")
    return taken
