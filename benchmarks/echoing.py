"""What a message to another process and back costs at least between two Pythons."""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

ECHO: Final = "echo over a socket"


@contextmanager
def echo() -> Iterator[Callable[[], object]]:
    """Give one round trip over a socket to another process, which is forked: so while this one has one thread."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = multiprocessing.get_context("fork").Process(target=_echo_alone, args=(ours, theirs))
    process.start()
    theirs.close()

    def round_trip() -> object:
        ours.send(b"message")
        return ours.recv(64)

    try:
        yield round_trip
    finally:
        ours.close()
        process.join()


def _echo_alone(ours: socket.socket, theirs: socket.socket) -> None:
    ours.close()  # or it would never see that the other process is gone
    while message := theirs.recv(64):
        theirs.send(message)
