import threading
import time

import pytest

from shmwasm.worker.watchdog import Watchdog

PATIENCE = 30.0
FAR = 3600.0


class Interruptions:
    """Counts them, and lets a test wait for the next."""

    def __init__(self):
        self.count = 0
        self.happened = threading.Event()

    def __call__(self):
        self.count += 1
        self.happened.set()


@pytest.fixture
def interruptions():
    return Interruptions()


@pytest.fixture
def watchdog(interruptions):
    made = Watchdog(interruptions)
    yield made
    made.close()


def test_no_thread_is_started_before_a_call_has_a_timeout(watchdog):
    assert not watchdog.disarm()
    assert watchdog._thread is None


def test_an_overdue_call_is_interrupted_once_and_disarm_tells(watchdog, interruptions):
    watchdog.arm(0.0)
    assert interruptions.happened.wait(PATIENCE)
    assert watchdog.disarm()
    assert interruptions.count == 1


def test_a_call_in_time_is_not_interrupted(watchdog, interruptions):
    watchdog.arm(FAR)
    assert not watchdog.disarm()
    assert interruptions.count == 0


def test_an_interruption_is_not_reported_for_the_next_call(watchdog, interruptions):
    watchdog.arm(0.0)
    assert interruptions.happened.wait(PATIENCE)
    assert watchdog.disarm()
    watchdog.arm(FAR)
    assert not watchdog.disarm()
    assert interruptions.count == 1


def test_a_short_timeout_after_a_long_one_is_kept(watchdog, interruptions):
    """The thread sleeps until the first, distant deadline, and must be woken for the nearer one."""
    watchdog.arm(FAR)
    assert not watchdog.disarm()
    watchdog.arm(0.001)
    assert interruptions.happened.wait(PATIENCE)
    assert watchdog.disarm()


def test_every_interruption_is_reported_to_the_call_that_it_was_meant_for(watchdog, interruptions):
    """Whether a call is late or not is a race here; that it is told so must not be."""
    for _ in range(500):
        before = interruptions.count
        watchdog.arm(0.00001)
        late = watchdog.disarm()
        assert interruptions.count == before + late


def test_a_timeout_beyond_what_a_thread_can_wait_for_is_no_error(watchdog, interruptions):
    watchdog.arm(1e300)
    assert not watchdog.disarm()
    watchdog.arm(0.0)
    assert interruptions.happened.wait(PATIENCE)


def test_the_deadline_is_known_until_the_call_is_disarmed_even_when_it_has_passed(watchdog, interruptions):
    assert watchdog.deadline is None
    before = time.monotonic()
    watchdog.arm(0.0)
    assert interruptions.happened.wait(PATIENCE)
    assert watchdog.deadline is not None
    assert before <= watchdog.deadline <= time.monotonic()
    watchdog.disarm()
    assert watchdog.deadline is None
