"""What the processes of peers run; a module of its own, because a spawned process imports it and all that it imports."""

from __future__ import annotations

from multiprocessing.connection import Connection
from typing import Any


def answer(connection: Connection) -> None:
    """Answer one message: the first call."""
    connection.send(connection.recv())


def touch(array: Any) -> int:
    """Do what the guest's `touch` does, to an array of bytes of any kind."""
    array[0] = (int(array[0]) + 1) % 256
    return int(array[0]) + int(array[-1])


def ends(array: Any) -> int:
    """Do what the guest's `ends` does."""
    return int(array[0]) + int(array[-1]) if len(array) else 0


def increment(number: int) -> int:
    """Do what the guest's `increment` does."""
    return number + 1


def answer_ends(address: str) -> None:
    """Answer each message of a ZeroMQ socket as `ends` does, until one of several parts comes."""
    import zmq  # noqa: PLC0415 - only whoever has it calls this

    with zmq.Context() as context, context.socket(zmq.REP) as socket:
        socket.connect(address)
        while True:
            first, *others = socket.recv_multipart(copy=False)
            socket.send(str(ends(first.buffer)).encode())
            if others:
                return
