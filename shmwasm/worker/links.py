"""The worker's two channels: to its coordinator, and to its client.

Theory
------
A worker does one thing at a time. While a call runs it may have to wait for one particular answer: `Leased` or `Alive` from the
coordinator, `HostReturn` from the client. Whatever else arrives meanwhile is put off, in order, until the call has ended; a
client's look at the memory (`ShareMemory`) is served at once, as the guest stands still.

A channel at its end means that nobody wants this worker any more: it exits, from wherever it is.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, TypeVar

from shmwasm.errors import ClosedError, ProtocolError, from_wire
from shmwasm.protocol import codec, messages
from shmwasm.worker.leaving import give_up, leave

if TYPE_CHECKING:
    from shmwasm.posix.channels import Channel
    from shmwasm.worker.watching import Watcher

Number = int | float
M = TypeVar("M")


class ControlLink:
    """The channel to the coordinator."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._put_off: deque[tuple[messages.CoordinatorToWorker, list[int]]] = deque()
        self._requests = 0
        self._watcher: Watcher | None = None

    def fileno(self) -> int:
        """Return the channel's descriptor, to wait on."""
        return self._channel.fileno()

    def watch(self, watcher: Watcher) -> None:
        """Let a watcher tell when there is something to read, but for what is waited for here."""
        self._watcher = watcher

    @property
    def has_put_off(self) -> bool:
        """Whether a message was put off."""
        return bool(self._put_off)

    def send(self, message: messages.WorkerMessage) -> None:
        """Send a message, or exit where there is nobody to receive it."""
        try:
            self._channel.send(codec.encode(message))
        except ClosedError:
            leave()

    def receive(self) -> tuple[messages.CoordinatorToWorker, list[int]]:
        """Return the next message, put off or new, and its descriptors, which are the caller's to close."""
        return self._put_off.popleft() if self._put_off else self._receive()

    def lease(self, heap: int, size_class: int, slabs: int) -> list[messages.SlabRange]:
        """Ask for slabs, while a call runs; none means refused."""
        self._requests += 1
        self.send(messages.Lease(request=self._requests, heap=heap, size_class=size_class, slabs=slabs))
        return self._answer(messages.Leased).ranges

    def is_alive(self, peer: int) -> bool:
        """Ask whether a client or a worker is there, while a call runs."""
        self._requests += 1
        self.send(messages.IsAlive(request=self._requests, number=peer))
        return self._answer(messages.Alive).alive

    def _answer(self, kind: type[M]) -> M:
        """Return the one message of that kind that is due; whatever comes before it is put off."""
        with _kept_off(self._watcher, self._channel):
            while True:
                message, descriptors = self._receive()
                if isinstance(message, kind):
                    return message
                self._put_off.append((message, descriptors))
                if self._watcher is not None:
                    self._watcher.call()

    def _receive(self) -> tuple[messages.CoordinatorToWorker, list[int]]:
        return _next(self._channel, codec.to_worker)


class ClientLink:
    """The channel to the client.

    Args:
        channel: The worker's end.
        share_memory: Serves `ShareMemory`: returns the answer and the descriptors that travel with it.
    """

    def __init__(
        self, channel: Channel, share_memory: Callable[[messages.ShareMemory], tuple[messages.CallReply, Sequence[int]]]
    ) -> None:
        self._channel = channel
        self._share_memory = share_memory
        self._watcher: Watcher | None = None

    def fileno(self) -> int:
        """Return the channel's descriptor, to wait on."""
        return self._channel.fileno()

    def watch(self, watcher: Watcher) -> None:
        """Let a watcher tell when there is something to read, but for what is waited for here."""
        self._watcher = watcher

    def send(self, reply: messages.CallReply, descriptors: Sequence[int] = ()) -> None:
        """Send a reply, or exit where there is nobody to receive it."""
        try:
            self._channel.send(codec.encode(reply), descriptors)
        except ClosedError:
            leave()

    def serve(self) -> list[int] | None:
        """Serve the next message; return the descriptors that came with it if it was `OpenRing`, which is the caller's to serve.

        Raises:
            ProtocolError: It is out of place.
        """
        message, descriptors = self._receive()
        match message:
            case messages.OpenRing():
                return descriptors
            case messages.ShareMemory() as request:
                self.send(*self._share_memory(request))
                return None
            case messages.HostReturn():
                raise ProtocolError("the client answered a host call that was not made")

    def call_host(self, request: int, index: int, arguments: list[Number]) -> list[Number]:
        """Run the client's host function `index` for the call `request`, and return its results.

        Raises:
            ShmwasmError: What the host function, or the client on its behalf, raised.
        """
        with _kept_off(self._watcher, self._channel):
            self.send(messages.HostCall(request=request, index=index, arguments=arguments))
            while True:
                message, _ = self._receive()
                match message:
                    case messages.HostReturn(code="", results=results):
                        return results
                    case messages.HostReturn(code=code, facts=facts):
                        raise from_wire(code, facts)
                    case messages.ShareMemory() as request_to_share:
                        self.send(*self._share_memory(request_to_share))
                    case messages.OpenRing():
                        give_up(ProtocolError("the client sent a second call ring"))

    def _receive(self) -> tuple[messages.CallMessage, list[int]]:
        message, descriptors = _next(self._channel, codec.call_messages)
        if not isinstance(message, messages.OpenRing):
            while descriptors:
                os.close(descriptors.pop())
        return message, descriptors


def _kept_off(watcher: Watcher | None, channel: Channel) -> AbstractContextManager[None]:
    return nullcontext() if watcher is None else watcher.keeps_off(channel.fileno())


def _next(channel: Channel, decoder: codec.Decoder[M]) -> tuple[M, list[int]]:
    """Return the next message and its descriptors, or exit where there is none to come, or none that can be understood.

    It exits rather than raises because it is also called below a guest, where an exception would only end the guest's call.
    """
    try:
        packet = channel.receive()
        if packet is not None:
            return decoder.decode(packet[0]), packet[1]
    except ProtocolError as error:
        give_up(error)
    return leave()
