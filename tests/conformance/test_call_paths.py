"""What every way of calling an instance promises, whichever bytes travel how.

A `Bench` joins a path to a worker's end that the test itself plays. An implementation joins the suite by one more bench.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from shmwasm import errors
from shmwasm.client import calls
from shmwasm.client.calls import CallPath, SocketCallPath
from shmwasm.client.connection import Receiver
from shmwasm.posix.channels import Channel
from shmwasm.protocol import codec, messages

PATIENCE = 10.0
INSTANCE, PID = 7, 4321


class SocketBench:
    """A path through a socket, and the worker at its other end."""

    def __init__(self) -> None:
        self.receiver = Receiver()
        ours, self._worker = Channel.pair()
        self.overdue = threading.Event()
        self.host_calls: list[tuple[int, list[Any]]] = []
        self.path: CallPath = SocketCallPath(7, ours, self.receiver, self._host_function, self.overdue.set)

    def start(self, export: str, *arguments: float, timeout: float = 0.0) -> Future[Any]:
        """Start a call; the future fails if the call ends twice."""
        future: Future[Any] = Future()

        def ended(results: list[Any] | None, error: BaseException | None) -> None:
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result((results, threading.current_thread().name))

        self.path.start(export, arguments, timeout, ended)
        return future

    def take(self) -> Any:
        """Return the next request, as the worker."""
        packet = self._worker.receive(timeout=PATIENCE)
        assert packet is not None
        return codec.call_messages.decode(packet[0])

    def answer(self, message: messages.CallReply, descriptors: list[int] | None = None) -> None:
        """Answer, as the worker."""
        self._worker.send(codec.encode(message), descriptors or [])

    def die(self) -> None:
        """End the worker's end; what the coordinator says of it comes later, by `lose`."""
        self._worker.close()

    def lose(self) -> None:
        """Tell the path that the worker is gone, as the coordinator's message does."""
        self.path.lose(lambda running: errors.WorkerLostError(INSTANCE, PID, 9, None, running))

    def close(self) -> None:
        self.path.close()
        self.receiver.stop()
        self._worker.close()

    def _host_function(self, index: int, arguments: list[Any]) -> list[Any]:
        self.host_calls.append((index, arguments))
        if index == 1:
            raise errors.HostFunctionError(INSTANCE, "", "it failed", "host_function", [], "ValueError", "details")
        return [sum(arguments)]


@pytest.fixture(params=[SocketBench])
def bench(request: pytest.FixtureRequest) -> Iterator[Any]:
    made = request.param()
    yield made
    made.close()


def test_a_call_brings_its_results_in_the_receiver_thread(bench: Any) -> None:
    future = bench.start("add", 1, 2.5)
    call = bench.take()
    assert (call.export, call.arguments) == ("add", [1, 2.5])
    bench.answer(messages.Return(request=call.request, results=[-1, 0.5]))
    assert future.result(PATIENCE) == ([-1, 0.5], "shmwasm-receiver")


def test_calls_reach_the_worker_in_the_order_in_which_they_were_started(bench: Any) -> None:
    futures = [bench.start("run", number) for number in range(50)]
    for number in range(50):
        call = bench.take()
        assert call.arguments == [number]
        bench.answer(messages.Return(request=call.request, results=[number]))
    assert [future.result(PATIENCE)[0] for future in futures] == [[number] for number in range(50)]


def test_a_trap_is_the_error_that_the_worker_sent(bench: Any) -> None:
    future = bench.start("run")
    code, facts = errors.to_wire(errors.WorkerTrapError(INSTANCE, "run", "unreachable", "unreachable", ["m!f @ 0x1"]))
    bench.answer(messages.Raised(request=bench.take().request, code=code, facts=facts))
    error = future.exception(PATIENCE)
    assert isinstance(error, errors.WorkerTrapError)
    assert error.backtrace == ["m!f @ 0x1"]


def test_an_error_of_an_unknown_kind_ends_its_call_too(bench: Any) -> None:
    future, following = bench.start("run"), bench.start("run")
    bench.answer(messages.Raised(request=bench.take().request, code="NewError", facts={}))
    assert isinstance(future.exception(PATIENCE), errors.ProtocolError)
    bench.answer(messages.Return(request=bench.take().request, results=[]))
    assert following.result(PATIENCE)[0] == []


