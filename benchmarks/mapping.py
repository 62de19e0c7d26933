"""Calls of a trivial export by the million, through `InstancePool.map`, beside those of Python's pools."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np

from benchmarks.answering import increment
from benchmarks.context import Context, guest
from benchmarks.measuring import elapsed, interleave
from benchmarks.rows import Row, at_least, compare
from shmwasm import InstancePool, Runtime

TOPIC: Final = "mapping"
CALLS: Final = 2_000_000
"""How many calls of an array's elements are measured; for a list a tenth, and for the peer a hundredth."""

CHUNK: Final = 1_000
"""How many calls the peer sends in one message: with fewer it is slower, and more do not help."""

PEER: Final = "multiprocessing.Pool.map, a list"
CURVE: Final = "calls by pool.map"


def rows(context: Context) -> Iterator[Row]:
    """Yield calls a second for a numpy array and for a list, by one worker, and by as many as there are processors."""
    array = np.arange(context.scaled(CALLS), dtype=np.uint32)
    numbers = array[: len(array) // 10].tolist()
    few = numbers[: len(numbers) // 10]
    with Runtime() as runtime:
        module = runtime.load(guest("calls"))
        for workers in range(1, _most_workers() + 1):
            with multiprocessing.get_context("spawn").Pool(workers) as peer, runtime.pool(module, size=workers) as pool:
                vectors, lists, peers = interleave(
                    lambda pool=pool: _array_rate(pool, array),  # type: ignore[misc]
                    lambda pool=pool: _list_rate(lambda given: pool.map("increment", given), numbers),  # type: ignore[misc]
                    lambda peer=peer: _list_rate(lambda given: peer.map(increment, given, CHUNK), few),  # type: ignore[misc]
                    rounds=context.few_rounds,
                )
            budgets = (at_least(5e6), at_least(5e5)) if workers == 1 else (None, None)
            point = f"{workers} worker{'s' * (workers > 1)}"
            for kind, values, budget in zip(("a numpy array", "a list"), (vectors, lists), budgets, strict=True):
                what = f"{CURVE} over {kind}, {point}"
                yield compare(
                    TOPIC, what, values, PEER, peers, unit="1/s", budget=budget, curve=f"{CURVE} over {kind}", point=point
                )


def _most_workers() -> int:
    return max(2, len(os.sched_getaffinity(0)))


def _array_rate(pool: InstancePool, array: np.ndarray[tuple[int], np.dtype[np.uint32]]) -> float:
    out = np.empty_like(array)
    taken = elapsed(lambda: pool.map("increment", array, out=out))
    if not np.array_equal(out, array + 1):
        raise ValueError("pool.map over an array gave wrong results")
    return len(array) / taken


def _list_rate(run: Callable[[list[int]], Any], numbers: list[int]) -> float:
    results: list[int] = []
    taken = elapsed(lambda: results.extend(run(numbers)))
    if results != list(range(1, len(numbers) + 1)):
        raise ValueError("a map over a list gave wrong results")
    return len(numbers) / taken
