"""Interrupting calls: each one ends exactly once, and no interruption hits another one."""

from __future__ import annotations

import os
import select
from pathlib import Path

import pytest

from shmwasm import errors
from shmwasm.core import layout
from shmwasm.protocol import messages
from waiting import eventually

GUEST = """(module
  (import "env" "ask" (func $ask (param i32) (result i32)))
  (memory (export "memory") 1 1024 shared)
  (global $count (mut i32) (i32.const 0))
  (func (export "count") (result i32)
    (global.set $count (i32.add (global.get $count) (i32.const 1))) (global.get $count))
  (func (export "ask") (param i32) (result i32) (call $ask (local.get 0)))
  (func (export "loop") (param i32) (local i32)
    (loop $again (br_if $again (i32.lt_u (local.tee 1 (i32.add (local.get 1) (i32.const 1))) (local.get 0)))))
  (func (export "divide_after") (param i32) (result i32) (local i32)
    (loop $again (br_if $again (i32.lt_u (local.tee 1 (i32.add (local.get 1) (i32.const 1))) (local.get 0))))
    (i32.div_u (i32.const 1) (i32.const 0)))
  (func (export "ask_and_wait") (param i32) (result i32)
    (memory.atomic.wait32 (i32.add (local.get 0) (call $ask (i32.const 1))) (i32.const 0) (i64.const -1)))
  (func (export "wait32") (param i32) (result i32)
    (memory.atomic.wait32 (local.get 0) (i32.const 0) (i64.const -1)))
  (func (export "wait64") (param i32) (result i32)
    (memory.atomic.wait64 (local.get 0) (i64.const 0) (i64.const -1)))
  (func (export "spin") (loop $again (br $again))))"""

CLIENT_FUNCTION = messages.HostImport(module="env", name="ask", on_client=True)


@pytest.fixture
def worker(launcher):
    return launcher.fork(GUEST, imports=[CLIENT_FUNCTION])


