"""Functions of the C library as imports of wasm, called without entering Python.

Theory
------
The engine calls a host function with four arguments: a pointer that was given when the function was made, and three of its own;
it returns null, or a trap. A C function that takes one pointer and returns 0 is such a host function: by the calling conventions
of both architectures it leaves the other arguments alone, and its 0, an `int`, fills the register that a null pointer is returned
in. That much the conventions promise for the lower half of the register only. So it is tried at every start (see `selftest`).

It must not fail where wasm calls it: -1 would be taken for a trap. `sem_wait` fails where a signal's handler runs in its thread,
so none must (see `posix.masks`).
"""

from __future__ import annotations

import ctypes
from typing import Final

import wasmtime
from wasmtime import _bindings as bindings

_NOTHING: Final = wasmtime.FuncType([], [])

# A handle of our own, so that declaring its arguments changes nobody else's.
_new_function = ctypes.CDLL(bindings.dll._name)["wasmtime_func_new_unchecked"]  # type: ignore[attr-defined]  # noqa: SLF001
_new_function.restype = None
_new_function.argtypes = [ctypes.c_void_p] * 6


def native_function(store: wasmtime.Store, function: int, argument: int) -> wasmtime.Func:
    """Return a wasm function without parameters and results that calls the C function at an address with that argument."""
    made = bindings.wasmtime_func_t()
    _new_function(store._context(), _NOTHING.ptr(), function, argument, None, ctypes.byref(made))  # noqa: SLF001
    return wasmtime.Func._from_raw(made)  # noqa: SLF001
