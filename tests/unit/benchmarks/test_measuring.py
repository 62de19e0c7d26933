"""The statistics of the benchmarks."""

import itertools
import os
import sys

import pytest


@pytest.fixture
def measuring(benchmarks):
    return benchmarks("measuring")


@pytest.fixture
def rows(benchmarks):
    return benchmarks("rows")


def test_a_few_disturbed_rounds_move_neither_median_nor_spread(measuring):
    assert measuring.summarize([10, 11, 12, 13, 9000]) == measuring.Summary(median=12, spread=1, rounds=5)


def test_a_ratio_is_taken_within_the_rounds_so_a_machine_that_slows_down_does_not_show_in_it(measuring):
    ours, peers = [1.0, 2.0, 40.0], [2.0, 4.0, 80.0]
    assert measuring.summarize_ratio(ours, peers) == measuring.Summary(median=0.5, spread=0.0, rounds=3)


def test_sides_with_different_numbers_of_rounds_are_not_compared(measuring):
    with pytest.raises(ValueError, match="shorter"):
        measuring.summarize_ratio([1.0, 2.0], [1.0])


def test_subjects_take_turns_and_neither_is_always_the_first(measuring):
    order = []
    numbers = itertools.count()

    def subject(name):
        order.append(name)
        return next(numbers)

    values = measuring.interleave(lambda: subject("A"), lambda: subject("B"), rounds=3, warmups=0)
    assert "".join(order) == "ABBAAB"
    assert values == [[0, 3, 4], [1, 2, 5]]


@pytest.mark.parametrize(("share", "value"), [(0.0, 1), (0.5, 5), (0.51, 6), (0.99, 10), (1.0, 10)])
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(measuring, share, value):
    assert measuring.percentile([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], share) == value


def test_round_trips_are_each_measured_and_given_in_order(measuring):
    calls = []
    taken = measuring.round_trips(lambda: calls.append(None), 50)
    assert len(calls) == len(taken) == 50
    assert taken == sorted(taken)


def test_warm_up_rounds_are_run_but_not_counted(measuring):
    numbers = itertools.count()
    assert measuring.interleave(lambda: next(numbers), rounds=2, warmups=3) == [[3, 4]]


def test_a_process_clock_counts_the_processor_time_of_that_process(measuring):
    clock = measuring.process_clock(os.getpid())
    before = clock()
    sum(range(100_000))
    assert clock() > before


def test_a_process_that_is_gone_has_no_clock(measuring):
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", ""], os.environ)
    os.waitpid(pid, 0)
    with pytest.raises(OSError, match=r"."):
        measuring.process_clock(pid)


@pytest.mark.parametrize(
    ("ours", "peers", "budget", "met"),
    [
        ([2.0], [2.0], ("ratio_at_most", 1.0), True),
        ([2.1], [2.0], ("ratio_at_most", 1.0), False),
        ([2.0], None, ("ratio_at_most", 1.0), None),
        ([2.0], [1.0], ("at_most", 2.0), True),
        ([2.0], None, ("at_most", 1.9), False),
        ([2.0], [1.0], None, None),
        ([2.0], None, ("at_least", 2.0), True),
        ([2.0], None, ("at_least", 2.1), False),
    ],
)
def test_a_budget_is_met_by_the_median_of_what_it_limits(rows, ours, peers, budget, met):
    limit = None if budget is None else getattr(rows, budget[0])(budget[1])
    assert rows.compare("topic", "what", ours, "peer", peers, budget=limit).met is met


@pytest.mark.parametrize(
    ("median", "unit", "shown"),
    [(8.41e-9, "s", "8.41 ± 0 ns"), (0.005, "s", "5 ± 0 ms"), (0.0, "s", "0 ± 0 ns"), (3 * 2**20, "B", "3 ± 0 MiB")],
)
def test_a_quantity_is_shown_in_the_prefix_that_suits_it(benchmarks, measuring, median, unit, shown):
    assert benchmarks("reporting").quantity(measuring.Summary(median, 0.0, 1), unit) == shown
