"""SIGKILL and SIGSTOP to workers at random moments, under calls of every kind: each ends once, rightly, and nothing is left."""

from __future__ import annotations

import collections
import signal
from pathlib import Path

from processes import state_of
from waiting import eventually

OPERATIONS = 200
"""Of each actor of a client that is alone; several clients make a third of that each."""
CLIENTS = 3
CALLS = Path(__file__).with_name("calls.wat")
LONGEST = 250.0
"""Seconds that a storm may take on a loaded machine; never waited in full."""


def check(reports):
    for report in reports:
        assert report is not None, "a client ended before it was done"
        assert not report["problems"], "\n".join(report["problems"])
    ended = sum((collections.Counter(report["ended"]) for report in reports), collections.Counter())
    print(dict(ended), "killed:", sum(report["killed"] for report in reports))
    assert sum(report["killed"] for report in reports) >= 5
    for how in ("returned", "mapped", "CallTimeoutError", "CancelledError", "WorkerLostError", "WorkerTrapError"):
        assert ended[how] > 0, f"no call ended so: {how}"


def test_calls_of_every_kind_end_once_and_rightly_while_workers_are_killed_and_stopped(program, rng, times):
    storm = program("storm.py", CALLS, times(OPERATIONS), rng.randrange(1 << 31))
    check([storm.hear(times(LONGEST))])


def test_clients_of_one_coordinator_whose_workers_are_killed_at_once_do_not_disturb_each_other(
    joined, shared_coordinator, program, rng, times
):
    storms = [
        program("storm.py", CALLS, times(OPERATIONS // CLIENTS), rng.randrange(1 << 31), shared_coordinator.socket)
        for _ in range(CLIENTS)
    ]
    with joined.load(CALLS) as module, joined.spawn(module) as bystander:
        for count in range(1, 200):
            assert bystander.call("count") == count
        check([storm.hear(times(LONGEST)) for storm in storms])
        assert bystander.call("count") == count + 1
    eventually(lambda: joined.status()["clients"] == 1)
    assert joined.status()["workers"] == []
    joined.verify()


def test_a_client_that_is_killed_with_calls_under_way_takes_its_workers_with_it(joined, shared_coordinator, program, rng, times):
    for _ in range(times(3)):
        storm = program("storm.py", CALLS, 1 << 20, rng.randrange(1 << 31), shared_coordinator.socket)
        eventually(lambda: len(joined.status()["workers"]) >= 3)
        storm.signal(rng.choice([signal.SIGKILL, signal.SIGTERM]))
        eventually(lambda: joined.status()["clients"] == 1 and joined.status()["workers"] == [])
    joined.verify()


def test_a_client_that_is_stopped_with_calls_under_way_goes_on_where_it_was(joined, shared_coordinator, program, rng, times):
    storm = program("storm.py", CALLS, times(40), rng.randrange(1 << 31), shared_coordinator.socket)
    eventually(lambda: len(joined.status()["workers"]) >= 3)
    for _ in range(5):
        storm.signal(signal.SIGSTOP)
        eventually(lambda: state_of(storm.pid) == "T")
        joined.verify()
        storm.signal(signal.SIGCONT)
    report = storm.hear(times(LONGEST))
    assert not report["problems"], "\n".join(report["problems"])
