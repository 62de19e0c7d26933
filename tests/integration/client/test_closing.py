"""Closing what is in use: by other threads, on top of one's own call, and from within."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from shmwasm import Instance, InstancePool, Runtime, errors, on_client
from shmwasm.addresses import NativeAddress
from shmwasm.client import sleeping
from shmwasm.core import layout
from waiting import PATIENCE, eventually


def calling(instance: Instance, export: str, count: int) -> list[threading.Thread]:
    """Return threads that sleep in a call of that export."""

    def call() -> None:
        with contextlib.suppress(errors.ShmwasmError):
            instance.call(export)

    threads = [threading.Thread(target=call) for _ in range(count)]
    for thread in threads:
        thread.start()
    sleepers = instance.path._sleepers
    eventually(lambda: len([place for place in list(sleepers._places.values()) if place is not None]) == count)
    return threads


def test_a_ring_stays_mapped_while_somebody_is_woken(runtime: Runtime, echo_text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the receiver, which wakes those who slept in calls of a lost worker, would post to unmapped memory."""
    instance = runtime.spawn(runtime.load(echo_text))
    ring, wake = instance.path._ring, sleeping.futexes.wake
    begun = threading.Event()
    ends: list[bool] = []

    def wake_slowly(address: NativeAddress) -> int:
        if threading.current_thread() is waker and not begun.is_set():
            begun.set()
            deadline = time.monotonic() + 0.3
            while ring.descriptor >= 0 and time.monotonic() < deadline:
                time.sleep(0.001)
        return wake(address)

    def wake_all() -> None:
        instance.path._sleepers.wake()
        ends.append(True)

    monkeypatch.setattr(sleeping.futexes, "wake", wake_slowly)
    threads = calling(instance, "spin", 4)
    waker = threading.Thread(target=wake_all)
    waker.start()
    assert begun.wait(PATIENCE)
    instance.path.close()
    for thread in (waker, *threads):
        thread.join(PATIENCE)
    assert ends, "a wake-up failed"
    assert ring.descriptor < 0, "the ring is still there"
    instance.kill()
    instance.close()


def test_an_end_that_cannot_be_handled_is_nobody_elses_affair(
    runtime: Runtime, echo_text: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module = runtime.load(echo_text)
    one, another = runtime.spawn(module), runtime.spawn(module)

    def fail() -> None:
        raise OSError("a bug")

    monkeypatch.setattr(one.path._sleepers, "end", fail)
    one.kill()
    eventually(lambda: "could not be handled" in caplog.text)
    caplog.clear()  # the traceback holds what should go
    monkeypatch.undo()
    one.close()
    assert another.call("add", 1, 2) == 3
    assert runtime.status()["workers"]


def test_a_close_ends_though_other_threads_go_on_calling(runtime: Runtime, echo_text: str) -> None:
    instance = runtime.spawn(runtime.load(echo_text))
    ended: list[BaseException] = []

    def call_on() -> None:
        try:
            while True:
                assert instance.call("i32", 7) == 7
        except errors.ClosedError as error:
            ended.append(error)

    threads = [threading.Thread(target=call_on) for _ in range(24)]
    for thread in threads:
        thread.start()
    eventually(lambda: instance.path.calls > 100)
    instance.close()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(ended) == len(threads)


def test_what_was_started_before_a_close_ends_and_what_comes_later_is_refused(runtime: Runtime, echo_text: str) -> None:
    """Also what found no room in the ring yet."""
    instance = runtime.spawn(runtime.load(echo_text))
    add = instance.exports.add
    assert add(1, 2) == 3
    busy = instance.submit("spin", timeout=0.5)
    futures: list[Future[Any]] = []
    # A callback does not wait for room.
    busy.add_done_callback(lambda _: futures.extend(instance.submit("i32", one) for one in range(2 * layout.RING_SLOTS)))
    with pytest.raises(errors.CallTimeoutError):
        busy.result(PATIENCE)
    eventually(lambda: len(futures) == 2 * layout.RING_SLOTS)
    instance.close()
    assert [one.result(0) for one in futures] == list(range(2 * layout.RING_SLOTS))
    for call in (lambda: add(1, 2), lambda: add(1, 2, timeout=1.0), lambda: add.submit(1, 2)):
        with pytest.raises(errors.ClosedError):
            call()


@pytest.mark.parametrize("how", ["the instance", "the pool"])
def test_a_host_function_is_refused_to_close_what_waits_for_it(runtime: Runtime, calling_text: str, how: str) -> None:
    closes: list[Callable[[], None]] = []

    def host(_caller: object, number: int, *_others: object) -> int:
        with pytest.raises(errors.UnsupportedError, match="waits for the function"):
            closes[0]()
        return number

    imports = {"env": {"host": on_client(host), "pair": on_client(lambda _: (1, 1.0)), "tell": on_client(lambda *_: None)}}
    module = runtime.load(calling_text, imports=imports)
    used: Instance | InstancePool = runtime.spawn(module) if how == "the instance" else runtime.pool(module, size=1)
    closes.append(used.close if isinstance(used, Instance) else used.shutdown)
    for number in range(2):
        assert used.submit("host", number, 0, 0.0).result(PATIENCE) == number
    closes[0]()


def in_handler(action: Callable[[], object], work: Callable[[], object]) -> list[BaseException]:
    """Do `work` in the main thread, and have a signal's handler do `action` on top of it; return what both raised, in order."""
    raised: list[BaseException] = []

    def handle(_number: int, _frame: object) -> None:
        try:
            action()
        except errors.ShmwasmError as error:
            raised.append(error)

    former = signal.signal(signal.SIGUSR1, handle)
    signalling = threading.Timer(0.1, signal.pthread_kill, (threading.main_thread().ident, signal.SIGUSR1))
    signalling.start()
    try:
        work()
    except errors.ShmwasmError as error:
        raised.append(error)
    finally:
        signalling.join()
        signal.signal(signal.SIGUSR1, former)
    return raised


def test_a_handler_on_top_of_a_call_is_refused_to_close_the_instance(runtime: Runtime, echo_text: str) -> None:
    instance = runtime.spawn(runtime.load(echo_text))
    refused, ended = in_handler(instance.close, lambda: instance.call("spin", timeout=0.5))
    assert isinstance(refused, errors.UnsupportedError)
    assert isinstance(ended, errors.CallTimeoutError)
    assert instance.call("add", 1, 2) == 3


def test_a_handler_on_top_of_a_call_may_kill_the_instance_and_close_it(runtime: Runtime, echo_text: str) -> None:
    """The ring goes when the call has ended."""
    instance = runtime.spawn(runtime.load(echo_text))
    ring = instance.path._ring
    there: list[bool] = []

    def close() -> None:
        instance.kill()
        instance.close()
        there.append(ring.descriptor >= 0)

    (ended,) = in_handler(close, lambda: instance.call("spin"))
    assert isinstance(ended, errors.WorkerLostError)
    assert there == [True]
    assert ring.descriptor < 0


def test_a_handler_on_top_of_a_call_may_close_the_runtime(echo_text: str) -> None:
    runtime = Runtime()
    instance = runtime.spawn(runtime.load(echo_text))
    (ended,) = in_handler(runtime.close, lambda: instance.call("spin"))
    assert isinstance(ended, errors.WorkerLostError)
