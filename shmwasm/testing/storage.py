"""The coordinator's storage of heaps, without memory: for tests of what the coordinator decides.

It keeps the promises of `shmwasm.coordinator.storage.Storage`, and asserts what that one's callers promise; one suite of tests
holds both to the same behaviour.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from shmwasm.addresses import SLAB_SIZE
from shmwasm.control.slabs import ranges_of, slabs_of
from shmwasm.errors import HeapCorruptError
from shmwasm.protocol.messages import COORDINATOR, NOBODY, SlabRange

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shmwasm.control.actions import HeapOwners, StoreHeap

METADATA_SIZE: Final = 4096
"""What every managed heap's metadata is said to take, in bytes."""

BLOCKS_PER_SLAB: Final = 4
"""How many blocks fill a slab, whatever its class."""


class FakeHeap:
    """A heap's metadata: who owns each slab, of which class it is, and how many blocks live in it."""

    def __init__(self, slabs: int) -> None:
        self.owners = [NOBODY] * slabs
        self.classes: dict[int, int] = {}
        self.live: dict[int, int] = defaultdict(int)

    def full(self, slab: int) -> bool:
        """Tell whether the slab has no room."""
        return self.live[slab] >= BLOCKS_PER_SLAB


class FakeStorage:
    """All heaps, by number. `memory_left` is for how many slabs' states there is memory; None for all."""

    def __init__(self) -> None:
        self.heaps: dict[int, FakeHeap] = {}
        self.memory_left: int | None = None

    def store(self, wanted: StoreHeap) -> int:
        """Keep a heap; return the size of its metadata, or 0."""
        self.heaps[wanted.heap] = FakeHeap(wanted.size // SLAB_SIZE if wanted.managed else 0)
        return METADATA_SIZE if wanted.managed else 0

    def drop(self, heap: int) -> None:
        """Forget the heap."""
        del self.heaps[heap]

    def find_adopted(self, heap: int, size_class: int) -> int | None:
        """Return an adopted slab of the class that has a free block."""
        kept = self.heaps[heap]
        adopted = [slab for slab, owner in enumerate(kept.owners) if owner == COORDINATOR and not kept.full(slab)]
        return next((slab for slab in adopted if kept.classes[slab] == size_class), None)

    def write_owners(self, heap: int, ranges: Sequence[SlabRange], owner: int) -> bool:
        """Assign slabs to an owner; return whether there was memory for their states."""
        kept, slabs = self.heaps[heap], list(slabs_of(ranges))
        assert len({kept.owners[slab] for slab in slabs}) == 1, "slabs are free, or one is adopted"
        assert kept.owners[slabs[0]] in {NOBODY, COORDINATOR}, "no slab is taken from a process"
        if self.memory_left is not None:
            if self.memory_left < len(slabs):
                return False
            self.memory_left -= len(slabs)
        for slab in slabs:
            kept.owners[slab] = owner
        return True

    def release(self, heap: int, ranges: Sequence[SlabRange]) -> tuple[tuple[SlabRange, ...], frozenset[int]]:
        """Free slabs that were given back; those in which something lives after all are adopted."""
        return self.reclaim(heap, ranges, free_live=False)

    def reclaim(self, heap: int, ranges: Sequence[SlabRange], *, free_live: bool) -> tuple[tuple[SlabRange, ...], frozenset[int]]:
        """Take slabs from an owner: return what became free, and the size classes of what is adopted."""
        kept, slabs = self.heaps[heap], list(slabs_of(ranges))
        for slab in slabs:
            if free_live:
                kept.live[slab] = 0
            kept.owners[slab] = COORDINATOR if kept.live[slab] else NOBODY
        freed = [slab for slab in slabs if kept.owners[slab] == NOBODY]
        classes = {kept.classes.get(slab, 0) for slab in slabs if slab not in freed}
        return ranges_of(freed), frozenset(classes - {0})

    def reset(self, heap: int, used: Sequence[SlabRange]) -> None:
        """Free every block and slab."""
        kept = self.heaps[heap]
        assert list(slabs_of(used)) == [slab for slab, owner in enumerate(kept.owners) if owner != NOBODY]
        self.heaps[heap] = FakeHeap(len(kept.owners))

    def verify(self, expected: HeapOwners) -> HeapCorruptError | None:
        """Return what is broken, or None."""
        if list(memoryview(expected.owners).cast("I")) == self.heaps[expected.heap].owners:
            return None
        return HeapCorruptError(expected.name, "the owners agree", 0)
