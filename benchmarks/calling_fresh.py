"""Calls that find nothing of each other, beside others who make everything anew for each."""

from __future__ import annotations

import functools
import multiprocessing
import time
from collections.abc import Callable, Iterator
from typing import Final

import wasmtime

from benchmarks.answering import increment
from benchmarks.context import Context, guest
from benchmarks.measuring import elapsed, interleave, percentile
from benchmarks.rows import Row, compare
from shmwasm import Instance, Runtime

WHAT: Final = "call in a fresh instance"
APART: Final = 1e-3
"""Seconds between two calls, in which the next instance is made."""


def fresh_rows(context: Context, runtime: Runtime, topic: str) -> Iterator[Row]:
    """Yield what a call takes: by map, one after the other, and some time after the last one."""
    times = context.scaled(2_000)
    module = runtime.load(guest("calls"))
    with (
        runtime.pool(module, size=1, fresh=True) as pool,
        runtime.pool(module, size=1, fresh=True) as resting,
        multiprocessing.get_context("forkserver").Pool(1, maxtasksperchild=1) as processes,
    ):
        mapped, in_process, waited, apart, forked = interleave(
            lambda: elapsed(lambda: list(pool.map("increment", range(times)))) / times,
            _each(_new_store(), times),
            _each(lambda: pool.submit("increment", 1).result(), times),
            _apart(resting.instances[0], times // 20),
            _each(lambda: processes.apply(increment, (1,)), times // 100),
            rounds=context.few_rounds,
        )
    peer = "wasmtime-py, a new Store and Instance in this process"
    yield compare(topic, f"{WHAT}, by map", mapped, peer, in_process)
    peer = "multiprocessing.Pool(maxtasksperchild=1).apply"
    yield compare(topic, f"{WHAT}, submitted and waited for", waited, peer, forked)
    yield compare(topic, f"{WHAT}, 1 ms after the last one, p50", apart)


def _each(call: Callable[[], object], times: int) -> Callable[[], float]:
    """Return a subject: what a call takes, one after the other."""
    return lambda: elapsed(lambda: [call() for _ in range(times)]) / times


def _apart(instance: Instance, times: int) -> Callable[[], float]:
    """Return a subject: the median of what calls take that find all ready. They are few, as the worker lasts for a thousand."""

    def once() -> float:
        time.sleep(APART)
        return elapsed(functools.partial(instance.call, "increment", 1))

    return lambda: percentile(sorted(once() for _ in range(times)), 0.5)


def _new_store() -> Callable[[], object]:
    """Return the call of the peer in one process: only the compiled code is not new."""
    engine = wasmtime.Engine()
    module = wasmtime.Module.from_file(engine, str(guest("calls")))

    def call() -> object:
        store = wasmtime.Store(engine)
        function = wasmtime.Instance(store, module, []).exports(store)["increment"]
        assert isinstance(function, wasmtime.Func)
        return function(store, 1)

    return call
