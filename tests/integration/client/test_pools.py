"""Pools, as executors."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from concurrent.futures import CancelledError, Executor, Future, as_completed, wait

import pytest

from shmwasm import Module, Runtime, SharedHeap, errors


def test_a_pool_is_an_executor(shared_runtime: Runtime, echo_module: Module, heap: SharedHeap) -> None:
    with shared_runtime.pool(echo_module, size=2, shared_heap=heap) as pool:
        assert isinstance(pool, Executor)
        assert list(pool.map("add", range(100), range(100))) == [2 * number for number in range(100)]
        futures = {pool.submit("add", number, 1): number for number in range(20)}
        assert all(future.result() == futures[future] + 1 for future in as_completed(futures))


def test_every_instance_takes_part(shared_runtime: Runtime, echo_module: Module) -> None:
    with shared_runtime.pool(echo_module, size=3) as pool:
        spinning = [pool.submit("spin", timeout=0.5) for _ in range(3)]
        assert len({instance.pid for instance in pool.instances}) == 3
        wait(spinning)
        assert all(isinstance(future.exception(), errors.CallTimeoutError) for future in spinning)
        assert pool.submit("add", 1, 2).result() == 3


def test_a_slow_call_holds_nobody_up(shared_runtime: Runtime, echo_module: Module) -> None:
    with shared_runtime.pool(echo_module, size=2) as pool:
        slow = pool.submit("spin", timeout=60)
        assert list(pool.map("add", range(50), range(50))) == [2 * number for number in range(50)]
        assert not slow.done()
        for instance in pool.instances:
            instance.kill()
        assert isinstance(slow.exception(), errors.WorkerLostError)


@pytest.mark.parametrize("instances", [0, 1])
def test_wrong_calls_are_refused_before_an_instance_is_chosen(
    shared_runtime: Runtime, echo_module: Module, heap: SharedHeap, instances
) -> None:
    freed = heap.malloc(16)
    freed.free()
    wrong: list[tuple[type[errors.ShmwasmError], tuple[object, ...], dict[str, object]]] = [
        (errors.UnknownExportError, ("blur",), {}),
        (errors.ArgumentError, (3,), {}),
        (errors.ArgumentError, ([],), {}),
        (errors.ArgumentError, ("add", 1), {}),
        (errors.ArgumentError, ("add", 1, "x"), {}),
        (errors.ArgumentError, ("add", 1, 1 << 32), {}),
        (errors.ArgumentError, ("load", freed), {}),
        (errors.ArgumentError, ("count",), {"timeout": -1}),
        (errors.UnsupportedError, ("count",), {"fuel": 5}),
        (errors.UnsupportedError, ("vector",), {}),
    ]
    with shared_runtime.pool(echo_module, min_size=instances, max_size=1) as pool:
        for error, call, options in wrong:
            for method in (pool.submit, pool.submit_to_all, pool.broadcast):
                with pytest.raises(error):
                    method(*call, **options)
            with pytest.raises(error):
                asyncio.run(pool.call_async(*call, **options))
        for error, call in [
            (errors.UnknownExportError, ("blur", [1])),
            (errors.ArgumentError, ("add", [1])),
            (errors.ArgumentError, ("count", [])),
            (errors.UnsupportedError, ("vector", [])),
        ]:
            with pytest.raises(error):
                pool.map(*call)
        assert pool.statistics().calls == 0
        assert pool.submit("add", 1, 2).result() == 3


def test_arguments_are_numbers_before_the_pool_has_them(shared_runtime: Runtime, echo_module: Module, heap: SharedHeap) -> None:
    threads: list[int] = []

    class Answer:
        def __index__(self) -> int:
            threads.append(threading.get_ident())
            return 42

    with shared_runtime.pool(echo_module, size=1, shared_heap=heap) as pool, heap.malloc(16) as block:
        running = pool.submit("spin", timeout=0.2)
        futures = [pool.submit("i32", Answer()) for _ in range(5)]
        assert threads == [threading.get_ident()] * 5
        futures += [pool.submit("store", block, Answer()), pool.submit("load", block)]
        assert [future.result() for future in futures] == [42] * 5 + [None, 42]
        assert isinstance(running.exception(), errors.CallTimeoutError)


def test_a_block_that_no_instance_sees_is_refused(shared_runtime: Runtime, echo_module: Module, heap: SharedHeap) -> None:
    with shared_runtime.pool(echo_module, size=2) as pool, heap.malloc(16) as block:
        with pytest.raises(errors.ArgumentError, match="not attached"):
            pool.submit("load", block)
        for instance in pool.instances:
            instance.attach_shared_heap(heap)
        block.view[0] = 42
        assert pool.submit("load", block).result() == 42


def test_a_call_that_traps_fails_alone(shared_runtime: Runtime, echo_module: Module) -> None:
    with shared_runtime.pool(echo_module, size=1) as pool:
        assert isinstance(pool.submit("divide", 1, 0).exception(), errors.WorkerTrapError)
        assert pool.submit("add", 1, 2).result() == 3


def test_a_dead_worker_is_replaced_and_fails_only_its_own_call(shared_runtime: Runtime, echo_module: Module) -> None:
    with shared_runtime.pool(echo_module, size=2) as pool:
        victim = pool.submit("spin")
        others = [pool.submit("add", number, 1) for number in range(20)]
        assert [future.result() for future in others] == [number + 1 for number in range(20)]
        before = {instance.pid for instance in pool.instances}
        busy = next(instance for instance in pool.instances if instance in pool._dispatcher.busy)
        os.kill(busy.pid, signal.SIGKILL)
        with pytest.raises(errors.WorkerLostError):
            victim.result(timeout=30)
        spinning = [pool.submit("spin", timeout=0.3) for _ in range(2)]
        wait(spinning, timeout=30)
        after = {instance.pid for instance in pool.instances}
        assert len(after) == 2
        assert busy.pid not in after
        assert len(before & after) == 1


def test_an_idle_worker_that_dies_is_replaced(shared_runtime: Runtime, echo_module: Module) -> None:
    with shared_runtime.pool(echo_module, size=1) as pool:
        (instance,) = pool.instances
        os.kill(instance.pid, signal.SIGKILL)
        outcomes = []
        while not outcomes or outcomes[-1] != 3:
            try:
                outcomes.append(pool.submit("add", 1, 2).result(timeout=30))
            except errors.WorkerLostError as error:
                outcomes.append(error)
            assert len(outcomes) <= 2
        assert pool.instances[0].pid != instance.pid


def test_a_waiting_call_can_be_cancelled(shared_runtime: Runtime, echo_module: Module) -> None:
    with shared_runtime.pool(echo_module, size=1) as pool:
        running = pool.submit("spin", timeout=0.5)
        waiting = pool.submit("add", 1, 2)
        assert waiting.cancel()
        assert not running.cancel()
        with pytest.raises(CancelledError):
            waiting.result()
        assert pool.submit("add", 1, 2).result() == 3


def test_shutdown_finishes_or_cancels(shared_runtime: Runtime, echo_module: Module) -> None:
    pool = shared_runtime.pool(echo_module, size=1)
    futures = [pool.submit("count") for _ in range(20)]
    pool.shutdown()
    pool.shutdown()
    assert [future.result() for future in futures] == list(range(1, 21))
    with pytest.raises(errors.ClosedError):
        pool.submit("count")
    pool = shared_runtime.pool(echo_module, size=1)
    running = pool.submit("spin", timeout=0.3)
    waiting = [pool.submit("count") for _ in range(20)]
    pool.shutdown(cancel_futures=True)
    assert all(future.cancelled() for future in waiting)
    assert isinstance(running.exception(), errors.CallTimeoutError)


def test_shutdown_without_waiting_finishes_all_the_same(shared_runtime: Runtime, echo_module: Module) -> None:
    pool = shared_runtime.pool(echo_module, size=1)
    futures = [pool.submit("count") for _ in range(20)]
    pool.shutdown(wait=False)
    assert [future.result(timeout=30) for future in futures] == list(range(1, 21))
    pool.shutdown()


def test_callbacks_may_submit_more(shared_runtime: Runtime, echo_module: Module) -> None:
    with shared_runtime.pool(echo_module, size=2) as pool:
        finished = threading.Event()
        counts: list[object] = []

        def again(done: Future) -> None:
            counts.append(done.result())
            if len(counts) < 50:
                pool.submit("add", len(counts), 0).add_done_callback(again)
            else:
                finished.set()

        pool.submit("add", 0, 0).add_done_callback(again)
        assert finished.wait(30)
        assert counts == list(range(50))


def test_a_module_that_cannot_start_is_an_error_of_pool(shared_runtime: Runtime) -> None:
    module = shared_runtime.load("(module (func $start unreachable) (start $start))")
    with pytest.raises(errors.InstanceError, match="unreachable"):
        shared_runtime.pool(module, size=2)


def test_closing_the_runtime_fails_what_runs_and_cancels_what_waits(echo_text: str) -> None:
    with Runtime() as runtime:
        pool = runtime.pool(runtime.load(echo_text), size=1)
        running = pool.submit("spin")
        waiting = pool.submit("count")
    assert isinstance(running.exception(timeout=30), errors.WorkerLostError)
    assert waiting.cancelled()
    with pytest.raises(errors.ClosedError):
        pool.submit("count")
    pool.shutdown()
