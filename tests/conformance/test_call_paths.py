"""What a way of calling an instance promises, whichever bytes travel how.

A bench joins a path to a worker's end that the test itself plays. Another implementation would join the suite by one more.
"""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from typing import Any, NamedTuple

import pytest
import wasmtime

from shmwasm import errors
from shmwasm.client import calls
from shmwasm.client.asynchronous import BatchCall, Call
from shmwasm.client.calls import RingCallPath, new_clock
from shmwasm.client.receiving import Receiver
from shmwasm.core import CORE_MODULE, Core, layout
from shmwasm.core.dispatching import dispatched
from shmwasm.core.requests import arguments_format, results_format
from shmwasm.core.worker_ring import WorkerRing
from shmwasm.engine.config import new_engine
from shmwasm.engine.modules import FunctionType
from shmwasm.engine.nests import new_store
from shmwasm.posix import bells, futexes
from shmwasm.posix.channels import Channel
from shmwasm.protocol import codec, messages
from waiting import PATIENCE, eventually

INSTANCE, PID = 7, 4321
NUMBER = FunctionType(("i32",), ("i32",))
FUNCTIONS = {
    "run": NUMBER,
    "add": FunctionType(("i32", "f64"), ("i32", "f64")),
    "vector": FunctionType(("v128",), ()),
    "first": NUMBER,
    "second": NUMBER,
    "spin": FunctionType((), ()),
}


class Taken(NamedTuple):
    """A call, as the worker sees it."""

    slot: int
    number: int
    export: str
    arguments: tuple[Any, ...]


class RingBench:
    """A path through a ring, and the worker at its other end."""

    def __init__(self, cores: tuple[Core, Core]) -> None:
        client, self._core = cores
        self._core.hooks = self
        self.receiver = Receiver()
        ours, self._channel = Channel.pair()
        self.overdue = threading.Event()
        self.host_calls: list[tuple[int, list[Any]]] = []
        self.path = RingCallPath(
            INSTANCE,
            worker=os.getpid(),
            core=client,
            functions=FUNCTIONS,
            channel=ours,
            receiver=self.receiver,
            host_function=self._host_function,
            kill=self.overdue.set,
        )
        packet = self._channel.receive(timeout=PATIENCE)
        assert packet is not None
        assert codec.call_messages.decode(packet[0]) == messages.OpenRing()
        self._descriptors = packet[1]
        self._ring = WorkerRing(self._core, self._descriptors[0])

    def start(self, export: str, *arguments: float, timeout: float = 0.0) -> Future[Any]:
        """Start a call; the future fails if the call ends twice."""
        future: Future[Any] = Future()

        def ended(results: list[Any] | None, error: BaseException | None) -> None:
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result((results, threading.current_thread().name))

        self.path.start(Call(self.path.target(export), arguments, new_clock(timeout or None), ended))
        return future

    def wait_for(self, export: str, *arguments: float) -> Future[Any]:
        """Call, and wait for the end, in a thread."""
        future: Future[Any] = Future()
        function = self.path.function(self.path.target(export), list)

        def run() -> None:
            try:
                future.set_result(function(*arguments))
            except BaseException as error:  # noqa: BLE001  it is what the test is about
                future.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        return future

    def take(self) -> Taken:
        """Return the next call, as the worker."""
        deadline = time.monotonic() + PATIENCE
        while (slot := self._core.call("ring_next", self._ring.address)) < layout.RING_FIRST_SLOT:
            if slot == layout.RING_ATTENTION:
                self._ring.attend()
            assert time.monotonic() < deadline, "there is no call"
        call = self._ring.call_of(slot)
        name = dispatched(FUNCTIONS)[call.export]
        cells = self._core.view(slot + layout.RING_SLOT_HEADER, 16)
        return Taken(slot, call.sequence, name, struct.unpack_from("<" + arguments_format(FUNCTIONS[name]), cells))

    def give(self, call: Taken, *results: float) -> None:
        """Let a call return, as the worker."""
        cells = self._core.view(call.slot + layout.RING_SLOT_HEADER, 16)
        struct.pack_into("<" + results_format(FUNCTIONS[call.export]), cells, 0, *results)
        self._end(call, layout.CALL_RETURNED)

    def trap(self, call: Taken, code: str, facts: dict[str, Any]) -> None:
        """Let a call end by an error, as the worker."""
        self.say(messages.Raised(request=call.number, code=code, facts=facts))
        self._end(call, layout.CALL_TRAPPED)

    def stop(self, call: Taken) -> None:
        """Wait for the interrupt of a call, and end it, as the worker."""
        assert os.read(self._descriptors[2], 8) == (1).to_bytes(8, "little")
        self._end(call, layout.CALL_OVERDUE, interrupted=True)

    def advance(self, call: Taken) -> bool:
        """Let one more call of a stoppable batch return, as the worker; return whether the batch is to end."""
        return bool(self._core.call("ring_advance", call.slot))

    def hear(self) -> Any:
        """Return what the path says beside the ring next."""
        packet = self._channel.receive(timeout=PATIENCE)
        assert packet is not None
        return codec.call_messages.decode(packet[0])

    def say(self, message: messages.CallReply, descriptors: list[int] | None = None) -> None:
        """Say something beside the ring, as the worker."""
        self._channel.send(codec.encode(message), descriptors or [])

    def die(self) -> None:
        """End the worker's end; what the coordinator says of it comes later, by `lose`."""
        self._channel.close()

    def lose(self) -> None:
        """Tell the path that the worker is gone, as the coordinator's message does."""
        self.path.lose(lambda running: errors.WorkerLostError(INSTANCE, PID, 9, None, running))

    def close(self) -> None:
        self.path.close()
        self.receiver.stop()
        self._channel.close()
        self._ring.close()
        for descriptor in self._descriptors:
            os.close(descriptor)

    def wake(self, slot: int) -> None:
        """Wake the client (see `CoreHooks`)."""
        if slot:
            sleeper = self._ring.sleeper(slot)
            if sleeper is None:
                bells.ring(self._ring.end_bell)
            else:
                futexes.wake(sleeper)
        else:
            os.eventfd_write(self._descriptors[1], 1)

    def absorb(self) -> None:
        """Wait for the interrupt of a call that ended by itself (see `CoreHooks`)."""
        assert os.read(self._descriptors[2], 8)

    def _end(self, call: Taken, status: int, *, interrupted: bool = False) -> None:
        if self._ring.end(call.slot, status, interrupted=interrupted):
            bells.ring(self._ring.end_bell)

    def _host_function(self, index: int, arguments: list[Any]) -> list[Any]:
        self.host_calls.append((index, arguments))
        if index == 1:
            raise errors.HostFunctionError(INSTANCE, "", "it failed", "host_function", [], "ValueError", "details")
        return [sum(arguments)]


