"""Globals and table entries that are set while a worker starts, without the objects that wasmtime-py makes for each access.

An access takes 1 us in place of 15. What matters more is the private memory of a worker: any object that is made after the fork
may lie on a page that was shared with the launcher until then.
"""

from __future__ import annotations

import ctypes

import wasmtime
from wasmtime import _bindings, _ffi

# Handles of our own, without argument types: the arguments are prepared.
_library = ctypes.CDLL(_ffi.dll._name)  # noqa: SLF001
_get_global = _library.wasmtime_global_get
_get_global.restype = None
_set_global = _library.wasmtime_global_set
_set_global.restype = ctypes.c_void_p
_set_table = _library.wasmtime_table_set
_set_table.restype = ctypes.c_void_p


class IntegerCell:
    """A mutable global that holds an integer.

    Args:
        store: The store of the instance.
        item: The global: an i64, or if `narrow` an i32.
        narrow: Which of the two.
    """

    def __init__(self, store: wasmtime.Store, item: object, *, narrow: bool = False) -> None:
        assert isinstance(item, wasmtime.Global)
        kind = _ffi.WASMTIME_I32 if narrow else _ffi.WASMTIME_I64
        self._value = _bindings.wasmtime_val_t(kind=kind.value)
        self._narrow = narrow
        self._keep_alive = (store, item)
        self._native = (store._context(), ctypes.byref(item._global), ctypes.byref(self._value))  # noqa: SLF001

    def get(self) -> int:
        """Return what it holds, signed."""
        _get_global(*self._native)
        return self._value.of.i32 if self._narrow else self._value.of.i64

    def set(self, number: int) -> None:
        """Make it hold `number`."""
        if self._narrow:
            self._value.of.i32 = number
        else:
            self._value.of.i64 = number
        refused = _set_global(*self._native)
        assert not refused, "the seam's globals are mutable, and of the types that it says"


class FunctionEntry:
    """A function to be put into tables of its store."""

    def __init__(self, store: wasmtime.Store, function: wasmtime.Func) -> None:
        self._value = _bindings.wasmtime_val_t(kind=_ffi.WASMTIME_FUNCREF.value)
        self._value.of.funcref = function._func  # noqa: SLF001
        self._store = store

    def put(self, table: wasmtime.Table, index: int) -> None:
        """Put it at `index`, which the table of functions must have."""
        place = ctypes.c_uint64(index)
        refused = _set_table(self._store._context(), ctypes.byref(table._table), place, ctypes.byref(self._value))  # noqa: SLF001
        assert not refused, "the seam's table holds functions, as many as it says"