@pytest.fixture
def attached(launcher, heap):
    descriptors = [os.dup(descriptor) for descriptor in heap.descriptors]
    worker = launcher.fork(GUEST, imports=[CLIENT_FUNCTION], grants=[heap.grant], descriptors=descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    return worker


def until_running(worker, request):
    eventually(lambda: worker.ring.state(request.sequence) == layout.CALL_RUNNING)


def interrupt_while_it_runs(worker, export, *arguments):
    """Start a call that does not end by itself, and interrupt it."""
    request = worker.start_call(export, *arguments)
    until_running(worker, request)
    assert worker.interrupt(request.sequence) == layout.CALL_INTERRUPTING
    assert worker.wait(request) == layout.RING_FAILED
    assert request.status == layout.CALL_OVERDUE
    worker.ring.give(request)


def threads_of(worker):
    return len(list(Path(f"/proc/{worker.pid}/task").iterdir()))


def test_an_endless_loop_is_interrupted_and_the_same_process_answers_the_next_call(worker):
    request = worker.start_call("spin")
    until_running(worker, request)  # else it would only be cancelled
    with pytest.raises(errors.CallTimeoutError):
        worker.end_call(request, timeout=0.02)
    assert worker.call("count") == [1]
    assert worker.call("count", timeout=30.0) == [2]


def test_a_worker_has_two_threads_as_soon_as_it_has_a_ring(worker):
    worker.call("count")
    assert threads_of(worker) == 2


def test_hundreds_of_interruptions_leave_the_worker_as_it_was(worker):
    for _ in range(200):
        interrupt_while_it_runs(worker, "spin")
    assert worker.call("count") == [1]
    assert threads_of(worker) == 2


@pytest.mark.parametrize("export", ["loop", "divide_after"])
def test_an_interruption_that_races_with_the_end_of_a_call_hits_that_call_or_none(worker, export):
    """The calls take about as long as it takes to interrupt them, so all orders of the two happen; which did is not known."""
    worker.call("count")
    endings = set()
    for attempt in range(1000):
        request = worker.start_call(export, 400 * (attempt % 50))
        following = worker.start_call("count")
        until_it_runs = attempt % 7
        while until_it_runs and worker.ring.state(request.sequence) == layout.CALL_SUBMITTED:
            until_it_runs -= 1
        found = worker.interrupt(request.sequence)
        answer = worker.wait(request)
        endings.add((found, request.status))
        if request.status == layout.CALL_TRAPPED:
            assert worker.answer().request == request.sequence
        assert (answer == layout.RING_DONE) == (request.status == layout.CALL_RETURNED)
        assert worker.ring.wait(request) == layout.RING_LOST  # it ended once
        assert worker.end_call(following) == [attempt + 2]
        worker.ring.give(request)
        worker.ring.give(following)
    by_itself = layout.CALL_RETURNED if export == "loop" else layout.CALL_TRAPPED
    assert endings <= {
        (layout.CALL_EMPTY, by_itself),
        (layout.CALL_INTERRUPTING, by_itself),
        (layout.CALL_INTERRUPTING, layout.CALL_OVERDUE),
        (layout.CALL_CANCELLED, layout.CALL_WITHDRAWN),
    }


def test_a_host_function_is_not_disturbed_by_an_interruption_which_is_the_guests_after_it(worker):
    worker.call("count")
    request = worker.start_call("ask", 5)
    assert isinstance(worker.answer(), messages.HostCall)
    assert worker.interrupt(request.sequence) == layout.CALL_INTERRUPTING
    worker.ask(messages.ShareMemory(request=1 << 32))
    shared, descriptors = worker.answer_with_descriptors()  # it still waits for the client, and serves it
    assert isinstance(shared, messages.MemoryShared)
    os.close(descriptors[0])
    worker.ask(messages.HostReturn(results=[6]))
    # The guest returns at once: the tick may come before that, or be absorbed after it.
    assert (worker.wait(request), request.status) in {
        (layout.RING_FAILED, layout.CALL_OVERDUE),
        (layout.RING_DONE, layout.CALL_RETURNED),
    }
    assert worker.call("count") == [2]


@pytest.mark.parametrize("export", ["wait32", "wait64"])
def test_a_guest_that_sleeps_in_a_heap_is_woken_when_it_is_interrupted(attached, heap, export):
    address = heap.grant.start + 4096
    for _ in range(20):
        interrupt_while_it_runs(attached, export, address)
    assert attached.call("count") == [1]


def test_a_guest_that_is_interrupted_before_it_sleeps_does_not_sleep(attached, heap):
    """The interruption comes while a host function runs, and the guest sleeps right after it, with no loop or call between."""
    attached.call("count")
    request = attached.start_call("ask_and_wait", heap.grant.start + 4096)
    assert isinstance(attached.answer(), messages.HostCall)
    assert attached.interrupt(request.sequence) == layout.CALL_INTERRUPTING
    attached.ask(messages.HostReturn(results=[0]))
    assert attached.wait(request) == layout.RING_FAILED
    assert request.status == layout.CALL_OVERDUE


def test_a_batch_that_is_interrupted_says_how_many_calls_returned(worker):
    worker.call("count")
    calls = 1000
    request, results = worker.start_batch("ask", [(number,) for number in range(calls)])
    for number in range(3):
        assert worker.answer().arguments == [number]
        if number == 2:
            assert worker.interrupt(request.sequence) == layout.CALL_INTERRUPTING
        worker.ask(messages.HostReturn(results=[number + 1]))
    asked = 3  # the tick may not have been made yet
    while worker.ring.wait(request) == layout.RING_PENDING:
        if select.select([worker.calls], [], [], 0.01)[0]:
            worker.answer()
            worker.ask(messages.HostReturn(results=[asked + 1]))
            asked += 1
    assert request.status == layout.CALL_OVERDUE
    assert request.progress in {asked - 1, asked}
    assert results()[: request.progress] == [(number + 1,) for number in range(request.progress)]
    assert worker.call("count") == [2]


def test_a_worker_that_waits_for_an_interruption_ends_with_its_client(launcher, worker):
    worker.call("count")
    request = worker.start_call("loop", 30_000_000)
    until_running(worker, request)
    assert worker.ring.end_early(request.sequence) == layout.CALL_INTERRUPTING
    worker.calls.close()
    exited = launcher.hear()
    assert (exited.worker, exited.exit_code) == (worker.number, 0)