@pytest.fixture(scope="module")
def cores() -> tuple[Core, Core]:
    """The client's core, and the worker's."""
    engine = new_engine(parallel_compilation=False)
    module = wasmtime.Module.from_file(engine, str(CORE_MODULE))
    return tuple(Core(new_store(engine), module, owner=owner, hooks=None) for owner in (5, 6))


@pytest.fixture
def bench(cores: tuple[Core, Core]) -> Iterator[RingBench]:
    made = RingBench(cores)
    yield made
    made.close()


def test_a_call_brings_its_results_in_the_receiver_thread(bench: RingBench) -> None:
    future = bench.start("add", 1, 2.5)
    call = bench.take()
    assert (call.export, call.arguments) == ("add", (1, 2.5))
    bench.give(call, -1, 0.5)
    assert future.result(PATIENCE) == ([-1, 0.5], "shmwasm-receiver")


def test_a_call_that_somebody_waits_for_brings_its_results_to_him(bench: RingBench) -> None:
    waiting = [bench.wait_for("add", 1, 2.5), bench.wait_for("run", 5), bench.wait_for("spin")]
    results = {"add": (-1, 0.5), "run": (-5,), "spin": ()}
    for _ in waiting:
        call = bench.take()
        bench.give(call, *results[call.export])
    assert [one.result(PATIENCE) for one in waiting] == [[-1, 0.5], -5, None]


def test_calls_reach_the_worker_in_the_order_in_which_they_were_started(bench: RingBench) -> None:
    futures = [bench.start("run", number) for number in range(200)]
    for number in range(200):
        call = bench.take()
        assert call.arguments == (number,)
        bench.give(call, number)
    assert [future.result(PATIENCE)[0] for future in futures] == [[number] for number in range(200)]


