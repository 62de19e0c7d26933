"""What the coordinator does with a managed heap's metadata: format it, assign slabs to owners, take them back from the dead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from shmwasm.addresses import WASM_PAGE, AppAddress
from shmwasm.core import layout
from shmwasm.core.allocator import Core
from shmwasm.core.heap_slots import AllocatorStatistics, HeapSlot, pairs_of
from shmwasm.core.metadata import metadata_size
from shmwasm.errors import ArgumentError
from shmwasm.protocol.messages import SlabRange

if TYPE_CHECKING:
    from collections.abc import Sequence


class HeapAuthority:
    """The coordinator's hold on one managed heap. Make one with `create` or `open`; `core` has the owner `OWNER_COORDINATOR`."""

    def __init__(self, core: Core, slot: HeapSlot, slabs: int) -> None:
        self._core = core
        self._slot = slot
        self.slabs = slabs

    @classmethod
    def create(
        cls,
        core: Core,
        metadata: int,
        *,
        slabs: int,
        identity: int,
        name: str = "",
        scrub: bool = False,
        owner_frees_only: bool = False,
    ) -> Self:
        """Format a new metadata segment and open it.

        Args:
            core: The coordinator's core.
            metadata: Descriptor of a zeroed segment of `metadata_size(slabs)` bytes; it may be closed afterwards. All bytes
                before `states_offset(slabs)` must be reserved.
            slabs: Slabs in the data segment.
            identity: The heap's number.
            name: The heap's name, for errors.
            scrub: Whether blocks are cleared before they are freed.
            owner_frees_only: Whether only the process that allocated a block may free it.

        Raises:
            ArgumentError: `slabs` is not from 1 to `layout.MAXIMUM_SLABS`.
        """
        if not 0 < slabs <= layout.MAXIMUM_SLABS:
            raise ArgumentError(f"a managed heap has 1 to {layout.MAXIMUM_SLABS} slabs of 64 KiB, not {slabs}")
        flags = layout.FLAG_SCRUB * scrub | layout.FLAG_OWNER_FREES_ONLY * owner_frees_only
        window = core.map_segment(metadata, metadata_size(slabs))
        try:
            core.call("heap_format", window, slabs, flags, identity)
        finally:
            core.unmap_segment(window)
        return cls.open(core, metadata, slabs=slabs, name=name)

    @classmethod
    def open(cls, core: Core, metadata: int, *, slabs: int, name: str = "") -> Self:
        """Open a metadata segment that was formatted before; raises what `Core.open_heap` raises."""
        return cls(core, core.open_heap(metadata, metadata_size(slabs), start=AppAddress(WASM_PAGE), name=name), slabs)

    def assign(self, first: int, count: int, owner: int) -> None:
        """Give free slabs, or an adopted one, to a process. Reserve their `states_range` before.

        Raises:
            ArgumentError: One of them belongs to a process already; nothing changed.
        """
        self._change("slab_assign", first, count, owner)

    def release(self, ranges: Sequence[SlabRange]) -> None:
        """Make slabs in which nothing lives free.

        Raises:
            ArgumentError: A block lives there; that range is as it was.
        """
        for given in ranges:
            self._change("slab_release", given.first, given.count)

    def let_the_refused_ask_again(self) -> None:
        """Have processes ask again that were refused: no slab became free, but something else stood in the way."""
        self._change("slab_release", 0, 0)

    def reclaim(self, first: int, count: int, *, free_live: bool) -> list[SlabRange]:
        """Adopt the slabs of a dead process, or look at adopted ones again.

        Args:
            first: The first slab. The range holds runs as a whole only, as leases do.
            count: How many slabs.
            free_live: Whether the blocks that still live are freed.

        Returns:
            The slabs in which nothing lives: scrub them if the heap asks for it, then `release` them. All others are adopted.

        Raises:
            ArgumentError: The range leaves the heap or cuts a run.
        """
        with self._core.lock:
            self._change("slab_reclaim", first, count, int(free_live))
            is_free = bytes(self._core.exchange.cast("B")[:count])
        ranges: list[SlabRange] = []
        start = is_free.find(1)
        while start >= 0:
            end = is_free.find(0, start)
            end = count if end < 0 else end
            ranges.append(SlabRange(first + start, end - start))
            start = is_free.find(1, end)
        return ranges

    def ranges_of(self, owner: int) -> list[SlabRange]:
        """Return all slabs of an owner, from the metadata alone."""
        ranges: list[SlabRange] = []
        after = 0
        with self._core.lock:
            while pairs := self._core.call("slab_ranges", self._slot.number, owner, after):
                ranges += pairs_of(self._core.exchange, pairs)
                after = ranges[-1].first + ranges[-1].count
        return ranges

    def find_adopted(self, size_class: int) -> int | None:
        """Return an adopted slab of that size class that has a free block, to be assigned to a process that needs one."""
        slab = self._core.call("find_adopted", self._slot.number, size_class)
        return slab if slab < self.slabs else None

    def reset(self) -> None:
        """Free every block and slab. No process may use the heap, and each must reset its slot before it does again."""
        self._change("heap_reformat")

    def statistics(self) -> AllocatorStatistics:
        """Count the heap's slabs and blocks."""
        return self._slot.statistics()

    def verify(self) -> None:
        """Check every invariant of the metadata; raises `HeapCorruptError`."""
        self._slot.verify()

    def close(self) -> None:
        """Drop the heap; the segment stays as it is. Twice is fine."""
        self._slot.close()

    def _change(self, function: str, *arguments: int) -> None:
        if self._core.call(function, self._slot.number, *arguments) != layout.STATUS_OK:
            raise ArgumentError(f"{function}{arguments} does not fit the metadata of shared heap {self._slot.name!r}")
