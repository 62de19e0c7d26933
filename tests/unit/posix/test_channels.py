from __future__ import annotations

import array
import errno
import fcntl
import os
import resource
import select
import socket
import struct
import threading
from pathlib import Path

import pytest

from shmwasm.errors import ArgumentError, ClosedError, ProtocolError
from shmwasm.posix.channels import MAXIMUM_DESCRIPTORS, MAXIMUM_INLINE, Channel, DescriptorsCutError


@pytest.fixture
def ends():
    left, right = Channel.pair()
    with left, right:
        yield left, right


def _same_file(left: int, right: int) -> bool:
    return os.path.sameopenfile(left, right)


@pytest.mark.parametrize("size", [0, 1, MAXIMUM_INLINE, MAXIMUM_INLINE + 1, 3 << 20])
def test_payloads_of_any_size_arrive_whole(ends, size):
    left, right = ends
    payload = os.urandom(size)
    left.send(payload)
    assert right.receive(timeout=5) == (payload, [])


@pytest.mark.parametrize("size", [10, 1 << 20])
def test_descriptors_arrive_with_their_message_close_on_exec(ends, size):
    left, right = ends
    with Path(os.devnull).open("rb") as one, Path("/proc/self/stat").open("rb") as other:
        left.send(bytes(size), [one.fileno(), other.fileno()])
        message = right.receive(timeout=5)
        assert message is not None
        payload, descriptors = message
        assert len(payload) == size
        assert [_same_file(*pair) for pair in zip(descriptors, [one.fileno(), other.fileno()], strict=True)] == [True, True]
        assert not any(os.get_inheritable(descriptor) for descriptor in descriptors)
    for descriptor in descriptors:
        os.close(descriptor)


def test_messages_arrive_in_order(ends):
    left, right = ends
    for number in range(20):
        left.send(bytes([number]) * (1 if number % 3 else 100_000))
    assert [right.receive(timeout=5)[0][0] for _ in range(20)] == list(range(20))


def test_end_of_the_connection_is_none_after_everything_was_received(ends):
    left, right = ends
    left.send(b"last")
    left.close()
    left.close()
    assert right.receive() == (b"last", [])
    assert right.receive() is None
    assert right.receive(timeout=0) is None


def test_message_of_a_peer_that_closed_without_reading_still_arrives(ends):
    left, right = ends
    left.send(b"never read")
    right.send(b"before the end")
    right.close()
    assert left.receive(timeout=5) == (b"before the end", [])
    assert left.receive(timeout=5) is None


def test_sending_to_a_closed_end_is_a_closed_error_not_a_signal(ends):
    left, right = ends
    right.close()
    with pytest.raises(ClosedError, match="other end"):
        left.send(b"anybody?")
    with pytest.raises(ClosedError, match="other end"):
        left.try_send(bytes(1 << 20))


def test_closed_end_says_that_it_is_closed(ends):
    left, _ = ends
    left.close()
    assert left.fileno() == -1
    for use in (left.receive, lambda: left.receive(timeout=0), lambda: left.send(b""), left.peer_credentials):
        with pytest.raises(ClosedError):
            use()


def test_receiving_without_a_message_times_out(ends):
    left, _ = ends
    for timeout in (0, 0.01):
        with pytest.raises(TimeoutError):
            left.receive(timeout=timeout)


def test_slow_receiver_makes_try_send_false_and_loses_nothing(ends):
    left, right = ends
    sent = 0
    while left.try_send(struct.pack("<I", sent) + bytes(50_000)):
        sent += 1
        assert sent < 1000
    assert sent > 0
    with pytest.raises(TimeoutError):
        left.send(b"late", timeout=0.01)
    assert not left.try_send(bytes(1 << 20))
    assert [struct.unpack_from("<I", right.receive(timeout=5)[0])[0] for _ in range(sent)] == list(range(sent))
    assert select.select([], [left], [], 5)[1]
    assert left.try_send(b"room again")
    assert right.receive(timeout=5) == (b"room again", [])


def test_threads_may_send_at_once_while_another_receives(ends):
    left, right = ends
    received: list[bytes] = []

    def receive() -> None:
        while (message := right.receive()) is not None:
            received.append(message[0])

    receiver = threading.Thread(target=receive)
    senders = [
        threading.Thread(target=lambda number=number: [left.send(bytes([number]) * size) for size in (5, 70_000, 9)])
        for number in range(4)
    ]
    for thread in (receiver, *senders):
        thread.start()
    for thread in senders:
        thread.join()
    left.close()
    receiver.join()
    assert sorted(map(len, received)) == sorted([5, 70_000, 9] * 4)
    assert all(len(set(payload)) == 1 for payload in received)


def test_shutdown_wakes_a_thread_that_receives(ends):
    left, _ = ends
    results: list[object] = []
    waiting = threading.Thread(target=lambda: results.append(left.receive()))
    waiting.start()
    left.shutdown()
    waiting.join(timeout=10)
    assert results == [None]


