"""Guests that mean harm: whatever they do is theirs alone to suffer."""

from __future__ import annotations

import pytest

from shmwasm.addresses import SLAB_SIZE, WINDOW_END
from shmwasm.errors import CallTimeoutError, WorkerTrapError

ENTRIES = 64
TIMEOUTS = 1200
"""More than there is room for in the core's stack, should each leave 16 bytes there."""


@pytest.fixture
def module(runtime, guest_path):
    with runtime.load(guest_path) as loaded:
        yield loaded


def test_a_guest_that_scribbles_over_all_it_was_granted_does_not_touch_the_allocator(runtime, module, rng, times, allocate_all):
    heap = runtime.create_shared_heap(2 << 20)
    tail = runtime.create_shared_heap(1 << 20)
    safe = runtime.create_shared_heap(1 << 20)  # not granted
    runtime.chain_shared_heaps(heap, tail)
    with (
        safe.malloc(1000) as secret,
        runtime.spawn(module, shared_heap=heap) as vandal,
        runtime.spawn(module, shared_heap=heap) as neighbour,
    ):
        secret.view[:] = b"s" * 1000
        scribbling = vandal.submit("scribble", heap.start, WINDOW_END - 4, times(60), rng.randrange(1 << 31))
        live = []
        rounds = 0
        while not scribbling.done() or rounds < 50:
            rounds += 1
            for _ in range(10):
                live.append(rng.choice([heap, tail]).malloc(rng.choice([16, 100, 3000, 40_000])))
                live.append(heap.block_at(address) if (address := allocated_by(neighbour, heap)) else live.pop())
            rng.shuffle(live)
            while len(live) > 20:
                live.pop().free()
        scribbling.result(60)
        for block in live:
            block.free()
        for one in (heap, tail, safe):
            one.verify()
        runtime.verify()
        assert heap.statistics().live_blocks == tail.statistics().live_blocks == 0
        assert bytes(secret.view) == b"s" * 1000
    assert len(allocate_all(heap, SLAB_SIZE)) == heap.size // SLAB_SIZE


def allocated_by(instance, heap):
    """Return a block of the heap that the instance allocated, or 0: a block elsewhere in the chain is freed again."""
    address = instance.call("allocate", 64) & 0xFFFF_FFFF
    if not address or heap.start <= address < heap.start + heap.size:
        return address
    instance.call("free", address)
    return 0


def test_frees_of_what_is_no_live_block_trap_and_change_nothing(runtime, module, rng, times):
    heap = runtime.create_shared_heap(8 << 20)
    body = runtime.create_shared_heap(1 << 20)
    runtime.chain_shared_heaps(heap, body)
    foreign = runtime.create_shared_heap(1 << 20).malloc(100)
    with runtime.spawn(module, shared_heap=heap) as hostile:
        live = {heap.malloc(rng.choice([16, 48, 1000, 40_000, 100_000])).address for _ in range(30)}
        live |= {hostile.call("allocate", rng.choice([16, 1000, 100_000])) & 0xFFFF_FFFF for _ in range(30)}
        freed = [hostile.call("allocate", size) & 0xFFFF_FFFF for size in (16, 1000, 40_000, 100_000)]
        for address in freed:
            hostile.call("free", address)
        live.discard(0)  # there was no room
        before = [one.statistics()._replace(own_unused_slabs=0) for one in (heap, body)]

        def candidates():
            yield from freed
            yield from (1, 8, 65535, WINDOW_END - 1, WINDOW_END - 16, heap.start - 16, heap.start - 1, 0x8000_0000)
            for _ in range(times(150)):
                yield rng.randrange(1, 1 << 32)
                yield rng.randrange(heap.start, WINDOW_END)
                yield rng.choice(sorted(live)) + rng.choice([-16, -1, 1, 8, 16, 4096, 65536])

        for address in candidates():
            if address in live or not 0 < address < 1 << 32:
                continue
            with pytest.raises(WorkerTrapError) as trapped:
                hostile.call("free", address)
            assert trapped.value.code == "invalid_free"
            assert f"{address:#x}" in trapped.value.trap
        assert [one.statistics()._replace(own_unused_slabs=0) for one in (heap, body)] == before
        hostile.call("free", 0)
        runtime.verify()
        heap.verify()
        for address in sorted(live):
            hostile.call("free", address)
            with pytest.raises(WorkerTrapError):
                hostile.call("free", address)
        assert heap.statistics().live_blocks == body.statistics().live_blocks == 0
    foreign.view[:] = bytes(100)
    foreign.free()
    runtime.verify()


