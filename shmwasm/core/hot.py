"""The hottest two functions of the Python side: malloc and free of small blocks.

Each is a closure over everything it needs, with the constant arguments already in their cells. Between taking cells and giving
them back another thread, a signal handler or a finalizer may call the same function: it takes other cells.

A caller may keep such a function for longer than the heap is open, and a closed heap's slot goes to the next heap. So the
functions are retired with their heap: all their cells then name no slot, which the core refuses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from shmwasm.core import layout
from shmwasm.core.calls import WORDS_PER_CELL, Cells, CoreFunction, Lock, invoke, new_cells, one_at_a_time

if TYPE_CHECKING:
    from collections.abc import Callable

SMALL: Final = layout.MAXIMUM_SMALL

NOT_ASKED: Final = -1
"""No status: the core was not asked yet."""

NO_SLOT: Final = layout.MAXIMUM_SLOTS
"""The number of no slot."""


class SlotCells:
    """All cells of one heap's hot functions; the second argument of each call is the slot."""

    def __init__(self, slot: int) -> None:
        self._slot = slot
        self._made: list[memoryview] = []

    def new(self, count: int) -> Cells:
        """Return cells for a call of `count` arguments, with the slot in place."""
        cells = new_cells(count)
        # Appended before the slot is read: whoever retires the slot meanwhile sees these cells, or they see that it is retired.
        self._made.append(cells[0])
        cells[0][WORDS_PER_CELL] = self._slot
        return cells

    def retire(self) -> None:
        """Make every later call of the functions name no slot."""
        self._slot = NO_SLOT
        for words in self._made:
            words[WORDS_PER_CELL] = NO_SLOT


def malloc_function(core: CoreFunction, slot: SlotCells, lock: Lock, slowly: Callable[[int, int], int]) -> Callable[..., int]:
    """Return `malloc(size, alignment=16)` for a heap slot, given the core's function for addresses or that for places.

    It returns where a small block is that the core has at hand, and leaves everything else to `slowly`.
    """
    pool: list[Cells] = []
    take, give = pool.pop, pool.append
    context, function, arity, trap = core.context, core.function, core.arity, core.trap
    call = invoke
    usual = layout.MINIMUM_ALIGNMENT

    def prepare() -> Cells:
        cells = slot.new(3)
        cells[0][2 * WORDS_PER_CELL] = usual
        return cells

    def malloc(size: int, alignment: int = usual) -> int:
        if alignment is usual:  # whatever else is equal to it may go slowly, and may run code of its own to say so
            try:
                words, address = cells = take()
            except IndexError:
                words, address = cells = prepare()
            try:
                words[0] = size
                is_small = size <= SMALL
            except Exception:  # noqa: BLE001  the size is no number from 0 to 2**32 - 1
                give(cells)
            else:
                if is_small:
                    call(context, function, address, arity, trap)
                block = words[0]
                give(cells)
                # No block is at so low an address: there is none, or a trap or a large size left `size` where the answer belongs.
                if block > SMALL and is_small:
                    return block
        return slowly(size, alignment)

    return one_at_a_time(malloc, lock)


def free_function(core: CoreFunction, slot: SlotCells, lock: Lock, slowly: Callable[[int, int], None]) -> Callable[[int], None]:
    """Return `free(address)`, or `free(place)`, for a heap slot.

    It leaves whatever the core does not just answer with success to `slowly`.
    """
    pool: list[Cells] = []
    take, give = pool.pop, pool.append
    context, function, arity, trap = core.context, core.function, core.arity, core.trap
    call = invoke

    def free(address: int) -> None:
        try:
            words, arguments = cells = take()
        except IndexError:
            words, arguments = cells = slot.new(2)
        try:
            words[0] = address
        except Exception:  # noqa: BLE001  the address is signed or no number
            give(cells)
            slowly(address, NOT_ASKED)
        else:
            call(context, function, arguments, arity, trap)
            status = words[0]
            give(cells)
            if status:  # not OK; or a trap, which left the address there
                slowly(address, status)

    return one_at_a_time(free, lock)
