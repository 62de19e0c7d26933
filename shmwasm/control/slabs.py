"""Which peer holds which slab of one heap.

Theory
------
Three views of one fact, changed together by `take`, `give` and `move` alone: a byte a slab that is 1 while it is free (so that a
free run is found by `bytearray.find`, at C speed), the owner of each slab (as in the metadata), and each owner's set of slabs (so
that a death costs what the dead one held, however large the heap is).
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from shmwasm.errors import HeapCorruptError
from shmwasm.protocol.messages import NOBODY, SlabRange

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_FREE = b"\1"


def ranges_of(slabs: Iterable[int]) -> tuple[SlabRange, ...]:
    """Return the slabs, in any order, as the fewest ranges in rising order."""
    ranges: list[SlabRange] = []
    for slab in sorted(slabs):
        if ranges and ranges[-1].first + ranges[-1].count == slab:
            ranges[-1] = SlabRange(ranges[-1].first, ranges[-1].count + 1)
        else:
            ranges.append(SlabRange(slab, 1))
    return tuple(ranges)


def slabs_of(ranges: Iterable[SlabRange]) -> Iterator[int]:
    """Yield each slab of the ranges."""
    for part in ranges:
        yield from range(part.first, part.first + part.count)


class SlabMap:
    """The slabs of one heap, all free at first."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.free_count = count
        self._free = bytearray(_FREE * count)
        self._owners = array("I", bytes(4 * count))
        self._held: dict[int, set[int]] = {}

    def held_by(self, owner: int) -> set[int]:
        """Return the owner's slabs; not to be changed, and valid until the next change."""
        return self._held.get(owner, set())

    def holders(self) -> set[int]:
        """Return everyone who holds a slab."""
        return set(self._held)

    def used(self) -> tuple[SlabRange, ...]:
        """Return the slabs that somebody holds."""
        return ranges_of(slab for slabs in self._held.values() for slab in slabs)

    def owners(self) -> bytes:
        """Return the owner of each slab, as native u32s."""
        return self._owners.tobytes()

    def holds_all(self, owner: int, part: SlabRange) -> bool:
        """Return whether the range is a range of this heap, and all of it the owner's."""
        end = part.first + part.count
        if part.first < 0 or part.count < 1 or end > self.count:
            return False
        return self._owners[part.first : end] == array("I", [owner]) * part.count

    def find_run(self, slabs: int) -> SlabRange | None:
        """Return the lowest free run of so many slabs."""
        if slabs > self.free_count:
            return None
        first = self._free.find(_FREE * slabs)
        return None if first < 0 else SlabRange(first, slabs)

    def gather(self, slabs: int) -> tuple[SlabRange, ...]:
        """Return the lowest free slabs, so many of them or all that are free."""
        found: list[int] = []
        slab = self._free.find(_FREE)
        while slab >= 0 and len(found) < slabs:
            found.append(slab)
            slab = self._free.find(_FREE, slab + 1)
        return ranges_of(found)

    def largest_run(self) -> int:
        """Return the length of the longest free run."""
        return max(map(len, self._free.split(b"\0")), default=0)

    def take(self, ranges: Iterable[SlabRange], owner: int) -> None:
        """Give free slabs to `owner`."""
        self._change(ranges, NOBODY, owner)

    def give(self, ranges: Iterable[SlabRange], owner: int) -> None:
        """Make slabs of `owner` free."""
        self._change(ranges, owner, NOBODY)

    def move(self, ranges: Iterable[SlabRange], owner: int, new_owner: int) -> None:
        """Make slabs of `owner` those of `new_owner`."""
        self._change(ranges, owner, new_owner)

    def reset(self) -> None:
        """Make every slab free."""
        for owner in self.holders():
            self.give(ranges_of(self.held_by(owner)), owner)

    def _change(self, ranges: Iterable[SlabRange], owner: int, new_owner: int) -> None:
        for part in ranges:
            assert self.holds_all(owner, part)
            end = part.first + part.count
            self._owners[part.first : end] = array("I", [new_owner]) * part.count
            if owner == NOBODY:
                self.free_count -= part.count
            else:
                self._held[owner].difference_update(range(part.first, end))
            if new_owner == NOBODY:
                self.free_count += part.count
                self._free[part.first : end] = _FREE * part.count
            else:
                self._held.setdefault(new_owner, set()).update(range(part.first, end))
                self._free[part.first : end] = bytes(part.count)
        if owner in self._held and not self._held[owner]:
            del self._held[owner]

    def verify(self, heap: str) -> None:
        """Check that the three views agree.

        Raises:
            HeapCorruptError: They do not.
        """
        if self.free_count != self._free.count(_FREE):
            raise HeapCorruptError(heap, "the number of free slabs is that of the free flags", 0)
        for slab, owner in enumerate(self._owners):
            if self._free[slab] != (owner == NOBODY):
                raise HeapCorruptError(heap, "a slab is free if and only if nobody owns it", slab << 16)
            if owner != NOBODY and slab not in self.held_by(owner):
                raise HeapCorruptError(heap, "a slab is in its owner's set", slab << 16)
        if sum(map(len, self._held.values())) != self.count - self.free_count or not all(self._held.values()):
            raise HeapCorruptError(heap, "a slab is in its owner's set alone", 0)