def test_what_would_break_a_process_is_a_trap_or_a_refusal_every_time(runtime, module, rng, times):
    heap = runtime.create_shared_heap(1 << 20)
    block = heap.malloc(1000)
    block.view[:] = b"x" * 1000
    with runtime.spawn(module, shared_heap=heap) as hostile:
        pid = hostile.pid
        pages = (heap.start >> 16) + 1

        def expect_trap(export, *arguments):
            with pytest.raises(WorkerTrapError):
                hostile.call(export, *arguments, timeout=60)

        attacks = (
            lambda: expect_trap("unreachable"),
            lambda: expect_trap("recurse", 0),
            lambda: expect_trap("call_null"),
            lambda: expect_trap("load", rng.randrange(1 << 20, heap.start - 4)),
            lambda: expect_trap("store", rng.randrange(1 << 20, heap.start - 4), 1),
            lambda: expect_trap("load", WINDOW_END - 2),
            lambda: expect_trap("load", heap.start - 2),  # its last half would be in the heap
            lambda: [hostile.call("grow", pages - hostile.call("size"))] == [-1] or pytest.fail("it grew into the window"),
            lambda: hostile.call("grow", rng.randrange(1 << 31)),
            lambda: hostile.call("grow_table", rng.choice([1 << 31, 0xFFFF_FFFF])) == -1 or pytest.fail("a huge table"),
            lambda: hostile.call("nothing"),
        )
        for _ in range(times(150)):
            rng.choice(attacks)()
        assert hostile.pid == pid
        assert hostile.alive
        hostile.call("nothing")
        assert bytes(block.view) == b"x" * 1000
        assert hostile.call("load", block) == int.from_bytes(b"xxxx", "little")
    block.free()
    runtime.verify()


@pytest.mark.parametrize("endless", ["spin", "spin_allocating"])
def test_an_endless_loop_is_interrupted_over_and_over_in_one_process(runtime, module, rng, times, endless):
    """Allocating, it is interrupted in the middle of the allocator: what that leaves is sound, and loses nothing."""
    heap = runtime.create_shared_heap(8 << 20)
    with runtime.spawn(module, shared_heap=heap) as instance:
        pid = instance.pid
        for _ in range(times(TIMEOUTS)):
            with pytest.raises(CallTimeoutError):
                instance.call(endless, timeout=rng.choice([1e-6, 1e-4, 0.001, rng.random() * 0.003]))
        assert instance.pid == pid
        instance.call("nothing")
        instance.call("release", instance.call("allocate", 100_000))
        # An interrupted allocation may leave the one block that was in the guest's hand.
        assert heap.statistics().live_blocks <= times(TIMEOUTS)
        heap.verify()
    runtime.verify()


def test_a_guest_that_takes_all_there_is_starves_only_until_it_is_gone(runtime, module, rng, allocate_all):
    heap = runtime.create_shared_heap(4 << 20, on_death="free")
    own = heap.malloc(100)
    with runtime.spawn(module, shared_heap=heap) as greedy:
        while greedy.call("allocate", rng.choice([16, 2000, 40_000])):
            continue
        while greedy.call("allocate", 65536):
            continue
        assert allocate_all(heap, SLAB_SIZE) == []
        own.free()
        greedy.kill()
    assert heap.statistics().live_blocks == 0
    assert len(allocate_all(heap, SLAB_SIZE)) == heap.size // SLAB_SIZE
    runtime.verify()


def test_a_quota_bounds_what_a_greedy_guest_takes(runtime, module, rng):
    heap = runtime.create_shared_heap(8 << 20)
    with runtime.spawn(module, shared_heap=heap, quota=1 << 20) as greedy:
        while greedy.call("allocate", rng.choice([16, 2000, 40_000])):
            continue
        (held,) = [one["leased"] for one in runtime.status()["workers"]]
        assert held <= 1 << 20
        heap.malloc(6 << 20).free()
    runtime.verify()
