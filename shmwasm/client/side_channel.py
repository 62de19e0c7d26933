"""What travels beside the ring: errors' facts, host functions that run in the client, and the guest's memory.

Theory
------
The ring carries numbers. A call that trapped says so there, and why over this socket, before it says so: whoever finds that its
call trapped will find the facts here, or will be told of them.

Locking: `_lock` guards what is kept for others. The messages are read by the receiver thread, and by whoever learns first that
the worker is gone.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable
from typing import NoReturn

from shmwasm import errors
from shmwasm.client.connection import close_descriptors, error_of
from shmwasm.client.receiving import Receiver
from shmwasm.posix.channels import Channel
from shmwasm.posix.conditions import Condition
from shmwasm.protocol import codec, messages

Number = int | float
HostFunction = Callable[[int, list[Number]], list[Number]]
MemoryAnswered = Callable[[messages.MemoryShared | None, list[int], BaseException | None], None]

_FIRST_REQUEST = 1 << 32
"""Requests have greater numbers than calls."""


class SideChannel:
    """The client's end of the call channel.

    Args:
        channel: Both directions.
        receiver: The thread that reads it.
        host_function: Runs the client's host function of that index; called in a thread of its own.
        kill: Called when the worker cannot be understood.
    """

    def __init__(self, channel: Channel, receiver: Receiver, host_function: HostFunction, kill: Callable[[], None]) -> None:
        self._channel = channel
        self._receiver = receiver
        self._host_function = host_function
        self._kill = kill
        self._numbers = itertools.count(_FIRST_REQUEST)
        self._lock = self._arrived = Condition()
        self._facts: dict[int, errors.ShmwasmError] = {}
        self._unwanted: set[int] = set()
        self._waiting: dict[int, MemoryAnswered] = {}
        self._lost: errors.ShmwasmError | None = None

    def open(self, message: messages.Message, descriptors: list[int]) -> None:
        """Send the first message, and read what comes from now on."""
        with contextlib.suppress(errors.ClosedError):  # the worker is gone already, which the coordinator will say
            self._channel.send(codec.encode(message), descriptors)
        self._receiver.add(self)

    def share_memory(self, answered: MemoryAnswered) -> None:
        """Ask for the guest's linear memory."""
        with self._lock:
            number = next(self._numbers)
            lost = self._lost
            if lost is None:
                self._waiting[number] = answered
        if lost is not None:
            answered(None, [], lost)
            return
        with contextlib.suppress(errors.ClosedError):  # the worker is gone: `lose` follows
            self._channel.send(codec.encode(messages.ShareMemory(request=number)))

    def take_facts(self, sequence: int) -> errors.ShmwasmError:
        """Return why a call that has ended trapped, in the receiver thread or once the worker is lost."""
        with self._lock:
            facts = self._facts.pop(sequence, None)
        while facts is None:
            try:
                more = self._read()
            except TimeoutError:
                more = False
            with self._lock:
                facts = self._facts.pop(sequence, None)
            if not more and facts is None:
                return errors.ProtocolError("the worker did not say why a call trapped")
        return facts

    def await_facts(self, sequence: int) -> errors.ShmwasmError:
        """Wait until the receiver has read why a call that has ended trapped, and return that."""
        try:
            with self._lock:
                self._arrived.wait_for(lambda: sequence in self._facts or self._lost is not None)
                facts = self._facts.pop(sequence, None)
                return facts or self._lost or errors.ProtocolError("the worker did not say why a call trapped")
        except BaseException:
            self.forget_facts(sequence)
            raise

    def forget_facts(self, sequence: int) -> None:
        """Drop why a call trapped, now or when it arrives."""
        with self._lock:
            if self._facts.pop(sequence, None) is None:
                self._unwanted.add(sequence)

    def drain(self) -> None:
        """Read what the worker sent before it went."""
        with contextlib.suppress(TimeoutError):
            while self._read():
                pass

    def lose(self, error: errors.ShmwasmError) -> None:
        """Fail whoever waits, and whoever will."""
        with self._lock:
            if self._lost is not None:
                return
            self._lost = error
            waiting, self._waiting = self._waiting, {}
            self._arrived.notify_all()
        for answered in waiting.values():
            answered(None, [], error)

    def close(self) -> None:
        """Read no more, run no host function any more, and close the channel. May be called twice."""
        self._receiver.remove(self)
        self._host_function = _refuse
        self._channel.close()

    def abandon(self) -> None:
        """Close the channel in a forked child."""
        self._channel.close()

    def fileno(self) -> int:
        """Return the channel's descriptor."""
        return self._channel.fileno()

    def handle_readable(self) -> bool:
        """Read one packet. At the channel's end the worker is gone or going: the coordinator will say how."""
        try:
            return self._read()
        except TimeoutError:
            return True  # another thread read it

    def next_deadline(self) -> float | None:
        """Return None: calls have deadlines, messages have none."""
        return None

    def handle_deadline(self) -> None:
        """Nothing: see `next_deadline`."""

    def fail(self) -> None:
        """End the worker: what waits for it fails once the coordinator says that it is gone (see `Receiving`)."""
        self._kill()

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
        if isinstance(message, messages.MemoryShared):
            self._answer(message.request, message, received, None)
            return True
        close_descriptors(received)
        match message:
            case messages.Raised(request=request, code=code, facts=facts) if request < _FIRST_REQUEST:
                self._keep(request, error_of(code, facts))
            case messages.Raised(request=request, code=code, facts=facts):
                self._answer(request, None, [], error_of(code, facts))
            case messages.HostCall():
                threading.Thread(
                    target=self._run_host_function, args=(message,), daemon=True, name="shmwasm-host-function"
                ).start()
        return True

    def _keep(self, sequence: int, facts: errors.ShmwasmError) -> None:
        with self._lock:
            if sequence in self._unwanted:
                self._unwanted.remove(sequence)
            else:
                self._facts[sequence] = facts
                self._arrived.notify_all()

    def _answer(
        self, request: int, message: messages.MemoryShared | None, received: list[int], error: BaseException | None
    ) -> None:
        with self._lock:
            answered = self._waiting.pop(request, None)
        if answered is None:
            close_descriptors(received)
        else:
            answered(message, received, error)

    def _run_host_function(self, message: messages.HostCall) -> None:
        try:
            reply = messages.HostReturn(results=self._host_function(message.index, message.arguments))
        except errors.HostFunctionError as error:
            code, facts = errors.to_wire(error)
            reply = messages.HostReturn(code=code, facts=facts)
        except errors.ClosedError:
            return  # the instance was closed before the function began
        try:
            self._channel.send(codec.encode(reply))
        except errors.ClosedError:
            return  # the worker died while the function ran: its call fails with `WorkerLostError`
        except errors.ShmwasmError:
            self._kill()  # it would wait for ever


def _refuse(_index: int, _arguments: list[Number]) -> NoReturn:
    """Run no host function: the instance may be gone."""
    raise errors.ClosedError("the call channel")
