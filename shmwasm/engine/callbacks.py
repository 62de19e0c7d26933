"""Python functions that guests call, without wasmtime-py's boxing of each value.

wasmtime-py's own host functions take 17 us a call. Here, as in `calls`, the signature is turned into two `struct` formats once,
and the engine hands over the address of all arguments: 1 us.

An exception ends the guest's call; `take_host_exception` then has it, as for wasmtime-py's host functions.
"""

from __future__ import annotations

import ctypes
import itertools
import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import wasmtime
from wasmtime import _bindings, _ffi, _func

from shmwasm.engine.numbers import BITS, SIGNED_FORMATS, SLOT, UNSIGNED_FORMATS, fits, number_of
from shmwasm.errors import ArgumentError, UnsupportedError, shown

if TYPE_CHECKING:
    from shmwasm.engine.modules import FunctionType

_KINDS: Final = {
    "i32": wasmtime.ValType.i32,
    "i64": wasmtime.ValType.i64,
    "f32": wasmtime.ValType.f32,
    "f64": wasmtime.ValType.f64,
}

# Handles and types of our own: wasmtime-py's would make an object of each pointer that is passed.
_Callback = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
_Finalizer = ctypes.CFUNCTYPE(None, ctypes.c_size_t)
_library = ctypes.CDLL(_ffi.dll._name)  # noqa: SLF001
_new_unchecked = _library.wasmtime_func_new_unchecked
_new_unchecked.restype = None

_numbers = itertools.count(1)
_functions: dict[int, Callable[[int], None]] = {}
"""What runs for each host function of a store that lives, by the number that the engine passes: takes the values' address."""


def new_host_function(store: wasmtime.Store, label: str, kind: FunctionType, function: Callable[..., Any]) -> wasmtime.Func:
    """Return a function of `store` that runs `function`, for as long as the store lives.

    Args:
        store: The store.
        label: What the function is imported as, for errors.
        kind: Its type.
        function: Called with numbers, integers signed. It returns None, a number, or as many numbers as there are results; they
            fit their types, signed or unsigned.

    Raises:
        UnsupportedError: The type holds more than numbers.
    """
    for value in (*kind.parameters, *kind.results):
        if value not in _KINDS:
            raise UnsupportedError(
                f"the host function {label}", f"a value of type {value} cannot be passed; pass an address instead"
            )
    native = wasmtime.FuncType([_KINDS[value]() for value in kind.parameters], [_KINDS[value]() for value in kind.results])
    number = next(_numbers)
    _functions[number] = _on_values(kind, function)
    made = _bindings.wasmtime_func_t()
    _new_unchecked(store._context(), native.ptr(), _run, ctypes.c_size_t(number), _forget, ctypes.byref(made))  # noqa: SLF001
    return wasmtime.Func._from_raw(made)  # noqa: SLF001


def _on_values(kind: FunctionType, function: Callable[..., Any]) -> Callable[[int], None]:
    """Return a function that takes the address of arguments, runs `function`, and puts its results in their place."""
    values = ctypes.c_char * (SLOT * max(len(kind.parameters), len(kind.results)))
    unpack = struct.Struct("<" + "".join(SIGNED_FORMATS[value] for value in kind.parameters)).unpack_from
    pack = struct.Struct("<" + "".join(UNSIGNED_FORMATS[value] for value in kind.results)).pack_into
    results = kind.results

    def run(address: int) -> None:
        cells = values.from_address(address)
        returned = function(*unpack(cells))
        if len(results) == 1:
            pack(cells, 0, _packed(results[0], returned))
        elif results:
            pack(cells, 0, *map(_packed, results, returned))

    return run


def _packed(kind: str, number: float) -> float:
    """Return a number as packing takes it."""
    if kind in BITS:
        return int(number) & ((1 << BITS[kind]) - 1)
    return ctypes.c_float(number).value if kind == "f32" else number


def _called(number: int, caller: int | None, values: int, count: int) -> int:  # noqa: ARG001 - the engine's signature
    try:
        _functions[number](values)
    except BaseException as error:  # noqa: BLE001 - nothing may be raised into the engine
        _func.LAST_EXCEPTION = error  # type: ignore[assignment]  # as wasmtime-py itself does
        trap = wasmtime.Trap("a host function raised")._consume()  # noqa: SLF001
        return ctypes.cast(trap, ctypes.c_void_p).value or 0
    return 0


def _dropped(number: int) -> None:
    _functions.pop(number, None)


_run = _Callback(_called)
_forget = _Finalizer(_dropped)


def converted_results(kinds: Sequence[str], returned: object) -> Any:
    """Return what a host function returned, as wasmtime takes it.

    Args:
        kinds: The types that the guest expects.
        returned: None, one value, or a sequence of as many values as there are types. Integers may be signed or unsigned, or
            anything with `__index__`.

    Raises:
        ArgumentError: It is something else, or does not fit.
    """
    if not kinds:
        if returned is not None:
            raise ArgumentError(f"the host function returned {shown(returned)}, and the guest expects nothing")
        return None
    if len(kinds) == 1:
        return _converted_result(kinds[0], returned)
    if not isinstance(returned, Sequence) or len(returned) != len(kinds):
        raise ArgumentError(f"the host function returned {shown(returned)}, and the guest expects {len(kinds)} values")
    return list(map(_converted_result, kinds, returned))


def _converted_result(kind: str, value: Any) -> int | float:
    try:
        number = number_of(kind, value)
    except Exception as failure:  # the value's own code ran
        raise ArgumentError(
            f"the host function returned {shown(value)}, and the guest expects a value of type {kind}"
        ) from failure
    if not fits(kind, number):
        raise ArgumentError(f"the host function returned {shown(number)}, which does not fit into {BITS[kind]} bits")
    return number
