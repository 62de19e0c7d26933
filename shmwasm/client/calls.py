"""How calls reach an instance: the interface, and the path through a socket.

An instance runs one call at a time, in the order in which they were started. A `CallPath` promises that each call's `ended` is
called exactly once, with results or with an error, in the receiver thread; which bytes travel how is its own affair.

Locking: a call gets its number, its place among those under way and its place on the wire under one lock, so that the three
agree. Nobody waits for room in the socket while holding it, or at all: what does not fit waits here (`_send_unsent`). Calls are
ended outside of it, as their futures' callbacks may start more.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from shmwasm import errors
from shmwasm.client.connection import Receiver, close_descriptors, error_of
from shmwasm.posix.channels import Channel
from shmwasm.protocol import codec, messages

Number = int | float
Ended = Callable[[list[Number] | None, BaseException | None], None]
HostFunction = Callable[[int, list[Number]], list[Number]]

GRACE = 5.0
"""Seconds that a worker gets to come back by itself after a call's time limit."""


class CallPath(Protocol):
    """How calls reach one instance."""

    def start(self, export: str, arguments: Sequence[Number], timeout: float, ended: Ended) -> None:
        """Start a call; `timeout` 0 means none."""

    def share_memory(self, ended: Callable[[messages.MemoryShared | None, list[int], BaseException | None], None]) -> None:
        """Ask for the guest's linear memory."""

    def wait_sent(self) -> None:
        """Wait until all that was started has reached the worker, or will not any more."""

    def lose(self, build: Callable[[str | None], errors.ShmwasmError]) -> None:
        """Fail all that is under way: the worker is gone. `build` makes the error, given the export that was running."""

    def close(self) -> None:
        """Release what the path holds."""


@dataclass(slots=True)
class _Pending:
    """A request under way: a call (`export` is set) or a look at the memory."""

    export: str | None
    timeout: float
    ended: Callable[..., None]
    began: float = field(default_factory=time.monotonic)


