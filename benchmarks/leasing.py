"""The one thing about malloc that asks the coordinator: a lease of slabs."""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from benchmarks.context import MIB, Context, guest
from benchmarks.measuring import elapsed, interleave, median_elapsed
from benchmarks.rows import Row, at_most, compare
from shmwasm import Instance, Runtime, SharedHeap

TOPIC: Final = "leasing"
LARGE: Final = 40_000
"""Bytes of a block that is a slab of its own, so that each malloc is a lease as long as none is freed."""

PEER: Final = "echo over a socket"


def rows(context: Context) -> Iterator[Row]:
    """Yield a lease's round trip, as a malloc that needs one takes it."""
    times = context.scaled(500)
    # First, while this process has one thread and may be forked.
    with _echo() as round_trip, Runtime() as runtime:
        heap = runtime.create_shared_heap(256 * MIB)
        instance = runtime.spawn(runtime.load(guest("blocks")), shared_heap=heap)
        client, worker, peers = interleave(
            lambda: _in_client(heap, times),
            lambda: _in_worker(instance, times),
            lambda: median_elapsed(round_trip, times),
            rounds=context.rounds,
        )
    yield compare(TOPIC, "malloc with a lease, from Python", client, PEER, peers, budget=at_most(100e-6))
    yield compare(TOPIC, "malloc with a lease, in a guest", worker, PEER, peers, budget=at_most(100e-6))


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


@contextmanager
def _echo() -> Iterator[Callable[[], object]]:
    """Give one round trip over a socket to another process: what a message costs at least between two Pythons."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = multiprocessing.get_context("fork").Process(target=_echo_alone, args=(ours, theirs))
    process.start()
    theirs.close()

    def round_trip() -> object:
        ours.send(b"lease")
        return ours.recv(64)

    try:
        yield round_trip
    finally:
        ours.close()
        process.join()


def _echo_alone(ours: socket.socket, theirs: socket.socket) -> None:
    ours.close()  # or it would never see that the other process is gone
    while message := theirs.recv(64):
        theirs.send(message)
