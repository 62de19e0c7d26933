"""SIGKILL and SIGSTOP to workers of pools of every kind: each call ends once and rightly, runs at most once, and is counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from waiting import eventually

BUDGET = 24.0
"""Seconds that all of this takes in CI, apart from starting and ending; soaks take more."""
LOADS = ("metered", "recycling", "growing", "replacing", "limited", "fresh", "mixed")
CLIENTS = 2
POOLS = Path(__file__).with_name("pools.wat")
SHARE = BUDGET / (len(LOADS) + 1)
LONGEST = 250.0
"""Seconds that a storm may take on a loaded machine; never waited in full."""


def check(report, load):
    assert report is not None, "the program ended before it was done"
    assert not report["problems"], "\n".join(report["problems"])
    print(load, report["ended"], "killed:", report["killed"])
    assert report["killed"] >= 3


@pytest.mark.parametrize("load", LOADS)
def test_calls_of_a_pool_end_once_and_rightly_while_its_workers_are_killed_and_stopped(program, rng, times, load):
    storm = program("pool_storm.py", POOLS, load, SHARE * times(1), rng.randrange(1 << 31))
    check(storm.hear(LONGEST * times(1)), load)


def test_pools_of_several_clients_do_not_disturb_each_other_while_their_workers_are_killed(
    joined, shared_coordinator, program, rng, times
):
    arguments = (POOLS, "mixed", SHARE * times(1))
    storms = [program("pool_storm.py", *arguments, rng.randrange(1 << 31), shared_coordinator.socket) for _ in range(CLIENTS)]
    for storm in storms:
        check(storm.hear(LONGEST * times(1)), "mixed")
    eventually(lambda: joined.status()["clients"] == 1)
    assert joined.status()["workers"] == []
    joined.verify()
