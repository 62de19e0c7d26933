"""The ways of calling: at once, later, from coroutines; and how calls end that do not end by themselves."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, as_completed, wait
from typing import Any

import numpy as np
import psutil
import pytest

from shmwasm import Block, Instance, Module, Runtime, SharedHeap, errors, on_client
from shmwasm.core import layout
from waiting import PATIENCE, eventually


@pytest.fixture
def spinning(instance: Instance) -> Iterator[Future[Any]]:
    """A call that runs until the test ends."""
    future = instance.submit("spin")
    eventually(future.running)
    yield future
    instance.kill()


def check_that_no_slot_is_lost(instance: Instance) -> None:
    """Fill the ring: every slot can be had."""
    futures = [instance.submit("add", number, 1, wait=False) for number in range(layout.RING_SLOTS)]
    assert [future.result(PATIENCE) for future in futures] == list(range(1, layout.RING_SLOTS + 1))


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize("call", ["call", "submit"])
def test_what_is_not_a_plain_number_goes_in_too(instance: Instance, heap: SharedHeap, call: str) -> None:
    def run(export: str, *arguments: Any) -> Any:
        result = getattr(instance, call)(export, *arguments)
        return result.result(PATIENCE) if isinstance(result, Future) else result

    class Special(Block):
        """A block of a kind of the user's own."""

    block = heap.malloc(16)
    block.view[0] = 77
    assert run("load", block) == 77
    assert run("load", Special(heap, block.offset, 16)) == 77
    assert run("add", np.int64(-5), np.uint8(3)) == -2
    assert run("i64", np.uint64(1 << 63)) == -(1 << 63)
    assert run("f32", np.float32(0.5)) == 0.5
    assert run("f32", 1e300) == float("inf")
    assert run("add", -1, 0xFFFF_FFFF) == -2
    assert run("all", -1, 0xFFFF_FFFF_FFFF_FFFF, 1, True) == [1.0, 1.0, -1, -1]


def test_a_block_that_a_guest_must_not_see_is_refused_however_it_is_passed(
    instance: Instance, heap: SharedHeap, shared_runtime: Runtime
) -> None:
    load, freed = instance.exports.load, heap.malloc(16)
    assert load(freed) is not None
    freed.free()
    with shared_runtime.create_shared_heap(1 << 16) as other:
        for block, reason in ((freed, "freed"), (other.malloc(16), "not attached")):
            with pytest.raises(errors.ArgumentError, match=reason):
                load(block)
            with pytest.raises(errors.ArgumentError, match=reason):
                load(block, timeout=1)
            with pytest.raises(errors.ArgumentError, match=reason):
                load.submit(block)
    block = heap.malloc(16)
    instance.detach_shared_heap()
    with pytest.raises(errors.ArgumentError, match="not attached"):
        load(block)


# ---------------------------------------------------------------- futures


def test_a_future_runs_once_the_worker_took_its_call(instance: Instance, spinning: Future[Any]) -> None:
    waiting = instance.submit("count")
    assert not waiting.running()
    assert not waiting.done()
    assert not spinning.cancel()
    instance.kill()
    assert isinstance(spinning.exception(PATIENCE), errors.WorkerLostError)
    assert not spinning.running()


def test_a_call_is_cancelled_until_it_begins_and_leaves_no_trace(instance: Instance) -> None:
    running = instance.submit("spin", timeout=0.2)
    eventually(running.running)
    waiting = [instance.submit("count") for _ in range(10)]
    assert [future.cancel() for future in waiting[::2]] == [True] * 5
    assert waiting[0].cancel()
    assert not running.cancel()
    done, _ = wait(waiting[::2], PATIENCE)
    assert len(done) == 5
    with pytest.raises(CancelledError):
        waiting[0].result()
    assert [future.result(PATIENCE) for future in waiting[1::2]] == [1, 2, 3, 4, 5]
    assert isinstance(running.exception(PATIENCE), errors.CallTimeoutError)
    assert len(list(as_completed(waiting, PATIENCE))) == 10


