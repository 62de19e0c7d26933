"""Starting and ending the coordinator: the socket it listens on, the limits and signals of its process."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import secrets
import signal
import threading
from typing import TYPE_CHECKING

from shmwasm.coordinator.shell import Shell
from shmwasm.posix.channels import Channel
from shmwasm.posix.listening import Listener, listen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def serve(path: str | os.PathLike[str], *, ready: Callable[[], None] | None = None) -> None:
    """Serve every process of this user that connects to the socket at `path`, until SIGINT or SIGTERM.

    Args:
        path: Where to listen; a socket that a killed coordinator left there is replaced.
        ready: Called once clients can connect.

    Raises:
        ArgumentError: Somebody listens there, something else is there, or there can be no socket of that name.
    """
    with listen(path) as listener:
        _run(listener, None, ready)


def serve_privately(descriptor: int) -> None:
    """Serve the client at the other end of `descriptor`, and those it tells the address, until the last of them is gone.

    Raises:
        ArgumentError: The descriptor is no connected socket.
    """
    client = Channel.from_descriptor(descriptor)
    with listen(f"\0shmwasm-{secrets.token_hex(16)}") as listener:
        _run(listener, client, None)


def _run(listener: Listener, client: Channel | None, ready: Callable[[], None] | None) -> None:
    logging.basicConfig(format="shmwasm coordinator: %(message)s", level=logging.WARNING)
    _raise_descriptor_limit()
    with Shell(listener, client) as shell, _ending_by_signal(shell):
        if ready is not None:
            ready()
        shell.run()


def _raise_descriptor_limit() -> None:
    """Allow this process as many descriptors as it may have: each instance takes two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextlib.contextmanager
def _ending_by_signal(shell: Shell) -> Iterator[None]:
    """Let SIGINT and SIGTERM end the loop; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, lambda _number, _frame: shell.stop()) for number in _ENDING_SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
