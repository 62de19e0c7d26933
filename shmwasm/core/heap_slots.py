"""A managed heap as one process sees it: allocating and freeing there, and what its metadata says.

Theory
------
`HeapSlot` asks for what the core needs, slabs above all, between two calls of the core (see `allocator`). What is done most, to
allocate and to free, is in `hot`; it leaves whatever does not go so smoothly to what is here.
"""

from __future__ import annotations

import operator
from functools import cached_property, partial
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

from shmwasm.addresses import AppAddress, address32, round_up
from shmwasm.core import layout
from shmwasm.core.hot import SlotCells, free_function, malloc_function
from shmwasm.errors import ArgumentError, ClosedError, HeapCorruptError, InvalidFreeError, ProtocolError, shown
from shmwasm.posix.reentry import afterwards, on_top_of_lock, refuse_on_top
from shmwasm.posix.signals import interrupts_put_off, raises_again
from shmwasm.protocol.messages import SlabRange

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shmwasm.core.allocator import Core

RUN: Final = 0
"""The size class that a host is asked for when what is needed is one run of exactly so many slabs."""

LEASE_ATTEMPTS: Final = 4
"""How often one allocation asks; bounded, as a heap under pressure from other processes can give hope for ever."""

REASONS: Final = {
    layout.STATUS_WILD: "it lies in no part of the heap that is in use",
    layout.STATUS_NOT_A_BLOCK: "no block starts there",
    layout.STATUS_NOT_LIVE: "the block is not live: it was freed already",
    layout.STATUS_NOT_OWNER: "the block belongs to another process, and this heap lets only the owner free it",
}
"""Why a free is refused, by status."""

INVARIANTS: Final = {
    layout.BROKEN_HEADER: "the header describes this heap",
    layout.BROKEN_FREE_SLAB: "a free slab has no class",
    layout.BROKEN_CLASS: "a slab's class exists",
    layout.BROKEN_STATE_VALUE: "a block's state exists",
    layout.BROKEN_STATE_PLACE: "only where a block starts there is a state",
    layout.BROKEN_UNUSED_SLAB: "an unused slab holds no block",
    layout.BROKEN_RUN_LENGTH: "a run has slabs, all of the heap",
    layout.BROKEN_RUN_BODY: "all slabs of a run have its owner",
    layout.BROKEN_RING: "the links of a ring agree, and lead to slabs of its owner and class",
    layout.BROKEN_RING_COUNT: "a ring has as many slabs as were counted",
    layout.BROKEN_STACK_PLACE: "a cached block is a block of its class and owner",
    layout.BROKEN_STACK_STATE: "a cached block is free",
    layout.BROKEN_STACK_TWICE: "a block is cached once",
    layout.BROKEN_RUN_CACHE: "a cached run is a free run of its owner",
}
"""What should hold, by what `verify` found broken."""


class AllocatorStatistics(NamedTuple):
    """What a heap's metadata says. Slabs have 64 KiB; "own" means this process's.

    Exact while nobody allocates or frees; otherwise each number is one that held a moment ago.
    """

    capacity_slabs: int
    free_slabs: int
    largest_free_slabs: int
    """The longest run of free slabs."""
    adopted_slabs: int
    """Slabs with live blocks whose owner died."""
    own_slabs: int
    own_unused_slabs: int
    live_blocks: int
    live_bytes: int
    """Usable bytes of the live blocks."""
    remote_freed_blocks: int
    """Blocks freed by another process, which their owner has not collected yet."""
    large_blocks: int
    """Live blocks that are runs of slabs."""
    own_live_blocks: int
    own_live_bytes: int


