"""How large pools are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmwasm.client.pool_life import (
    FRESH_CALLS,
    FRESH_MEMORIES,
    GROW_AFTER,
    LONGEST_PAUSE,
    PATIENT_WITH,
    Growth,
    PoolOptions,
    idle_too_long,
    pool_options,
)
from shmwasm.client.pool_statistics import Histogram
from shmwasm.errors import ArgumentError

NOTHING = dict.fromkeys(["size", "min_size", "max_size", "timeout", "start_timeout", "idle_timeout", "recycle_after", "init"])


def options(**given):
    return pool_options(**{**NOTHING, "usable": 4, "on_trap": "keep", "fresh": False, **given})


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        ({}, (4, 4)),
        ({"size": 2}, (2, 2)),
        ({"max_size": 7}, (1, 7)),
        ({"min_size": 2}, (2, 4)),
        ({"min_size": 6}, (6, 6)),
        ({"min_size": 0}, (0, 4)),
        ({"min_size": 0, "max_size": 1}, (0, 1)),
    ],
)
def test_a_pool_has_the_sizes_that_it_was_given(given, sizes):
    made = options(**given)
    assert (made.least, made.most) == sizes


@pytest.mark.parametrize(
    ("given", "limit"),
    [
        ({}, None),
        ({"timeout": 1}, 1),
        ({"start_timeout": 2}, 2),
        ({"timeout": 1, "start_timeout": 2}, 2),
        ({"timeout": 2, "start_timeout": 1}, 1),
    ],
)
def test_preparing_an_instance_has_the_limit_of_its_start_or_else_that_of_a_call(given, limit):
    assert options(**given).preparation_timeout == limit


@pytest.mark.parametrize(
    "given",
    [
        {"size": 0},
        {"size": 2, "max_size": 3},
        {"size": 2, "min_size": 1},
        {"min_size": 3, "max_size": 2},
        {"max_size": 0},
        {"min_size": -1},
        {"on_trap": "ignore"},
        {"on_trap": []},
        {"timeout": 0},
        {"start_timeout": 0},
        {"idle_timeout": -1},
        {"recycle_after": 0},
        {"init": 3},
        {"fresh": 1},
        {"init": ()},
        {"init": (3, "setup")},
    ],
)
def test_options_that_cannot_be_are_refused(given):
    with pytest.raises(ArgumentError):
        options(**given)


def test_init_is_a_name_or_a_name_with_arguments():
    assert options(init="setup").init == ("setup", ())
    assert options(init=("setup", 1, 2.5)).init == ("setup", (1, 2.5))


def test_what_is_missing_is_made_at_once():
    assert Growth(PoolOptions(3, 5)).missing(present=1, starting=1, waiting_since=None, now=0.0) == 1


def test_a_pool_grows_once_something_has_waited_and_at_most_doubles():
    growth = Growth(PoolOptions(1, 5))
    assert growth.missing(1, 0, 10.0, 10.0) == 0
    assert growth.next_start(1, 0, 10.0, 10.0) == 10.0 + GROW_AFTER
    now = 10.0
    sizes = [1]
    while sizes[-1] < 5:
        now = growth.next_start(sizes[-1], 0, 10.0, now)
        sizes.append(sizes[-1] + growth.missing(sizes[-1], 0, 10.0, now))
    assert sizes == [1, 2, 4, 5]
    assert growth.next_start(5, 0, 10.0, now) is None


def test_an_empty_pool_grows_as_soon_as_something_waits():
    assert Growth(PoolOptions(0, 5)).missing(0, 0, 10.0, 10.0) == 1


def test_a_pool_does_not_grow_while_an_instance_is_being_made():
    assert Growth(PoolOptions(1, 5)).missing(1, 1, 0.0, 10.0) == 0


def test_pauses_grow_while_instances_fail_and_end_with_a_success():
    growth = Growth(PoolOptions(1, 1))
    now, pauses = 0.0, []
    for _ in range(20):
        growth.failed(now)
        pauses.append(round(max(0.0, growth.not_before - now), 6))
        now = max(now, growth.not_before)
        assert growth.missing(0, 0, None, now) == 1
    assert pauses[:PATIENT_WITH] == [0.0] * PATIENT_WITH
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE
    growth.failed(now)
    assert growth.missing(0, 0, None, now) == 0
    growth.succeeded()
    assert growth.missing(0, 0, None, now) == 1


@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 9), st.integers(0, 3), st.none() | st.floats(0, 10), st.floats(0, 20))
def test_nothing_is_made_beyond_the_maximum_and_an_alarm_comes_in_time(least, more, present, starting, waiting, now):
    growth = Growth(PoolOptions(least, least + more))
    alarm = growth.next_start(present, starting, waiting, now)
    made = growth.missing(present, starting, waiting, now)
    assert made == 0 or present + starting + made <= least + more
    assert made == 0 or (alarm is not None and alarm <= now)
    if made == 0 and alarm is not None and alarm > now:
        assert growth.missing(present, starting, waiting, alarm) > 0


def test_only_what_is_beyond_the_minimum_is_let_go():
    kept = PoolOptions(1, 3, idle_timeout=5.0)
    assert idle_too_long(0.0, 2, kept, 5.0)
    assert not idle_too_long(0.0, 2, kept, 4.9)
    assert not idle_too_long(0.0, 1, kept, 100.0)
    assert not idle_too_long(0.0, 2, PoolOptions(1, 3), 1e9)


def test_only_an_instance_with_fresh_calls_wears_out():
    assert not PoolOptions(1, 3).is_worn(1 << 30, 100)
    for memories in (0, 1, 16):
        assert not PoolOptions(1, 3, fresh=True).is_worn(FRESH_CALLS - 1, memories)
        assert PoolOptions(1, 3, fresh=True).is_worn(FRESH_CALLS, memories)
    assert not PoolOptions(1, 3, fresh=True).is_worn(FRESH_MEMORIES // 100 - 1, 100)
    assert PoolOptions(1, 3, fresh=True).is_worn(FRESH_MEMORIES // 100, 100)


@given(st.lists(st.floats(0, 1000), min_size=1))
def test_a_histogram_counts_all_and_bounds_its_quantiles(times):
    histogram = Histogram()
    for one in times:
        histogram.add(one)
    assert histogram.count == len(times)
    assert histogram.mean * len(times) == pytest.approx(sum(times))
    assert histogram.quantile(1.0) * (1 + 1e-9) >= max(times)
    copy = histogram.copy()
    histogram.add(1.0, 5)
    assert (copy.count, histogram.count) == (len(times), len(times) + 5)
