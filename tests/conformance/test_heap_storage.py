"""What the coordinator's mind may expect of the storage of heaps: the one without memory keeps the real one's promises.

A slab here is full with as many blocks as its storage says; the blocks themselves are nobody's business but the allocator's.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from shmwasm.addresses import SLAB_SIZE, AppAddress
from shmwasm.control.actions import HeapOwners, MetadataDescriptor, StoreHeap
from shmwasm.control.slabs import ranges_of, slabs_of
from shmwasm.coordinator.authority import compile_core, new_core
from shmwasm.coordinator.storage import Storage
from shmwasm.core import Core, layout
from shmwasm.engine.config import new_engine
from shmwasm.engine.modules import deserialize
from shmwasm.engine.nests import new_store
from shmwasm.posix.segments import Segment
from shmwasm.protocol.messages import COORDINATOR, NOBODY, SlabRange
from shmwasm.testing.storage import BLOCKS_PER_SLAB, FakeStorage

HEAP = 3
SLABS = 8
OWNER, OTHER = 5, 6
LARGEST_CLASS = layout.SIZE_CLASSES
"""Blocks of 32 KiB: two fill a slab."""


def description(*, managed: bool = True) -> StoreHeap:
    size = SLABS * SLAB_SIZE
    return StoreHeap(HEAP, "frames", size, managed=managed, read_only=False, scrub=False, owner_frees_only=False)


class WithoutMemory:
    """The fake: what a process would write is written into it."""

    def __init__(self) -> None:
        self.storage = FakeStorage()

    def store(self, wanted: StoreHeap) -> int:
        return self.storage.store(wanted)

    def lease(self, owner: int, *slabs: int) -> None:
        assert self.storage.write_owners(HEAP, ranges_of(slabs), owner)

    def allocate(self, _owner: int, slab: int, *, full: bool = False) -> Callable[[], None]:
        heap = self.storage.heaps[HEAP]
        heap.classes[slab] = LARGEST_CLASS
        heap.live[slab] = BLOCKS_PER_SLAB if full else 1
        return lambda: heap.live.update({slab: 0})

    def close(self) -> None:
        for heap in list(self.storage.heaps):
            self.storage.drop(heap)


class Hooks:
    """What a process's core asks for: the slabs that were assigned to it."""

    def __init__(self, world: WithMemory) -> None:
        self._world = world

    def lease(self, *_wanted: object) -> Sequence[SlabRange]:
        return self._world.take_lease()

    def unexpected(self, *facts: object) -> None:
        raise AssertionError(facts)

    release = refuse = scrub = unexpected


