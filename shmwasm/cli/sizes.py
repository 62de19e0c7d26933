"""Sizes in bytes as people write and read them."""

from __future__ import annotations

import re
from collections.abc import Callable

import click

_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_SIZE = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?) *(?P<unit>[kmgt]?)(?:i?b)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Return the bytes that a text such as `65536`, `64M`, `64MB` or `1.5 GiB` means; every unit is a power of 1024.

    Raises:
        ValueError: The text is no size, or one with a fraction of a byte.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no size; write for example 65536, 64M or 2GiB")
    number: str = match["number"]
    whole, _, fraction = number.partition(".")
    scaled = int(whole + fraction) << _UNITS[match["unit"].lower()]
    denominator: int = 10 ** len(fraction)
    size, rest = divmod(scaled, denominator)
    if rest:
        raise ValueError(f"{text!r} is not a whole number of bytes")
    return size


def format_size(size: float) -> str:
    """Return a size with its unit, such as `64.0 MiB`."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def size_between(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """Return the type of an option that takes a size between two bounds (inclusive)."""

    def size(text: str) -> int:
        try:
            parsed = parse_size(text)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None
        if parsed < minimum:
            raise click.BadParameter(f"{text} is less than {format_size(minimum)}")
        if maximum is not None and parsed > maximum:
            raise click.BadParameter(f"{text} is more than {format_size(maximum)}")
        return parsed

    return size
