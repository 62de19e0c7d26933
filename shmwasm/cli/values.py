"""WebAssembly values on the command line."""

from __future__ import annotations

import math
from collections.abc import Sequence

Value = int | float

_INTEGER_BITS = {"i32": 32, "i64": 64, "v128": 128}
_FLOATS = frozenset({"f32", "f64"})


def parse_value(text: str, kind: str) -> Value:
    """Return the value of type `kind` that `text` stands for.

    Integers may be decimal, hexadecimal (`0x`), octal (`0o`) or binary (`0b`), signed or unsigned; a v128 is its 128 bits as one
    integer. Floats may be `inf`, `-inf` and `nan`.

    Raises:
        ValueError: The text is no such value, or the type has no values that can be written.
    """
    if kind in _INTEGER_BITS:
        bits = _INTEGER_BITS[kind]
        try:
            value = int(text, 0)
        except ValueError:
            raise ValueError(f"{text!r} is no integer, but the parameter is {kind}") from None
        if not -(1 << bits - 1) <= value < 1 << bits:
            raise ValueError(f"{text} does not fit into {kind}")
        return value
    if kind in _FLOATS:
        try:
            return float(text)
        except ValueError:
            raise ValueError(f"{text!r} is no number, but the parameter is {kind}") from None
    raise ValueError(f"a parameter of type {kind} cannot be given on the command line")


def parse_values(texts: Sequence[str], kinds: Sequence[str]) -> list[Value]:
    """Return the arguments of a function whose parameters have these types.

    Raises:
        ValueError: There are too many, too few, or one does not fit its type.
    """
    if len(texts) != len(kinds):
        signature = ", ".join(kinds) or "nothing"
        raise ValueError(f"{len(texts)} arguments were given; the function takes {len(kinds)} ({signature})")
    return [parse_value(text, kind) for text, kind in zip(texts, kinds, strict=True)]


def plain(value: Value) -> Value | str:
    """Return a value that JSON can carry: what it has no number for becomes text (`nan`, `inf`, `-inf`)."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