class WithMemory:
    """The real one: processes allocate through cores of their own."""

    def __init__(self) -> None:
        self._compiled = compile_core()
        self.storage = Storage(new_core(self._compiled))
        self._processes: dict[int, Any] = {}
        self._next: list[SlabRange] = []
        self._metadata_size = 0

    def store(self, wanted: StoreHeap) -> int:
        with Segment.create(wanted.size, name_for_errors=wanted.name) as segment:
            self._metadata_size = self.storage.store(wanted, segment.descriptor)
        return self._metadata_size

    def lease(self, owner: int, *slabs: int) -> None:
        assert self.storage.write_owners(HEAP, ranges_of(slabs), owner)

    def allocate(self, owner: int, slab: int, *, full: bool = False) -> Callable[[], None]:
        process = self._processes.get(owner) or self._start(owner)
        self._next = [SlabRange(slab, 1)]
        blocks = [process.malloc(SLAB_SIZE // 2) for _ in range(1 + full)]
        assert {(block - SLAB_SIZE) // SLAB_SIZE for block in blocks} == {slab}

        def free() -> None:
            for block in blocks:
                process.free(block)

        return free

    def close(self) -> None:
        for process in self._processes.values():
            process.close()
        self.storage.close()
        self._compiled.close()

    def _start(self, owner: int) -> Any:
        engine = new_engine(parallel_compilation=False)
        core = Core(new_store(engine), deserialize(engine, self._compiled.descriptor), owner=owner, hooks=Hooks(self))
        metadata = self.storage.descriptor(MetadataDescriptor(HEAP))
        slot = core.open_heap(metadata, self._metadata_size, start=AppAddress(SLAB_SIZE), name="frames")
        self._processes[owner] = slot
        return slot

    def take_lease(self) -> Sequence[SlabRange]:
        granted, self._next = self._next, []
        return granted


@pytest.fixture(params=[WithoutMemory, WithMemory])
def world(request: pytest.FixtureRequest) -> Iterator[Any]:
    made = request.param()
    yield made
    made.close()


@pytest.fixture
def heap(world: Any) -> Any:
    """The storage, with one managed heap in it."""
    world.store(description())
    return world.storage


def owners(storage: Any, expected: dict[int, int]) -> bool:
    """Tell whether these slabs have these owners, and all others none."""
    numbers = [expected.get(slab, NOBODY) for slab in range(SLABS)]
    return storage.verify(HeapOwners(HEAP, "frames", struct.pack(f"{SLABS}I", *numbers))) is None


def test_a_managed_heap_has_metadata_and_its_slabs_are_nobodys(world: Any) -> None:
    assert world.store(description()) > 0
    assert owners(world.storage, {})


def test_a_preallocated_heap_has_no_metadata(world: Any) -> None:
    assert world.store(description(managed=False)) == 0


def test_leased_slabs_have_their_owner(world: Any, heap: Any) -> None:
    world.lease(OWNER, 0, 1, 2)
    world.lease(OTHER, 5)
    assert owners(heap, {0: OWNER, 1: OWNER, 2: OWNER, 5: OTHER})


def test_verify_names_the_heap_whose_owners_are_others(world: Any, heap: Any) -> None:
    world.lease(OWNER, 4)
    broken = heap.verify(HeapOwners(HEAP, "frames", struct.pack(f"{SLABS}I", *[NOBODY] * SLABS)))
    assert broken is not None
    assert broken.heap == "frames"


def test_slabs_that_were_given_back_are_free(world: Any, heap: Any) -> None:
    world.lease(OWNER, 0, 1, 2, 3)
    freed, classes = heap.release(HEAP, [SlabRange(0, 1), SlabRange(2, 2)])
    assert set(slabs_of(freed)) == {0, 2, 3}
    assert not classes
    assert owners(heap, {1: OWNER})


def test_a_slab_that_was_given_back_with_a_block_in_it_is_adopted(world: Any, heap: Any) -> None:
    world.lease(OWNER, 3)
    world.allocate(OWNER, 3)
    assert heap.release(HEAP, [SlabRange(3, 1)]) == ((), frozenset({LARGEST_CLASS}))
    assert owners(heap, {3: COORDINATOR})


def test_of_the_dead_empty_slabs_are_freed_and_others_adopted(world: Any, heap: Any) -> None:
    world.lease(OWNER, 0, 1, 2, 3)
    world.allocate(OWNER, 1, full=True)
    world.allocate(OWNER, 2)
    freed, classes = heap.reclaim(HEAP, [SlabRange(0, 4)], free_live=False)
    assert set(slabs_of(freed)) == {0, 3}
    assert classes == {LARGEST_CLASS}
    assert owners(heap, {1: COORDINATOR, 2: COORDINATOR})


def test_of_the_dead_everything_is_freed_where_the_heap_asks_for_it(world: Any, heap: Any) -> None:
    world.lease(OWNER, 0, 1, 2)
    world.allocate(OWNER, 1, full=True)
    freed, classes = heap.reclaim(HEAP, [SlabRange(0, 3)], free_live=True)
    assert set(slabs_of(freed)) == {0, 1, 2}
    assert not classes
    assert owners(heap, {})


def test_an_adopted_slab_is_free_once_its_blocks_are(world: Any, heap: Any) -> None:
    world.lease(OWNER, 6)
    free = world.allocate(OWNER, 6)
    heap.reclaim(HEAP, [SlabRange(6, 1)], free_live=False)
    free()
    freed, _ = heap.reclaim(HEAP, [SlabRange(6, 1)], free_live=False)
    assert set(slabs_of(freed)) == {6}
    assert owners(heap, {})


def test_an_adopted_slab_with_room_is_found_by_its_class_until_somebody_has_it(world: Any, heap: Any) -> None:
    world.lease(OWNER, 1, 2)
    world.allocate(OWNER, 1, full=True)
    world.allocate(OWNER, 2)
    assert heap.find_adopted(HEAP, LARGEST_CLASS) is None
    heap.reclaim(HEAP, [SlabRange(1, 2)], free_live=False)
    assert heap.find_adopted(HEAP, LARGEST_CLASS) == 2
    assert heap.find_adopted(HEAP, LARGEST_CLASS - 1) is None
    world.lease(OTHER, 2)
    assert heap.find_adopted(HEAP, LARGEST_CLASS) is None
    assert owners(heap, {1: COORDINATOR, 2: OTHER})


def test_after_a_reset_everything_is_nobodys(world: Any, heap: Any) -> None:
    world.lease(OWNER, 0, 1)
    world.allocate(OWNER, 0)
    heap.reset(HEAP, (SlabRange(0, 2),))
    assert owners(heap, {})


def test_a_dropped_heap_is_unknown(world: Any, heap: Any) -> None:
    heap.drop(HEAP)
    with pytest.raises(KeyError):
        heap.find_adopted(HEAP, LARGEST_CLASS)
