"""A client that sends what it must not: that costs itself alone."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable

import pytest

from shmwasm import Instance, Runtime, SharedHeap, errors
from shmwasm.posix.channels import Channel
from shmwasm.posix.listening import connect
from shmwasm.protocol import codec, messages

PLAN = messages.SpawnPlan(module_key="none", module_name="none")
HUGE = (1 << 63) - 1


def _hello(runtime: Runtime) -> Channel:
    channel = connect(runtime.address)
    channel.send(codec.encode(messages.Hello(request=1, version=messages.VERSION)))
    assert channel.receive(timeout=30) is not None
    return channel


def _send(*sent: messages.Message | bytes, files: int = 0) -> Callable[[Channel], None]:
    def attack(channel: Channel) -> None:
        descriptors = [os.open("/dev/null", os.O_RDWR) for _ in range(files)]
        try:
            for message in sent:
                with contextlib.suppress(errors.ClosedError):  # it was cut off already
                    channel.send(message if isinstance(message, bytes) else codec.encode(message), descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    return attack


def _raw(packet: bytes) -> Callable[[Channel], None]:
    return lambda channel: channel.socket.send(packet) and None


def _flood(channel: Channel) -> None:
    """Ask ten thousand times, and read no answer; the coordinator may end the connection before the last of them."""
    request = codec.encode(messages.Status(request=1))
    with contextlib.suppress(errors.ClosedError):
        for _ in range(10_000):
            if not channel.try_send(request):
                return


ATTACKS = {
    "garbage": _send(b"\xff" * 1000),
    "no packet byte": _raw(b"\x07garbage"),
    "cut off": _send(codec.encode(messages.Status(request=1))[:-3]),
    "large": _send(b"\xc1" * 300_000),
    "memfd without descriptor": _raw(b"\1" + (1 << 62).to_bytes(8, "little")),
    "of another channel": _send(messages.ShareMemory(request=1)),
    "of a worker": _send(messages.Ready()),
    "hello again": _send(messages.Hello(request=2, version=messages.VERSION)),
    "no descriptor": _send(
        messages.Spawn(request=2, plan=PLAN), messages.CreateHeap(request=3, name="x", size=65536, managed=True)
    ),
    "a device": _send(messages.Spawn(request=2, plan=PLAN), files=2),
    "a device as a heap": _send(messages.CreateHeap(request=3, name="x", size=65536, managed=True), files=1),
    "too many descriptors": _send(messages.Status(request=1), files=60),
    "descriptors for ever": _send(*[messages.Status(request=1)] * 20, files=60),
    "heap of others": _send(messages.CloseHeap(request=1, heap=1), messages.ChainHeaps(request=2, head=1, body=2)),
    "lease of others": _send(messages.Lease(request=1, heap=1, size_class=1, slabs=1)),
    "release of others": _send(messages.Release(heap=1, ranges=[messages.SlabRange(0, 1)])),
    "huge release": _send(messages.Release(heap=1, ranges=[messages.SlabRange(-HUGE, HUGE)])),
    "instance of others": _send(*(messages.Kill(request=one, instance=one) for one in range(-3, 20))),
    "negative": _send(messages.Verify(request=-1, heap=-1), messages.OpenHeap(request=2, token="no", name="no")),
    "flood": _flood,
}


def _own_heap(channel: Channel) -> int:
    with_memory = os.memfd_create("hostile")
    try:
        os.ftruncate(with_memory, 1 << 20)
        channel.send(codec.encode(messages.CreateHeap(request=5, name="hostile", size=1 << 20, managed=True)), [with_memory])
    finally:
        os.close(with_memory)
    packet = channel.receive(timeout=30)
    assert packet is not None
    for descriptor in packet[1]:
        os.close(descriptor)
    opened = codec.to_client.decode(packet[0])
    assert isinstance(opened, messages.HeapOpened)
    return opened.heap.heap


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_what_a_client_must_not_send_costs_that_client_alone(
    shared_runtime: Runtime, instance: Instance, heap: SharedHeap, attack: Callable[[Channel], None]
) -> None:
    for greeted in (True, False):
        with _hello(shared_runtime) if greeted else connect(shared_runtime.address) as channel:
            attack(channel)
            _check(shared_runtime, instance, heap)
            channel.shutdown()
    _check(shared_runtime, instance, heap)


@pytest.mark.parametrize(
    "build",
    [
        lambda heap: messages.Release(heap=heap, ranges=[messages.SlabRange(0, HUGE)]),
        lambda heap: messages.Release(heap=heap, ranges=[messages.SlabRange(-5, HUGE), messages.SlabRange(0, 0)]),
        lambda heap: messages.Release(heap=heap, ranges=[messages.SlabRange(0, 1)] * 1000),
        lambda heap: messages.Lease(request=1, heap=heap, size_class=-1, slabs=1),
        lambda heap: messages.Lease(request=1, heap=heap, size_class=HUGE, slabs=1),
        lambda heap: messages.Lease(request=1, heap=heap, size_class=1, slabs=HUGE),
        lambda heap: messages.Lease(request=1, heap=heap, size_class=0, slabs=-HUGE),
        lambda heap: messages.Lease(request=1, heap=heap, size_class=0, slabs=0),
        lambda heap: messages.Recalled(heap=heap),
        lambda heap: messages.ChainHeaps(request=1, head=heap, body=heap),
        lambda heap: messages.Spawn(request=1, plan=PLAN, chain_head=heap, quota=-1),
    ],
)
def test_what_a_client_must_not_say_of_its_own_heap_costs_that_client_alone(
    runtime: Runtime, echo_text: str, build: Callable[[int], messages.Message]
) -> None:
    heap = runtime.create_shared_heap(1 << 20)
    instance = runtime.spawn(runtime.load(echo_text), shared_heap=heap)
    with _hello(runtime) as channel:
        with contextlib.suppress(errors.ClosedError):  # it was cut off already
            channel.send(codec.encode(build(_own_heap(channel))))
            _check(runtime, instance, heap)
            channel.send(codec.encode(messages.Goodbye()))
        while (packet := channel.receive(timeout=30)) is not None:
            assert not packet[1]
    _check(runtime, instance, heap)


def test_many_who_never_say_hello_keep_nobody_out(shared_runtime: Runtime, instance: Instance, heap: SharedHeap) -> None:
    silent = [connect(shared_runtime.address) for _ in range(50)]
    _check(shared_runtime, instance, heap)
    for channel in silent:
        channel.close()


def test_what_is_not_the_protocol_at_all_is_refused(shared_runtime: Runtime) -> None:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_UNIX, kind) as stranger, pytest.raises(OSError, match=r"refused|wrong type"):
            stranger.connect(shared_runtime.address)


def _check(runtime: Runtime, instance: Instance, heap: SharedHeap) -> None:
    assert runtime.verify() >= 1
    assert instance.call("add", 1, 2, timeout=30) == 3
    heap.malloc(1000).free()
    heap.verify()
