"""Values of the test suite's scripts, as bits: arguments to pass, and patterns that results must match.

Every number, a vector too, is an integer of its bits; a pattern for one is a mask and the bits that must be seen through it, so
that a NaN of any payload, in any lane, is compared like all else.
"""

from __future__ import annotations

import functools
import math
import re
import struct
from fractions import Fraction
from typing import Any, NamedTuple

_WIDTHS = {"i8": 8, "i16": 16, "i32": 32, "i64": 64, "f32": 32, "f64": 64}
_FRACTIONS = {"f32": 23, "f64": 52}
_SHAPES = {"i8x16": "i8", "i16x8": "i16", "i32x4": "i32", "i64x2": "i64", "f32x4": "f32", "f64x2": "f64"}
_HEX_FLOAT = re.compile(r"([+-]?)0x([0-9a-fA-F]*)\.?([0-9a-fA-F]*)(?:[pP]([+-]?[0-9]+))?")
_SUSPICIOUS = (1 << 28) - 1
"""Low bits of a double that are all zero where it may lie midway between two singles."""


class Number(NamedTuple):
    """A number to pass, or to expect: its width in bits, the bits of it that matter, and what they are."""

    width: int
    mask: int
    bits: int

    def matches(self, raw: int) -> bool:
        """Return whether a result's raw bits are what is expected."""
        return raw & self.mask == self.bits


class Reference(NamedTuple):
    """A reference to pass, or to expect: "null", "extern", "host", "func", "i31", ..., and its number or null's type."""

    kind: str
    detail: str | None


class Either(NamedTuple):
    """A result that may be any one of several."""

    options: tuple[Any, ...]


def value(node: list[Any]) -> Number | Reference | Either:
    """Return what a constant of a script, such as `["i32.const", "7"]`, stands for."""
    head, *rest = node
    if head == "v128.const":
        return _vector(rest[0], rest[1:])
    if head == "either":
        return Either(tuple(map(value, rest)))
    kind, _, operation = head.partition(".")
    if operation == "const":
        return _number(kind, rest[0])
    assert kind == "ref", f"no constant: {node!r}"
    return Reference(operation, rest[0] if rest else None)


def _vector(shape: str, lanes: list[str]) -> Number:
    kind = _SHAPES[shape]
    width = _WIDTHS[kind]
    mask = bits = 0
    for index, lane in enumerate(lanes):
        number = _number(kind, lane)
        mask |= number.mask << index * width
        bits |= number.bits << index * width
    return Number(128, mask, bits)


@functools.lru_cache(maxsize=1 << 14)
def _number(kind: str, text: str) -> Number:
    width = _WIDTHS[kind]
    full = (1 << width) - 1
    text = text.replace("_", "")
    if kind in _FRACTIONS:
        return _float(kind, text, width, full)
    return Number(width, full, int(text, 0 if "x" in text else 10) & full)


def _float(kind: str, text: str, width: int, full: int) -> Number:
    fraction = _FRACTIONS[kind]
    sign = 1 << (width - 1) if text.startswith("-") else 0
    magnitude = text.lstrip("+-")
    exponent = (full >> 1) & ~((1 << fraction) - 1)
    quiet = exponent | 1 << (fraction - 1)
    match magnitude:
        case "nan:canonical":
            return Number(width, full >> 1, quiet)
        case "nan:arithmetic":
            return Number(width, quiet, quiet)
        case "nan":
            return Number(width, full, sign | quiet)
        case "inf":
            return Number(width, full, sign | exponent)
    if magnitude.startswith("nan:"):
        return Number(width, full, sign | exponent | int(magnitude[4:], 16))
    if kind == "f64":
        double = float.fromhex(magnitude) if magnitude.startswith("0x") else float(magnitude)
        return Number(width, full, sign | int.from_bytes(struct.pack("<d", double), "little"))
    return Number(width, full, sign | int.from_bytes(_single(magnitude), "little"))


def _single(magnitude: str) -> bytes:
    """Return the 4 bytes of the single nearest to a number's text, as if it were rounded once."""
    double = float.fromhex(magnitude) if magnitude.startswith("0x") else float(magnitude)
    if not int.from_bytes(struct.pack("<d", double), "little") & _SUSPICIOUS:
        exact = _exact(magnitude)
        if exact != Fraction(double):
            double = math.nextafter(double, math.inf if exact > Fraction(double) else 0.0)
    return struct.pack("<f", double)


def _exact(magnitude: str) -> Fraction:
    if not magnitude.startswith("0x"):
        return Fraction(magnitude)
    found = _HEX_FLOAT.fullmatch(magnitude)
    assert found is not None
    digits = int(found[2] + found[3] or "0", 16)
    return Fraction(digits) * Fraction(2) ** (int(found[4] or 0) - 4 * len(found[3]))
