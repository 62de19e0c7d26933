"""What the coordinator keeps of each heap: its segment, its metadata, and the authority over the metadata."""

from __future__ import annotations

import ctypes
import logging
import os
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shmwasm import errors
from shmwasm.addresses import OS_PAGE, SLAB_SIZE, round_up
from shmwasm.control.actions import MetadataDescriptor
from shmwasm.control.slabs import slabs_of
from shmwasm.coordinator.authority import ManagedHeap
from shmwasm.posix.mappings import map_anywhere
from shmwasm.posix.segments import Segment
from shmwasm.protocol.messages import SlabRange

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shmwasm.control.actions import HeapDescriptor, HeapOwners, StoreHeap
    from shmwasm.core import Core

_log = logging.getLogger(__name__)

Reclaimed = tuple[tuple[SlabRange, ...], frozenset[int]]
"""What became free, and the size classes of what is adopted."""


@dataclass(slots=True)
class _StoredHeap:
    name: str
    segment: Segment
    scrub: bool
    managed: ManagedHeap | None
    read_only: int | None = field(default=None)
    """A descriptor that allows no writing, made when it is first asked for."""
    short: bool = False
    """Whether the last lease was refused as there was no memory for its states: it is said once."""


class Storage:
    """All heaps, by number."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._heaps: dict[int, _StoredHeap] = {}

    def store(self, wanted: StoreHeap, descriptor: int) -> int:
        """Keep a heap whose segment is behind `descriptor`, which stays the caller's; return the size of its metadata, or 0.

        Raises:
            ArgumentError: The segment is too small, or cannot be mapped as the heap says.
            HeapNoSpaceError: There is no room for the metadata.
        """
        with ExitStack() as undo:
            segment = Segment.open(descriptor, read_only=wanted.read_only, name_for_errors=wanted.name)
            undo.callback(segment.close)
            if round_up(segment.size, OS_PAGE) < wanted.size:
                raise errors.ArgumentError(
                    f"shared heap {wanted.name!r} has {wanted.size} bytes, but its segment only {segment.size}"
                )
            managed = ManagedHeap(self._core, wanted) if wanted.managed else None
            undo.pop_all()
        self._heaps[wanted.heap] = _StoredHeap(wanted.name, segment, wanted.scrub, managed)
        return managed.metadata.size if managed is not None else 0

    def drop(self, heap: int) -> None:
        """Close all that is kept of the heap."""
        stored = self._heaps.pop(heap)
        stored.segment.close()
        if stored.read_only is not None:
            os.close(stored.read_only)
        if stored.managed is not None:
            stored.managed.close()

    def close(self) -> None:
        """Drop every heap."""
        for heap in list(self._heaps):
            self.drop(heap)

    def descriptor(self, wanted: HeapDescriptor) -> int:
        """Return a descriptor, which the storage keeps.

        Raises:
            ArgumentError: The segment cannot be opened for reading only.
        """
        stored = self._heaps[wanted.heap]
        if isinstance(wanted, MetadataDescriptor):
            return self._managed(wanted.heap).metadata.descriptor
        if not wanted.read_only:
            return stored.segment.descriptor
        if stored.read_only is None:
            stored.read_only = stored.segment.read_only_descriptor()
        return stored.read_only

    def find_adopted(self, heap: int, size_class: int) -> int | None:
        """Return an adopted slab of the class that has a free block."""
        try:
            return self._managed(heap).authority.find_adopted(size_class)
        except errors.HeapCorruptError as damage:
            _log.warning("adopted slabs are not looked at: %s", damage)
            return None

    def write_owners(self, heap: int, ranges: Sequence[SlabRange], owner: int) -> bool:
        """Assign slabs to an owner; return whether that was done, as there may be no memory for their states."""
        stored, managed = self._heaps[heap], self._managed(heap)
        try:
            for part in ranges:
                managed.reserve(part)
            for part in ranges:
                managed.authority.assign(part.first, part.count, owner)
        except errors.HeapNoSpaceError as shortage:
            # There may be room again with no slab of this heap becoming free, which is what the refused wait for.
            self.let_ask_again(heap)
            if not stored.short:
                _log.warning("leases are refused: %s", shortage)
            stored.short = True
            return False
        except (errors.ArgumentError, errors.HeapCorruptError) as problem:
            _log.warning("a lease is refused: %s", problem)
            return False
        stored.short = False
        return True

    def let_ask_again(self, heap: int) -> None:
        """Have processes ask again that were refused slabs of the heap."""
        self._managed(heap).authority.let_the_refused_ask_again()

    def release(self, heap: int, ranges: Sequence[SlabRange]) -> Reclaimed:
        """Free slabs that were given back; those in which something lives after all are adopted."""
        managed = self._managed(heap)
        freed: list[SlabRange] = []
        kept: list[SlabRange] = []
        for part in ranges:
            try:
                managed.authority.release([part])
            except errors.ArgumentError:
                kept.append(part)
            else:
                freed.append(part)
        adopted = self.reclaim(heap, kept, free_live=False) if kept else ((), frozenset[int]())
        return (*freed, *adopted[0]), adopted[1]

    def reclaim(self, heap: int, ranges: Sequence[SlabRange], *, free_live: bool) -> Reclaimed:
        """Take slabs from an owner that cannot touch them any more."""
        managed = self._managed(heap)
        freed: list[SlabRange] = []
        for part in ranges:
            try:
                empty = managed.authority.reclaim(part.first, part.count, free_live=free_live)
                if free_live:
                    self._scrub(heap, empty)
                for slabs in empty:
                    managed.authority.release([slabs])
                    freed.append(slabs)
            except errors.ShmwasmError as damage:
                # The owner broke its own metadata, or goes on though it gave the slabs back. What is lost are its slabs alone.
                _log.warning("slabs were not reclaimed: %s", damage)
        left = set(slabs_of(ranges)) - set(slabs_of(freed))
        return tuple(freed), managed.classes(left)

    def reset(self, heap: int, used: Sequence[SlabRange]) -> None:
        """Free every block and slab; `used` are the slabs that may hold data."""
        self._scrub(heap, used)
        self._managed(heap).authority.reset()

    def verify(self, expected: HeapOwners) -> errors.HeapCorruptError | None:
        """Return what is broken in the heap's metadata, or None."""
        managed = self._managed(expected.heap)
        try:
            managed.authority.verify()
        except errors.HeapCorruptError as broken:
            return broken
        for slab, (written, known) in enumerate(zip(managed.owners(), memoryview(expected.owners).cast("I"), strict=True)):
            if written != known:
                return errors.HeapCorruptError(
                    expected.name, f"a slab that was leased to {known} has that owner, not {written}", slab * SLAB_SIZE
                )
        return None

    def _managed(self, heap: int) -> ManagedHeap:
        managed = self._heaps[heap].managed
        assert managed is not None
        return managed

    def _scrub(self, heap: int, ranges: Sequence[SlabRange]) -> None:
        """Zero the data of these slabs, if the heap asks for it."""
        stored = self._heaps[heap]
        if not stored.scrub:
            return
        for part in ranges:
            length = part.count * SLAB_SIZE
            with map_anywhere(stored.segment.descriptor, length, offset=part.first * SLAB_SIZE, writable=True) as mapping:
                ctypes.memset(mapping.address, 0, length)