def test_a_full_ring_raises_if_the_caller_will_not_wait(instance: Instance, spinning: Future[Any]) -> None:
    waiting = [instance.submit("count", wait=False) for _ in range(layout.RING_SLOTS - 1)]
    with pytest.raises(errors.BusyError) as caught:
        instance.submit("count", wait=False)
    assert (caught.value.instance, caught.value.room) == (instance.number, layout.RING_SLOTS)
    started = threading.Event()
    late: list[Future[Any]] = []

    def submit() -> None:
        started.set()
        late.append(instance.submit("count"))

    thread = threading.Thread(target=submit)
    thread.start()
    assert started.wait(PATIENCE)
    instance.kill()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    for future in (spinning, *waiting, *late):
        assert isinstance(future.exception(PATIENCE), errors.WorkerLostError)


def test_a_caller_that_waits_for_room_gets_it(instance: Instance) -> None:
    futures = [instance.submit("count") for _ in range(5 * layout.RING_SLOTS)]
    assert [future.result(PATIENCE) for future in futures] == list(range(1, 5 * layout.RING_SLOTS + 1))


def test_a_host_function_may_submit_more_calls_to_its_caller_than_there_is_room_for(shared_runtime: Runtime) -> None:
    made: list[Future[Any]] = []
    refused: list[BaseException] = []

    def host(_: object) -> None:
        made.extend(instance.submit("one") for _ in range(2 * layout.RING_SLOTS))
        try:
            instance.call("one")
        except errors.UnsupportedError as error:
            refused.append(error)

    text = """(module (import "env" "host" (func $host))
        (func (export "run") (call $host)) (func (export "one") (result i32) (i32.const 1)))"""
    module = shared_runtime.load(text, imports={"env": {"host": on_client(host)}})
    with shared_runtime.spawn(module) as instance:
        instance.call("run")
        assert [future.result(PATIENCE) for future in made] == [1] * 2 * layout.RING_SLOTS
        assert len(refused) == 1


# ---------------------------------------------------------------- threads and event loops


