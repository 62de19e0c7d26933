"""What a host function gets to see of the guest that calls it."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, Self
from weakref import WeakValueDictionary

from shmwasm.errors import ArgumentError, ClosedError, shown

if TYPE_CHECKING:
    from types import TracebackType

    from shmwasm.addresses import AppAddress


class Region(NamedTuple):
    """A part of the guest's address space: its first app address and its bytes."""

    start: AppAddress
    bytes: memoryview


class Caller:
    """The instance that calls a host function: its first argument, valid until the function returns.

    Views stay valid longer, but what they show is then the guest's to change at any moment. Those of linear memory in a worker of
    a pool with `fresh=True` end with the call: they are released, and what was made of them (an array, or a part) shows zeros.

    Args:
        instance: The instance's number.
        memory: Gives the guest's linear memory as it is now; may raise `ShmwasmError` where there is none to see.
        heaps: Gives the heaps that the instance is attached to, in any order.
        is_64: Whether the guest's addresses have 64 bits.
        lend: Takes note of each view of linear memory that is handed out.
    """

    def __init__(
        self,
        instance: int,
        *,
        memory: Callable[[], memoryview],
        heaps: Callable[[], Sequence[Region]],
        is_64: bool = False,
        lend: Callable[[memoryview], object] | None = None,
    ) -> None:
        self._instance = instance
        self._bits = (1 << 64) - 1 if is_64 else (1 << 32) - 1
        self._memory = memory
        self._heaps = heaps
        self._lend = lend
        self._returned = False

    @property
    def instance(self) -> int:
        """The number of the calling instance.

        Raises:
            ClosedError: The host function has returned.
        """
        self._check_running()
        return self._instance

    @property
    def memory(self) -> memoryview:
        """The guest's linear memory, writable, no copy. After the guest grew it, ask again to see the new pages.

        Raises:
            ClosedError: The host function has returned.
            UnsupportedError: The module exports no memory.
        """
        self._check_running()
        return self._lent(self._memory())

    def view(self, address: int, size: int) -> memoryview:
        """Return the `size` bytes at app address `address`, no copy: in linear memory, or in one attached heap.

        The view of a heap that is attached read-only is read-only.

        Args:
            address: As the guest passed it: signed or unsigned.
            size: Bytes.

        Raises:
            ArgumentError: The bytes lie neither all in linear memory nor all in one attached heap.
            ClosedError: The host function has returned.
        """
        self._check_running()
        address, size = _index(address, "an address"), _index(size, "a size")
        if size < 0:
            raise ArgumentError(f"a view of {shown(size)} bytes was asked for; it cannot have fewer than 0")
        start = address & self._bits if address < 0 else address
        for region in self._heaps():
            offset = start - region.start
            if offset >= 0 and offset + size <= len(region.bytes):
                return region.bytes[offset : offset + size]
        memory = self._memory()
        if start + size > len(memory):
            raise ArgumentError(f"the {size} bytes at {start:#x} lie neither in linear memory nor in one attached heap")
        return self._lent(memory[start : start + size])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._returned = True

    def _lent(self, view: memoryview) -> memoryview:
        if self._lend is not None:
            self._lend(view)
        return view

    def _check_running(self) -> None:
        if self._returned:
            raise ClosedError("the caller of a host function", "is valid only until that function returns")


class Views:
    """Views of one guest's linear memory that were handed out."""

    def __init__(self) -> None:
        self._views: WeakValueDictionary[int, memoryview] = WeakValueDictionary()
        self._numbers = itertools.count()
        self.were_lent = False
        """Whether there may be any, or anything that was made of one: a NumPy array, or a part."""

    def lend(self, view: memoryview) -> None:
        """Take note of a view."""
        self.were_lent = True
        self._views[next(self._numbers)] = view

    def end(self) -> None:
        """Make those that are left raise `ValueError`, but for what somebody has an array of, or the like."""
        for view in list(self._views.values()):
            with suppress(BufferError):
                view.release()


def _index(value: object, what: str) -> int:
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except Exception as failure:  # the value's own code ran
        raise ArgumentError(f"{shown(value)} is not {what}") from failure
