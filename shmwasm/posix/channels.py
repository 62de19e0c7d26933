"""Channels: whole messages with descriptors, between two processes of one machine.

Theory
------
A channel is one end of a SOCK_SEQPACKET socket: what one end sends is received whole or not at all, in order, and the kernel
tells who is at the other end. Descriptors travel with the message that names them.

Layout of a packet: one byte that says where the payload is, then the payload.

====  ==========================================================================================================
byte  the rest of the packet
====  ==========================================================================================================
0     the payload itself, at most 64 KiB
1     the payload's size (8 bytes, little-endian); the payload is in a memfd, which is the first descriptor, sealed
      so that the sender can change neither its content nor its size while it is read
====  ==========================================================================================================

A peer is not trusted to be sound: whatever a packet is, its descriptors are closed unless they are handed to the caller.

Several threads may send and receive at once without a lock: the kernel takes and gives whole packets.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import time
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from shmwasm.errors import ArgumentError, ClosedError, ProtocolError, ShmwasmError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

MAXIMUM_INLINE: Final = 64 << 10
"""Larger payloads travel in a memfd, in bytes."""

MAXIMUM_PAYLOAD: Final = 1 << 30
"""The largest payload that is sent or received, in bytes."""

MAXIMUM_DESCRIPTORS: Final = 252
"""The most descriptors that one message carries: the kernel's SCM_MAX_FD, but for that of a payload in memory."""

_INLINE: Final = b"\0"
_IN_MEMFD: Final = b"\1"
_SIZE: Final = struct.Struct("<Q")
_CREDENTIALS: Final = struct.Struct("3i")
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_ANCILLARY_SIZE: Final = socket.CMSG_SPACE((MAXIMUM_DESCRIPTORS + 1) * array.array("i").itemsize)
# Plain numbers: arithmetic with the enum's members costs more than the system call.
_SOCKET: Final = socket.SOL_SOCKET
_DOMAIN: Final = socket.SO_DOMAIN
_TYPE: Final = socket.SO_TYPE
_KIND: Final = (int(socket.AF_UNIX), int(socket.SOCK_SEQPACKET))
_SEND: Final = int(socket.MSG_NOSIGNAL)
_RECEIVE: Final = int(socket.MSG_CMSG_CLOEXEC)
_DONTWAIT: Final = int(socket.MSG_DONTWAIT)
_PACKET_CUT: Final = int(socket.MSG_TRUNC)
_DESCRIPTORS_CUT: Final = int(socket.MSG_CTRUNC)
_CUT: Final = "a message's descriptors did not fit: it carries too many, or this process has too many open"
_GONE: Final = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN})


class _PacketTooLargeError(Exception):
    """The kernel can never send a packet of this size."""


class DescriptorsCutError(ProtocolError):
    """A message arrived without its descriptors: it had too many, or this process has too many open, for the moment perhaps.

    Attributes:
        payload: What the message says; nothing is missing there.
    """

    payload: bytes = b""


class PeerCredentials(NamedTuple):
    """Who made the other end of a socket, as the kernel knows it."""

    pid: int
    uid: int
    gid: int


def peer_credentials(connection: socket.socket) -> PeerCredentials:
    """Return who connected, listened or (for a pair) made the other end of `connection`."""
    return PeerCredentials(*_CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)))