def test_threads_futures_and_coroutines_share_an_instance(instance: Instance) -> None:
    wrong: list[object] = []

    def call(first: int) -> None:
        add = instance.exports.add
        wrong.extend(number for number in range(first, first + 2000) if add(number, 1) != number + 1)

    def submit(first: int) -> None:
        futures = {number: instance.submit("add", number, 1) for number in range(first, first + 500)}
        wrong.extend(number for number, future in futures.items() if future.result(PATIENCE) != number + 1)

    def gather(first: int) -> None:
        async def one(number: int) -> None:
            if await instance.call_async("add", number, 1, timeout=PATIENCE) != number + 1:
                wrong.append(number)

        async def many() -> None:
            await asyncio.gather(*(one(number) for number in range(first, first + 300)))

        asyncio.run(many())

    threads = [threading.Thread(target=target, args=(10_000 * index,)) for index, target in enumerate([call, submit, gather] * 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE)
        assert not thread.is_alive()
    assert not wrong
    check_that_no_slot_is_lost(instance)


def test_a_thousand_coroutines_wait_without_a_thread(instance: Instance) -> None:
    async def many() -> list[int]:
        calls = [asyncio.ensure_future(instance.call_async("count")) for _ in range(1000)]
        await asyncio.sleep(0)
        assert threading.active_count() == before
        return await asyncio.gather(*calls)

    before = threading.active_count()
    assert sorted(asyncio.run(many())) == list(range(1, 1001))


def test_errors_arrive_in_coroutines(instance: Instance) -> None:
    async def run() -> None:
        with pytest.raises(errors.WorkerTrapError, match="divide"):
            await instance.call_async("divide", 1, 0)
        with pytest.raises(errors.CallTimeoutError):
            await instance.exports.spin.call_async(timeout=0.01)
        with pytest.raises(errors.ArgumentError):
            await instance.call_async("add", 1)
        with pytest.raises(errors.UnknownExportError):
            await instance.call_async("blur")
        assert await instance.call_async("all", 1, 2, 0.5, 0.25) == [0.25, 0.5, 2, 1]
        assert await instance.call_async("nothing") is None

    asyncio.run(run())


def test_a_cancelled_task_takes_its_call_along(instance: Instance) -> None:
    async def run() -> None:
        running = asyncio.ensure_future(instance.call_async("spin"))
        waiting = [asyncio.ensure_future(instance.call_async("count")) for _ in range(100)]
        await asyncio.sleep(0)
        for task in (running, *waiting[::2]):
            task.cancel()
        assert await asyncio.gather(*waiting[1::2]) == list(range(1, 51))
        assert running.cancelled()
        assert all(task.cancelled() for task in waiting[::2])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(instance.call_async("spin"), 0.05)
        assert await instance.call_async("count") == 51

    asyncio.run(run())
    check_that_no_slot_is_lost(instance)


def test_what_is_closed_in_a_coroutine_does_not_block_its_loop(echo_text: str) -> None:
    async def run() -> int:
        async with Runtime() as runtime, runtime.spawn(runtime.load(echo_text)) as instance:
            result: int = await instance.call_async("add", 1, 2)
        with pytest.raises(errors.ClosedError):
            await instance.call_async("add", 1, 2)
        return result

    assert asyncio.run(run()) == 3


# ---------------------------------------------------------------- time limits


def test_hundreds_of_endless_loops_time_out_in_the_same_worker(instance: Instance) -> None:
    pid, count = instance.pid, 200
    for _ in range(count):
        with pytest.raises(errors.CallTimeoutError):
            instance.call("spin", timeout=0.001)
    futures = [instance.submit("spin", timeout=0.001) for _ in range(count)]
    assert all(isinstance(future.exception(PATIENCE), errors.CallTimeoutError) for future in futures)
    assert (instance.call("count"), instance.pid) == (1, pid)
    check_that_no_slot_is_lost(instance)


def test_the_time_in_the_queue_does_not_count(instance: Instance) -> None:
    slow = instance.submit("spin", timeout=0.3)
    quick = [instance.submit("count", timeout=0.05) for _ in range(5)]
    assert instance.call("count", timeout=0.05) == 6
    assert [future.result(PATIENCE) for future in quick] == [1, 2, 3, 4, 5]
    assert isinstance(slow.exception(PATIENCE), errors.CallTimeoutError)


# ---------------------------------------------------------------- deaths


def test_every_call_of_a_killed_worker_ends_once_with_its_result_or_its_loss(
    shared_runtime: Runtime, echo_module: Module
) -> None:
    for turn in range(6):
        instance = shared_runtime.spawn(echo_module)
        ends: list[tuple[int, object]] = []
        add, go = instance.exports.add, threading.Event()

        def call(first: int, add: Any = add, ends: list[tuple[int, object]] = ends) -> None:
            for number in range(first, first + 100_000):
                try:
                    ends.append((number, add(number, 1)))
                except errors.WorkerLostError as error:
                    ends.append((number, error))
                    return

        def submit(add: Any = add, ends: list[tuple[int, object]] = ends, go: threading.Event = go) -> None:
            number = 0
            while not go.is_set():
                future = add.submit(number, 1)
                future.add_done_callback(lambda done, number=number: ends.append((number, done.exception() or done.result())))
                number += 1

        threads = [threading.Thread(target=call, args=(1_000_000 * (index + 1),)) for index in range(2)]
        threads.append(threading.Thread(target=submit))
        for thread in threads:
            thread.start()
        eventually(lambda ends=ends, turn=turn: len(ends) > 200 * turn)
        os.kill(instance.pid, signal.SIGKILL)
        eventually(lambda instance=instance: not instance.alive)
        go.set()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        assert len({number for number, _ in ends}) == len(ends)
        for number, end in ends:
            assert end == number + 1 or isinstance(end, errors.WorkerLostError)
        instance.close()


def test_a_caller_that_sleeps_learns_that_its_worker_died(shared_runtime: Runtime, echo_module: Module) -> None:
    instance = shared_runtime.spawn(echo_module)
    raised: list[errors.WorkerLostError] = []

    def call() -> None:
        try:
            instance.call("spin")
        except errors.WorkerLostError as error:
            raised.append(error)

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    eventually(lambda: instance._path.calls == 3)
    eventually(lambda: instance._path._ring.running() is not None)
    os.kill(instance.pid, signal.SIGKILL)
    for thread in threads:
        thread.join(PATIENCE)
    assert [error.last_call for error in raised] == ["spin"] * 3
    instance.close()


def test_a_future_does_not_keep_a_closed_instance_waiting(shared_runtime: Runtime, echo_module: Module) -> None:
    instance = shared_runtime.spawn(echo_module)
    bound, future = instance.exports.add, instance.submit("spin")
    instance.kill()
    instance.close()
    assert isinstance(future.exception(PATIENCE), errors.WorkerLostError)
    for call in (lambda: bound(1, 2), lambda: bound(1, 2, timeout=1), lambda: bound.submit(1, 2)):
        with pytest.raises(errors.ClosedError):
            call()
    # What a closed instance's functions were made with may serve another one by now.
    with shared_runtime.spawn(echo_module) as other:
        assert other.exports.add(1, 2) == 3
        with pytest.raises(errors.ClosedError):
            bound(1, 2)


# ---------------------------------------------------------------- signals

INTERRUPTED = """
import random, signal, sys, threading, time
from shmwasm import Runtime, errors
from shmwasm.core import layout

GUEST = '''(module (global $calls (mut i32) (i32.const 0))
  (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))
  (func (export "loop") (param i32)
    (loop $again (br_if $again (local.tee 0 (i32.sub (local.get 0) (i32.const 1))))))
  (func (export "spin") (loop $forever (br $forever))))'''

armed = False

def handle(*_):
    global armed
    if armed:
        armed = False  # once, as a user presses Ctrl-C
        raise KeyboardInterrupt

signal.signal(signal.SIGALRM, handle)
rng = random.Random(7)
interrupted = 0

def interrupt(work):
    global armed, interrupted
    try:
        armed = True
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.00002, 0.004))
        while True:
            work()
    except KeyboardInterrupt:
        interrupted += 1

with Runtime() as runtime:
    instance = runtime.spawn(runtime.load(GUEST))
    add, loop, spin = instance.exports.add, instance.exports.loop, instance.exports.spin
    pid = instance.pid

    def check():
        number = rng.randrange(1000)
        assert add(number, 1) == number + 1

    works = [check, lambda: loop(rng.randrange(1, 30_000)), spin, lambda: spin(timeout=0.001 * rng.random() + 0.0001),
             lambda: loop(1000, timeout=5), lambda: add(-1, 5)]
    for turn in range(TURNS):
        try:
            interrupt(works[turn % len(works)])
        except TimeoutError:
            armed = False
        for _ in range(3):
            check()
        if turn % 20 == 0:
            # Every slot can be had again, once the receiver has collected the calls that were left to it.
            deadline = time.monotonic() + 20
            while True:
                try:
                    futures = [instance.submit("add", number, 1, wait=False) for number in range(layout.RING_SLOTS)]
                    break
                except errors.BusyError:
                    assert time.monotonic() < deadline
                    assert add(1, 2) == 3
            assert [future.result(20) for future in futures] == list(range(1, layout.RING_SLOTS + 1))
    assert instance.pid == pid and instance.alive
    assert interrupted > TURNS // 3, interrupted
    assert not instance._path._side._facts and len(instance._path._side._unwanted) == 0
"""


def test_ctrl_c_at_any_moment_leaves_an_instance_that_goes_on() -> None:
    script = INTERRUPTED.replace("TURNS", "240")
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr


# ---------------------------------------------------------------- idle


def test_an_idle_worker_sleeps(instance: Instance) -> None:
    for _ in range(100):
        instance.call("count")
    eventually(instance._path._ring.is_parked)
    eventually(lambda: psutil.Process(instance.pid).status() == psutil.STATUS_SLEEPING)