def test_an_answer_to_nothing_is_passed_over(bench: Any) -> None:
    future = bench.start("run")
    call = bench.take()
    for request in (call.request + 100, call.request, call.request):
        bench.answer(messages.Return(request=request, results=[request]))
    assert future.result(PATIENCE)[0] == [call.request]


def test_a_lost_worker_fails_every_call_once_and_names_the_one_that_ran(bench: Any) -> None:
    futures = [bench.start(export) for export in ("first", "second", "third")]
    bench.answer(messages.Return(request=bench.take().request, results=[]))
    assert futures[0].result(PATIENCE)[0] == []
    bench.die()
    bench.lose()
    for future in futures[1:]:
        error = future.exception(PATIENCE)
        assert isinstance(error, errors.WorkerLostError)
        assert (error.signal, error.last_call) == (9, "second")


def test_a_call_after_the_worker_was_lost_fails_at_once(bench: Any) -> None:
    bench.lose()
    error = bench.start("late").exception(0)
    assert isinstance(error, errors.WorkerLostError)
    assert error.last_call is None


def test_a_call_of_a_worker_that_just_died_waits_for_how_it_died(bench: Any) -> None:
    bench.die()
    future = bench.start("run")
    assert not future.done()
    bench.lose()
    assert isinstance(future.exception(PATIENCE), errors.WorkerLostError)


def test_a_worker_that_does_not_come_back_in_time_is_reported_and_its_call_timed_out(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "GRACE", 0.01)
    future, waiting = bench.start("spin", timeout=0.01), bench.start("next")
    assert bench.overdue.wait(PATIENCE)
    bench.lose()
    error = future.exception(PATIENCE)
    assert isinstance(error, errors.CallTimeoutError)
    assert (error.export, error.timeout) == ("spin", 0.01)
    assert isinstance(waiting.exception(PATIENCE), errors.WorkerLostError)


def test_a_call_without_a_time_limit_is_never_overdue(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "GRACE", 0.0)
    future, timed = bench.start("slow"), bench.start("quick", timeout=0.001)
    slow = bench.take()
    bench.answer(messages.Return(request=slow.request, results=[1]))
    assert future.result(PATIENCE)[0] == [1]
    assert bench.overdue.wait(PATIENCE)
    bench.answer(messages.Return(request=bench.take().request, results=[2]))
    assert timed.result(PATIENCE)[0] == [2]


def test_a_host_function_of_the_client_is_run_while_the_call_waits(bench: Any) -> None:
    future = bench.start("run")
    call = bench.take()
    bench.answer(messages.HostCall(request=call.request, index=0, arguments=[1, 2, 3]))
    assert bench.take() == messages.HostReturn(results=[6])
    assert bench.host_calls == [(0, [1, 2, 3])]
    bench.answer(messages.Return(request=call.request, results=[6]))
    assert future.result(PATIENCE)[0] == [6]


def test_a_host_function_that_raises_sends_its_error_to_the_worker(bench: Any) -> None:
    future = bench.start("run")
    call = bench.take()
    bench.answer(messages.HostCall(request=call.request, index=1, arguments=[]))
    reply = bench.take()
    assert (reply.code, reply.facts["exception"]) == ("HostFunctionError", "ValueError")
    bench.answer(messages.Raised(request=call.request, code=reply.code, facts=reply.facts))
    assert isinstance(future.exception(PATIENCE), errors.HostFunctionError)


def test_the_memory_comes_with_its_descriptor(bench: Any) -> None:
    shared: Future[Any] = Future()
    bench.path.share_memory(lambda message, descriptors, error: shared.set_result((message, descriptors, error)))
    request = bench.take().request
    ours, theirs = os.pipe()
    bench.answer(messages.MemoryShared(request=request, size=1, capacity=2), [ours])
    os.close(ours)
    os.close(theirs)
    message, descriptors, error = shared.result(PATIENCE)
    assert (message.size, message.capacity, error) == (1, 2, None)
    (descriptor,) = descriptors
    os.close(descriptor)


def test_the_memory_of_a_lost_worker_is_an_error(bench: Any) -> None:
    shared: Future[Any] = Future()
    bench.path.share_memory(lambda message, descriptors, error: shared.set_result((message, descriptors, error)))
    bench.lose()
    message, descriptors, error = shared.result(PATIENCE)
    assert (message, descriptors) == (None, [])
    assert isinstance(error, errors.WorkerLostError)


def test_closing_twice_is_fine(bench: Any) -> None:
    bench.path.close()
    bench.path.close()
