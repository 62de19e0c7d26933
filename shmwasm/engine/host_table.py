"""What a rewritten module calls on the host: waiting and notifying in a heap, growing a 64-bit memory (see `rewrite.seam`)."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from shmwasm.engine.callbacks import new_host_function
from shmwasm.engine.cells import FunctionEntry
from shmwasm.engine.modules import FunctionType
from shmwasm.rewrite import seam

if TYPE_CHECKING:
    import wasmtime

    from shmwasm.addresses import NativeAddress
    from shmwasm.engine.windows import Window

_WAIT32: Final = FunctionType(("i64", "i32", "i64"), ("i32",))
_WAIT64: Final = FunctionType(("i64", "i64", "i64"), ("i32",))
_NOTIFY: Final = FunctionType(("i64", "i32"), ("i32",))
_GROW: Final = FunctionType(("i64",), ("i64",))


class Futexes(Protocol):
    """How a guest waits for a word of a heap: as `memory.atomic.wait32`, `wait64` and `notify`, across processes.

    Addresses are aligned, and stay mapped during the call, for reading at least. What a method raises ends the guest's call.
    """

    def wait32(self, address: NativeAddress, expected: int, timeout_ns: int) -> int:
        """Return 0 once woken, 1 if the word does not hold `expected` (signed), 2 after `timeout_ns`; negative is for ever."""

    def wait64(self, address: NativeAddress, expected: int, timeout_ns: int) -> int:
        """Do the same for a word of 64 bits."""

    def notify(self, address: NativeAddress, count: int) -> int:
        """Wake up to `count` waiters (unsigned), and return how many."""


class HostTable:
    """The functions that are put into a rewritten module's table.

    They are made before the module is known, and so before a worker is forked, where making them costs nothing.

    Args:
        store: The store of the instance to come.
    """

    def __init__(self, store: wasmtime.Store) -> None:
        self._window: Window | None = None
        self._futexes: Futexes | None = None
        reference = weakref.ref(self)  # the store keeps the functions, and what is used here keeps the store

        def here() -> HostTable:
            found = reference()
            assert found is not None, "a guest runs whose host table is gone"
            return found

        def entry(label: str, kind: FunctionType, function: Callable[..., int]) -> FunctionEntry:
            return FunctionEntry(store, new_host_function(store, label, kind, function))

        self._growing = entry("grow", _GROW, lambda pages: here()._grow(pages))  # noqa: SLF001 - they are this class's own
        self._waiting = {
            seam.HOST_WAIT32: entry("wait32", _WAIT32, lambda *asked: here()._wait32(*asked)),  # noqa: SLF001
            seam.HOST_WAIT64: entry("wait64", _WAIT64, lambda *asked: here()._wait64(*asked)),  # noqa: SLF001
            seam.HOST_NOTIFY: entry("notify", _NOTIFY, lambda *asked: here()._notify(*asked)),  # noqa: SLF001
        }

    def fill(self, table: wasmtime.Table, window: Window, futexes: Futexes | None) -> None:
        """Serve an instance whose table and window these are; without `futexes` a wait or notify in a heap is a trap."""
        self._window = window
        self._futexes = futexes
        if window.is_64:
            self._growing.put(table, seam.HOST_GROW)
        if futexes is not None:
            for index, function in self._waiting.items():
                function.put(table, index)

    def _grow(self, pages: int) -> int:
        assert self._window is not None
        return self._window.grow(pages)

    def _wait32(self, address: int, expected: int, timeout_ns: int) -> int:
        place, futexes = self._found(address, 4)
        return futexes.wait32(place, expected, timeout_ns)

    def _wait64(self, address: int, expected: int, timeout_ns: int) -> int:
        place, futexes = self._found(address, 8)
        return futexes.wait64(place, expected, timeout_ns)

    def _notify(self, address: int, count: int) -> int:
        place, futexes = self._found(address, 4)
        return futexes.notify(place, count & 0xFFFF_FFFF)

    def _found(self, address: int, size: int) -> tuple[NativeAddress, Futexes]:
        """Look an address up once more: what the kernel is given is in the chain, whatever the guest's code did."""
        assert self._window is not None
        assert self._futexes is not None
        return self._window.find(address, size), self._futexes
