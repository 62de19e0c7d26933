"""What a process of multiprocessing runs; a module of its own, because a spawned process imports it and all that it imports."""

from __future__ import annotations

from multiprocessing.connection import Connection


def answer(connection: Connection) -> None:
    """Answer one message: the first call."""
    connection.send(connection.recv())