def test_calls_that_threads_start_run_in_the_order_of_their_numbers_and_nobody_waits(bench: RingBench) -> None:
    taken: list[int] = []
    threads = [threading.Thread(target=lambda: [bench.start("run", number) for number in range(300)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        # Nobody takes a call: there is no room for all of them.
        thread.join(PATIENCE)
        assert not thread.is_alive()
    for _ in range(1200):
        call = bench.take()
        taken.append(call.number)
        bench.give(call, 1)
    assert taken == list(range(1200))


def test_what_was_started_before_is_in_the_ring_before_a_wait_for_that_ends(bench: RingBench) -> None:
    started = [bench.start("run", number) for number in range(layout.RING_SLOTS + 10)]
    waiting = threading.Thread(target=bench.path.wait_sent)
    waiting.start()
    for number in range(layout.RING_SLOTS + 10):
        assert waiting.is_alive() or bench.path.calls == len(started)
        bench.give(bench.take(), number)
    waiting.join(PATIENCE)
    assert not waiting.is_alive()
    assert [one.result(PATIENCE)[0] for one in started] == [[number] for number in range(layout.RING_SLOTS + 10)]


def test_a_worker_that_cannot_be_understood_is_killed_and_its_calls_end(bench: RingBench) -> None:
    futures = [bench.start("run", 1), bench.wait_for("run", 1)]
    eventually(lambda: bench.path.calls == 2)
    bench._channel.send(b"no message")
    assert bench.overdue.wait(PATIENCE)
    bench.lose()
    assert all(isinstance(future.exception(PATIENCE), errors.WorkerLostError) for future in futures)


def test_many_calls_in_one_slot_tell_how_many_returned(bench: RingBench) -> None:
    outcomes: list[Any] = []
    bench.path.start(BatchCall(bench.path.target("run"), 5, 0, 40, None, lambda *end: outcomes.append(end)))
    call = bench.take()
    bench.say(messages.Raised(request=call.number, code="UnsupportedError", facts={"what": "it", "reason": "none"}))
    words = bench._core.view(call.slot, layout.RING_SLOT_HEADER).cast("I")
    assert (words[6], words[8], words[9]) == (5, layout.RING_BATCHES, layout.RING_BATCHES + 40)
    words[7] = 3  # its progress
    bench._ring.end(call.slot, layout.CALL_TRAPPED)
    eventually(lambda: outcomes)
    ((progress, error),) = outcomes
    assert progress == 3
    assert isinstance(error, errors.UnsupportedError)


@pytest.mark.parametrize("is_late", [False, True])
def test_the_call_of_a_batch_whose_time_is_over_ends_it_unless_it_has_just_returned(bench: RingBench, is_late) -> None:
    outcomes: list[Any] = []
    clock = new_clock(0.05)
    bench.path.start(BatchCall(bench.path.target("run"), 5, 0, 40, clock, lambda *end: outcomes.append(end)))
    call = bench.take()
    assert not bench.advance(call)
    eventually(lambda: clock.ended_early)
    if is_late:
        assert bench.advance(call)
    bench.stop(call)
    eventually(lambda: outcomes)
    ((progress, error),) = outcomes
    assert (progress, type(error)) == ((2, type(None)) if is_late else (1, errors.CallTimeoutError))


def test_a_trap_is_the_error_that_the_worker_sent(bench: RingBench) -> None:
    code, facts = errors.to_wire(errors.WorkerTrapError(INSTANCE, "run", "unreachable", "unreachable", ["m!f @ 0x1"]))
    for begin in (bench.start, bench.wait_for):
        future = begin("run", 1)
        bench.trap(bench.take(), code, facts)
        error = future.exception(PATIENCE)
        assert isinstance(error, errors.WorkerTrapError)
        assert error.backtrace == ["m!f @ 0x1"]


def test_an_error_of_an_unknown_kind_ends_its_call_too(bench: RingBench) -> None:
    for begin in (bench.start, bench.wait_for):
        future = begin("run", 1)
        bench.trap(bench.take(), "NewError", {})
        assert isinstance(future.exception(PATIENCE), errors.ProtocolError)
    following = bench.start("spin")
    bench.give(bench.take())
    assert following.result(PATIENCE)[0] == []


def test_a_trap_without_a_reason_ends_its_call_too(bench: RingBench) -> None:
    future = bench.start("run", 1)
    bench._ring.end(bench.take().slot, layout.CALL_TRAPPED)
    assert isinstance(future.exception(PATIENCE), errors.ProtocolError)


def test_what_is_said_of_no_call_is_passed_over(bench: RingBench) -> None:
    code, facts = errors.to_wire(errors.WorkerTrapError(INSTANCE, "run", "unreachable", "unreachable", []))
    bench.say(messages.Raised(request=1 << 31, code=code, facts=facts))
    bench.say(messages.Raised(request=1 << 40, code=code, facts=facts))
    bench.say(messages.MemoryShared(request=1 << 41, size=1, capacity=1))
    future = bench.start("run", 1)
    bench.give(bench.take(), 2)
    assert future.result(PATIENCE)[0] == [2]


def test_a_lost_worker_fails_every_call_once_and_names_the_one_that_ran(bench: RingBench) -> None:
    futures = [bench.start(export, 1) for export in ("first", "second", "run")]
    waiting = bench.wait_for("run", 4)
    eventually(lambda: bench.path.calls == 4)
    bench.give(bench.take(), 1)
    bench.take()
    bench.die()
    bench.lose()
    assert futures[0].result(PATIENCE)[0] == [1]
    for future in (*futures[1:], waiting):
        error = future.exception(PATIENCE)
        assert isinstance(error, errors.WorkerLostError)
        assert (error.signal, error.last_call) == (9, "second")


def test_a_worker_that_died_idle_was_running_nothing(bench: RingBench) -> None:
    future = bench.start("run", 1)
    bench.die()
    bench.lose()
    error = future.exception(PATIENCE)
    assert isinstance(error, errors.WorkerLostError)
    assert error.last_call is None


def test_what_ended_before_the_worker_was_lost_has_its_result(bench: RingBench) -> None:
    futures = [bench.start("run", 1), bench.wait_for("first", 2)]
    eventually(lambda: bench.path.calls == 2)
    bench.wake = lambda _slot: None  # type: ignore[method-assign]  # it dies before it tells anybody
    for _ in futures:
        bench.give(bench.take(), 3)
    bench.die()
    bench.lose()
    assert futures[0].result(PATIENCE)[0] == [3]
    assert futures[1].result(PATIENCE) == 3


def test_a_call_after_the_worker_was_lost_fails_at_once(bench: RingBench) -> None:
    bench.lose()
    for future in (bench.start("run", 1), bench.wait_for("run", 1)):
        error = future.exception(PATIENCE)
        assert isinstance(error, errors.WorkerLostError)
        assert error.last_call is None


def test_a_call_of_a_worker_that_just_died_waits_for_how_it_died(bench: RingBench) -> None:
    bench.die()
    futures = [bench.start("run", 1), bench.wait_for("run", 1)]
    eventually(lambda: bench.path.calls == 2)
    assert not any(future.done() for future in futures)
    bench.lose()
    assert all(isinstance(future.exception(PATIENCE), errors.WorkerLostError) for future in futures)


def test_a_worker_that_does_not_come_back_in_time_is_reported_and_its_call_timed_out(
    bench: RingBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "GRACE", 0.01)
    future, waiting = bench.start("spin", timeout=0.01), bench.start("run", 1)
    bench.take()
    assert bench.overdue.wait(PATIENCE)
    bench.lose()
    error = future.exception(PATIENCE)
    assert isinstance(error, errors.CallTimeoutError)
    assert (error.export, error.timeout) == ("spin", 0.01)
    assert isinstance(waiting.exception(PATIENCE), errors.WorkerLostError)


def test_a_worker_that_takes_no_call_in_time_is_reported_too(bench: RingBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "GRACE", 0.01)
    future = bench.start("spin", timeout=0.01)
    assert bench.overdue.wait(PATIENCE)
    bench.lose()
    assert isinstance(future.exception(PATIENCE), errors.CallTimeoutError)


def test_a_call_without_a_time_limit_is_never_overdue_and_the_queue_does_not_count(
    bench: RingBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "GRACE", 0.0)
    future, timed = bench.start("run", 1), bench.start("first", 2, timeout=0.001)
    slow = bench.take()
    eventually(lambda: bench.path.next_deadline() is not None)
    bench.give(slow, 1)
    assert future.result(PATIENCE)[0] == [1]
    assert bench.overdue.wait(PATIENCE)
    # It was withdrawn, as it had not begun.
    eventually(lambda: bench._core.call("ring_next", bench._ring.address) < layout.RING_FIRST_SLOT and timed.done())
    assert isinstance(timed.exception(0), errors.CallTimeoutError)


def test_an_overdue_call_is_interrupted_once(bench: RingBench) -> None:
    future = bench.start("spin", timeout=0.01)
    bench.stop(bench.take())
    error = future.exception(PATIENCE)
    assert isinstance(error, errors.CallTimeoutError)
    assert (error.export, error.timeout) == ("spin", 0.01)
    assert not bench.overdue.is_set()


def test_a_host_function_of_the_client_is_run_while_the_call_waits(bench: RingBench) -> None:
    future = bench.start("run", 1)
    call = bench.take()
    bench.say(messages.HostCall(request=call.number, index=0, arguments=[1, 2, 3]))
    assert bench.hear() == messages.HostReturn(results=[6])
    assert bench.host_calls == [(0, [1, 2, 3])]
    bench.give(call, 6)
    assert future.result(PATIENCE)[0] == [6]


def test_a_host_function_that_raises_sends_its_error_to_the_worker(bench: RingBench) -> None:
    future = bench.start("run", 1)
    call = bench.take()
    bench.say(messages.HostCall(request=call.number, index=1, arguments=[]))
    reply = bench.hear()
    assert (reply.code, reply.facts["exception"]) == ("HostFunctionError", "ValueError")
    bench.trap(call, reply.code, reply.facts)
    assert isinstance(future.exception(PATIENCE), errors.HostFunctionError)


def test_the_memory_comes_with_its_descriptor(bench: RingBench) -> None:
    shared: Future[Any] = Future()
    bench.path.share_memory(lambda message, descriptors, error: shared.set_result((message, descriptors, error)))
    request = bench.hear().request
    ours, theirs = os.pipe()
    bench.say(messages.MemoryShared(request=request, size=1, capacity=2), [ours])
    os.close(ours)
    os.close(theirs)
    message, descriptors, error = shared.result(PATIENCE)
    assert (message.size, message.capacity, error) == (1, 2, None)
    (descriptor,) = descriptors
    os.close(descriptor)


def test_the_memory_of_a_lost_worker_is_an_error(bench: RingBench) -> None:
    shared: Future[Any] = Future()
    bench.path.share_memory(lambda message, descriptors, error: shared.set_result((message, descriptors, error)))
    bench.lose()
    message, descriptors, error = shared.result(PATIENCE)
    assert (message, descriptors) == (None, [])
    assert isinstance(error, errors.WorkerLostError)


def test_a_call_can_be_cancelled_until_the_worker_takes_it(bench: RingBench) -> None:
    outcomes: list[Any] = []
    made = [Call(bench.path.target("run"), [number], None, lambda *end: outcomes.append(end)) for number in range(70)]
    for call in made:
        bench.path.start(call)
    taken = bench.take()
    assert bench.path.is_running(made[0])
    assert not bench.path.is_running(made[1])
    assert [bench.path.cancel(made[index]) for index in (0, 1, 1, 69, 69)] == [False, True, False, True, False]
    bench.give(taken, 0)
    for number in range(2, 69):
        call = bench.take()
        assert call.arguments == (number,)
        bench.give(call, number)
    eventually(lambda: len(outcomes) == 69)
    assert outcomes[0] == ([0], None)
    assert isinstance(outcomes[1][1], CancelledError)
    assert [results for results, _ in outcomes[2:]] == [[number] for number in range(2, 69)]


def test_a_full_ring_makes_a_caller_wait_or_raises(bench: RingBench) -> None:
    futures = [bench.start("run", number) for number in range(layout.RING_SLOTS)]
    late = Call(bench.path.target("run"), [-1 & 0xFFFF_FFFF], None, lambda *_: None)
    with pytest.raises(errors.BusyError, match=str(layout.RING_SLOTS)):
        bench.path.start(late, "raise")
    waiting = threading.Thread(target=bench.path.start, args=(late, "wait"))
    waiting.start()
    caller = bench.wait_for("run", 1000)
    bench.give(bench.take(), 0)
    assert futures[0].result(PATIENCE)[0] == [0]
    seen = set()
    for _ in range(layout.RING_SLOTS + 1):
        call = bench.take()
        seen.add(call.arguments[0])
        bench.give(call, 1)
    waiting.join(PATIENCE)
    assert not waiting.is_alive()
    assert caller.result(PATIENCE) == 1
    assert seen == {*range(1, layout.RING_SLOTS), 0xFFFF_FFFF, 1000}


def test_closing_ends_what_is_under_way_and_twice_is_fine(bench: RingBench) -> None:
    futures = [bench.start("run", 1), bench.start("run", 1), bench.wait_for("run", 1)]
    eventually(lambda: bench.path.calls == 3)
    bench.give(bench.take(), 8)
    function = bench.path.function(bench.path.target("run"), list)
    bench.path.close()
    bench.path.close()
    assert futures[0].result(PATIENCE)[0] == [8]
    for future in futures[1:]:
        assert isinstance(future.exception(PATIENCE), errors.ClosedError)
    with pytest.raises(errors.ClosedError):
        function(1)
