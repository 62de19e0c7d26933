"""A call with a payload of 0 B to 64 MiB by address, beside everybody who hands it over in another way, all in one run."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from benchmarks.context import MIB, Context, guest
from benchmarks.measuring import elapsed, interleave, percentile, round_trips
from benchmarks.payload_peers import PEERS, Bytes, Peer
from benchmarks.rows import Row, compare
from shmwasm import Runtime

TOPIC: Final = "payloads"
CURVE: Final = "call with a payload"
SIZES: Final = {"0 B": 0, "1 KiB": 1 << 10, "64 KiB": 64 << 10, "1 MiB": MIB, "16 MiB": 16 * MIB, "64 MiB": 64 * MIB}
OUR_CALLS: Final = 10_000
MOST_CALLS: Final = 2_000
SECONDS: Final = 0.1
"""How long each peer calls in a round, if one call does not take longer."""


def rows(context: Context) -> Iterator[Row]:
    """Yield a row for each size and peer: the median of round trips in which the guest reads the payload's ends."""
    with contextlib.ExitStack() as stack:
        peers: list[Peer] = []
        missing: list[str] = []
        for name, start in PEERS.items():
            try:
                peers += stack.enter_context(start(max(SIZES.values())))
            except Exception as error:  # noqa: BLE001 - a peer that does not run here is reported, whatever keeps it from running
                missing.append(f"no {name}: {_reason(error)}")
        runtime = stack.enter_context(Runtime())
        heap = runtime.create_shared_heap(2 * max(SIZES.values()))
        instance = runtime.spawn(runtime.load(guest("calls")), shared_heap=heap)
        for point, size in SIZES.items():
            block = heap.malloc(max(size, 1))
            array = block.ndarray("u1")[:size]
            array[:] = np.arange(size, dtype=np.uint8) + 1
            call = functools.partial(instance.exports.ends, block.address, size)
            # Peers get an array of their own: they have no shared heap that it could be made in.
            copy = np.array(array)
            others = [_subject(context, peer.prepare(copy), copy) for peer in peers]
            hot = _subject(context, call, copy, times=context.scaled(OUR_CALLS))
            ours, *theirs = interleave(hot, *others, rounds=context.few_rounds)
            for peer, values in zip(peers, theirs, strict=True):
                yield compare(TOPIC, f"{CURVE} of {point}", ours, peer.name, values, curve=CURVE, point=point)
            del array
            block.free()
            for reason in missing:
                yield compare(TOPIC, f"{CURVE} of {point}", ours, reason)


def _subject(context: Context, call: Callable[[], int], array: Bytes, *, times: int = 0) -> Callable[[], float]:
    """Return a subject: the median round trip of a call whose result is checked; without `times`, as often as there is time."""
    expected = int(array[0]) + int(array[-1]) if array.size else 0

    def check() -> None:
        result = call()
        if result != expected:
            raise ValueError(f"the ends of {array.size} bytes add up to {expected}, not {result}")

    check()  # the first is slow
    number = times or round(min(max(context.scaled(100) / 100 * SECONDS / elapsed(check), 1), MOST_CALLS))

    def measure() -> float:
        taken = round_trips(call, number)
        check()
        return percentile(taken, 0.5)

    return measure


def _reason(error: Exception) -> str:
    return (str(error).partition("\n")[0] or type(error).__name__)[:80]
