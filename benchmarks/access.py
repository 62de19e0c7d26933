"""Loads and stores in a shared heap, beside the same compiled loops over the guest's private memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from benchmarks.context import MIB, Context, guest, guest_work
from benchmarks.measuring import interleave
from benchmarks.rows import Row, compare, ratio_at_most
from shmwasm import Instance, Runtime

TOPIC: Final = "access"
SIZE: Final = 32 * MIB
WORD: Final = 8
CHASED: Final = 256 << 10
"""Bytes for the loads in no order: few enough to stay in a core's caches, or the luck of physical pages would be measured."""

CHASES: Final = 1 << 20


def rows(context: Context) -> Iterator[Row]:
    """Yield a row for each way to go over 32 MiB."""
    with Runtime() as runtime:
        heap = runtime.create_shared_heap(2 * SIZE)
        instance = runtime.spawn(runtime.load(guest("memory")), shared_heap=heap)
        private = instance.call("private_memory")
        assert isinstance(private, int)
        shared = heap.malloc_address(SIZE)
        for name, loop in _loops(instance, times=max(1, context.scaled(10))):
            ours, peers = interleave(loop(shared), loop(private), rounds=context.rounds)
            yield compare(TOPIC, name, ours, "private memory", peers, budget=ratio_at_most(1.02))


def _loops(instance: Instance, times: int) -> Iterator[tuple[str, Callable[[int], Callable[[], float]]]]:
    """Yield each loop's name, and what makes a subject of it for an array's address."""
    count = SIZE // WORD
    for export, name in (("load", "load 32 MiB"), ("store", "store 32 MiB")):
        yield name, lambda address, export=export: guest_work(instance, export, address, count, times, divisor=times)  # type: ignore[misc]
    yield (
        "dependent loads in no order, 256 KiB",
        lambda address: guest_work(instance, "chase", address, CHASED - 1, CHASES * times, divisor=CHASES * times),
    )
