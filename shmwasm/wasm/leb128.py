"""LEB128, the variable-length numbers of the binary format.

Numbers need not be written in the shortest form, but may take no more bytes than their bits need.
"""

from __future__ import annotations

from shmwasm.errors import ModuleError


def malformed(reason: str, offset: int) -> ModuleError:
    """Return the error for bytes at `offset` that no module can have there."""
    return ModuleError("binary", f"{reason} at offset {offset:#x}")


def decode_unsigned(content: bytes, position: int, end: int, bits: int = 32) -> tuple[int, int]:
    """Return the unsigned number at `position`, and where it ends.

    Args:
        content: The bytes.
        position: Where the number starts.
        end: It has to end here at the latest.
        bits: How many bits it may have.

    Raises:
        ModuleError: It does not end in time, or has too many bits.
    """
    if position + 2 < end:  # up to three bytes are what most numbers take
        first = content[position]
        if first < 0x80:
            return first, position + 1
        second = content[position + 1]
        if second < 0x80:
            return first & 0x7F | second << 7, position + 2
        third = content[position + 2]
        if third < 0x80:
            return first & 0x7F | (second & 0x7F) << 7 | third << 14, position + 3
    value, last = _decode(content, position, end, bits)
    if value >> bits:
        raise malformed("a number is too large", position)
    return value, last


def decode_signed(content: bytes, position: int, end: int, bits: int) -> tuple[int, int]:
    """Return the signed number at `position`, and where it ends; see `decode_unsigned`."""
    value, last = _decode(content, position, end, bits)
    width = 7 * (last - position)
    if content[last - 1] & 0x40:
        value -= 1 << width
    if not -1 << (bits - 1) <= value < 1 << (bits - 1):
        raise malformed("a number is too large", position)
    return value, last


def encode_unsigned(value: int) -> bytes:
    """Return the shortest form of a number that is not negative."""
    if value < 0x80:
        return bytes((value,))
    if value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def encode_signed(value: int) -> bytes:
    """Return the shortest form of a number with a sign."""
    encoded = bytearray()
    while not -0x40 <= value < 0x40:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value & 0x7F)
    return bytes(encoded)


def _decode(content: bytes, position: int, end: int, bits: int) -> tuple[int, int]:
    value = shift = 0
    at = position
    while at < end and shift < bits:
        byte = content[at]
        at += 1
        if byte < 0x80:
            return value | byte << shift, at
        value |= (byte & 0x7F) << shift
        shift += 7
    raise malformed("the bytes end within a number" if at >= end else "a number is too long", position)
