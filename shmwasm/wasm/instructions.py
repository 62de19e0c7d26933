"""Instructions as bytes: expressions that skip many, and functions that read one.

Theory
------
An expression built from rows of the opcode table matches any number of their instructions, and stops at the first that is
another. Its quantifiers are possessive: it never goes back, so it takes time in proportion to what it skips. It knows each
opcode in its shortest form only, and of vectors only short ones; `read_instruction` reads whatever is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

from shmwasm.errors import UnsupportedError
from shmwasm.wasm.leb128 import decode_unsigned, malformed
from shmwasm.wasm.opcodes import CONSTANT, IMMEDIATES, NUMBER, OPCODES, PREFIXES, VALUE_TYPE, Opcode

_CATCH: Final = rb"(?:[\x00\x01]" + NUMBER + NUMBER + rb"|[\x02\x03]" + NUMBER + rb")"

_SHORT_VECTORS: Final[Mapping[str, bytes]] = MappingProxyType(
    {
        "types": rb"\x01" + VALUE_TYPE,
        "labels": b"(?:%b)" % b"|".join(rb"\x%02x[\x00-\x7f]{%d}" % (count, count + 1) for count in range(32)),
        "catches": rb"(?:\x00|\x01" + _CATCH + rb"|\x02" + _CATCH + _CATCH + rb")",
    }
)

_FIRST: Final = (("index",), (), ("memarg",), ("i32",))
"""The immediates of most instructions, in the order in which they are tried."""

_COMMON_MEMARG: Final = rb"[\x00-\x3f]" + NUMBER
"""What nearly all memory arguments look like: the first memory, and an alignment."""

_READ: Final = {word: re.compile(pattern, re.DOTALL) for word, pattern in IMMEDIATES.items()}
_NUMBER: Final = re.compile(NUMBER)
_VALUE_TYPE: Final = re.compile(VALUE_TYPE)
_CATCHES: Final = re.compile(_CATCH)
_MANY: Final = 64
_MANY_NUMBERS: Final = re.compile(rb"(?:%b){%d}+" % (NUMBER, _MANY))


def pattern_of(rows: Iterable[Opcode], immediates: Mapping[str, bytes] = IMMEDIATES) -> bytes:
    """Return the alternatives of a regular expression that matches one instruction of these rows.

    Args:
        rows: Rows of the table. The scan stops at those that have a vector of another kind than `_SHORT_VECTORS`.
        immediates: The patterns of immediates.
    """
    patterns = {**immediates, **_SHORT_VECTORS}
    plain: dict[tuple[str, ...], list[int]] = {}
    prefixed: dict[int, dict[tuple[bytes, bytes], list[int]]] = {}
    for row in rows:
        if any(word not in patterns for word in row.immediates):
            continue
        if row.prefix is None:
            plain.setdefault(row.immediates, []).append(row.number)
        else:
            low, high = (row.number, b"") if row.number < 0x80 else (row.number & 0x7F | 0x80, _escaped(row.number >> 7))
            rest = high, b"".join(patterns[word] for word in row.immediates)
            prefixed.setdefault(row.prefix, {}).setdefault(rest, []).append(low)
    choices, rare = [], []
    for words in sorted(plain, key=_rank):
        opcodes = _any_of(plain[words])
        if words == ("memarg",):
            choices.append(opcodes + _COMMON_MEMARG)
            rare.append(opcodes + patterns["memarg"])
        else:
            choices.append(opcodes + b"".join(patterns[word] for word in words))
    for prefix, groups in prefixed.items():
        forms = b"|".join(_any_of(numbers) + high + rest for (high, rest), numbers in groups.items())
        rare.append(_escaped(prefix) + b"(?:" + forms + b")")
    return b"|".join([*choices, *rare])


def _rank(words: tuple[str, ...]) -> int:
    return _FIRST.index(words) if words in _FIRST else len(_FIRST)


def read_opcode(content: bytes, position: int, end: int) -> tuple[Opcode, int]:
    """Return the row of the opcode at `position`, and where its immediates start.

    Raises:
        ModuleError: The bytes end within it.
        UnsupportedError: It is not in the table.
    """
    if position >= end:
        raise malformed("the code ends too early", position)
    first, after = content[position], position + 1
    prefix = first if first in PREFIXES else None
    number = first
    if prefix is not None:
        number, after = decode_unsigned(content, after, end)
    row = OPCODES.get((prefix, number))
    if row is None:
        code = f"{first:#04x}" if prefix is None else f"{first:#04x} {number:#04x}"
        raise UnsupportedError(f"the opcode {code} at offset {position:#x}", "it is not one of WebAssembly 3.0")
    return row, after


def read_instruction(content: bytes, position: int, end: int) -> tuple[Opcode, int]:
    """Return the row of the instruction at `position`, and where the instruction ends.

    Raises:
        ModuleError: The bytes end within it, or an immediate is malformed.
        UnsupportedError: Its opcode is not in the table.
    """
    row, after = read_opcode(content, position, end)
    for word in row.immediates:
        if word == "labels":
            count, after = _count(content, after, end)
            after = skip_numbers(content, after, end, count + 1)
        elif word == "types":
            after = _skip_types(content, after, end)
        elif word == "catches":
            after = _skip_catches(content, after, end)
        else:
            after = _skip(_READ[word], content, after, end)
    return row, after


def skip_constant_expression(content: bytes, position: int, end: int) -> tuple[int, set[str]]:
    """Return where the constant expression at `position` ends, after its `end`, and the proposals that it uses.

    Raises:
        ModuleError: The bytes end within it, or it holds an instruction that is not constant.
        UnsupportedError: An opcode is not in the table.
    """
    features: set[str] = set()
    while True:
        row, after = read_instruction(content, position, end)
        if row.name == "end":
            return after, features
        if row.name not in CONSTANT:
            raise malformed(f"{row.name} stands in a constant expression", position)
        if row.feature != "mvp":
            features.add(row.feature)
        elif not row.immediates:
            features.add("extended-const")
        position = after


def _skip(pattern: re.Pattern[bytes], content: bytes, position: int, end: int) -> int:
    found = pattern.match(content, position, end)
    if found is None:
        raise malformed("an instruction is cut off or malformed", position)
    return found.end()


def _count(content: bytes, position: int, end: int) -> tuple[int, int]:
    count, after = decode_unsigned(content, position, end)
    if count > end - after:
        raise malformed(f"a count of {count} is more than fits", position)
    return count, after


def skip_numbers(content: bytes, position: int, end: int, count: int) -> int:
    """Return where `count` numbers end.

    Raises:
        ModuleError: The bytes end within them.
    """
    if position + count <= end and content[position : position + count].isascii():
        return position + count
    for _ in range(count // _MANY):
        position = _skip(_MANY_NUMBERS, content, position, end)
    for _ in range(count % _MANY):
        position = _skip(_NUMBER, content, position, end)
    return position


def _skip_types(content: bytes, position: int, end: int) -> int:
    count, after = _count(content, position, end)
    for _ in range(count):
        after = _skip(_VALUE_TYPE, content, after, end)
    return after


def _skip_catches(content: bytes, position: int, end: int) -> int:
    count, after = _count(content, position, end)
    for _ in range(count):
        after = _skip(_CATCHES, content, after, end)
    return after


def _escaped(byte: int) -> bytes:
    return b"\\x%02x" % byte


def _any_of(numbers: Iterable[int]) -> bytes:
    return b"[" + b"".join(map(_escaped, sorted(numbers))) + b"]"
