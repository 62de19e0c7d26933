"""The client's end of its connection to the coordinator; the receiver thread reads for it (see `receiving`)."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from shmwasm import errors
from shmwasm.client.futures import SafeFuture
from shmwasm.client.receiving import Receiver
from shmwasm.posix.channels import Channel, DescriptorsCutError
from shmwasm.posix.conditions import Event, Lock
from shmwasm.posix.signals import interrupts_let_through, interrupts_put_off
from shmwasm.protocol import codec, messages

Reply = tuple[messages.CoordinatorToClient, list[int]]
R = TypeVar("R", bound=messages.CoordinatorToClient)

LEAVING_PATIENCE = 10.0
"""Seconds that a coordinator gets to take leave of a client."""


class Connection:
    """Requests to the coordinator, their answers, and the coordinator's own messages."""

    def __init__(
        self, channel: Channel, receiver: Receiver, handle_event: Callable[[messages.CoordinatorToClient], None]
    ) -> None:
        self._channel = channel
        self._receiver = receiver
        self._handle_event = handle_event
        self._numbers = itertools.count(1)
        self._pending: dict[int, Future[Reply]] = {}
        self._lock = Lock()
        self._lost: errors.ShmwasmError | None = None
        self._leaving = False
        self._ended = Event()
        receiver.add(self)

    @property
    def lost(self) -> bool:
        """Whether the coordinator is gone."""
        return self._lost is not None

    def check_may_block(self) -> None:
        """Raise unless the calling thread may wait for an answer; raises what `Receiver.check_may_block` does."""
        self._receiver.check_may_block()

    def send(self, message: messages.Message) -> None:
        """Send a message that has no answer.

        Raises:
            CoordinatorLostError: The coordinator is gone.
        """
        if self._lost is not None:
            raise self._lost
        try:
            self._channel.send(codec.encode(message))
        except errors.ClosedError:
            raise errors.CoordinatorLostError("the coordinator is gone") from None

    def begin(
        self,
        build: Callable[[int], messages.Request],
        descriptors: Sequence[int] = (),
        *,
        then: Callable[[Future[Reply]], None] | None = None,
    ) -> Future[Reply]:
        """Send the request that `build` makes of its number; return the future of the answer and its descriptors.

        `then` is called with the answer before anything that the coordinator says later is handled: what is known of an instance
        must be there before the news of its end.

        The future ends with the error that the coordinator answered, or with `CoordinatorLostError` or, after `leave`,
        `ClosedError`.
        """
        future: Future[Reply] = SafeFuture()
        if then is not None:
            future.add_done_callback(then)
        number = next(self._numbers)
        with interrupts_put_off():
            with self._lock:
                lost = self._lost
                if lost is None:
                    self._pending[number] = future
            if lost is not None:
                future.set_exception(lost)
                return future
            try:
                self._send(codec.encode(build(number)), descriptors)
            except errors.ClosedError:
                return future  # the receiver reads the channel's end next, which ends this request too
            except BaseException:
                with self._lock:
                    self._pending.pop(number, None)
                raise
            return future

    def request(
        self,
        kind: type[R],
        build: Callable[[int], messages.Request],
        descriptors: Sequence[int] = (),
        *,
        then: Callable[[Future[Reply]], None] | None = None,
    ) -> tuple[R, list[int]]:
        """Send the request that `build` makes of its number, and wait for its answer, which is of type `kind`.

        An interrupt ends the wait, also where it is put off, for the wait may be long. What is answered then is given back, and
        `then` is called (see `begin`).

        Raises:
            ShmwasmError: Whatever the coordinator answered.
            CoordinatorLostError: The coordinator is gone.
        """
        self.check_may_block()
        with interrupts_put_off():
            answered = self.begin(build, descriptors, then=then)
            try:
                with interrupts_let_through():
                    reply, received = answered.result()
            except BaseException:
                answered.add_done_callback(self._give_back)
                raise
            if not isinstance(reply, kind):
                close_descriptors(received)
                raise errors.ProtocolError(f"{type(reply).__name__} arrived where {kind.__name__} was expected")
            return reply, received

    def fileno(self) -> int:
        """Return the channel's descriptor."""
        return self._channel.fileno()

    def handle_readable(self) -> bool:
        """Read one packet and hand it on."""
        received: list[int] = []
        try:
            packet = self._channel.receive(timeout=0)
            if packet is None:
                raise errors.CoordinatorLostError("the coordinator is gone")
            payload, received = packet
            message = codec.to_client.decode(payload)
        except TimeoutError:
            return True  # the descriptor was another channel's when the kernel reported it
        except DescriptorsCutError as cut:
            return self._handle_cut(cut)
        except errors.ShmwasmError as error:
            close_descriptors(received)
            self._lose(errors.CoordinatorLostError(str(error)))
            return False
        request = getattr(message, "request", None)
        if request is None:
            close_descriptors(received)
            self._handle_event(message)
        else:
            self._answer(request, message, received)
        return True

    def next_deadline(self) -> float | None:
        """A coordinator has no deadline: it is alive or gone."""
        return None

    def handle_deadline(self) -> None:
        """Nothing: see `next_deadline`."""

    def fail(self) -> None:
        """Fail what is pending and what is to come (see `Receiving`)."""
        self._lose(errors.CoordinatorLostError("this process failed to read what the coordinator said"))

    def leave(self) -> None:
        """Say goodbye, and wait until the coordinator took back what this process held; not for ever, as it may be stopped."""
        self._leaving = True
        try:
            self.send(messages.Goodbye())
        except (errors.CoordinatorLostError, errors.ClosedError):
            return
        self._ended.wait(LEAVING_PATIENCE)

    def close(self) -> None:
        """Fail what is pending and close the channel."""
        with interrupts_put_off():
            self._receiver.remove(self)
            self._lose(errors.CoordinatorLostError("the connection to the coordinator is closed"))
            self._channel.close()
            self._handle_event = _nothing  # who handled it refers to this: neither need wait for the garbage collector

    def abandon(self) -> None:
        """Close the channel in a forked child; nothing is sent."""
        self._lost = errors.CoordinatorLostError("the connection belongs to the parent process")
        self._channel.close()

    def _send(self, packet: bytes, descriptors: Sequence[int]) -> None:
        """Send a request; raises what `Channel.send` does."""
        if not self._channel.try_send(packet, descriptors):
            with interrupts_let_through():  # the coordinator may be stopped
                self._channel.send(packet, descriptors)

    def _give_back(self, answered: Future[Reply]) -> None:
        """Give back what an answer brought, as a signal's exception ended the wait for it."""
        if answered.exception() is None:
            self._refuse(*answered.result())

    def _refuse(self, reply: messages.CoordinatorToClient, received: list[int]) -> None:
        """Give back what an answer brought that nobody waits for."""
        close_descriptors(received)
        if isinstance(reply, messages.HeapOpened):
            heap = reply.heap.heap
            self.begin(lambda number: messages.CloseHeap(request=number, heap=heap))
        elif isinstance(reply, messages.Spawned):
            instance = reply.instance
            self.begin(lambda number: messages.Kill(request=number, instance=instance))

    def _handle_cut(self, cut: DescriptorsCutError) -> bool:
        """Fail the one request whose answer came without its descriptors, as too many are open here; there may be room again."""
        try:
            message = codec.to_client.decode(cut.payload)
        except errors.ShmwasmError as error:
            self._lose(errors.CoordinatorLostError(str(error)))
            return False
        failure = errors.UnsupportedError("one more descriptor", "this process has too many open: see its limit on open files")
        request = getattr(message, "request", None)
        if request is None:
            self._handle_event(message)  # it is about nothing that has descriptors
        else:
            self._answer(request, message, [], failure)
        return True

    def _answer(
        self,
        request: int,
        message: messages.CoordinatorToClient,
        received: list[int],
        failure: errors.UnsupportedError | None = None,
    ) -> None:
        """End a request by its answer, or by `failure`: then what it brought is given back."""
        if isinstance(message, messages.HeapOpened | messages.ChainLaidOut):
            # Whoever asked may look at the answer only after the chains have moved again, which the next messages say.
            self._handle_event(message)
        with self._lock:
            future = self._pending.pop(request, None)
        if future is None or failure is not None:
            self._refuse(message, received)
            if future is not None:
                future.set_exception(failure)
        elif isinstance(message, messages.Failed):
            close_descriptors(received)
            future.set_exception(error_of(message.code, message.facts))
        else:
            future.set_result((message, received))

    def _lose(self, error: errors.CoordinatorLostError) -> None:
        """Fail what is pending and what is to come; with another error if this end took leave first."""
        with self._lock:
            if self._lost is not None:
                return
            lost = self._lost = errors.ClosedError("this runtime") if self._leaving else error
            self._ended.set()
            pending, self._pending = list(self._pending.values()), {}
        for future in pending:
            future.set_exception(lost)
        self._handle_event(messages.Failed(request=0, code=type(error).__name__, facts={"reason": error.reason}))


def _nothing(_message: messages.CoordinatorToClient) -> None:
    """Handle an event that came after the end."""


def error_of(code: str, facts: dict[str, Any]) -> errors.ShmwasmError:
    """Return the error that arrived; one of an unknown kind is a `ProtocolError`, which ends its request like any other."""
    try:
        return errors.from_wire(code, facts)
    except errors.ProtocolError as unknown:
        return unknown


def close_descriptors(descriptors: Sequence[int]) -> None:
    """Close descriptors that arrived and that nobody wants."""
    for descriptor in descriptors:
        os.close(descriptor)
