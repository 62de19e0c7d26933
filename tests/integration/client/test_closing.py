"""Closing what is in use: by other threads, on top of one's own call, and from within."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from shmwasm import Instance, Runtime, errors
from shmwasm.addresses import NativeAddress
from shmwasm.client import sleeping
from shmwasm.core import layout

PATIENCE = 30.0


def eventually(condition: Callable[[], object]) -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come to hold"
        time.sleep(0.001)


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
