"""The client's end of its connection to the coordinator, and the one thread that reads for the whole runtime.

Locking
-------
One *receiver* thread reads the coordinator's channel and every instance's call channel. All that arrives is handled there, so
handlers must not block: a request is therefore answered through a future, and whoever waits for one waits in another thread.
`Connection.request` refuses to be called in the receiver thread, where it would wait for itself (a future's callback runs there).
"""

from __future__ import annotations

import itertools
import os
import selectors
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from shmwasm import errors
from shmwasm.posix.channels import Channel
from shmwasm.protocol import codec, messages

Reply = tuple[messages.CoordinatorToClient, list[int]]
R = TypeVar("R", bound=messages.CoordinatorToClient)

LEAVING_PATIENCE = 10.0
"""Seconds that a coordinator gets to take leave of a client."""

LONGEST_WAIT = 3600.0
"""Seconds that the receiver waits at a time: the kernel takes no wait of any length."""


class Receiving(Protocol):
    """Something that the receiver thread reads for."""

    def fileno(self) -> int:
        """Return the descriptor to wait on."""

    def handle_readable(self) -> bool:
        """Read and handle what has arrived, without blocking; return whether to go on."""

    def next_deadline(self) -> float | None:
        """Return when `handle_deadline` wants to be called (`time.monotonic`), or None."""

    def handle_deadline(self) -> None:
        """Handle that the deadline has passed."""


