"""Time limits: from when they count, and what is due when."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmwasm.client.clocks import LONGEST_STEP, Clock


def test_the_time_in_the_queue_does_not_count() -> None:
    clock = Clock(limit=8.0, grace=5.0)
    assert clock.look(100.0, has_begun=False) == pytest.approx(100.0 + LONGEST_STEP)
    assert clock.look(500.0, has_begun=False) == pytest.approx(500.0 + LONGEST_STEP)
    assert clock.look(600.0, has_begun=True) == 608.0
    assert clock.look(605.0, has_begun=True) == 608.0


def test_a_short_limit_is_looked_at_eight_times_in_its_length() -> None:
    assert Clock(limit=0.08, grace=5.0).look(1.0, has_begun=False) == pytest.approx(1.01)


def test_after_its_time_the_worker_has_its_grace_and_then_nothing_is_due_any_more() -> None:
    clock = Clock(limit=1.0, grace=5.0)
    clock.look(10.0, has_begun=True)
    clock.ended_early = True
    assert clock.look(11.0, has_begun=True) == 16.0
    clock.hopeless = True
    assert clock.look(16.0, has_begun=True) is None


@given(st.floats(0.001, 1000), st.floats(0, 10_000))
def test_a_call_gets_its_limit_and_at_most_an_eighth_more(limit: float, begins: float) -> None:
    clock, now = Clock(limit, grace=5.0), max(0.0, begins - 3 * limit)
    while (due := clock.look(now, has_begun=now >= begins)) is not None and clock.began is None:
        now = due
    assert due is not None
    assert begins + limit <= due + 1e-6 * due
    assert due <= begins + limit * 1.126 + 1e-6 * due


def test_each_call_of_a_batch_has_the_limit_for_itself() -> None:
    clock = Clock(limit=8.0, grace=5.0, progress=0)
    step = pytest.approx(LONGEST_STEP)
    assert clock.look(100.0, has_begun=True, progress=0) - 100.0 == step
    assert clock.look(107.9, has_begun=True, progress=1) - 107.9 == step
    assert clock.look(115.8, has_begun=True, progress=1) - 115.8 == step
    assert clock.look(115.89, has_begun=True, progress=1) == 115.9
    clock.ended_early = True
    assert clock.look(115.9, has_begun=True, progress=1) == 120.9


@given(st.floats(0.001, 10), st.lists(st.floats(0, 2), min_size=1, max_size=30))
def test_a_call_of_a_batch_gets_its_limit_and_at_most_an_eighth_more(limit: float, lengths: list[float]) -> None:
    """Each call takes so many times the limit."""
    clock, now = Clock(limit, grace=5.0, progress=0), 0.0
    ends = list(itertools.accumulate(length * limit for length in lengths))
    while now < ends[-1]:
        progress = sum(end <= now for end in ends)
        due = clock.look(now, has_begun=True, progress=progress)
        assert due is not None
        if due <= now:
            took = now - (ends[progress - 1] if progress else 0.0)
            assert limit <= took * (1 + 1e-6)
            assert took <= limit * (1.126 + 1e-6)
            return
        now = due
    assert max(lengths) <= 1.126


def test_the_time_that_a_worker_needs_before_a_call_does_not_count() -> None:
    clock = Clock(limit=8.0, grace=5.0)
    assert clock.look(100.0, has_begun=True, preparation=20.0) == pytest.approx(100.0 + LONGEST_STEP)
    assert clock.look(119.0, has_begun=True, preparation=20.0) == pytest.approx(119.0 + LONGEST_STEP)
    assert clock.look(119.5, has_begun=True) == 127.5
    assert clock.look(121.0, has_begun=True) == 127.5


def test_a_call_for_which_a_worker_is_never_ready_has_its_limit_from_when_it_should_have_been() -> None:
    clock = Clock(limit=8.0, grace=5.0)
    clock.look(100.0, has_begun=True, preparation=20.0)
    assert clock.look(127.99, has_begun=True, preparation=20.0) == 128.0
    clock.ended_early = True
    assert clock.look(128.0, has_begun=True) == 133.0