def test_closing_one_descriptor_of_an_end_leaves_its_other_holders_connected(ends):
    left, right = ends
    with Channel.from_descriptor(os.dup(left.fileno())) as copy:
        left.close()
        copy.send(b"still here")
        assert right.receive(timeout=5) == (b"still here", [])


def test_too_much_for_one_message_is_refused(ends):
    left, _ = ends
    with pytest.raises(ArgumentError, match="253 descriptors"):
        left.send(b"", [0] * (MAXIMUM_DESCRIPTORS + 1))
    with pytest.raises(ArgumentError, match="not open"):
        left.send(b"", [1 << 20])


def test_most_descriptors_arrive(ends):
    left, right = ends
    with Path(os.devnull).open("rb") as file:
        for payload in (b"small", bytes(1 << 20)):
            left.send(payload, [file.fileno()] * MAXIMUM_DESCRIPTORS)
            message = right.receive(timeout=5)
            assert message is not None
            assert len(message[1]) == MAXIMUM_DESCRIPTORS
            for descriptor in message[1]:
                os.close(descriptor)


def _send_raw(channel: Channel, packet: bytes, descriptors: list[int]) -> None:
    channel.socket.sendmsg(
        [packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    )


def _memfd(content: bytes, seals: int, size: int | None = None) -> int:
    memory = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.write(memory, content)
    if size is not None:
        os.truncate(memory, size)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, seals)
    return memory


_ALL_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


@pytest.mark.parametrize(
    ("packet", "memory"),
    [
        (b"\2what", None),
        (b"\1" + struct.pack("<Q", 3), None),
        (b"\1\3\0", (b"abc", _ALL_SEALS)),
        (b"\1" + struct.pack("<Q", 3), (b"abc", 0)),
        (b"\1" + struct.pack("<Q", 3), (b"abc", fcntl.F_SEAL_WRITE)),
        (b"\1" + struct.pack("<Q", 4), (b"abc", _ALL_SEALS)),
        (b"\1" + struct.pack("<Q", 2 << 30), (b"abc", _ALL_SEALS, 2 << 30)),
        (b"\0" + bytes(MAXIMUM_INLINE + 1), None),
    ],
    ids=["unknown kind", "no descriptor", "no size", "unsealed", "may shrink", "other size", "too large", "long packet"],
)
def test_malformed_packets_are_refused_and_their_descriptors_closed(ends, packet, memory):
    left, right = ends
    descriptors = [_memfd(*memory)] if memory is not None else []
    _send_raw(left, packet, descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    with pytest.raises(ProtocolError):
        right.receive(timeout=5)
    left.send(b"next")
    assert right.receive(timeout=5) == (b"next", [])


def test_file_in_place_of_a_memfd_is_refused(ends):
    left, right = ends
    with Path("/etc/passwd").open("rb") as file:
        _send_raw(left, b"\1" + struct.pack("<Q", os.fstat(file.fileno()).st_size), [file.fileno()])
    with pytest.raises(ProtocolError):
        right.receive(timeout=5)


def test_more_descriptors_than_a_message_may_carry_are_closed(ends):
    left, right = ends
    with Path(os.devnull).open("rb") as file:
        _send_raw(left, b"\0", [file.fileno()] * (MAXIMUM_DESCRIPTORS + 1))
        with pytest.raises(ProtocolError, match="descriptors"):
            right.receive(timeout=5)


@pytest.mark.parametrize("size", [1, MAXIMUM_INLINE + 1])
def test_message_whose_descriptors_this_process_has_no_room_for_still_says_what_it_says(ends, size):
    left, right = ends
    with Path(os.devnull).open("rb") as file:
        left.send(b"a" * size, [file.fileno()] * 10)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + 1, hard))
    try:
        with pytest.raises(DescriptorsCutError, match="too many open") as cut:
            right.receive(timeout=5)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert cut.value.payload == b"a" * size
    left.send(b"b")
    assert right.receive(timeout=5) == (b"b", [])


def test_peer_is_told_by_the_kernel(ends):
    left, _ = ends
    assert left.peer_credentials() == (os.getpid(), os.getuid(), os.getgid())


def test_other_sockets_are_refused_and_stay_open():
    one, other = socket.socketpair()
    with one, other:
        with pytest.raises(ArgumentError, match="SOCK_SEQPACKET"):
            Channel.from_descriptor(one.fileno())
        os.fstat(one.fileno())
    with Path(os.devnull).open("rb") as file, pytest.raises(ArgumentError, match="no socket"):
        Channel.from_descriptor(file.fileno())


def test_channel_made_of_a_descriptor_is_not_inherited():
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with other:
        one.set_inheritable(True)
        with Channel.from_descriptor(one.detach()) as channel:
            assert not os.get_inheritable(channel.fileno())


def test_errno_of_a_packet_that_is_too_large_is_worked_around(ends):
    left, right = ends
    left.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
    with pytest.raises(OSError, match=os.strerror(errno.EMSGSIZE)):
        left.socket.send(bytes(60_000))
    left.send(b"m" * 60_000)
    assert right.receive(timeout=5) == (b"m" * 60_000, [])