class Channel:
    """One end of a connection that carries messages with descriptors. It owns its socket."""

    def __init__(self, connection: socket.socket) -> None:
        """Take over `connection`, a connected SOCK_SEQPACKET socket.

        Raises:
            ArgumentError: It is another kind of socket; its descriptor stays the caller's.
        """
        if (connection.getsockopt(_SOCKET, _DOMAIN), connection.getsockopt(_SOCKET, _TYPE)) != _KIND:
            connection.detach()
            raise ArgumentError(f"{connection!r} is no AF_UNIX SOCK_SEQPACKET socket")
        connection.setblocking(True)  # whether a call waits is said by each call
        self._socket = connection

    @classmethod
    def from_descriptor(cls, descriptor: int) -> Channel:
        """Take over an inherited descriptor of a socket.

        Raises:
            ArgumentError: It is no AF_UNIX SOCK_SEQPACKET socket.
        """
        try:
            connection = socket.socket(fileno=descriptor)
        except OSError as failure:
            raise ArgumentError(f"descriptor {descriptor} is no socket: {failure.strerror}") from None
        os.set_inheritable(descriptor, False)
        return cls(connection)

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Return the two ends of a new channel."""
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(left), cls(right)

    def send(self, payload: bytes, descriptors: Sequence[int] = (), *, timeout: float | None = None) -> None:
        """Send one message, waiting for room up to `timeout` seconds (`None`: for ever).

        The descriptors stay the caller's.

        Raises:
            ArgumentError: The message is too large, or a descriptor is not open.
            ClosedError: This end or the other is closed.
            TimeoutError: The other end did not make room in time; nothing was sent.
            UnsupportedError: The kernel has no room for more descriptors in flight.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._send_once(payload, descriptors, wait=deadline is None):
            self._wait(select.POLLOUT, deadline)

    def try_send(self, payload: bytes, descriptors: Sequence[int] = ()) -> bool:
        """Send one message if there is room for it now; return whether it was sent.

        Raises:
            ArgumentError: The message is too large, or a descriptor is not open.
            ClosedError: This end or the other is closed.
            UnsupportedError: The kernel has no room for more descriptors in flight.
        """
        return self._send_once(payload, descriptors, wait=False)

    def receive(self, *, timeout: float | None = None) -> tuple[bytes, list[int]] | None:
        """Return the next message and its descriptors, or `None` when the other end is closed and everything was received.

        The descriptors are close-on-exec and the caller's to close. With a `timeout` of 0 the call does not wait.

        Raises:
            ClosedError: This end is closed.
            DescriptorsCutError: Its descriptors did not fit into this process; those that did were closed.
            ProtocolError: The packet is malformed; its descriptors were closed.
            TimeoutError: No message came in `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            try:
                packet = self._receive_once(wait=deadline is None)
            except BlockingIOError:
                self._wait(select.POLLIN, deadline)
                continue
            return None if packet is None else _open_packet(*packet)

    def fileno(self) -> int:
        """Return the socket's descriptor, to wait on; -1 once closed."""
        return self._socket.fileno()

    def peer_credentials(self) -> PeerCredentials:
        """Return who made the other end.

        Raises:
            ClosedError: This end is closed.
        """
        try:
            return peer_credentials(self._socket)
        except OSError as failure:
            raise _error(failure) from None

    @property
    def socket(self) -> socket.socket:
        """The socket, which the channel keeps."""
        return self._socket

    def shutdown(self) -> None:
        """End the connection for every process that holds this end; a thread waiting in `receive` gets `None`."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close this process's descriptor. May be called twice.

        When no other process holds this end, the other end receives what was sent and then `None`. A thread that waits in
        `receive` keeps waiting: call `shutdown` first.
        """
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _send_once(self, payload: bytes, descriptors: Sequence[int], *, wait: bool) -> bool:
        if len(payload) > MAXIMUM_PAYLOAD:
            raise ArgumentError(f"a message of {len(payload)} bytes is larger than {MAXIMUM_PAYLOAD} bytes")
        if len(descriptors) > MAXIMUM_DESCRIPTORS:
            raise ArgumentError(f"a message with {len(descriptors)} descriptors; it may carry {MAXIMUM_DESCRIPTORS}")
        if len(payload) <= MAXIMUM_INLINE:
            try:
                return self._send_packet((_INLINE, payload), descriptors, wait=wait)
            except _PacketTooLargeError:
                pass  # the machine's socket buffers are smaller than usual
        memfd = _sealed_memfd(payload)
        try:
            return self._send_packet((_IN_MEMFD, _SIZE.pack(len(payload))), [memfd, *descriptors], wait=wait)
        finally:
            os.close(memfd)

    def _send_packet(self, parts: Sequence[bytes], descriptors: Sequence[int], *, wait: bool) -> bool:
        """Send; return whether there was room."""
        flags = _SEND if wait else _SEND | _DONTWAIT
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        try:
            self._socket.sendmsg(parts, ancillary, flags)
        except BlockingIOError:
            return False
        except OSError as failure:
            if failure.errno == errno.EMSGSIZE:
                raise _PacketTooLargeError from None
            raise _error(failure, descriptors) from None
        return True

    def _receive_once(self, *, wait: bool) -> tuple[bytes, list[int], int] | None:
        flags = _RECEIVE if wait else _RECEIVE | _DONTWAIT
        while True:
            try:
                packet, ancillary, received_flags, _ = self._socket.recvmsg(MAXIMUM_INLINE + 1, _ANCILLARY_SIZE, flags)
            except BlockingIOError:
                raise
            except ConnectionResetError:
                # The other end closed without reading everything. Said once; what it sent before is still to be had.
                continue
            except OSError as failure:
                raise _error(failure) from None
            descriptors = _descriptors_in(ancillary)
            if packet:
                return packet, descriptors, received_flags
            _close_all(descriptors)
            return None

    def _wait(self, event: int, deadline: float | None) -> None:
        """Wait until the socket may be ready.

        Raises:
            ClosedError: This end is closed.
            TimeoutError: The deadline passed.
        """
        if self._socket.fileno() < 0:
            raise ClosedError("the channel")
        remaining = None if deadline is None else max(deadline - time.monotonic(), 0.0) * 1000
        poll = select.poll()
        poll.register(self._socket, event)
        if not poll.poll(remaining):
            raise TimeoutError


