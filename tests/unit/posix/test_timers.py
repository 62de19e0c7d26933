from __future__ import annotations

import os
import threading
import time

import pytest

from shmwasm.posix.timers import Timer


@pytest.fixture
def timer():
    made = []

    def make(first: float, interval: float) -> Timer:
        made.append(Timer(first, interval))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_timer_expires_first_and_then_at_intervals(timer):
    began = time.monotonic()
    one = timer(0.02, 0.01)
    one.start()
    one.wait()
    assert time.monotonic() >= began + 0.02
    one.wait()
    assert time.monotonic() >= began + 0.03


def test_a_timer_that_was_stopped_or_never_set_does_not_expire(timer):
    one = timer(1e-9, 10.0)
    expired = threading.Event()

    def wait() -> None:
        one.wait()
        expired.set()

    one.start()
    one.wait()  # it has expired, and is stopped before it does again
    one.start()
    one.stop()
    waiting = threading.Thread(target=wait)
    waiting.start()
    assert not expired.wait(0.05)
    one.start()
    assert expired.wait(10.0)
    waiting.join()


def test_a_timer_is_closed_in_programs_that_this_one_starts(timer):
    assert not os.get_inheritable(timer(1.0, 1.0)._descriptor)
