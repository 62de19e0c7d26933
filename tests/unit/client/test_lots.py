"""How large lots are."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from shmwasm.client.lots import GROWTH, TARGET, Pace

seconds = st.floats(0, 10)


@given(st.integers(1, 1 << 16), st.lists(st.tuples(st.integers(0, 1 << 16), seconds)), st.integers(1, 10**9), st.integers(0, 64))
def test_a_lot_has_at_least_one_call_and_at_most_as_many_as_there_is_room_for(largest, history, remaining, instances):
    pace = Pace(largest)
    for count, duration in history:
        pace.note(min(count, largest), duration)
        assert 1 <= pace.size(remaining, instances) <= min(largest, remaining)
        assert 1 <= pace.size(None, instances) <= largest


def test_lots_of_quick_calls_grow_until_they_are_worth_it():
    pace = Pace(1 << 16)
    sizes = []
    for _ in range(10):
        sizes.append(pace.size(None, 2))
        pace.note(sizes[-1], 100e-6 + sizes[-1] * 10e-9)
    assert sizes == sorted(sizes)
    assert all(later <= GROWTH * earlier for earlier, later in pairwise(sizes))
    assert sizes[-1] == 1 << 16


def test_lots_of_slow_calls_stay_single():
    pace = Pace(1 << 16)
    for _ in range(10):
        assert pace.size(None, 2) == 1
        pace.note(1, 0.1)


def test_lots_take_about_as_long_as_they_should():
    pace = Pace(1 << 16)
    for _ in range(20):
        size = pace.size(None, 2)
        pace.note(size, size * 10e-6)
    assert size == int(TARGET / 10e-6)


def test_lots_become_smaller_when_calls_become_slower_but_not_for_one_lot_that_was_held_up():
    pace = Pace(1 << 16, step=1 << 16)
    pace.note(1 << 16, 1.0)
    assert pace.step == (1 << 16) // GROWTH
    pace.note(1, 0.000001)
    assert pace.step == (1 << 16) // GROWTH
    for _ in range(10):
        pace.note(pace.step, pace.step * 0.001)
    assert pace.step == int(TARGET / 0.001)


def test_the_last_lots_are_so_small_that_all_instances_have_some():
    pace = Pace(1 << 16, step=1 << 16)
    assert pace.size(100, 4) == 13
    assert pace.size(1, 4) == 1
