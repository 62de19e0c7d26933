"""Use a /dev/shm of a few MiB to its last byte. Run in a mount namespace of its own; says null when all went as it should."""

import contextlib
import os
import sys
from pathlib import Path

from processes import descriptors_of
from shmwasm import Runtime
from shmwasm.errors import HeapExhaustedError, HeapNoSpaceError
from waiting import eventually

SHM = Path("/dev/shm")
MIB = 1 << 20
FILLER = SHM / "filler"


def free_bytes():
    status = os.statvfs(SHM)
    return status.f_bavail * status.f_frsize


def fill(leave=0):
    """Take all of /dev/shm but for `leave` bytes."""
    with FILLER.open("wb") as filler:
        os.posix_fallocate(filler.fileno(), 0, free_bytes() - leave)
    assert free_bytes() == leave


def refused(function, *arguments):
    """Assert that there is no space, and that nothing is left of the attempt; return the error."""
    before = free_bytes(), descriptors_of()
    try:
        function(*arguments)
    except HeapNoSpaceError as error:
        eventually(
            lambda: (free_bytes(), descriptors_of()) == before
        )  # the coordinator answers first, and closes what it held then
        return error
    raise AssertionError("there was room")


def creation_is_refused_with_sizes(runtime):
    for _ in range(20):
        error = refused(runtime.create_shared_heap, 64 * MIB)
        assert error.requested == 64 * MIB
        assert 0 < error.available <= 8 * MIB
    fill()
    error = refused(runtime.create_shared_heap, 1 << 16)
    assert error.available == 0
    # The data fits, the metadata does not.
    FILLER.unlink()
    fill(leave=1 << 16)
    refused(runtime.create_shared_heap, 1 << 16)
    FILLER.unlink()
    assert not runtime.status()["heaps"]


def leases_are_refused_and_come_back(runtime, guest):
    with runtime.load(guest) as module, runtime.spawn(module):
        start = free_bytes()  # the launcher, too, keeps a little
    heap = runtime.create_shared_heap(3 * MIB)
    with runtime.load(guest) as module, runtime.spawn(module, shared_heap=heap) as instance:
        fill()
        # No page is left for the states of a first slab: neither here nor in the guest does anything die.
        for size in (16, 1000, 100_000):
            try:
                heap.malloc(size)
            except HeapExhaustedError:
                continue
            raise AssertionError(f"{size} bytes were allocated")
        assert instance.call("allocate", 100) == 0
        assert instance.call("allocate", 100_000) == 0
        runtime.verify()
        FILLER.unlink()
        blocks = [heap.malloc(size) for size in (16, 1000, 100_000)]
        guests = [instance.call("allocate", size) for size in (100, 100_000)]
        assert all(guests)
        # In the middle of use: what was leased goes on, what is new is refused.
        fill()
        with contextlib.suppress(HeapExhaustedError):
            while True:
                blocks.append(heap.malloc(1000))
        with contextlib.suppress(HeapExhaustedError):
            while True:
                blocks.append(heap.malloc(5000))
        heap.view[:1] = b"."
        heap.view[-1:] = b"."
        for block in blocks:
            block.view[:] = bytes(block.size)
        FILLER.unlink()
        more = heap.malloc(300_000)
        instance.call("release", guests[0])
        heap.free(guests[1] & 0xFFFF_FFFF)
        for block in (*blocks, more):
            block.free()
        heap.verify()
        runtime.verify()
        assert heap.statistics().live_blocks == 0
    heap.close()
    eventually(lambda: free_bytes() == start)


def spawning_needs_no_room(runtime, guest):
    with runtime.load(guest) as module:
        fill()
        with runtime.spawn(module) as instance:
            instance.call("nothing")
            assert instance.call("size") == 1
            instance.call("grow", 10)
            instance.call("nothing")
        FILLER.unlink()


def main(guest):
    with Runtime() as runtime:
        creation_is_refused_with_sizes(runtime)
        leases_are_refused_and_come_back(runtime, guest)
        spawning_needs_no_room(runtime, guest)
        assert runtime.verify() == 0
    with contextlib.suppress(FileNotFoundError):
        FILLER.unlink()
    assert list(SHM.iterdir()) == []
    eventually(lambda: free_bytes() == os.statvfs(SHM).f_blocks * os.statvfs(SHM).f_frsize)
    print("null", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