class Receiver:
    """The thread that reads for a runtime."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._selector.register(self._wake, selectors.EVENT_READ, None)
        self._sources: set[Receiving] = set()
        self._lock = threading.Lock()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="shmwasm-receiver", daemon=True)
        self._thread.start()

    def add(self, source: Receiving) -> None:
        """Read for `source` from now on."""
        with self._lock:
            self._sources.add(source)
            self._selector.register(source.fileno(), selectors.EVENT_READ, source)

    def remove(self, source: Receiving) -> None:
        """Read for `source` no more; may be called twice."""
        with self._lock:
            if source in self._sources:
                self._sources.remove(source)
                self._selector.unregister(source.fileno())

    def wake(self) -> None:
        """Make the thread look at the deadlines again."""
        os.eventfd_write(self._wake, 1)

    def check_may_block(self) -> None:
        """Raise unless the calling thread may wait for something that this thread has to read.

        Raises:
            UnsupportedError: The calling thread is the receiver itself.
        """
        if threading.current_thread() is self._thread:
            raise errors.UnsupportedError(
                "a blocking call in a future's callback", "it would wait for the thread that it runs in"
            )

    def stop(self) -> None:
        """End the thread, wait for it, and release its descriptors."""
        self._stopping = True
        self.wake()
        self._thread.join()
        self._selector.close()
        os.close(self._wake)

    def abandon(self) -> None:
        """Release the descriptors in a forked child, where the thread does not exist."""
        if self._stopping:
            # They were released before the fork, and their numbers may be others' by now.
            return
        self._selector.close()
        os.close(self._wake)

    def _run(self) -> None:
        while not self._stopping:
            for key, _ in self._selector.select(self._patience()):
                if key.fd == self._wake:
                    os.eventfd_read(self._wake)
                elif not key.data.handle_readable():
                    self.remove(key.data)
            now = time.monotonic()
            for source in self._snapshot():
                deadline = source.next_deadline()
                if deadline is not None and deadline <= now:
                    source.handle_deadline()

    def _patience(self) -> float | None:
        deadlines = [deadline for source in self._snapshot() if (deadline := source.next_deadline()) is not None]
        if not deadlines:
            return None
        return min(max(0.0, min(deadlines) - time.monotonic()), LONGEST_WAIT)

    def _snapshot(self) -> list[Receiving]:
        with self._lock:
            return list(self._sources)


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
        self._lock = threading.Lock()
        self._lost: errors.ShmwasmError | None = None
        self._leaving = False
        self._ended = threading.Event()
        receiver.add(self)

    @property
    def lost(self) -> bool:
        """Whether the coordinator is gone."""
        return self._lost is not None

    def send(self, message: messages.Message) -> None:
        """Send a message that has no answer.

        Raises:
            CoordinatorLostError: The coordinator is gone.
        """
        self._post(message, ())

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
        future: Future[Reply] = Future()
        if then is not None:
            future.add_done_callback(then)
        number = next(self._numbers)
        with self._lock:
            self._pending[number] = future
        try:
            self._post(build(number), descriptors)
        except BaseException as error:
            with self._lock:
                self._pending.pop(number, None)
            if not isinstance(error, errors.CoordinatorLostError | errors.ClosedError):
                raise
            if not future.done():
                future.set_exception(error)
        return future

    def request(
        self, kind: type[R], build: Callable[[int], messages.Request], descriptors: Sequence[int] = ()
    ) -> tuple[R, list[int]]:
        """Send the request that `build` makes of its number, and wait for its answer, which is of type `kind`.

        Raises:
            ShmwasmError: Whatever the coordinator answered.
            CoordinatorLostError: The coordinator is gone.
        """
        self._receiver.check_may_block()
        answered = self.begin(build, descriptors)
        try:
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
        try:
            packet = self._channel.receive()
            if packet is None:
                raise errors.CoordinatorLostError("the coordinator is gone")
            message = codec.to_client.decode(packet[0])
        except errors.ShmwasmError as error:
            self._lose(errors.CoordinatorLostError(str(error)))
            return False
        request = getattr(message, "request", None)
        if request is None:
            close_descriptors(packet[1])
            self._handle_event(message)
        else:
            self._answer(request, message, packet[1])
        return True

    def next_deadline(self) -> float | None:
        """A coordinator has no deadline: it is alive or gone."""
        return None

    def handle_deadline(self) -> None:
        """Nothing: see `next_deadline`."""

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
        self._receiver.remove(self)
        self._lose(errors.CoordinatorLostError("the connection to the coordinator is closed"))
        self._channel.close()

    def abandon(self) -> None:
        """Close the channel in a forked child; nothing is sent."""
        self._lost = errors.CoordinatorLostError("the connection belongs to the parent process")
        self._channel.close()

    def _post(self, message: messages.Message, descriptors: Sequence[int]) -> None:
        if self._lost is not None:
            raise self._lost
        try:
            self._channel.send(codec.encode(message), descriptors)
        except errors.ClosedError:
            # The receiver would hear of it too, but only later.
            raise self._lose(errors.CoordinatorLostError("the coordinator is gone")) from None

    def _give_back(self, answered: Future[Reply]) -> None:
        """Give back what an answer brought, as a signal's exception ended the wait for it."""
        if answered.exception() is None:
            reply, received = answered.result()
            close_descriptors(received)
            if isinstance(reply, messages.HeapOpened):
                heap = reply.heap.heap
                self.begin(lambda number: messages.CloseHeap(request=number, heap=heap))

    def _answer(self, request: int, message: messages.CoordinatorToClient, received: list[int]) -> None:
        with self._lock:
            future = self._pending.pop(request, None)
        if future is None:
            close_descriptors(received)
        elif isinstance(message, messages.Failed):
            close_descriptors(received)
            future.set_exception(error_of(message.code, message.facts))
        else:
            future.set_result((message, received))

    def _lose(self, error: errors.CoordinatorLostError) -> errors.ShmwasmError:
        """Fail what is pending and what is to come; return the error to raise, which is another if this end took leave first."""
        with self._lock:
            if self._lost is not None:
                return self._lost
            lost = self._lost = errors.ClosedError("this runtime") if self._leaving else error
            self._ended.set()
            pending, self._pending = list(self._pending.values()), {}
        for future in pending:
            future.set_exception(lost)
        self._handle_event(messages.Failed(request=0, code=type(error).__name__, facts={"reason": error.reason}))
        return lost


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
