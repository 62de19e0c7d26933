"""What a rewritten module calls on the host: waiting and notifying in a heap, growing a 64-bit memory (see `rewrite.seam`)."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from shmwasm.engine.callbacks import new_host_function
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


def fill_host_table(store: wasmtime.Store, table: wasmtime.Table, window: Window, futexes: Futexes | None) -> None:
    """Put the host's functions into an instance's table; without `futexes` a wait or notify in a heap is a trap."""
    reference = weakref.ref(window)  # the store keeps the functions, and the window the store

    def here() -> Window:
        found = reference()
        assert found is not None, "a guest runs in a store whose window is gone"
        return found

    def put(index: int, label: str, kind: FunctionType, function: Callable[..., int]) -> None:
        table.set(store, index, new_host_function(store, label, kind, function))

    if window.is_64:
        put(seam.HOST_GROW, "grow", _GROW, lambda pages: here().grow(pages))
    if futexes is not None:
        # The address is looked up once more: what these functions are given, the kernel is given.
        put(seam.HOST_WAIT32, "wait32", _WAIT32, lambda at, value, limit: futexes.wait32(here().find(at, 4), value, limit))
        put(seam.HOST_WAIT64, "wait64", _WAIT64, lambda at, value, limit: futexes.wait64(here().find(at, 8), value, limit))
        put(seam.HOST_NOTIFY, "notify", _NOTIFY, lambda at, count: futexes.notify(here().find(at, 4), count & 0xFFFF_FFFF))
