"""What may stand for a WebAssembly number in Python: one rule, for arguments and results, in the client and in the worker.

An integer may be signed or unsigned, and anything with `__index__`; a float is anything with `__float__` or `__index__`. Whoever
converts says in its own words what did not fit.

Layout
------
The engine takes the values of a call as an array of slots of `SLOT` bytes, each with its value at its start: first the arguments,
and in the same place then the results.
"""

from __future__ import annotations

import math
import operator
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

BITS: Final[Mapping[str, int]] = MappingProxyType({"i32": 32, "i64": 64})
"""The widths of the integer types; the others are floats."""

NUMBERS: Final = frozenset({"i32", "i64", "f32", "f64"})
"""The types of numbers."""

SLOT: Final = 16
"""Bytes of one value in a call's array."""

UNSIGNED_FORMATS: Final[Mapping[str, str]] = MappingProxyType({"i32": "I12x", "i64": "Q8x", "f32": "f12x", "f64": "d8x"})
"""A slot's `struct` format for each type."""

SIGNED_FORMATS: Final[Mapping[str, str]] = MappingProxyType({"i32": "i12x", "i64": "q8x", "f32": "f12x", "f64": "d8x"})
"""The same, integers signed."""


def is_complex(value: object) -> bool:
    """Return whether a number is a complex one, also of numpy: those become floats without their imaginary part."""
    return isinstance(value, complex) or getattr(getattr(value, "dtype", None), "kind", "") == "c"


def real_number(value: Any) -> float:
    """Return `value` as a float; unlike `float` it does not read text, or half of a complex number.

    Raises:
        TypeError: It is no real number. Or whatever the value's own code raises.
    """
    if is_complex(value):
        raise TypeError("a complex number is no real one")
    return math.ldexp(value, 0)


def number_of(kind: str, value: Any) -> int | float:
    """Return `value` as a number for type `kind`, which it may still not fit. Raises whatever the value's own code does."""
    # `index` alone would leave True as it is, which is no number on the wire.
    return int(operator.index(value)) if kind in BITS else real_number(value)


def fits(kind: str, number: float) -> bool:
    """Return whether a number that `number_of` returned for type `kind` is one of its values, signed or unsigned."""
    bits = BITS.get(kind)
    return bits is None or -(1 << (bits - 1)) <= number < 1 << bits
