"""References on wasmtime's C interface: from what a script writes to raw values, and back to what can be compared."""

from __future__ import annotations

import ctypes
from typing import Any

from wasmtime import _bindings
from wast_values import Reference

_NO_FINALIZER = ctypes.cast(None, ctypes.CFUNCTYPE(None, ctypes.c_void_p))
_HELD = {
    5: ("funcref", _bindings.wasmtime_func_to_raw),
    6: ("externref", _bindings.wasmtime_externref_to_raw),
    7: ("anyref", _bindings.wasmtime_anyref_to_raw),
    8: ("exnref", _bindings.wasmtime_exnref_to_raw),
}
"""Kinds of a `wasmtime_val` that are references: the member of the union, and what makes the raw value of it."""
_V128 = 4
_FUNCTIONS = {"func", "nofunc"}
_ANY = {"any", "eq", "i31", "struct", "array"}


def raw_of_value(context: Any, held: Any) -> int:
    """Return the raw value of a `wasmtime_val`."""
    if held.kind == _V128:
        return int.from_bytes(bytes(held.of.v128), "little")
    if held.kind not in _HELD:
        return int.from_bytes(bytes(held.of)[:8], "little")
    member, to_raw = _HELD[held.kind]
    reference = getattr(held.of, member)
    return (to_raw(context, ctypes.byref(reference)) or 0) if reference.store_id else 0


def raw_extern(context: Any, number: int) -> int:
    """Return the raw value of the host's reference number `number`."""
    made = _bindings.wasmtime_externref()
    assert _bindings.wasmtime_externref_new(context, number + 1, _NO_FINALIZER, ctypes.byref(made))
    raw = _bindings.wasmtime_externref_to_raw(context, ctypes.byref(made))
    _bindings.wasmtime_externref_unroot(ctypes.byref(made))
    return raw


def extern_number(context: Any, raw: int) -> int | None:
    """Return which of the host's references a raw value is; None if it is none of them."""
    made = _bindings.wasmtime_externref()
    _bindings.wasmtime_externref_from_raw(context, raw, ctypes.byref(made))
    data = _bindings.wasmtime_externref_data(context, ctypes.byref(made))
    _bindings.wasmtime_externref_unroot(ctypes.byref(made))
    return None if data is None else data - 1


def shape(context: Any, raw: int) -> str:
    """Return which of "i31", "struct" and "array" a raw `anyref` is, else "any"."""
    if raw & 1:  # not asked for: wasmtime 50's `wasmtime_anyref_is_i31` says yes to everything
        return "i31"
    made = _bindings.wasmtime_anyref()
    _bindings.wasmtime_anyref_from_raw(context, raw, ctypes.byref(made))
    try:
        for name in ("struct", "array"):
            if getattr(_bindings, f"wasmtime_anyref_is_{name}")(context, ctypes.byref(made)):
                return name
        return "any"
    finally:
        _bindings.wasmtime_anyref_unroot(ctypes.byref(made))


def seen(context: Any, expected: Reference, raw: int) -> str:
    """Return what a raw result is, where a reference like `expected` is: "null", "func", "extern", "i31", ...

    The script's own expectation tells its type, and so how many of the raw bits matter.
    """
    is_function = expected.kind in _FUNCTIONS or expected.detail in _FUNCTIONS
    is_unknown = expected.kind == "null" and expected.detail is None
    bits = raw & ((1 << (64 if is_function or is_unknown else 32)) - 1)
    if not bits:
        return "null"
    if is_function:
        return "func"
    if expected.kind == "extern":
        return f"extern {extern_number(context, bits)}"
    return shape(context, bits) if expected.kind in _ANY else "a reference"


def agrees(expected: Reference, what: str) -> bool:
    """Return whether what `seen` returned is what a script expects."""
    match expected.kind:
        case "extern":
            return what == f"extern {expected.detail}" or (expected.detail is None and what.startswith("extern"))
        case "any":
            return what in _ANY
        case "eq":
            return what in {"i31", "struct", "array"}
        case "exn":
            return what == "a reference"
        case kind:
            return what == kind
