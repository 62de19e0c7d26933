"""A worker of fresh calls at its ring: what the client finds there, also if it is none of ours."""

from __future__ import annotations

import pytest

from shmwasm import errors
from shmwasm.core import layout
from shmwasm.engine.windows import MAXIMUM_TABLE_ELEMENTS
from shmwasm.posix.processes import wait_gone
from shmwasm.protocol import messages
from shmwasm.protocol.messages import FreshCalls
from shmwasm.worker.fresh import MOST_RESIDENT
from waiting import PATIENCE

GUEST = """(module
  (memory (export "memory") 1)
  (global $count (mut i32) (i32.const 0))
  (func (export "prepare") (param i32) (result i32)
    (global.set $count (i32.add (global.get $count) (local.get 0))) (global.get $count))
  (func (export "count") (param i32) (result i32)
    (global.set $count (i32.add (global.get $count) (i32.const 1)))
    (i32.add (global.get $count) (i32.div_u (local.get 0) (local.get 0))))
  (func (export "spin") (param i32) (loop $again (br_if $again (local.get 0)))))"""

LEAVING = """(module (table $table 1 funcref)
  (func (export "leave") (param i32) (result i32) (table.grow $table (ref.null func) (local.get 0))))"""

LEFT_ELEMENTS = 1 << 20

COUNT = 1
"""The number of "count" among the guest's functions."""


@pytest.fixture
def worker(launcher):
    return launcher.fork(GUEST, fresh=FreshCalls())


def test_a_single_call_has_no_progress_of_which_its_loss_would_leave_results(worker):
    request = worker.start_call("count", 1)
    assert worker.wait(request) == layout.RING_DONE
    assert request.results() == (2,)
    assert request.progress == 0
    worker.ring.give(request)


def test_a_batch_has_as_much_progress_as_calls_returned_each_in_its_own_guest(worker):
    request, results = worker.start_batch("count", [(1,), (1,), (7,)])
    assert worker.wait(request) == layout.RING_DONE
    assert (request.progress, results()) == (3, [(2,), (2,), (2,)])
    request, results = worker.start_batch("count", [(1,), (0,), (7,)])
    with pytest.raises(errors.WorkerTrapError):
        worker.end_call(request)
    assert request.progress == 1
    assert results()[0] == (2,)


def test_a_batch_that_is_interrupted_ends_and_the_next_call_does_not_notice(worker):
    for rows in ([(0,), (1,)], [(1,)], [(0,)] * 5000):
        request, _ = worker.start_batch("spin", rows)
        while worker.ring.state(request.sequence) != layout.CALL_RUNNING:
            pass
        assert worker.interrupt(request.sequence) == layout.CALL_INTERRUPTING
        assert worker.wait(request) == layout.RING_FAILED
        assert request.status == layout.CALL_OVERDUE
        assert request.progress < len(rows)
        assert worker.call("count", 1) == [2]


def test_a_batch_ends_early_with_what_has_returned_where_guests_leave_too_much(launcher):
    worker = launcher.fork(LEAVING, fresh=FreshCalls())
    guests = MOST_RESIDENT // (8 * LEFT_ELEMENTS) + 2
    request, results = worker.start_batch("leave", [(LEFT_ELEMENTS,)] * 3 * guests)
    assert worker.wait(request) == layout.RING_DONE
    assert 1 < request.progress <= guests
    assert results()[: request.progress] == [(1,)] * request.progress
    assert wait_gone(worker.pidfd, timeout=PATIENCE)


def test_the_first_guest_can_leave_too_much(launcher):
    worker = launcher.fork(LEAVING, fresh=FreshCalls())
    request, results = worker.start_batch("leave", [(MAXIMUM_TABLE_ELEMENTS - 1,)] * 2)
    assert worker.wait(request) == layout.RING_DONE
    assert (request.progress, results()[0]) == (1, (1,))
    assert wait_gone(worker.pidfd, timeout=PATIENCE)


def test_the_first_call_prepares_all_instances_if_it_is_init(launcher):
    worker = launcher.fork(GUEST, fresh=FreshCalls(init=True))
    assert worker.call("prepare", 100) == [100]
    assert worker.call("prepare", 5) == [105]
    assert [worker.call("count", 1) for _ in range(3)] == [[102]] * 3


def test_a_worker_that_is_asked_to_stop_runs_what_was_called_before(worker):
    requests = [worker.start_call("count", 1) for _ in range(20)]
    worker.tell(messages.Stop())
    assert [worker.end_call(request) for request in requests] == [[2]] * 20
    assert wait_gone(worker.pidfd, timeout=PATIENCE)


@pytest.mark.parametrize(("export", "columns"), [(COUNT, (1 << 30, 0)), (COUNT, (0, 1 << 30)), (77, (0, 0))])
def test_what_is_not_in_the_ring_ends_the_worker(worker, export, columns):
    worker.ring.batch_buffer(0)[:8] = (1).to_bytes(8, "little")
    worker.submit(worker.ring.batch_request(export, 2, *columns))
    assert wait_gone(worker.pidfd, timeout=PATIENCE)