def _open_packet(packet: bytes, descriptors: list[int], flags: int) -> tuple[bytes, list[int]]:
    """Return the payload and the caller's descriptors of a packet.

    Raises:
        DescriptorsCutError: Not all descriptors arrived; those that did were closed.
        ProtocolError: The packet is malformed; its descriptors were closed.
    """
    try:
        in_memfd = _check_packet(packet, descriptors, flags)
        payload = _read_memfd(descriptors[0], *_SIZE.unpack(packet[1:])) if in_memfd else packet[1:]
    except BaseException:
        _close_all(descriptors)
        raise
    if in_memfd:
        os.close(descriptors.pop(0))
    if flags & _DESCRIPTORS_CUT:
        _close_all(descriptors)
        cut = DescriptorsCutError(_CUT)
        cut.payload = payload
        raise cut
    return payload, descriptors


def _check_packet(packet: bytes, descriptors: list[int], flags: int) -> bool:
    """Return whether the payload is in a memfd.

    Raises:
        ProtocolError: The packet is malformed.
    """
    if flags & _PACKET_CUT:
        raise ProtocolError(f"a packet is larger than {MAXIMUM_INLINE} bytes")
    in_memfd = packet[:1] == _IN_MEMFD
    if not in_memfd and packet[:1] != _INLINE:
        raise ProtocolError(f"a packet starts with {packet[:9].hex()}, which no message does")
    if in_memfd and flags & _DESCRIPTORS_CUT and not descriptors:
        raise ProtocolError(_CUT)  # its payload is cut off, too
    if in_memfd and (len(packet) != 1 + _SIZE.size or not descriptors):
        raise ProtocolError("a packet announces a payload in memory, without its size or its descriptor")
    if len(descriptors) > MAXIMUM_DESCRIPTORS + in_memfd:
        raise ProtocolError(f"a message carries {len(descriptors)} descriptors; it may carry {MAXIMUM_DESCRIPTORS}")
    return in_memfd


def _descriptors_in(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    descriptors = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    return descriptors.tolist()


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _sealed_memfd(payload: bytes) -> int:
    """Return a memfd that holds `payload` and can no longer be changed."""
    try:
        memfd = os.memfd_create("shmwasm-message", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as failure:
        raise _error(failure) from None
    try:
        rest = memoryview(payload)
        while rest:
            rest = rest[os.write(memfd, rest) :]
        fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, _SEALS | fcntl.F_SEAL_SEAL)
    except BaseException as failure:
        os.close(memfd)
        if isinstance(failure, OSError):
            raise _error(failure) from None
        raise
    return memfd


def _read_memfd(memfd: int, size: int) -> bytes:
    """Return the payload of `size` bytes that a peer put into `memfd`.

    Raises:
        ProtocolError: It is not sealed, or its size is another.
    """
    try:
        seals = fcntl.fcntl(memfd, fcntl.F_GET_SEALS)
        if seals & _SEALS != _SEALS:
            raise ProtocolError("a message's memory is not sealed")
        actual = os.fstat(memfd).st_size
        if actual != size or size > MAXIMUM_PAYLOAD:
            raise ProtocolError(f"a message says that it has {size} bytes, has {actual}, and may have {MAXIMUM_PAYLOAD}")
        payload = bytearray(size)
        position = 0
        while position < size:
            position += os.preadv(memfd, [memoryview(payload)[position:]], position)
    except OSError as failure:
        raise ProtocolError(f"a message's memory cannot be read: {failure.strerror}") from None
    return bytes(payload)


def _error(failure: OSError, descriptors: Sequence[int] = ()) -> ShmwasmError:
    if failure.errno in _GONE:
        return ClosedError("the channel", "was closed by its other end")
    if failure.errno == errno.EBADF:
        return ArgumentError(f"a descriptor in {list(descriptors)} is not open") if descriptors else ClosedError("the channel")
    return UnsupportedError("a message", f"{failure.strerror}; see the limits on open files and on memory")
