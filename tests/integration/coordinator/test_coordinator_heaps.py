"""Heaps and leases over the socket, deaths of clients, and peers that misbehave."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess

import pytest

from shmwasm import errors
from shmwasm.addresses import SLAB_SIZE
from shmwasm.core import layout
from shmwasm.posix.mappings import map_anywhere
from shmwasm.posix.segments import Segment
from shmwasm.protocol import codec, messages
from shmwasm.protocol.messages import SlabRange
from waiting import eventually

SMALL_SHARED_MEMORY = ("unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=2100k shm /dev/shm && exec "$@"', "sh")
"""Runs a command with a /dev/shm of about 2 MiB that nobody else sees."""

CAN_UNSHARE = (
    os.geteuid() == 0
    and shutil.which("unshare") is not None
    and subprocess.run([*SMALL_SHARED_MEMORY, "true"], capture_output=True, check=False).returncode == 0
)


def test_two_clients_share_a_heap_its_bytes_and_its_slabs(served, client):
    heap = client.create(name="frames")
    token = client.ask(messages.OpenHeap, name="frames").heap.token
    first = map_anywhere(client.descriptors[0], 8 * SLAB_SIZE, writable=True)
    other = served.client()
    opened = other.ask(messages.OpenHeap, token=token)
    second = map_anywhere(other.descriptors[0], 8 * SLAB_SIZE, writable=True)
    first.view[5] = 99
    assert second.view[5] == 99
    metadata = map_anywhere(other.descriptors[1], opened.metadata_size, writable=False)
    owners = metadata.view[layout.DESCRIPTORS_OFFSET :].cast("I")[:: layout.DESCRIPTOR_SIZE // 4]
    assert client.lease(heap) == [SlabRange(0, 1)]
    assert other.lease(heap) == [SlabRange(1, 1)]
    assert owners[:3].tolist() == [client.peer, other.peer, 0]
    client.tell(messages.Release(heap=heap, ranges=[SlabRange(0, 1)]))
    assert client.ask(messages.Verify).heaps == 1
    assert owners[:3].tolist() == [0, other.peer, 0]


def test_a_chain_change_is_told_to_the_other_holder(served, client):
    head, body = client.create(name="head"), client.create()
    other = served.client()
    other.ask(messages.OpenHeap, name="head")
    chains = client.ask(messages.ChainHeaps, head=head, body=body).chains
    assert other.event(messages.ChainMoved).chains == chains


def test_a_read_only_heap_cannot_be_mapped_writable(client):
    client.create(name="file", managed=False, read_only=True)
    client.ask(messages.OpenHeap, name="file")
    with pytest.raises(errors.ArgumentError, match="writable"):
        map_anywhere(client.descriptors[0], SLAB_SIZE, writable=True)


def test_a_segment_that_is_too_small_or_no_memory_is_refused_by_name(client):
    with Segment.create(SLAB_SIZE, name_for_errors="small") as segment:
        with pytest.raises(errors.ArgumentError, match="'small' has 131072 bytes, but its segment only 65536"):
            client.ask(messages.CreateHeap, segment.descriptor, name="small", size=2 * SLAB_SIZE, managed=True)
        reading = segment.read_only_descriptor()
        with pytest.raises(errors.ArgumentError, match="reading only"):
            client.ask(messages.CreateHeap, reading, name="small", size=SLAB_SIZE, managed=False)
        os.close(reading)
    with pytest.raises(errors.ArgumentError, match="no regular file"):
        client.ask(messages.CreateHeap, client.channel.fileno(), name="small", size=SLAB_SIZE, managed=False)
    assert client.create(name="small")


@pytest.mark.skipif(not CAN_UNSHARE, reason="only root with a mount namespace of its own can make /dev/shm small")
def test_a_full_shared_memory_refuses_heaps_by_name_and_leases_without_a_trace(tmp_path, shared):
    with shared(tmp_path / "socket", SMALL_SHARED_MEMORY) as served:
        client = served.client()
        heaps: list[int] = []
        with pytest.raises(errors.HeapNoSpaceError, match=r"'heap-[0-9]+' needs"):
            heaps.extend(client.create(64) for _ in range(100))
        assert client.lease(heaps[0], size_class=0, slabs=64) == []
        assert client.lease(heaps[0]) == [SlabRange(0, 1)]
        assert client.ask(messages.Verify).heaps == len(heaps)
        for heap in heaps[1:]:
            client.ask(messages.CloseHeap, heap=heap)
        assert client.lease(heaps[0], size_class=0, slabs=63) == [SlabRange(1, 63)]


def test_verify_finds_an_owner_that_the_coordinator_did_not_write(client):
    heap = client.create(name="frames")
    opened = client.ask(messages.OpenHeap, name="frames")
    metadata = map_anywhere(client.descriptors[1], opened.metadata_size, writable=True)
    owners = metadata.view[layout.DESCRIPTORS_OFFSET :].cast("I")
    owners[0] = client.peer
    with pytest.raises(errors.HeapCorruptError, match="frames"):
        client.ask(messages.Verify, heap=heap)
    owners[0] = 0
    client.ask(messages.Verify, heap=heap)


# ---------------------------------------------------------------- death


@pytest.mark.parametrize("free_on_death", [False, True])
def test_a_killed_client_s_slabs_come_back_but_for_those_with_live_blocks(client, free_on_death, lessee):
    heap = client.create(name="frames", free_on_death=free_on_death, scrub=True)
    client.ask(messages.OpenHeap, name="frames")
    memory = map_anywhere(client.descriptors[0], 8 * SLAB_SIZE, writable=False)
    with lessee("frames") as process:
        assert client.heap_report(heap)["free_slabs"] == 5
        assert memory.view[SLAB_SIZE] == 77
        process.kill()
        eventually(lambda: client.heap_report(heap)["clients"] == 1)
    client.ask(messages.Verify)
    if free_on_death:
        assert client.heap_report(heap)["leased_slabs"] == {}
        assert memory.view[SLAB_SIZE] == 0
    else:
        assert client.heap_report(heap)["leased_slabs"] == {"1": 1}
        assert memory.view[SLAB_SIZE] == 77
        assert client.lease(heap, size_class=1) == [SlabRange(1, 1, adopted=True)]


def test_a_stopped_client_keeps_its_slabs_and_holds_nobody_up(client, lessee):
    heap = client.create(4, name="frames")
    with lessee("frames") as process:
        process.send_signal(signal.SIGSTOP)
        assert len(client.lease(heap)) == 1
        assert client.lease(heap) == []
        assert client.heap_report(heap)["clients"] == 2
        process.kill()
        eventually(lambda: client.heap_report(heap)["clients"] == 1)
    assert client.lease(heap, size_class=0, slabs=2) == []
    assert len(client.lease(heap, size_class=2)) == 1


def test_a_client_that_never_reads_is_given_up(served, client):
    deaf = served.client()

    def ask_for_ever() -> None:
        for number in itertools.count():
            deaf.tell(messages.Status(request=number))

    with pytest.raises(errors.ClosedError):
        ask_for_ever()
    assert client.ask(messages.Status).clients >= 1


# ---------------------------------------------------------------- misbehaviour


@pytest.mark.parametrize(
    "packet",
    [
        b"\x07no such kind of packet",
        b"\x00",
        b"\x00\xc1",
        b"\x00" + codec.encode(messages.Ready()),
        b"\x00" + codec.encode(messages.Hello(request=1, version=messages.VERSION)),
        b"\x00" + codec.encode(messages.CreateHeap(request=1, name="", size=SLAB_SIZE, managed=True)),
        b"\x01" + bytes(8),
        b"\x00" + b"\x91" * 60_000,
    ],
)
def test_a_malformed_packet_costs_only_its_sender_the_connection(served, client, packet):
    offender = served.client()
    offender.channel.socket.send(packet)
    assert offender.is_cut_off()
    assert client.create()


def test_descriptors_that_no_message_asks_for_cost_the_connection_and_are_closed(served, client):
    client.ask(messages.Status)
    before = served.descriptors()
    offender = served.client()
    offender.tell(messages.Status(request=9), *[offender.channel.fileno()] * 60)
    assert offender.is_cut_off()
    client.ask(messages.Status)
    # The process lives, so it is still watched: one descriptor, until it is gone.
    assert served.descriptors() <= before + 1


def test_whoever_does_not_say_hello_is_cut_off(served):
    offender = served.client(greet=False)
    offender.tell(messages.Status(request=1))
    assert offender.is_cut_off()


def test_nothing_is_left_in_the_coordinator_of_what_came_and_went(served, client):
    def everything() -> None:
        other = served.client()
        heap = other.create(name="passing")
        other.ask(messages.OpenHeap, name="passing")
        other.lease(heap)
        other.tell(messages.Goodbye())
        assert other.is_cut_off()

    everything()
    client.ask(messages.Status)
    before = served.descriptors()
    for _ in range(5):
        everything()
    eventually(lambda: client.ask(messages.Status).clients == 1)
    assert served.descriptors() == before