class SocketCallPath:
    """Calls through the worker's call channel, a packet each way.

    Args:
        instance: The instance's number, for errors.
        channel: The client's end.
        receiver: The thread that reads it.
        host_function: Runs the client's host function of that index; called in a thread of its own.
        kill: Called when the worker does not come back from a call within its time limit and `GRACE`, or cannot be understood.
    """

    def __init__(
        self, instance: int, channel: Channel, receiver: Receiver, host_function: HostFunction, kill: Callable[[], None]
    ) -> None:
        self._instance = instance
        self._channel = channel
        self._receiver = receiver
        self._host_function = host_function
        self._kill = kill
        self._numbers = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        self._unsent: deque[tuple[int, bytes]] = deque()
        self._lock = threading.Lock()
        self._sent = threading.Condition(self._lock)
        self._timed_out: _Pending | None = None
        self._lost: Callable[[str | None], errors.ShmwasmError] | None = None
        receiver.add(self)

    def start(self, export: str, arguments: Sequence[Number], timeout: float, ended: Ended) -> None:
        """Start a call (see `CallPath`)."""
        self._request(
            _Pending(export, timeout, ended),
            lambda number: messages.Call(request=number, export=export, arguments=list(arguments), timeout=timeout),
        )
        if timeout:
            self._receiver.wake()

    def share_memory(self, ended: Callable[[messages.MemoryShared | None, list[int], BaseException | None], None]) -> None:
        """Ask for the guest's linear memory (see `CallPath`)."""

        def adapt(message: messages.MemoryShared | None, error: BaseException | None, descriptors: Sequence[int] = ()) -> None:
            ended(message, list(descriptors), error)

        self._request(_Pending(None, 0.0, adapt), lambda number: messages.ShareMemory(request=number))

    def wait_sent(self) -> None:
        """Wait until nothing is kept here (see `CallPath`)."""
        with self._lock:
            self._sent.wait_for(lambda: not self._unsent)

    def lose(self, build: Callable[[str | None], errors.ShmwasmError]) -> None:
        """Fail all that is under way (see `CallPath`), but for what the worker answered before it went."""
        with contextlib.suppress(TimeoutError):
            while self._read():
                pass
        with self._lock:
            self._lost = build
            pending, self._pending = list(self._pending.values()), {}
            self._unsent.clear()
            self._sent.notify_all()
        running = next((one.export for one in pending if one.export is not None), None)
        for one in pending:
            if one is self._timed_out and one.export is not None:
                one.ended(None, errors.CallTimeoutError(self._instance, one.export, one.timeout))
            else:
                one.ended(None, build(running))

    def close(self) -> None:
        """Release the channel."""
        self._receiver.remove(self)
        self._channel.close()

    def fileno(self) -> int:
        """Return the channel's descriptor."""
        return self._channel.fileno()

    def handle_readable(self) -> bool:
        """Read one packet. At the channel's end the worker is gone or going: the coordinator will say how."""
        try:
            return self._read()
        except TimeoutError:
            return True  # `lose` read it

    def _read(self) -> bool:
        """Handle the next packet; return whether there may be more.

        Raises:
            TimeoutError: There is none now.
        """
        received: list[int] = []
        try:
            packet = self._channel.receive(timeout=0)
            if packet is None:
                return False
            payload, received = packet
            message = codec.call_replies.decode(payload)
        except errors.ClosedError:
            return False
        except errors.ShmwasmError:
            close_descriptors(received)
            self._kill()
            return False
        if not isinstance(message, messages.MemoryShared):
            close_descriptors(received)
        match message:
            case messages.Return(request=request, results=results):
                self._end(request, results, None)
            case messages.Raised(request=request, code=code, facts=facts):
                self._end(request, None, error_of(code, facts))
            case messages.MemoryShared(request=request):
                self._end(request, message, None, received)
            case messages.HostCall():
                threading.Thread(
                    target=self._run_host_function, args=(message,), daemon=True, name="shmwasm-host-function"
                ).start()
        return True

    def next_deadline(self) -> float | None:
        """Return when the running call will be overdue."""
        running = self._running()
        if running is None or not running.timeout or running is self._timed_out:
            return None
        return running.began + running.timeout + GRACE

    def handle_deadline(self) -> None:
        """The worker did not come back."""
        self._timed_out = self._running()
        self._kill()

    def fail(self) -> None:
        """End the worker: what waits for it fails once the coordinator says that it is gone (see `Receiving`)."""
        self._kill()

    def _running(self) -> _Pending | None:
        with self._lock:
            return next(iter(self._pending.values()), None)

    def _request(self, pending: _Pending, build: Callable[[int], messages.Request]) -> None:
        failed: list[tuple[_Pending, errors.ShmwasmError]] = []
        with self._lock:
            if self._lost is None:
                number = next(self._numbers)
                packet = codec.encode(build(number))
                self._pending[number] = pending
                self._unsent.append((number, packet))
                failed = self._send_unsent()
            else:
                failed = [(pending, self._lost(None))]
        for one, error in failed:
            one.ended(None, error)

    def _send_unsent(self) -> list[tuple[_Pending, errors.ShmwasmError]]:
        """Send what there is room for; return what cannot be sent, and why. The lock is held.

        The rest is tried again after the next answer. There is one to come: what fills the socket is requests without an answer,
        or the result of a host function, which such a request waits for.
        """
        failed = []
        while self._unsent:
            number, packet = self._unsent[0]
            try:
                if not self._channel.try_send(packet):
                    break
            except errors.ClosedError:
                # The worker is gone; `lose` ends all requests as soon as the coordinator has said how.
                self._unsent.clear()
                break
            except errors.ShmwasmError as error:
                failed.append((self._pending.pop(number), error))
            self._unsent.popleft()
        return failed

    def _end(
        self,
        request: int,
        result: list[Number] | messages.MemoryShared | None,
        error: BaseException | None,
        received: Sequence[int] = (),
    ) -> None:
        with self._lock:
            pending = self._pending.pop(request, None)
            following = next(iter(self._pending.values()), None)
            if following is not None:
                following.began = time.monotonic()
            failed = []
            if self._unsent:
                failed = self._send_unsent()
                self._sent.notify_all()
        for one, failure in failed:
            one.ended(None, failure)
        if pending is None:
            close_descriptors(received)
        elif pending.export is None:
            pending.ended(result, error, received)
        else:
            pending.ended(result, error)

    def _run_host_function(self, message: messages.HostCall) -> None:
        try:
            reply = messages.HostReturn(results=self._host_function(message.index, message.arguments))
        except errors.HostFunctionError as error:
            code, facts = errors.to_wire(error)
            reply = messages.HostReturn(code=code, facts=facts)
        try:
            self._channel.send(codec.encode(reply))
        except errors.ClosedError:
            return  # the worker died while the function ran: its call fails with `WorkerLostError`
        except errors.ShmwasmError:
            self._kill()  # it would wait for ever
