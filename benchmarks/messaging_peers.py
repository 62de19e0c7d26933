"""Processes that send each other messages in other ways; a module of its own, because a spawned process imports it."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
from collections.abc import Callable, Iterator
from importlib import metadata
from multiprocessing.connection import Connection
from typing import Any, Final, NamedTuple, Protocol

SIZE: Final = 64
CAPACITY: Final = 1024


class Peer(NamedTuple):
    """A way to send messages of `SIZE` bytes to another process, where at most `CAPACITY` are under way."""

    name: str
    send: Callable[[int], None]
    """Sends so many messages, and returns once all have arrived."""
    ping: Callable[[int], None]
    """Sends so many messages, one after the other, each after the answer to the one before."""


class _Channel(Protocol):
    def push(self) -> None: ...

    def pop(self) -> None: ...


@contextlib.contextmanager
def queue_peer() -> Iterator[Peer]:
    """Give the peer that uses `multiprocessing.Queue`."""
    context = multiprocessing.get_context("spawn")
    there, back = context.Queue(CAPACITY), context.Queue(CAPACITY)
    with _process(_QueueChannel, there, back) as connection:
        yield _peer("multiprocessing.Queue", _QueueChannel(back, there), connection)
    for queue in (there, back):
        queue.close()
        queue.join_thread()


@contextlib.contextmanager
def iceoryx2_peer() -> Iterator[Peer]:
    """Give the peer that uses iceoryx2's publishers and subscribers, which both poll.

    Raises:
        ImportError: It is not installed.
    """
    import iceoryx2  # noqa: F401, PLC0415 - what need not be installed is imported where it is used: here, to see whether it is

    name = f"shmwasm-benchmark-{os.getpid()}"
    ours = _Iceoryx2Channel(f"{name}/back", f"{name}/there")
    with _process(_Iceoryx2Channel, f"{name}/there", f"{name}/back") as connection:
        yield _peer(f"iceoryx2 {metadata.version('iceoryx2')}", ours, connection)


class _QueueChannel:
    """Receives from one queue, sends through another."""

    def __init__(self, source: Any, target: Any) -> None:
        self._source, self._target = source, target
        self._message = bytes(SIZE)

    def push(self) -> None:
        self._target.put(self._message)

    def pop(self) -> None:
        self._source.get()


class _Iceoryx2Channel:
    """Receives from one service, sends through another, and loses nothing: a sender waits for room."""

    def __init__(self, source: str, target: str) -> None:
        import iceoryx2  # noqa: PLC0415 - see above

        class Message(ctypes.Structure):
            _fields_ = (("content", ctypes.c_uint8 * SIZE),)

        iceoryx2.set_log_level(iceoryx2.LogLevel.Error)
        self._message = Message()
        self._node = iceoryx2.NodeBuilder.new().create(iceoryx2.ServiceType.Ipc)

        def service(name: str) -> Any:
            builder = self._node.service_builder(iceoryx2.ServiceName.new(name)).publish_subscribe(Message)
            return builder.enable_safe_overflow(False).subscriber_max_buffer_size(CAPACITY).open_or_create()

        self._services = [service(source), service(target)]
        waiting = iceoryx2.BackpressureStrategy.RetryUntilDelivered
        self._subscriber = self._services[0].subscriber_builder().buffer_size(CAPACITY).create()
        self._publisher = self._services[1].publisher_builder().backpressure_strategy(waiting).create()

    def push(self) -> None:
        self._publisher.send_copy(self._message)

    def pop(self) -> None:
        while self._subscriber.receive() is None:
            pass


def _peer(name: str, ours: _Channel, connection: Connection) -> Peer:
    def send(times: int) -> None:
        connection.send(("receive", times))
        for _ in range(times):
            ours.push()
        connection.recv()

    def ping(times: int) -> None:
        connection.send(("answer", times))
        for _ in range(times):
            ours.push()
            ours.pop()
        connection.recv()

    return Peer(name, send, ping)


@contextlib.contextmanager
def _process(make: Callable[..., _Channel], *arguments: object) -> Iterator[Connection]:
    """Run the other end in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(make, arguments, theirs), daemon=True)
    process.start()
    theirs.close()  # so that a process that dies is the end of the pipe, and not a wait for ever
    with ours:
        ours.recv()  # it is ready
        yield ours
    process.join()


def _serve(make: Callable[..., _Channel], arguments: tuple[object, ...], connection: Connection) -> None:
    """Receive, or receive and answer, as often as asked, until nobody asks."""
    channel = make(*arguments)
    connection.send(None)
    while True:
        try:
            task, times = connection.recv()
        except EOFError:
            return
        for _ in range(times):
            channel.pop()
            if task == "answer":
                channel.push()
        connection.send(None)
