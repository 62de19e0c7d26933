"""The time limit of what a guest does while it is made."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable

import pytest

from shmwasm.worker import limits
from shmwasm.worker.limits import TimeLimit
from waiting import PATIENCE


@pytest.fixture
def in_child() -> Callable[[Callable[[int], int]], int]:
    """Runs what takes an eventfd in a forked child, whose thread ends with it; returns the child's exit code."""

    def run(work: Callable[[int], int]) -> int:
        child = os.fork()
        if child == 0:
            code = 99
            try:
                code = work(os.eventfd(0))
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    return run


def asked(eventfd: int, patience: float) -> int:
    """Return how many interrupts were asked for, as soon as there is one."""
    return os.eventfd_read(eventfd) if select.select([eventfd], [], [], patience)[0] else 0


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_an_interrupt_is_asked_for_once_when_the_time_is_over_and_not_before(in_child) -> None:
    def work(eventfd: int) -> int:
        limit = TimeLimit(0.05, eventfd)
        for _ in range(3):
            limit.start()
            assert not limit.stop()
        limit.start()
        began = time.monotonic()
        assert asked(eventfd, PATIENCE) == 1
        assert time.monotonic() >= began + 0.04
        assert asked(eventfd, 0.1) == 0
        assert limit.is_over
        assert limit.stop()
        limit.start()
        assert not limit.is_over
        assert not limit.stop()
        return 0

    assert in_child(work) == 0


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_process_in_which_a_guest_does_not_end_even_so_ends(in_child, monkeypatch, capfd) -> None:
    monkeypatch.setattr(limits, "GRACE", 0.1)

    def work(eventfd: int) -> int:
        TimeLimit(0.05, eventfd).start()
        time.sleep(PATIENCE)
        return 0

    assert in_child(work) == os.EX_TEMPFAIL
    assert "a guest was not made" in capfd.readouterr().err
