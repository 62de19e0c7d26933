"""How pools give out their calls, grow, shrink, replace and count."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, wait
from typing import Any

import pytest

from shmwasm import InstancePool, Module, Runtime, SharedHeap, errors
from waiting import PATIENCE, eventually

SETTING = """(module
  (global $setting (mut i32) (i32.const -1))
  (global $calls (mut i32) (i32.const 0))
  (func (export "set") (param i32) (result i32) (global.set $setting (local.get 0)) (i32.const 0))
  (func (export "get") (result i32) (global.get $setting))
  (func (export "count") (result i32)
    (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
    (global.get $calls))
  (func (export "fail") (result i32) (global.set $setting (i32.const 99)) unreachable)
  (func (export "spin") (loop $forever (br $forever))))"""


def end(pool: InstancePool) -> None:
    """End what spins for ever."""
    for instance in pool.instances:
        instance.kill()


@pytest.fixture(scope="module")
def setting_module(shared_runtime: Runtime) -> Module:
    return shared_runtime.load(SETTING, name="setting")


def test_what_waits_behind_a_slow_call_is_given_to_whoever_is_free(shared_runtime: Runtime, echo_module: Module) -> None:
    with shared_runtime.pool(echo_module, size=2) as pool:
        slow = [pool.submit("spin"), pool.submit("spin", timeout=0.3)]
        behind = [pool.submit("add", number, 1) for number in range(2)]
        eventually(lambda: pool.statistics().queued == 2)
        assert [future.result(PATIENCE) for future in behind] == [1, 2]
        assert isinstance(slow[1].exception(), errors.CallTimeoutError)
        assert not slow[0].done()
        end(pool)


def test_a_call_that_waits_in_an_instance_can_be_cancelled(shared_runtime: Runtime, setting_module: Module) -> None:
    with shared_runtime.pool(setting_module, size=1) as pool:
        running = pool.submit("spin", timeout=0.3)
        waiting = [pool.submit("count") for _ in range(5)]
        assert all(future.cancel() for future in waiting)
        assert not running.cancel()
        assert all(future.cancel() for future in waiting)
        done, _ = wait(waiting, timeout=PATIENCE)
        assert len(done) == 5
        assert pool.submit("count").result(PATIENCE) == 1
        assert isinstance(running.exception(), errors.CallTimeoutError)


def test_broadcasts_reach_each_instance_once(shared_runtime: Runtime, setting_module: Module) -> None:
    with shared_runtime.pool(setting_module, size=3) as pool:
        assert pool.broadcast("set", 7) == [0] * 3
        assert pool.broadcast("count") == [1] * 3
        assert pool.broadcast("get") == [7] * 3
        with pytest.raises(errors.WorkerTrapError):
            pool.broadcast("fail")
        spinning = pool.submit("spin", timeout=0.2)
        futures = pool.submit_to_all("count")
        assert sorted(future.result(PATIENCE) for future in futures) == [2] * 3
        wait([spinning])
        with pytest.raises(errors.UnknownExportError):
            pool.broadcast("missing")


def test_a_broadcast_to_an_instance_that_dies_is_an_error(shared_runtime: Runtime, setting_module: Module) -> None:
    with shared_runtime.pool(setting_module, size=1) as pool:
        spinning = pool.submit("spin")
        own = [pool.submit_to_all("count")[0] for _ in range(3)]
        os.kill(pool.instances[0].pid, signal.SIGKILL)
        for future in [spinning, *own]:
            lost = future.exception(PATIENCE)
            assert isinstance(lost, errors.WorkerLostError)
            assert lost.signal == signal.SIGKILL
        assert pool.submit("count").result(PATIENCE) == 1


def test_a_pool_grows_while_calls_wait_and_shrinks_when_idle(shared_runtime: Runtime, echo_module: Module) -> None:
    with shared_runtime.pool(echo_module, min_size=1, max_size=3, idle_timeout=0.1) as pool:
        assert len(pool.instances) == 1
        spinning = [pool.submit("spin", timeout=1.0) for _ in range(3)]
        eventually(lambda: len(pool._dispatcher.busy) == 3)
        quick = pool.submit("add", 1, 2)
        assert len(pool.instances) == 3
        wait(spinning, PATIENCE)
        assert quick.result(PATIENCE) == 3
        eventually(lambda: len(pool.instances) == 1)
        assert pool.size == 1
        assert pool.submit("add", 1, 2).result(PATIENCE) == 3


def test_an_empty_pool_makes_instances_when_they_are_needed(shared_runtime: Runtime, echo_module: Module) -> None:
    with shared_runtime.pool(echo_module, min_size=0, max_size=2, idle_timeout=0.05) as pool:
        assert pool.instances == []
        assert list(pool.map("add", range(100), range(100))) == [2 * number for number in range(100)]
        eventually(lambda: pool.instances == [])
        assert pool.submit("add", 1, 2).result(PATIENCE) == 3


@pytest.mark.parametrize("wrong", [{"quota": -1}, {"memory_limit": "x"}, {"fuel": 5}, {"read_only": 1}, {"wasi": 5}])
def test_what_instances_cannot_be_is_refused_before_an_empty_pool_makes_one(
    shared_runtime: Runtime, echo_module: Module, wrong: dict[str, Any]
) -> None:
    with pytest.raises((errors.ArgumentError, errors.UnsupportedError)):
        shared_runtime.pool(echo_module, min_size=0, **wrong)


def test_a_worker_that_is_killed_as_it_starts_takes_no_calls_with_it(shared_runtime: Runtime, heap: SharedHeap) -> None:
    text = """(module
      (memory (export "memory") 1)
      (func (export "prepare") (param i32) (loop $again (br_if $again (i32.eqz (i32.atomic.load (local.get 0))))))
      (func (export "same") (param i32) (result i32) (local.get 0)))"""
    gate = heap.calloc(1, 4)
    with (
        shared_runtime.load(text) as module,
        shared_runtime.pool(module, min_size=0, max_size=1, shared_heap=heap, init=("prepare", gate)) as pool,
    ):
        waiting = [pool.submit("same", number) for number in range(5)]

        def starting() -> list[int]:
            return [worker["pid"] for worker in shared_runtime.status()["workers"] if worker["pid"]]  # 0 before it was forked

        eventually(starting)
        (pid,) = starting()
        os.kill(pid, signal.SIGKILL)
        gate.view[0] = 1
        assert [future.result(PATIENCE) for future in waiting] == list(range(5))
    gate.free()


def test_a_pool_whose_instances_are_replaced_never_has_more_than_its_size(
    shared_runtime: Runtime, setting_module: Module
) -> None:
    with shared_runtime.pool(setting_module, size=2, recycle_after=1) as pool:
        spinning = [pool.submit("spin", timeout=0.05) for _ in range(8)]
        while not all(future.done() for future in spinning):
            found = pool.statistics()
            assert found.size + found.starting <= 2


def test_instances_are_replaced_after_their_calls(shared_runtime: Runtime, setting_module: Module) -> None:
    with shared_runtime.pool(setting_module, size=1, recycle_after=3) as pool:
        counts = [pool.submit("count") for _ in range(9)]
        assert [future.result(PATIENCE) for future in counts] == [1, 2, 3] * 3
        assert list(pool.map("count", *[])) == []
        assert pool.statistics().replaced >= 2


def test_a_call_that_was_taken_back_does_not_count_as_one_of_an_instances(
    shared_runtime: Runtime, setting_module: Module
) -> None:
    with shared_runtime.pool(setting_module, size=1, recycle_after=3) as pool:
        assert pool.submit("count").result(PATIENCE) == 1
        slow, waiting = pool.submit("spin", timeout=0.3), pool.submit("count")
        assert waiting.cancel()
        assert isinstance(slow.exception(PATIENCE), errors.CallTimeoutError)
        assert pool.submit("count").result(PATIENCE) == 2


def test_lots_do_not_exceed_what_an_instance_may_run(shared_runtime: Runtime, echo_module: Module) -> None:
    with shared_runtime.pool(echo_module, size=2, recycle_after=40) as pool:
        assert list(pool.map("i32", range(200))) == list(range(200))
        assert pool.statistics().started >= 5


@pytest.mark.parametrize(("on_trap", "setting"), [("keep", 99), ("replace", 5)])
def test_an_instance_whose_call_was_cancelled_as_it_ran_is_kept_or_replaced(
    shared_runtime: Runtime, setting_module: Module, on_trap, setting
) -> None:
    async def leave(pool) -> None:
        spinning = asyncio.ensure_future(pool.call_async("spin"))
        while not pool._dispatcher.busy:  # noqa: ASYNC110  the other thread has nobody to tell
            await asyncio.sleep(0)
        spinning.cancel()
        await asyncio.wait([spinning])

    with shared_runtime.pool(setting_module, size=1, on_trap=on_trap, init=("set", 5)) as pool:
        pool.broadcast("set", 99)
        asyncio.run(leave(pool))
        assert pool.submit("get").result(PATIENCE) == setting


@pytest.mark.parametrize(("on_trap", "setting"), [("keep", 99), ("replace", 5)])
def test_an_instance_that_trapped_is_kept_or_replaced(shared_runtime: Runtime, setting_module: Module, on_trap, setting) -> None:
    with shared_runtime.pool(setting_module, size=1, on_trap=on_trap, init=("set", 5)) as pool:
        before = pool.instances[0].pid
        failed, following = pool.submit("fail"), pool.submit("get")
        assert isinstance(failed.exception(PATIENCE), errors.WorkerTrapError)
        assert following.result(PATIENCE) == setting
        assert (pool.instances[0].pid == before) == (on_trap == "keep")


def test_a_pools_time_limit_is_that_of_its_calls(shared_runtime: Runtime, setting_module: Module) -> None:
    with shared_runtime.pool(setting_module, size=1, timeout=0.1) as pool:
        assert isinstance(pool.submit("spin").exception(PATIENCE), errors.CallTimeoutError)
        assert isinstance(pool.submit("spin", timeout=0.05).exception(PATIENCE), errors.CallTimeoutError)
        assert pool.submit("count").result(PATIENCE) == 1
        assert list(pool.map("set", range(3))) == [0, 0, 0]
        assert pool.statistics().timeouts == 2


def test_init_is_called_once_on_each_instance(shared_runtime: Runtime, setting_module: Module) -> None:
    with shared_runtime.pool(setting_module, size=2, init="count") as pool:
        assert pool.broadcast("count") == [2, 2]
        os.kill(pool.instances[0].pid, signal.SIGKILL)
        eventually(lambda: pool.statistics().started == 3 and len(pool.instances) == 2)
        assert sorted(pool.broadcast("count")) == [2, 3]


@pytest.mark.parametrize("init", ["fail", "missing", ("set", "x"), ("set",)])
def test_a_failing_init_is_a_failure_of_the_pool(shared_runtime: Runtime, setting_module: Module, init) -> None:
    with pytest.raises((errors.InstanceError, errors.ArgumentError)):
        shared_runtime.pool(setting_module, size=2, init=init)


def test_instances_that_die_at_once_are_made_more_and_more_slowly(shared_runtime: Runtime, setting_module: Module) -> None:
    with shared_runtime.pool(setting_module, size=1) as pool:
        for _ in range(5):
            instance = pool.instances[0]
            os.kill(instance.pid, signal.SIGKILL)
            eventually(lambda instance=instance: pool.instances and pool.instances[0] is not instance)
        growth = pool._dispatcher._growth
        assert growth.failures == 5
        assert pool.submit("count").result(PATIENCE) == 1
        assert growth.failures == 0


def test_statistics_count_what_happened(shared_runtime: Runtime, echo_module: Module) -> None:
    with shared_runtime.pool(echo_module, size=2) as pool:
        list(pool.map("i32", range(1000)))
        wait([pool.submit("add", 1, 2), pool.submit("divide", 1, 0), pool.submit("spin", timeout=0.05)])
        lost = pool.submit("spin")
        eventually(lambda: pool.statistics().busy == 1)
        os.kill(pool._dispatcher.busy[0].pid, signal.SIGKILL)
        wait([lost])
        eventually(lambda: pool.statistics().size == 2)
        counted = pool.statistics()
        assert (counted.traps, counted.timeouts, counted.losses) == (1, 1, 1)
        assert counted.calls == 1004
        assert counted.run_time.count == counted.queue_time.count == 1004
        assert counted.run_time.quantile(1.0) >= 0.05
        assert (counted.started, counted.replaced, counted.busy, counted.queued) == (3, 1, 0, 0)


def test_coroutines_call_pools(shared_runtime: Runtime, echo_module: Module) -> None:
    async def use() -> None:
        async with shared_runtime.pool(echo_module, size=2) as pool:
            sums = await asyncio.gather(*(pool.call_async("add", number, 1) for number in range(50)))
            assert sums == list(range(1, 51))
            with pytest.raises(errors.WorkerTrapError):
                await pool.call_async("divide", 1, 0)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(pool.call_async("spin"), 0.1)
            # What was interrupted is over, so that this, and the end, do not wait for it.
            assert await asyncio.gather(*(pool.call_async("add", 1, 2) for _ in range(10))) == [3] * 10
        with pytest.raises(errors.ClosedError):
            await pool.call_async("add", 1, 2)

    asyncio.run(use())


def test_a_coroutine_that_is_cancelled_cancels_what_has_not_begun(shared_runtime: Runtime, setting_module: Module) -> None:
    async def use() -> None:
        async with shared_runtime.pool(setting_module, size=1) as pool:
            running = asyncio.ensure_future(pool.call_async("spin", timeout=0.3))
            waiting = asyncio.ensure_future(pool.call_async("count"))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            with pytest.raises(errors.CallTimeoutError):
                await running
            assert await pool.call_async("count") == 1

    asyncio.run(use())


@pytest.mark.parametrize("kind", ["pool", "instance"])
def test_a_task_that_is_cancelled_while_it_closes_leaves_the_closing_to_go_on(
    shared_runtime: Runtime, setting_module: Module, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    submitted: list[Future[object]] = []

    async def use() -> None:
        made = shared_runtime.pool(setting_module, size=1) if kind == "pool" else shared_runtime.spawn(setting_module)
        async with made as callee:
            submitted.append(callee.submit("spin", timeout=1.0))

    async def leave() -> None:
        task = asyncio.ensure_future(use())
        while not submitted:  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not submitted[0].done()

    asyncio.run(leave())  # ends before the call does
    assert isinstance(submitted[0].exception(PATIENCE), errors.CallTimeoutError)
    eventually(lambda: not any(thread.name.startswith(f"shmwasm-{kind}") for thread in threading.enumerate()))
    assert not caplog.records


def test_several_threads_and_loops_share_a_pool(shared_runtime: Runtime, echo_module: Module) -> None:
    failures: list[BaseException] = []

    def submit(pool: InstancePool) -> None:
        futures = [pool.submit("add", number, 1) for number in range(100)]
        assert [future.result(PATIENCE) for future in futures] == list(range(1, 101))

    def map_many(pool: InstancePool) -> None:
        assert list(pool.map("i32", range(20_000))) == list(range(20_000))

    def loop(pool: InstancePool) -> None:
        async def use() -> None:
            assert await asyncio.gather(*(pool.call_async("i32", number) for number in range(100))) == list(range(100))

        asyncio.run(use())

    def run(work: Callable[[InstancePool], None], pool: InstancePool) -> None:
        try:
            work(pool)
        except BaseException as error:  # noqa: BLE001  reported below
            failures.append(error)

    with shared_runtime.pool(echo_module, size=2) as pool:
        threads = [threading.Thread(target=run, args=(work, pool)) for work in (submit, map_many, loop) * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert failures == []


def test_every_future_ends_once_whoever_dies(shared_runtime: Runtime, echo_module: Module) -> None:
    ended: dict[Future, int] = {}
    lock = threading.Lock()

    def note(future: Future) -> None:
        with lock:
            ended[future] = ended.get(future, 0) + 1

    with shared_runtime.pool(echo_module, size=2) as pool:
        futures = []
        mapped: list[list[object]] = []
        mapping = threading.Thread(
            target=lambda: mapped.extend(
                list(pool.map("i32", range(30_000), return_exceptions=True, chunksize=500)) for _ in range(3)
            )
        )
        mapping.start()
        for round_number in range(6):
            for number in range(50):
                futures.append(pool.submit("add", number, round_number))
                futures[-1].add_done_callback(note)
            for instance in pool.instances[:1]:
                os.kill(instance.pid, signal.SIGKILL)
                eventually(lambda instance=instance: instance not in pool.instances)
        wait(futures, PATIENCE)
        mapping.join(PATIENCE)
    for index, future in enumerate(futures):
        error = future.exception(0)
        assert isinstance(error, errors.WorkerLostError) or (error is None and future.result() == index % 50 + index // 50)
    eventually(lambda: len(ended) == len(futures))
    assert set(ended.values()) == {1}
    for results in mapped:
        assert all(isinstance(one, errors.WorkerLostError) or one == place for place, one in enumerate(results))
    assert len(mapped) == 3


def test_shutdown_cancels_what_waits_in_instances_and_maps(shared_runtime: Runtime, setting_module: Module) -> None:
    pool = shared_runtime.pool(setting_module, size=1)
    running, waiting = pool.submit("spin", timeout=0.3), pool.submit("count")
    results = pool.map("set", range(1000))
    pool.shutdown(cancel_futures=True)
    assert waiting.cancelled()
    assert isinstance(running.exception(), errors.CallTimeoutError)
    with pytest.raises(CancelledError):
        list(results)
