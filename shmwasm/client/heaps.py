"""A shared heap, as the host holds it.

A heap stands alone (a chain of one) or in a chain. What a guest sees of it is decided when it is attached: the window ends at 4
GiB, so `start`, and with it every block's app address, changes when the heap is chained or unchained, and never otherwise.
"""

from __future__ import annotations

import contextlib
import ctypes
import operator
from collections.abc import Callable
from functools import partial
from typing import Literal, NoReturn, cast

from shmwasm import errors
from shmwasm.addresses import WINDOW_END, WINDOW_END_64, AppAddress, HeapOffset, NativeAddress, address32
from shmwasm.client import checks
from shmwasm.client.blocks import Block
from shmwasm.client.closing import Closing
from shmwasm.client.connection import Connection
from shmwasm.core import AllocatorStatistics, HeapSlot
from shmwasm.core.layout import FIRST_PLACE
from shmwasm.posix.conditions import Lock
from shmwasm.posix.mappings import Mapping
from shmwasm.posix.reentry import afterwards, on_top_of_lock
from shmwasm.posix.signals import interrupts_put_off
from shmwasm.protocol import messages

OnDeath = Literal["keep", "free"]
"""What becomes of a dead process's live blocks: they stay valid for the others, or are freed."""


class SharedHeap(Closing):
    """A heap in shared memory; made by `Runtime.create_shared_heap` and `Runtime.open_shared_heap`.

    Calling its methods from several threads at once is safe. It must not be used in a forked child; pickle a block instead.

    Attributes:
        name: Its name, for people and for `Runtime.open_shared_heap`.
        size: Its size in bytes.
        managed: Whether it has our allocator; a preallocated heap has none.
        read_only: Whether nobody may write to it.
        malloc_address: `malloc_address(size, alignment=16)` allocates like `malloc` and returns just the app address: for the
            hottest loops, where keeping the function itself saves its look-up. Raises what `malloc` raises.
        free_address: `free_address(address)` frees the block at an app address, signed or unsigned. Raises what `free` raises.
    """

    malloc_address: Callable[..., AppAddress]
    free_address: Callable[[int], None]
    _malloc_place: Callable[..., int]
    _free_place: Callable[[int], None]

    def __init__(
        self,
        description: messages.HeapDescription,
        *,
        address: str,
        mapping: Mapping,
        slot: HeapSlot | None,
        connection: Connection,
        refusal: Callable[[SharedHeap, int], errors.HeapError],
        reset: Callable[[SharedHeap], None],
        forget: Callable[[SharedHeap], None],
    ) -> None:
        self.name = description.name
        self.size = description.size
        self.managed = description.managed
        self.read_only = description.read_only
        self.number = description.heap
        self._token = description.token
        self._start = AppAddress(description.start)
        self._address = address
        self.closed = False
        """Whether this process has given up its hold on the heap; read for every call that a block of it is passed to."""
        self._mapping: Mapping | None = mapping
        self._releasing = Lock()
        self._view: memoryview | None = mapping.view[: description.size]
        self._native: NativeAddress = mapping.address
        self._slot = slot
        self._connection = connection
        self._refusal = refusal
        self._reset = reset
        self._forget = forget
        if slot is None:
            self.malloc_address, self.free_address = self._malloc_nothing, self._free_nothing
            self._malloc_place, self._free_place = self._malloc_nothing, self._free_no_place
        else:
            slot.exhausted = self._raise_exhausted
            self.malloc_address = cast("Callable[..., AppAddress]", slot.malloc)
            self.free_address = self._scrub_and_free if description.scrub else slot.free
            self._malloc_place = slot.malloc_place
            self._free_place = self._scrub_and_free_place if description.scrub else slot.free_place

    @property
    def start(self) -> AppAddress:
        """Where a 32-bit guest attached to the heap's chain sees the heap's first byte (see `Block.address_in` for others)."""
        return self._start

    @property
    def view(self) -> memoryview:
        """All bytes of the heap, without a copy; writable unless the heap is read-only.

        Raises:
            ClosedError: The heap was closed.
        """
        if self._view is None:
            raise errors.ClosedError(repr(self))
        return self._view

    def malloc(self, size: int, *, alignment: int = 16) -> Block:
        """Allocate a block; its bytes are whatever was there (see `calloc`).

        Args:
            size: Bytes, at least 1.
            alignment: A power of two up to 65536, of the block's offset in the heap; up to an OS page also of its address.

        Raises:
            HeapExhaustedError: There is no room, `size` is 0, or the heap is preallocated and has no allocator.
            QuotaExceededError: There is room, but this process may not have it.
            ArgumentError: `size` or `alignment` is no such number.
            ClosedError: The heap was closed.
        """
        place = self._malloc_place(size, alignment)
        return Block(self, HeapOffset(place - FIRST_PLACE), size if type(size) is int else operator.index(size))

    def calloc(self, count: int, size: int = 1) -> Block:
        """Allocate a block of `count * size` zero bytes; raises what `malloc` raises."""
        count, size = checks.whole_number(count, "calloc's count"), checks.whole_number(size, "calloc's size")
        view = self.view  # keeps the memory where it is, whoever closes the heap meanwhile
        block = self.malloc(count * size)
        ctypes.memset(self._native + block.offset, 0, block.size)
        del view
        return block

    def realloc(self, block: Block, size: int) -> Block:
        """Return a block of `size` bytes that starts with the bytes of `block`, which must not be used any more.

        The bytes stay where they are when they can.

        Raises:
            ArgumentError: `block` is no block of this heap, or `size` no size.
            InvalidFreeError: `block` is not live; nothing changed.
            HeapExhaustedError: There is no room; `block` stays as it was.
        """
        slot, size = self._managed_slot(), checks.whole_number(size, "realloc's size")
        if not isinstance(block, Block):
            raise errors.ArgumentError(f"{errors.shown(block)} is not a block of {self!r}")
        usable = slot.usable_size(self._offset_of(block))
        if block.freed or not usable:
            raise errors.InvalidFreeError(self.name, block.address, "it is not a live block")
        if usable // 2 < size <= usable:
            moved = Block(self, block.offset, size)
        else:
            view = self.view  # keeps the memory where it is, whoever closes the heap meanwhile
            moved = self.malloc(size)
            # A block that somebody else freed may be a smaller one by now.
            ctypes.memmove(self._native + moved.offset, self._native + block.offset, min(size, block.size, usable))
            del view
            self._free_place(block.offset + FIRST_PLACE)
        block.freed = True
        return moved

    def free(self, block: Block | int) -> None:
        """Free a block, given as a `Block` or as its app address (signed or unsigned, of a 32-bit or a 64-bit guest).

        Raises:
            InvalidFreeError: It is not a live block of this heap, or not this process's where the heap asks for that; nothing
                changed.
        """
        if not isinstance(block, Block):
            self.free_address(block)
            return
        if block.heap is not self:
            whose = ", as another runtime opened it" if block.heap.capability() == self.capability() else ""
            raise errors.InvalidFreeError(self.name, block.address, f"it is a block of shared heap {block.heap.name!r}{whose}")
        if block.freed:
            raise errors.InvalidFreeError(self.name, block.address, "it was freed already")
        self._free_place(block.offset + FIRST_PLACE)
        block.freed = True

    def usable_size(self, block: Block | int) -> int:
        """Return how many bytes the block at that app address can hold; 0 if no live block starts there."""
        return self._managed_slot().usable_size(self._offset_of(block))

    def block_at(self, app_address: int, size: int | None = None) -> Block:
        """Return the block at an app address (signed or unsigned) that a 32-bit or a 64-bit guest gave.

        Args:
            app_address: In a managed heap, where a live block starts; in a preallocated one, any address in it.
            size: The block's size in bytes; by default all that it can hold, or the rest of a preallocated heap.

        Raises:
            ArgumentError: There is no such block in this heap, or it is smaller than `size`.
        """
        offset = self._offset_of(app_address)
        address = AppAddress(self._start + offset)
        self.view  # noqa: B018  raises if it was closed
        if not 0 <= offset < self.size:
            raise errors.ArgumentError(f"app address {address:#x} is not in shared heap {self.name!r}")
        usable = self.size - offset if self._slot is None else self._slot.usable_size(offset)
        if not usable:
            raise errors.ArgumentError(f"no live block of shared heap {self.name!r} starts at app address {address:#x}")
        if size is None:
            return Block(self, offset, usable)
        wanted = checks.whole_number(size, "a block's size")
        if not 0 < wanted <= usable:
            raise errors.ArgumentError(f"the block at app address {address:#x} has {usable} bytes, not {wanted}")
        return Block(self, offset, wanted)

    def statistics(self) -> AllocatorStatistics:
        """Return what the allocator counts; meaningful to the last block only while nobody allocates.

        Raises:
            HeapExhaustedError: The heap is preallocated and has no allocator.
        """
        return self._managed_slot().statistics()

    def verify(self) -> None:
        """Check every invariant of the allocator's metadata.

        Raises:
            HeapCorruptError: One does not hold.
        """
        self._managed_slot().verify()

    def reset(self) -> None:
        """Free everything in the chain that this heap heads: managed heaps become empty, preallocated ones zero.

        Raises:
            ChainError: A heap of the chain is attached, or in use by another client, or this heap is not a head.
        """
        self._reset(self)

    def close(self) -> None:
        """Give up this process's hold on the heap. Views stay valid; the memory lives while anybody uses it. Twice is fine."""
        if self.closed:
            return
        self._connection.check_may_block()
        with interrupts_put_off():
            if not self.release():
                return
            self._forget(self)
            with contextlib.suppress(errors.CoordinatorLostError, errors.ClosedError):  # then there is nothing left to give up
                self._connection.request(messages.Done, lambda number: messages.CloseHeap(request=number, heap=self.number))

    def capability(self) -> tuple[str, str]:
        """Return what another process of this user needs to open the heap: the coordinator's address and the heap's token."""
        return self._address, self._token

    def __len__(self) -> int:
        return self.size

    def __repr__(self) -> str:
        kind = "managed" if self.managed else "preallocated"
        return f"<{kind} shared heap {self.name!r} of {self.size} bytes>"

    def move(self, start: AppAddress) -> None:
        """Take note that the heap starts at `start` from now on: its chain changed."""
        self._start = start
        slot = self._slot
        if slot is not None:
            with contextlib.suppress(errors.ClosedError):  # another thread closes the heap
                slot.move(start)

    def give_back(self) -> None:
        """Return every slab in which nothing lives to the coordinator."""
        slot = self._slot
        if slot is not None:
            try:
                ranges = slot.trim()
            except errors.ClosedError:
                return  # another thread closes the heap, which gives everything back
            if ranges:
                self._connection.send(messages.Release(heap=self.number, ranges=ranges))

    def release(self) -> bool:
        """Drop what this process holds of the heap; the coordinator is told nothing. Return false if that was done before."""
        with interrupts_put_off():
            with self._releasing:
                self.closed = True
                mapping, self._mapping, self._view = self._mapping, None, None
                slot, self._slot = self._slot, None
            if mapping is None:
                return False
            mapping.close()
            if slot is not None:
                slot.close()
            return True

    def start_anew(self) -> None:
        """Start anew after a reset of the chain: no block lives any more."""
        view, slot = self.view, self._slot
        if slot is not None:
            slot.reset()
        elif not self.read_only:
            ctypes.memset(self._native, 0, len(view))

    def abandon(self) -> None:
        """Take the heap away from a forked child; the coordinator is told nothing."""
        self.closed = True
        self._mapping = None
        self._view = None

    def _managed_slot(self) -> HeapSlot:
        if self._mapping is None:
            raise errors.ClosedError(repr(self))
        if self._slot is None:
            raise errors.UnsupportedError(f"allocation in {self!r}", "it has no allocator")
        return self._slot

    def _raise_exhausted(self, size: int) -> int:
        raise self._refusal(self, size)

    def _malloc_nothing(self, size: int, alignment: int = 16) -> NoReturn:  # noqa: ARG002  the same call as in a managed heap
        if self._mapping is None:
            raise errors.ClosedError(repr(self))
        raise errors.HeapExhaustedError(self.name, size, 0)

    def _free_nothing(self, address: int) -> None:
        self._free_no_place(self._offset_of(address) + FIRST_PLACE)

    def _free_no_place(self, place: int) -> None:
        if self._mapping is None:
            raise errors.ClosedError(repr(self))
        address = self._start + place - FIRST_PLACE
        raise errors.InvalidFreeError(self.name, address, "a preallocated heap has no allocator")

    def _scrub_and_free(self, address: int) -> None:
        self._managed_slot()
        self._scrub_and_free_place(self._offset_of(address) + FIRST_PLACE)

    def _scrub_and_free_place(self, place: int) -> None:
        if on_top_of_lock():
            afterwards(partial(self._scrub_and_free_place, place))
            return
        slot, offset = self._managed_slot(), place - FIRST_PLACE
        view = self.view  # keeps the memory where it is, whoever closes the heap meanwhile
        usable = slot.usable_size(offset)
        if usable:
            ctypes.memset(self._native + offset, 0, usable)
        del view
        slot.free_place(place)

    def _offset_of(self, block: Block | int) -> HeapOffset:
        """Return a block's heap offset, or that of an app address, which may be outside of the heap."""
        if isinstance(block, Block):
            if block.heap is not self:
                raise errors.ArgumentError(f"{block!r} is not a block of {self!r}")
            return block.offset
        number = address32(checks.whole_number(block, "an app address", low=-1 << 31, high=WINDOW_END_64 - 1))
        if number >= WINDOW_END:
            raise errors.ArgumentError(f"{number:#x} is no app address: it lies neither in a 32-bit nor in a 64-bit window")
        return HeapOffset(number - self._start)
