"""Maps of pools in coroutines."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from shmwasm import InstancePool, Module, Runtime, errors
from waiting import PATIENCE

WAITING = """(module
  (func (export "wait_for") (param i32) (loop $again (br_if $again (i32.eqz (local.get 0)))))
  (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1))))"""


@pytest.fixture(scope="module")
def pool(shared_runtime: Runtime, echo_module: Module) -> Iterator[InstancePool]:
    with shared_runtime.pool(echo_module, size=2) as one:
        yield one


def test_a_map_can_be_awaited_or_iterated_over(pool: InstancePool) -> None:
    async def use() -> None:
        count = 50_000
        expected = list(range(1, count + 1))
        assert await pool.map_async("add", range(count), itertools.repeat(1)) == expected
        assert await pool.map_async("add", np.arange(count), [1] * count, chunksize=1000) == expected
        assert [one async for one in pool.map_async("add", iter(range(count)), itertools.repeat(1))] == expected
        unordered = [one async for one in pool.map_async("i32", range(count), ordered=False)]
        assert sorted(unordered) == list(range(count))
        assert await pool.map_async("i32", []) == []
        assert [one async for one in pool.map_async("i32", [])] == []

    asyncio.run(use())


def test_results_that_are_awaited_go_into_an_array(pool: InstancePool) -> None:
    async def use() -> None:
        out = np.zeros(10_000, "i4")
        assert await pool.map_async("i32", np.arange(10_000), out=out) is out
        assert np.array_equal(out, np.arange(10_000))
        part = await pool.map_async("i32", iter([7, 8]), out=out)
        assert part.tolist() == [7, 8]
        with pytest.raises(errors.ArgumentError):
            await anext(pool.map_async("i32", np.arange(10_000), out=out))

    asyncio.run(use())


def test_the_loop_goes_on_while_results_are_awaited(pool: InstancePool) -> None:
    async def use() -> None:
        spinning = [asyncio.ensure_future(pool.call_async("spin")) for _ in range(2)]
        results = asyncio.ensure_future(pool.map_async("i32", iter(range(3))))
        for _ in range(100):
            await asyncio.sleep(0.001)
        assert not results.done()
        for one in spinning:
            one.cancel()
        assert await asyncio.wait_for(results, PATIENCE) == [0, 1, 2]

    asyncio.run(use())


def test_errors_come_when_their_turn_comes(pool: InstancePool) -> None:
    divisors = [1] * 1000
    divisors[700] = 0

    async def use() -> None:
        results = pool.map_async("divide", [6] * 1000, divisors)
        assert [await anext(results) for _ in range(700)] == [6] * 700
        with pytest.raises(errors.WorkerTrapError):
            await anext(results)
        with pytest.raises(StopAsyncIteration):
            await anext(results)
        with pytest.raises(errors.WorkerTrapError):
            await pool.map_async("divide", [6] * 1000, divisors)
        outcomes = await pool.map_async("divide", [6] * 1000, divisors, return_exceptions=True)
        assert [index for index, one in enumerate(outcomes) if isinstance(one, errors.WorkerTrapError)] == [700]
        for wrong in (pool.map_async("blur", [1]), pool.map_async("add", [1]), pool.map_async("i32", [1], chunksize=0)):
            with pytest.raises(errors.ShmwasmError):
                await wrong
        twice = pool.map_async("i32", [1])
        assert await twice == [1]
        with pytest.raises(errors.UnsupportedError):
            await twice

    asyncio.run(use())


def test_cancelling_the_task_ends_what_runs_and_what_waits(shared_runtime: Runtime) -> None:
    async def use(pool: InstancePool) -> None:
        begun = asyncio.Event()
        waiting = asyncio.ensure_future(pool.map_async("wait_for", [1, 0, 1] * 100, progress=lambda *_: begun.set()))
        await begun.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await asyncio.wait_for(pool.call_async("add", 1, 2), PATIENCE) == 3

    with shared_runtime.load(WAITING) as module, shared_runtime.pool(module, size=1) as pool:
        asyncio.run(use(pool))


def test_an_endless_iterable_is_read_only_as_far_ahead_as_it_should(pool: InstancePool) -> None:
    taken = 0

    def endless() -> Iterator[int]:
        nonlocal taken
        for number in itertools.count():
            taken = number
            yield number

    async def use() -> None:
        async with contextlib.aclosing(pool.map_async("i32", endless(), buffersize=50)) as results:
            for number in range(500):
                assert await anext(results) == number
                assert taken <= number + 50
        async for number in pool.map_async("i32", endless()):
            if number == 1000:
                break
        assert await pool.call_async("add", 1, 2) == 3

    asyncio.run(use())
    assert pool.submit("add", 1, 2).result(PATIENCE) == 3


def test_there_is_a_time_for_all_results(shared_runtime: Runtime, echo_module: Module) -> None:
    with shared_runtime.pool(echo_module, size=1) as pool:

        async def use() -> None:
            spinning = pool.submit("spin")
            with pytest.raises(TimeoutError):
                await pool.map_async("i32", range(10), timeout=0.05)
            os.kill(pool.instances[0].pid, signal.SIGKILL)
            with pytest.raises(errors.WorkerLostError):
                spinning.result(PATIENCE)

        asyncio.run(use())


def test_progress_is_reported_and_a_pool_that_is_shut_down_ends_its_maps(shared_runtime: Runtime, echo_module: Module) -> None:
    reports: list[tuple[int, int | None]] = []

    async def use() -> None:
        async with shared_runtime.pool(echo_module, size=1) as pool:
            await pool.map_async("i32", range(10_000), progress=lambda *report: reports.append(report))
            endless = pool.map_async("i32", itertools.count())
            assert await anext(endless) == 0
        with pytest.raises(errors.ClosedError):
            async for _ in endless:
                pass

    asyncio.run(use())
    assert reports[-1] == (10_000, 10_000)
    assert reports == sorted(set(reports))


def test_several_loops_use_one_pool(pool: InstancePool) -> None:
    outcomes: list[list[int]] = []

    def run(first: int) -> None:
        async def use() -> None:
            maps = [pool.map_async("i32", range(first, first + 5000)) for _ in range(3)]
            outcomes.extend(await asyncio.gather(*maps))

        asyncio.run(use())

    threads = [threading.Thread(target=run, args=(first,)) for first in (0, 10_000, 20_000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(one[0] for one in outcomes) == [0] * 3 + [10_000] * 3 + [20_000] * 3
    assert all(one == list(range(one[0], one[0] + 5000)) for one in outcomes)
