"""SIGKILL to the launcher and to the coordinator: every call ends with an error that says so, and nothing remains."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from concurrent.futures import CancelledError, wait

import pytest

from processes import children_of
from shmwasm import Runtime
from shmwasm.errors import CoordinatorLostError, InstantiationError, ShmwasmError, WorkerLostError
from waiting import eventually

TIMES = 4
ENTRIES = 64


def launcher_of(coordinator):
    (launcher,) = children_of(coordinator)
    return launcher


def start_load(pool, heap, rng):
    """Start calls, more than there are instances: some run, some wait."""
    ledgers = [heap.calloc(ENTRIES, 4) for _ in range(8)]
    return [pool.submit("churn", ledger, ENTRIES, 2_000_000, rng.randrange(1 << 31)) for ledger in ledgers]


def pause(rng):
    threading.Event().wait(rng.random() * 0.05)


def test_without_its_launcher_calls_are_lost_heaps_go_on_and_nothing_new_is_spawned(guest_path, rng, times):
    for _ in range(times(TIMES)):
        with Runtime() as runtime:
            heap = runtime.create_shared_heap(8 << 20)
            module = runtime.load(guest_path)
            instance = runtime.spawn(module, shared_heap=heap)
            pool = runtime.pool(module, size=2, shared_heap=heap)
            futures = [*start_load(pool, heap, rng), instance.submit("spin")]
            pause(rng)
            os.kill(launcher_of(runtime._process.pid), signal.SIGKILL)
            assert not wait(futures, 60).not_done
            for future in futures:
                assert future.exception() is None or isinstance(future.exception(), (WorkerLostError, InstantiationError))
            assert isinstance(futures[-1].exception(), WorkerLostError)
            eventually(lambda one=instance: not one.alive)
            with pytest.raises(InstantiationError):
                runtime.spawn(module, shared_heap=heap)
            with pytest.raises((WorkerLostError, InstantiationError)):
                pool.submit("nothing").result(60)
            eventually(lambda one=runtime: not one.status()["workers"])
            runtime.verify()
            for block in [heap.malloc(size) for size in (16, 1000, 100_000)]:
                block.free()
            pool.shutdown()


def uses_of_the_coordinator(runtime, module, heap, instance):
    return (
        lambda: runtime.create_shared_heap(1 << 16),
        lambda: runtime.open_shared_heap("frames"),
        lambda: runtime.spawn(module),
        lambda: runtime.pool(module, size=2),
        runtime.verify,
        runtime.status,
        lambda: heap.malloc(7 << 20),
        instance.detach_shared_heap,
    )


def test_without_its_coordinator_everything_fails_by_name_and_nothing_hangs(guest_path, rng, times):
    for _ in range(times(TIMES)):
        with Runtime() as runtime:
            heap = runtime.create_shared_heap(8 << 20)
            module = runtime.load(guest_path)
            instance = runtime.spawn(module, shared_heap=heap)
            pool = runtime.pool(module, size=2, shared_heap=heap)
            block = heap.malloc(100)
            futures = [*start_load(pool, heap, rng), instance.submit("spin")]
            pause(rng)
            runtime._process.kill()
            assert not wait(futures, 60).not_done
            for future in futures:
                assert future.exception() is None or isinstance(future.exception(), (WorkerLostError, CoordinatorLostError))
            for use in uses_of_the_coordinator(runtime, module, heap, instance):
                with pytest.raises(CoordinatorLostError):
                    use()
            with pytest.raises((WorkerLostError, CoordinatorLostError)):
                instance.call("nothing")
            with pytest.raises((WorkerLostError, CoordinatorLostError)):
                pool.submit("nothing").result(60)
            # What this process holds already stays readable, and closing is no error.
            block.view[:] = bytes(100)
            block.free()
            heap.close()
            instance.close()
            pool.shutdown()


def call_for_ever(runtime, module, name, ended):
    """Create, spawn, call, close, until an error ends it; note which."""
    with contextlib.suppress(CancelledError):
        try:
            while True:
                with runtime.create_shared_heap(1 << 20) as heap, runtime.spawn(module, shared_heap=heap) as instance:
                    ledger = heap.calloc(ENTRIES, 4)
                    instance.call("churn_and_clear", ledger, ENTRIES, 1000, 1)
                    ledger.free()
        except ShmwasmError as error:
            ended[name] = error


@pytest.mark.parametrize("victim", ["coordinator", "launcher"])
def test_threads_in_the_middle_of_anything_get_an_error_that_says_what_died(guest_path, rng, times, victim):
    for _ in range(times(TIMES)):
        ended: dict[int, ShmwasmError] = {}
        with Runtime() as runtime:
            module = runtime.load(guest_path)
            threads = [threading.Thread(target=call_for_ever, args=(runtime, module, name, ended)) for name in range(3)]
            for thread in threads:
                thread.start()
            pause(rng)
            coordinator = runtime._process.pid
            os.kill(coordinator if victim == "coordinator" else launcher_of(coordinator), signal.SIGKILL)
            for thread in threads:
                thread.join(60)
                assert not thread.is_alive()
        named = (CoordinatorLostError, WorkerLostError) if victim == "coordinator" else (InstantiationError, WorkerLostError)
        assert len(ended) == len(threads)
        assert all(isinstance(error, named) for error in ended.values()), ended


def test_a_shared_coordinator_that_is_killed_fails_every_client_and_can_be_started_again(shared_coordinator, program, rng):
    socket = shared_coordinator.socket
    with Runtime(connect=socket) as first, Runtime(connect=socket) as second:
        heap = first.create_shared_heap(1 << 20, name="common")
        block = second.open_shared_heap("common").malloc(100)
        shared_coordinator.kill()
        for runtime in (first, second):
            with pytest.raises(CoordinatorLostError):
                runtime.status()
        block.view[:5] = b"hello"
        assert bytes(heap.view[block.offset : block.offset + 5]) == b"hello"
    shared_coordinator.wait()
    again = subprocess.Popen(shared_coordinator.args, stdout=subprocess.PIPE)
    try:
        assert again.stdout.readline()
        with Runtime(connect=socket) as runtime:
            assert runtime.status()["heaps"] == []
    finally:
        again.terminate()
        again.wait(60)
        again.stdout.close()
