"""The worker at its ring: it sleeps when there is nothing to do, wakes for whatever there is, and refuses what is no ring."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import time
from pathlib import Path

import pytest

from processes import state_of
from shmwasm.core import layout
from shmwasm.core.rings import new_sealed_memory
from shmwasm.posix import bells
from shmwasm.posix.channels import Channel
from shmwasm.posix.processes import send_signal, wait_gone
from shmwasm.protocol import codec, messages
from waiting import PATIENCE, eventually

GUEST = """(module
  (import "env" "ask" (func $ask (param i32) (result i32)))
  (func (export "ask") (param i32) (result i32) (call $ask (local.get 0)))
  (func (export "same") (param i32) (result i32) (local.get 0))
  (func (export "divide") (param i32) (result i32) (i32.div_u (i32.const 1) (local.get 0)))
  (func (export "loop") (param i32) (result i32) (local i32)
    (loop $again (br_if $again (i32.lt_u (local.tee 1 (i32.add (local.get 1) (i32.const 1))) (local.get 0))))
    (local.get 1))
  (func (export "spin") (loop $again (br $again))))"""

CLIENT_FUNCTION = messages.HostImport(module="env", name="ask", on_client=True)


@pytest.fixture
def worker(launcher):
    return launcher.fork(GUEST, imports=[CLIENT_FUNCTION])


def processor_time(worker):
    """Return the time that a worker has run so far, in nanoseconds."""
    return int(Path(f"/proc/{worker.pid}/schedstat").read_text().split()[0])


def test_a_worker_with_nothing_to_do_sleeps_and_uses_no_processor(worker):
    assert worker.call("same", 1) == [1]
    eventually(worker.ring.is_parked)
    eventually(lambda: state_of(worker.pid) == "S")
    before = processor_time(worker)
    assert not select.select([worker.pidfd], [], [], 0.5)[0]
    assert processor_time(worker) == before
    assert worker.call("same", 3) == [3]


def test_a_worker_that_sleeps_is_woken_by_every_call(worker):
    for number in range(300):
        eventually(worker.ring.is_parked)
        request = worker.prepare("same", number)
        assert worker.ring.submit(request) == layout.RING_PENDING | layout.RING_DOORBELL
        bells.ring(worker.ring.worker_bell)
        assert worker.end_call(request) == [number]
        worker.ring.give(request)


def test_a_worker_that_looks_for_a_while_takes_calls_without_being_rung_for(worker):
    worker.ring.set_spin(1 << 31)
    worker.call("same", 1)
    for number in range(100):
        request = worker.prepare("same", number)
        assert worker.ring.submit(request) == layout.RING_PENDING
        assert worker.end_call(request) == [number]
        worker.ring.give(request)
    worker.ring.set_spin(0)
    eventually(lambda: worker.ring.is_parked() or worker.call("same", 1) == [])


def test_a_ring_for_nothing_harms_nothing(worker):
    for _ in range(10):
        bells.ring(worker.ring.worker_bell)
        assert worker.call("same", 1) == [1]


def test_the_receiver_is_woken_once_at_the_end_of_calls_that_nobody_waits_for(worker):
    requests = [worker.prepare("same", number) for number in range(5)]
    worker.ring.ask()
    for request in requests:
        worker.submit(request, layout.CALL_ASYNCHRONOUS)
    ended = {}
    while len(ended) < 5:
        assert select.select([worker.completion], [], [], PATIENCE)[0]
        os.eventfd_read(worker.completion)
        worker.ring.ask()
        ended |= {one.sequence: one for one in worker.ring.collect()}
    assert sorted(ended) == [request.sequence for request in requests]
    assert all(one.status == layout.CALL_RETURNED for one in ended.values())


def test_a_client_that_sleeps_until_its_call_ends_is_woken(worker):
    from shmwasm.posix import futexes  # noqa: PLC0415 - only here

    for _ in range(50):
        request = worker.start_call("ask", 1)
        found = worker.ring.doze(request, layout.RING_FUTEX)
        assert found is not None
        worker.answer()
        worker.ask(messages.HostReturn(results=[2]))
        while found is not None:
            assert futexes.wait32(*found, time.monotonic_ns() + int(PATIENCE * 1e9)) is not futexes.Wait.TIMED_OUT
            found = worker.ring.doze(request, layout.RING_FUTEX)
        assert worker.end_call(request) == [2]
        worker.ring.give(request)


def test_a_client_that_sleeps_at_the_bell_is_woken_however_its_call_ends(worker):
    for ending in ["returns", "traps", "is withdrawn"] * 20:
        first = worker.start_call("ask", 1)
        request = worker.start_call("divide" if ending == "traps" else "same", 0)
        worker.answer()
        if ending == "is withdrawn":
            assert worker.ring.end_early(request.sequence) == layout.CALL_CANCELLED
        found = worker.ring.doze(request)
        assert found is not None
        assert found[0] == worker.ring.end_bell
        worker.ask(messages.HostReturn(results=[2]))
        while worker.ring.doze(request):
            assert bells.wait(worker.ring.end_bell, PATIENCE)
        assert worker.wait(request) == (layout.RING_DONE if ending == "returns" else layout.RING_FAILED)
        assert worker.end_call(first) == [2]
        if ending == "traps":
            assert isinstance(worker.answer(), messages.Raised)
        worker.ring.give(first)
        worker.ring.give(request)


def test_a_message_of_the_coordinator_wakes_a_worker_that_sleeps(worker):
    for number in range(100):
        eventually(worker.ring.is_parked)
        worker.tell(messages.UnmapChain(request=number))
        assert worker.hear() == messages.Done(request=number)
    assert worker.call("same", 1) == [1]


def test_a_message_is_read_before_the_next_call_though_the_ring_is_full(worker):
    requests = [worker.start_call("ask", number) for number in range(layout.RING_SLOTS)]
    assert worker.answer().request == requests[0].sequence
    worker.ask(messages.HostReturn(results=[0]))
    worker.ask(messages.ShareMemory(request=1 << 32))  # arrives while the second call waits, or between the two
    replies = [worker.answer(), worker.answer()]
    assert {type(reply) for reply in replies} == {messages.HostCall, messages.Raised}  # the guest has no memory
    for _ in requests[1:-1]:
        worker.ask(messages.HostReturn(results=[0]))
        worker.answer()
    worker.ask(messages.HostReturn(results=[0]))
    assert [worker.end_call(request) for request in requests] == [[0]] * layout.RING_SLOTS


def test_the_coordinator_is_heard_between_slow_calls_of_a_full_ring(worker):
    requests = [worker.start_call("loop", 10_000_000) for _ in range(layout.RING_SLOTS)]
    worker.tell(messages.UnmapChain(request=5))
    assert worker.hear() == messages.Done(request=5)
    assert worker.ring.state(requests[-1].sequence) == layout.CALL_SUBMITTED


def test_what_a_killed_worker_did_and_did_not_is_in_the_ring(launcher, worker):
    returned = worker.start_call("same", 7)
    running = worker.start_call("spin")
    waiting = [worker.start_call("same", number) for number in range(3)]
    eventually(lambda: worker.ring.state(running.sequence) == layout.CALL_RUNNING)
    send_signal(worker.pidfd, signal.SIGKILL)
    assert wait_gone(worker.pidfd, PATIENCE)
    assert worker.end_call(returned) == [7]
    assert worker.ring.state(running.sequence) == layout.CALL_RUNNING
    assert worker.ring.running().sequence == running.sequence
    assert {worker.ring.state(request.sequence) for request in waiting} == {layout.CALL_SUBMITTED}
    assert isinstance(launcher.hear(), messages.Exited)


@pytest.mark.parametrize("state", ["parked", "looking", "in a host function", "waiting for a tick"])
def test_a_worker_may_be_killed_in_any_state_and_another_one_serves(launcher, worker, state):
    worker.call("same", 1, timeout=PATIENCE)
    match state:
        case "parked":
            eventually(worker.ring.is_parked)
        case "looking":
            worker.ring.set_spin(1 << 31)
            worker.call("same", 1)
        case "in a host function":
            worker.start_call("ask", 1)
            worker.answer()
        case _:
            request = worker.start_call("loop", 30_000_000)
            eventually(lambda: worker.ring.state(request.sequence) == layout.CALL_RUNNING)
            assert worker.ring.end_early(request.sequence) == layout.CALL_INTERRUPTING
    send_signal(worker.pidfd, signal.SIGKILL)
    assert launcher.hear() == messages.Exited(worker=worker.number, pid=worker.pid, signal=signal.SIGKILL, exit_code=None)
    assert launcher.fork(GUEST, imports=[CLIENT_FUNCTION]).call("same", 1) == [1]


def unsealed():
    memory = os.memfd_create("unsealed", os.MFD_CLOEXEC)
    os.ftruncate(memory, layout.RING_SIZE)
    return memory


def small():
    return new_sealed_memory("small", 65536)


def empty():
    return new_sealed_memory("empty", layout.RING_SIZE)


def channel_end():
    ours, theirs = Channel.pair()
    descriptor = os.dup(ours.fileno())
    ours.close()
    theirs.close()
    return descriptor


@pytest.mark.parametrize("ring", [unsealed, small, empty, channel_end])
def test_what_is_no_ring_ends_the_worker(launcher, ring):
    worker = launcher.fork(GUEST, imports=[CLIENT_FUNCTION], with_ring=False)
    descriptor = ring()
    worker.calls.send(codec.encode(messages.OpenRing()), [descriptor, worker.completion, worker.interrupts])
    os.close(descriptor)
    assert launcher.hear() == messages.Exited(worker=worker.number, pid=worker.pid, signal=None, exit_code=os.EX_PROTOCOL)


@pytest.mark.parametrize("count", [0, 2, 4])
def test_a_ring_with_another_number_of_descriptors_ends_the_worker(launcher, count):
    worker = launcher.fork(GUEST, imports=[CLIENT_FUNCTION], with_ring=False)
    worker.calls.send(codec.encode(messages.OpenRing()), [worker.ring.descriptor, *[worker.completion] * 3][:count])
    assert launcher.hear().exit_code == os.EX_PROTOCOL


def test_a_second_ring_ends_the_worker(launcher, worker):
    worker.open_ring()
    assert launcher.hear().exit_code == os.EX_PROTOCOL


def test_an_interrupt_that_is_none_ends_the_worker(launcher):
    worker = launcher.fork(GUEST, imports=[CLIENT_FUNCTION], with_ring=False)
    read, write = os.pipe()
    worker.calls.send(codec.encode(messages.OpenRing()), [worker.ring.descriptor, worker.completion, read])
    os.write(write, b"x")
    assert launcher.hear().exit_code == os.EX_PROTOCOL
    os.close(read)
    os.close(write)


def test_a_function_that_does_not_exist_ends_the_worker(launcher, worker):
    request = worker.prepare("same", 1)
    request.name(99)
    worker.submit(request)
    assert launcher.hear().exit_code == os.EX_PROTOCOL


def test_a_ring_cannot_be_made_smaller_under_the_worker(worker):
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(worker.ring.descriptor, 0)
    assert fcntl.fcntl(worker.ring.descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK


def test_a_worker_told_to_stop_serves_all_that_was_submitted_even_before_it_had_the_ring(launcher):
    module = launcher.compile(GUEST)
    worker = launcher.start_fork(module, imports=[CLIENT_FUNCTION])
    requests = [worker.prepare("same", number) for number in range(layout.RING_SLOTS)]
    for request in requests:
        worker.ring.submit(request)
    worker.tell(messages.Stop())
    assert isinstance(launcher.hear(), messages.Forked)
    assert worker.hear() == messages.Ready()
    assert launcher.hear().exit_code == 0
    assert [worker.end_call(request) for request in requests] == [[number] for number in range(layout.RING_SLOTS)]
