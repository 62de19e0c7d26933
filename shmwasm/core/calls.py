"""Calling the core's functions from Python, in well under a microsecond.

Theory
------
`wasmtime.Func.__call__` converts and checks for 20 microseconds. `wasmtime_func_call_unchecked` takes an array of 16-byte cells
that holds the arguments and then the results; called through `ctypes.PyDLL` with arguments that were converted beforehand it
takes 0.25. PyDLL keeps the GIL, so the core, which calls nothing back for these functions, is entered by one thread at a time. On
a free-threaded interpreter a lock does that.

Locking
-------
Between a call and the read of its result another thread may run, so each call in progress has cells of its own, from a pool.
"""

from __future__ import annotations

import ctypes
import sys
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

import wasmtime
from wasmtime import _bindings as bindings

from shmwasm.errors import HeapCorruptError

if TYPE_CHECKING:
    from collections.abc import Callable

GIL: Final = getattr(sys, "_is_gil_enabled", lambda: True)()
"""Whether the interpreter lets one thread run at a time."""

P = ParamSpec("P")
R = TypeVar("R")

WORDS_PER_CELL: Final = 4
"""A cell of 16 bytes, as 32-bit words; an i32 is the first of them."""

Cells = tuple[memoryview, object]
"""Cells as 32-bit words, and their address as a prepared argument."""

Lock = AbstractContextManager[Any]
"""A lock that its holder may take again."""

# The library that wasmtime loaded. No argument types are declared: the arguments are prepared, and a declaration would make
# ctypes convert them again.
_library = ctypes.PyDLL(bindings.dll._name)  # type: ignore[attr-defined]  # noqa: SLF001

_call = _library["wasmtime_func_call_unchecked"]
_call.restype = ctypes.c_void_p

invoke: Final = _library["wasmtime_func_call_unchecked"]
"""The same for the hottest callers, who learn about a failure from the result that is missing."""
invoke.restype = None


def pointer(value: int) -> object:
    """Return a prepared argument: what `ctypes.byref` makes is passed as it is, where any other type is converted each time."""
    return ctypes.byref(ctypes.c_char.from_address(value))


def new_cells(count: int) -> Cells:
    """Return zeroed cells for a call of up to `count` arguments."""
    memory = (ctypes.c_uint32 * (WORDS_PER_CELL * count))()
    return memoryview(memory).cast("B").cast("I"), ctypes.byref(memory)


class CoreFunction:
    """One exported function of the core: 32-bit numbers in, one 32-bit number out, unsigned. Safe to call from any thread."""

    def __init__(self, store: wasmtime.Store, function: wasmtime.Func, lock: Lock) -> None:
        self._call = one_at_a_time(_call, lock)
        self._cell_count = max(1, len(function.type(store).params))
        self._pool: list[tuple[memoryview, object, ctypes.c_void_p, object]] = []
        # What the C function takes has no public name in wasmtime-py. These objects keep what they point to.
        self._store = store
        self.context = pointer(ctypes.cast(store._context(), ctypes.c_void_p).value or 0)  # noqa: SLF001
        self.function = ctypes.byref(function._func)  # noqa: SLF001
        self.arity = pointer(self._cell_count)  # a size_t is passed like a pointer
        self.trap = ctypes.byref(ctypes.c_void_p())  # where the hottest callers leave theirs, which nobody looks at

    def __call__(self, *arguments: int) -> int:
        """Call it.

        Raises:
            HeapCorruptError: The core trapped, which it does when it finds metadata that would lead it astray.
            wasmtime.Trap: The deadline of the store's epoch has passed; the heap is sound, and can be used once it is set anew.
        """
        try:
            words, address, trap, trap_address = cells = self._pool.pop()
        except IndexError:
            trap = ctypes.c_void_p()
            words, address, trap, trap_address = cells = (*new_cells(self._cell_count), trap, ctypes.byref(trap))
        for index, argument in enumerate(arguments):
            words[WORDS_PER_CELL * index] = argument
        failed = self._call(self.context, self.function, address, self.arity, trap_address)
        if trap.value:  # then the cells, which have the trap now, are not used again
            raise _error_of(wasmtime.Trap._from_ptr(ctypes.cast(trap, ctypes.POINTER(bindings.wasm_trap_t))))  # noqa: SLF001
        assert not failed, "a core function was called with other arguments than it has"
        result: int = words[0]
        self._pool.append(cells)
        return result


def _error_of(trap: wasmtime.Trap) -> Exception:
    if trap.trap_code == wasmtime.TrapCode.INTERRUPT:
        return trap
    return HeapCorruptError("(unknown)", f"its metadata would have led the allocator astray: {trap.message}", 0)


def one_at_a_time(function: Callable[P, R], lock: Lock) -> Callable[P, R]:
    """Return `function` behind `lock` on a free-threaded interpreter, and `function` itself where the GIL is the lock."""
    if GIL:
        return function

    def locked(*arguments: P.args, **options: P.kwargs) -> R:
        with lock:
            return function(*arguments, **options)

    return locked