class HeapSlot:
    """A managed heap as this process's core sees it. Made by `Core.open_heap`.

    Attributes:
        exhausted: Called with the size where there is no room for it; malloc returns what it returns, by default 0.
        number: The slot's number in the core.
        name: The heap's name.
    """

    def __init__(self, core: Core, number: int, *, window: int, start: AppAddress, name: str) -> None:
        self._core = core
        self._closed: str | None = None
        self.number = number
        self.window = window
        self.name = name
        self.start = start
        self._cells = SlotCells(number)
        self.exhausted: Callable[[int], int] = lambda _size: 0

    # These are made when they are asked for: a worker needs none of them.

    @cached_property
    def malloc(self) -> Callable[..., int]:
        """`malloc(size, alignment=16)` returns the app address of a new block, or 0 if `size` is 0 or there is no room.

        It raises `ArgumentError` for a size or an alignment that can never be right.
        """
        return self._malloc_function("heap_malloc")

    @cached_property
    def malloc_place(self) -> Callable[..., int]:
        """As `malloc`, but it returns the heap offset plus `layout.FIRST_PLACE`, which stays right when the heap is moved."""
        return self._malloc_function("heap_malloc_place")

    @cached_property
    def free(self) -> Callable[[int], None]:
        """`free(address)` frees a block, wherever it was allocated; the address may be signed, or a 64-bit guest's.

        It raises `InvalidFreeError` if it is not the address of a live block.
        """
        return free_function(self._core.function("heap_free"), self._cells, self._core.lock, self._free_slowly)

    @cached_property
    def free_place(self) -> Callable[[int], None]:
        """As `free`, for what `malloc_place` returned."""
        return free_function(self._core.function("heap_free_place"), self._cells, self._core.lock, self._free_place_slowly)

    def usable_size(self, offset: int) -> int:
        """Return the bytes that the live block at a heap offset can hold; 0 if no live block starts there."""
        refuse_on_top(f"looking up a block of shared heap {self.name!r}")
        return self._call("heap_usable_size", offset) if 0 <= offset < 1 << 32 else 0

    def statistics(self) -> AllocatorStatistics:
        """Count the heap's slabs and blocks."""
        refuse_on_top(f"counting the blocks of shared heap {self.name!r}")
        with self._core.lock:
            self._call("statistics")
            words = self._core.exchange[: 2 * layout.STATISTICS_WORDS].tolist()
        return AllocatorStatistics(*(low | high << 32 for low, high in zip(words[::2], words[1::2], strict=True)))

    def verify(self) -> None:
        """Check every invariant of the heap's metadata and of what this process caches of it.

        Slabs of other processes are judged fairly while those do not allocate.

        Raises:
            HeapCorruptError: One does not hold.
        """
        refuse_on_top(f"checking shared heap {self.name!r}")
        with self._core.lock:
            broken = self._call("verify")
            offset = self._core.exchange[1]
        if broken:
            raise HeapCorruptError(self.name, f"it does not hold that {INVARIANTS[broken]}", offset)

    def trim(self) -> list[SlabRange]:
        """Give up every slab in which nothing lives, and return them: the caller must release them at the coordinator."""
        with self._core.lock:
            self._call("trim")
            return self._unused(keep=0)

    def move(self, start: AppAddress) -> None:
        """Take note that the heap's first byte has the app address `start` from now on."""
        self._call("heap_move", start)
        self.start = start

    def reset(self) -> None:
        """Forget every block and slab: the coordinator has formatted the heap again."""
        self._call("heap_reset")

    def close(self) -> None:
        """Drop the heap, which must be in no chain that guests allocate from; its blocks stay as they are. Twice is fine.

        Raises:
            ArgumentError: Guests of this core allocate from it.
        """
        if self._closed is not None:
            return
        with interrupts_put_off(), self._core.lock:
            if self._call("heap_close") != layout.STATUS_OK:
                raise ArgumentError(f"shared heap {self.name!r} cannot be closed while guests allocate from it")
            self.disown("is closed")
            self._core.forget(self)

    def disown(self, reason: str) -> None:
        """Make every use raise `ClosedError`, also of `malloc` and `free` where somebody has kept them."""
        self._closed = reason
        self._cells.retire()
        # The functions refer to this: were it the other way round too, all would stay until the garbage collector comes.
        self.malloc = self.malloc_place = self.free = self.free_place = partial(_refuse, self.name, reason)
        self.exhausted = partial(_refuse, self.name, reason)

    def install(self, size_class: int, ranges: Sequence[SlabRange]) -> None:
        """Take slabs into use that the coordinator assigned to this process.

        Raises:
            ProtocolError: It did not.
        """
        for granted in ranges:
            status = self._call("install", size_class or layout.CLASS_LARGE, granted.first, granted.count, int(granted.adopted))
            if status != layout.STATUS_OK:
                raise ProtocolError(
                    f"the coordinator granted {granted} of shared heap {self.name!r}, which is not this process's"
                )

    def _call(self, name: str, *arguments: int) -> int:
        with self._core.lock:  # between the check and the call the slot must not become another heap's
            self._check_open()
            return self._core.call(name, self.number, *arguments)

    def _malloc_function(self, function: str) -> Callable[..., int]:
        return malloc_function(
            self._core.function(function), self._cells, self._core.lock, partial(self._malloc_slowly, function)
        )

    def _check_open(self) -> None:
        if self._closed is not None:
            raise ClosedError(f"shared heap {self.name!r}", self._closed)

    def _malloc_slowly(self, function: str, size: int, alignment: int) -> int:
        """Allocate with that function of the core what the hot path did not: something large or aligned, or after a lease."""
        self._check_open()
        size, alignment = _index(size, "a size"), _index(alignment, "an alignment")
        if not 0 <= size < 1 << 63:
            raise ArgumentError(f"a block of {shown(size)} bytes cannot be allocated")
        if not 0 < alignment <= layout.MAXIMUM_ALIGNMENT or alignment & (alignment - 1):
            raise ArgumentError(f"alignment {shown(alignment)} is not a power of two up to {layout.MAXIMUM_ALIGNMENT}")
        if size >= 1 << 32:
            return self.exhausted(size)
        refuse_on_top(f"allocating what shared heap {self.name!r} does not have at hand")
        for _ in range(LEASE_ATTEMPTS):
            with self._core.lock:  # see `_call`
                self._check_open()
                answer = self._core.call(function, size, self.number, alignment)
                has_too_much = answer > layout.MAXIMUM_SMALL and self._core.call("release_is_due", self.number)
            if answer > layout.MAXIMUM_SMALL:
                if has_too_much:
                    self._release(keep=layout.KEPT_UNUSED)
                return answer
            if answer % (1 << layout.ANSWER_CLASS_SHIFT) != layout.STATUS_NEEDS_LEASE:
                break
            self._lease(answer >> layout.ANSWER_CLASS_SHIFT, size)
        return self.exhausted(size)

    def _lease(self, size_class: int, size: int) -> None:
        is_run = size_class == layout.CLASS_LARGE
        slabs = round_up(size, layout.SLAB_SIZE) // layout.SLAB_SIZE if is_run else 1
        with interrupts_put_off():  # what was granted must not be forgotten
            granted = self._core.hooks.lease(self, RUN if is_run else size_class, slabs)
            if granted:
                self.install(RUN if is_run else size_class, granted)
            elif self._call("lease_refused", size_class, slabs) == layout.STATUS_RELEASE_DUE:
                self._release(keep=0 if is_run else layout.KEPT_UNUSED)

    def _release(self, *, keep: int) -> None:
        with interrupts_put_off():
            with self._core.lock:
                ranges = self._unused(keep=keep)
            if ranges:
                self._core.hooks.release(self, ranges)

    def _unused(self, *, keep: int) -> list[SlabRange]:
        ranges: list[SlabRange] = []
        while pairs := self._call("take_released", keep):
            ranges += pairs_of(self._core.exchange, pairs)
        return merged(ranges)

    def _free_slowly(self, address: int, status: int) -> None:
        """Deal with what the hot path answered: `status`, or anything else if it could not even ask."""
        self._check_open()
        address = _index(address, "an address")
        narrow = address32(address)
        if not 0 <= narrow < 1 << 32:
            raise ArgumentError(f"{shown(address)} is no app address: it lies neither in a 32-bit nor in a 64-bit window")
        self._finish_free("heap_free", narrow, status, narrow)

    def _free_place_slowly(self, place: int, status: int) -> None:
        """Do the same for a place."""
        self._check_open()
        self._finish_free("heap_free_place", place, status, self.start + place - layout.FIRST_PLACE)

    def _finish_free(self, function: str, argument: int, status: int, address: int) -> None:
        """Free with that function of the core, unless it answered already; `address` is what an error names."""
        if status not in REASONS and on_top_of_lock():
            afterwards(partial(self._finish_free, function, argument, status, address))
            return
        if status not in REASONS and status != layout.STATUS_RELEASE_DUE:
            with self._core.lock:  # see `_call`
                self._check_open()
                status = self._core.call(function, argument, self.number)
        if status == layout.STATUS_RELEASE_DUE:
            self._release(keep=layout.KEPT_UNUSED)
        elif status != layout.STATUS_OK:
            raise InvalidFreeError(self.name, address, REASONS[status])


def pairs_of(exchange: memoryview, count: int) -> list[SlabRange]:
    """Read `count` pairs (first, count) from the exchange buffer."""
    words = exchange[: 2 * count].tolist()
    return [SlabRange(first, length) for first, length in zip(words[::2], words[1::2], strict=True)]


def merged(ranges: list[SlabRange]) -> list[SlabRange]:
    """Return the same slabs as the fewest ranges, in order."""
    found: list[SlabRange] = []
    for given in sorted(ranges, key=lambda given: given.first):
        if found and found[-1].first + found[-1].count == given.first:
            found[-1] = SlabRange(found[-1].first, found[-1].count + given.count)
        else:
            found.append(given)
    return found


def _refuse(name: str, reason: str, *_arguments: object, **_options: object) -> NoReturn:
    """Use a heap no more."""
    raise ClosedError(f"shared heap {name!r}", reason)


def _index(value: object, what: str) -> int:
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except Exception as failure:  # the value's own code ran
        if not raises_again(lambda: operator.index(value)):  # type: ignore[arg-type]
            raise
        raise ArgumentError(f"{shown(value)} is not {what}") from failure
