"""Messages between two instances in two processes, through the guest kit, beside those that Python processes send each other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Final

from benchmarks.context import MIB, Context, guest
from benchmarks.measuring import elapsed, interleave
from benchmarks.messaging_peers import CAPACITY, SIZE, Peer, iceoryx2_peer, queue_peer
from benchmarks.rows import Row, compare
from shmwasm import Instance, Runtime

TOPIC: Final = "queue"
SENT: Final = 1_000_000
"""Messages that guests send in one round; the peers, far slower, send a hundredth of that."""
ROUND_TRIPS: Final = 50_000
SLOWER: Final = 100
KINDS: Final = {"ring": "one producer, one consumer", "queue": "any number of each"}


def rows(context: Context) -> Iterator[Row]:
    """Yield messages per second, and round trips, of both kinds of queue beside each peer."""
    sent, trips = context.scaled(SENT), context.scaled(ROUND_TRIPS)
    with contextlib.ExitStack() as stack:
        peers: list[Peer] = [stack.enter_context(queue_peer())]
        missing = ""
        try:
            peers.append(stack.enter_context(iceoryx2_peer()))
        except ImportError as error:
            missing = f"no iceoryx2: {error}"
        runtime = stack.enter_context(Runtime())
        heap = runtime.create_shared_heap(4 * MIB)
        module = runtime.load(guest("queue"))
        pair = [runtime.spawn(module, shared_heap=heap) for _ in range(2)]
        rates = interleave(
            *[_sending(pair, kind, sent) for kind in KINDS],
            *[_rate(peer.send, sent // SLOWER) for peer in peers],
            rounds=context.rounds,
        )
        times = interleave(
            *[_there_and_back(pair, kind, trips) for kind in KINDS],
            *[_time(peer.ping, trips // SLOWER) for peer in peers],
            rounds=context.rounds,
        )
    for place, (kind, what) in enumerate(KINDS.items()):
        for peer, name in enumerate((one.name for one in peers), len(KINDS)):
            yield compare(TOPIC, f"messages of {SIZE} B, {kind} ({what})", rates[place], name, rates[peer], unit="1/s")
            yield compare(TOPIC, f"there and back, {kind}", times[place], name, times[peer])
        if missing:
            yield compare(TOPIC, f"messages of {SIZE} B, {kind} ({what})", rates[place], missing, unit="1/s")


def _sending(pair: list[Instance], kind: str, times: int) -> Callable[[], float]:
    """Return a subject: the messages that arrive in a second."""
    first, second = pair
    address = first.call(f"new_{kind}", CAPACITY)

    def both() -> None:
        receiving = second.submit(f"{kind}_receive", address, times)
        first.call(f"{kind}_send", address, times)
        receiving.result()

    return _rate(lambda _: both(), times)


def _there_and_back(pair: list[Instance], kind: str, times: int) -> Callable[[], float]:
    """Return a subject: the seconds from a message until its answer."""
    first, second = pair
    there, back = (first.call(f"new_{kind}", CAPACITY) for _ in range(2))

    def both() -> None:
        answering = second.submit(f"{kind}_pong", there, back, times)
        first.call(f"{kind}_ping", there, back, times)
        answering.result()

    return _time(lambda _: both(), times)


def _rate(work: Callable[[int], None], times: int) -> Callable[[], float]:
    return lambda: times / elapsed(lambda: work(times))


def _time(work: Callable[[int], None], times: int) -> Callable[[], float]:
    return lambda: elapsed(lambda: work(times)) / times
