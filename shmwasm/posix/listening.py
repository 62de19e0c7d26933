"""Where coordinators listen: a socket in a directory, or an abstract address that needs no file.

Locking
-------
A socket file outlives a killed listener, so whoever starts next must tell a stale file from a live one and replace it, and two
may start at once. Binding, replacing and removing are done under an exclusive `flock` on the directory, and by a path relative to
the directory's descriptor, which also lets directories be deeper than the 108 bytes of a socket's address.

Both sides check the other's user with what the kernel says (SO_PEERCRED): anybody may bind an abstract address first.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from shmwasm.errors import ArgumentError, ClosedError, CoordinatorLostError, PeerRefusedError, UnsupportedError, shown
from shmwasm.posix.channels import Channel, peer_credentials
from shmwasm.posix.signals import interrupts_let_through

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

MAXIMUM_NAME: Final = 80
"""The longest name of a socket file or abstract address, in bytes."""

Address = str | os.PathLike[str]
"""A path, or a string that starts with a null character: an abstract address."""


class Listener:
    """A listening socket. Make one with `listen`."""

    def __init__(self, listening: socket.socket, address: str, identity: tuple[int, int] | None) -> None:
        self._socket = listening
        self._identity = identity
        self._maker = os.getpid()
        self.address = address

    def accept(self) -> Channel:
        """Return the next connection, waiting for it.

        Raises:
            ClosedError: The listener was closed.
            PeerRefusedError: Another user connected; the connection was closed.
            UnsupportedError: The kernel gave no descriptor; the connection still waits.
        """
        try:
            connection, _ = self._socket.accept()
        except OSError as failure:
            if failure.errno in {errno.EBADF, errno.EINVAL}:
                raise ClosedError(f"the listener at {_readable(self.address)}") from None
            raise UnsupportedError("another connection", f"{failure.strerror}; see the limit on open files") from None
        return _checked(connection)

    def fileno(self) -> int:
        """Return the socket's descriptor, to wait on; -1 once closed."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the descriptor and remove the socket file, unless it is another's by now. May be called twice.

        A forked child's call leaves the file alone: its parent goes on listening.
        """
        if self._socket.fileno() < 0:
            return
        if self._identity is not None and os.getpid() == self._maker:
            directory, name = os.path.split(self.address)
            with contextlib.suppress(OSError, ArgumentError), _locked(directory) as descriptor:
                status = os.lstat(name, dir_fd=descriptor)
                if (status.st_dev, status.st_ino) == self._identity:
                    os.unlink(name, dir_fd=descriptor)
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def listen(address: Address, *, backlog: int = 128) -> Listener:
    """Listen at `address`; a socket file has mode 0600 from its first moment, and a stale one is replaced.

    Raises:
        ArgumentError: Somebody listens there, something else is there, or there can be no socket of that name.
    """
    address = _checked_address(address)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    identity = None
    try:
        if address.startswith("\0"):
            listening.bind(address)
            listening.listen(backlog)
        else:
            address = str(Path(address).absolute())
            directory, name = os.path.split(address)
            with _locked(directory) as descriptor:
                _remove_stale(address, name, descriptor)
                os.fchmod(listening.fileno(), 0o600)  # the file gets the mode of its socket
                listening.bind(f"/proc/self/fd/{descriptor}/{name}")
                status = os.lstat(name, dir_fd=descriptor)
                identity = status.st_dev, status.st_ino
                listening.listen(backlog)
    except OSError as failure:
        listening.close()
        raise ArgumentError(f"cannot listen at {_readable(address)}: {failure.strerror}") from None
    except BaseException:
        listening.close()
        raise
    return Listener(listening, address, identity)


def connect(address: Address) -> Channel:
    """Connect to whoever listens at `address`.

    Raises:
        ArgumentError: There can be no socket of that name, or what is there is no such socket.
        CoordinatorLostError: Nobody listens there.
        PeerRefusedError: The listener is another user's.
    """
    address = _checked_address(address)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        _connect(connection, address)
    except OSError as failure:
        connection.close()
        if failure.errno in {errno.EACCES, errno.EPERM}:
            raise PeerRefusedError(f"this user may not connect to {_readable(address)}") from None
        if failure.errno in {errno.EPROTOTYPE, errno.ENOTSOCK}:
            raise ArgumentError(f"{_readable(address)} is no coordinator's socket") from None
        raise CoordinatorLostError(f"no coordinator listens at {_readable(address)}: {failure.strerror}") from None
    return _checked(connection)


def _connect(connection: socket.socket, address: str) -> None:
    if address.startswith("\0"):
        with interrupts_let_through():  # whoever listens may be stopped
            connection.connect(address)
        return
    directory, name = os.path.split(Path(address).absolute())
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with interrupts_let_through():
            connection.connect(f"/proc/self/fd/{descriptor}/{name}")
    finally:
        os.close(descriptor)


def _checked(connection: socket.socket) -> Channel:
    """Return `connection` as a channel if its other end belongs to this user.

    Raises:
        PeerRefusedError: It does not; the connection was closed.
    """
    peer = peer_credentials(connection)
    if peer.uid != os.geteuid():
        connection.close()
        raise PeerRefusedError(f"process {peer.pid} belongs to user {peer.uid}, this one to user {os.geteuid()}")
    return Channel(connection)


def _checked_address(address: Address) -> str:
    try:
        text = os.fsdecode(address)
        path = text.removeprefix("\0")
        name = path if path != text else os.path.split(path)[1]
        size = len(os.fsencode(name))
    except Exception as failure:  # the path's own code ran
        raise ArgumentError(f"{shown(address)} cannot name a socket: {failure}") from failure
    if not name or name in {".", ".."} or "\0" in path or size > MAXIMUM_NAME:
        raise ArgumentError(f"{shown(text)} cannot name a socket: its last part must have 1 to {MAXIMUM_NAME} bytes")
    return text


def _readable(address: str) -> str:
    return repr("@" + address[1:] if address.startswith("\0") else address)


@contextlib.contextmanager
def _locked(directory: str) -> Iterator[int]:
    """Hold the exclusive lock of `directory`; gives its descriptor."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as failure:
        raise ArgumentError(f"directory {directory!r} cannot be opened: {failure.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _remove_stale(address: str, name: str, directory: int) -> None:
    """Remove the socket file that a dead listener left; the directory is locked.

    Raises:
        ArgumentError: It is no socket, or somebody listens.
    """
    try:
        mode = os.lstat(name, dir_fd=directory).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ArgumentError(f"cannot listen at {address!r}: something else than a socket is there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as probe:
        # Only a refused connection proves that nobody listens: a full queue, for one, is a sign of life.
        if probe.connect_ex(f"/proc/self/fd/{directory}/{name}") != errno.ECONNREFUSED:
            raise ArgumentError(f"cannot listen at {address!r}: somebody listens there already")
    os.unlink(name, dir_fd=directory)
