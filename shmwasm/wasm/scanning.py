"""The scan: goes through all code and stops only where a rewriter may have something to do.

Theory
------
One regular expression skips whatever is of no interest, from one stop to the next. It knows the opcodes of those proposals that
the module has been seen to use, at first of none. It stops at the first opcode of another one, which tells that the module uses
that, and goes on with an expression that knows it: the proposals in use cost nothing to find, and a plain module pays for a
small expression only.

A constant directly before a bulk instruction is a stop as well. No branch can enter between the two, for every label is an
instruction of its own.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from types import MappingProxyType
from typing import Final, NamedTuple

from shmwasm.wasm.binary import Binary
from shmwasm.wasm.instructions import pattern_of, read_instruction, read_opcode
from shmwasm.wasm.leb128 import decode_signed, decode_unsigned, malformed
from shmwasm.wasm.opcodes import IMMEDIATES, NUMBER, OPCODES, VALUE_TYPE, Opcode

COPY: Final = "memory.copy"
FILL: Final = "memory.fill"
INIT: Final = "memory.init"
SIZE: Final = "memory.size"
GROW: Final = "memory.grow"
WAIT32: Final = "memory.atomic.wait32"
WAIT64: Final = "memory.atomic.wait64"
NOTIFY: Final = "memory.atomic.notify"

BULK: Final = frozenset({COPY, FILL, INIT})
WAITING: Final = frozenset({WAIT32, WAIT64, NOTIFY})
INSTRUCTIONS: Final = BULK | WAITING | {SIZE, GROW}
"""The instructions whose sites the scan gives."""

_NOT_BEFORE_BULK: Final = rb"(?!\xfc[\x08\x0a\x0b])"

_PLAIN_BLOCK: Final = VALUE_TYPE.replace(rb"[\x65-\x7f]", rb"[\x40-\x62\x65-\x7f]")
"""The type of a block that has no parameters and at most one result."""

_MULTI_MEMORY_FLAG: Final = 0x40
_END: Final = 0x0B
_CONSTANT_BITS: Final = MappingProxyType({"i32.const": 32, "i64.const": 64})


class Constant(NamedTuple):
    """The `i32.const` or `i64.const` directly before an instruction: its bytes, and its value, signed."""

    start: int
    end: int
    value: int


class Site(NamedTuple):
    """An instruction that works on a whole memory, or waits in it.

    Attributes:
        function: The index of the function that it stands in, imports included.
        instruction: One of `INSTRUCTIONS`.
        start: Its first byte.
        end: One past its last byte.
        memory: The memory; for memory.copy the one that is written.
        source: The memory that memory.copy reads, or the data segment of memory.init; else 0.
        align: For wait and notify, the alignment's exponent.
        offset: For wait and notify, the static offset.
        constant: What stands directly before memory.copy, memory.fill and memory.init, if it is a constant: their length.
    """

    function: int
    instruction: str
    start: int
    end: int
    memory: int
    source: int = 0
    align: int = 0
    offset: int = 0
    constant: Constant | None = None


class Scan:
    """Goes through a module's code, once. Iterating over it gives the sites, in order; after that `features` is complete.

    Iterating raises `ModuleError` where a function does not end where its body does or an instruction is cut off, and
    `UnsupportedError` at an opcode that is not in the table.
    """

    def __init__(self, binary: Binary) -> None:
        self.features: set[str] = set()
        """The proposals whose opcodes were met."""
        self._binary = binary

    def __iter__(self) -> Iterator[Site]:
        content = self._binary.content
        _, _, codes, ends = self._binary.bodies.columns
        skip = _skipping(frozenset(self.features)).match
        for function, (code, end) in enumerate(zip(codes, ends, strict=True), self._binary.imported("function")):
            last = end - 1  # the function's own `end`
            found = skip(content, code, last)
            position = found.end() if found else code
            constant: Constant | None = None
            while position < last:
                row, after = read_instruction(content, position, last)
                if self._learn(row, content, position, last):
                    skip = _skipping(frozenset(self.features)).match
                if row.name in INSTRUCTIONS:
                    site = _site(function, row.name, content, position, after)
                    follows = constant is not None and constant.end == position
                    yield site._replace(constant=constant) if follows else site
                elif row.name in _CONSTANT_BITS:
                    constant = _constant(row, content, position, after)
                found = skip(content, after, last)
                position = found.end() if found else after
            if position != last or content[last] != _END:
                raise malformed(f"the function {function} does not end", last)

    def _learn(self, row: Opcode, content: bytes, position: int, end: int) -> bool:
        """Note the proposals that an instruction shows; return whether one is new."""
        is_block = "block" in row.immediates
        if not is_block and (row.feature == "mvp" or row.feature in self.features):
            return False
        shown = {row.feature} - {"mvp"}
        if is_block:
            _, type_at = read_opcode(content, position, end)
            if not _BLOCK_WITHOUT_INDEX.match(content, type_at, end):
                shown.add("multi-value")
        new = not shown <= self.features
        self.features |= shown
        return new


@functools.cache
def _skipping(features: frozenset[str]) -> re.Pattern[bytes]:
    """Return the expression that skips all instructions of no interest, where these proposals are in use."""
    immediates = {**IMMEDIATES, "i32": NUMBER + _NOT_BEFORE_BULK, "i64": NUMBER + _NOT_BEFORE_BULK}
    if "multi-value" not in features:
        immediates["block"] = _PLAIN_BLOCK
    rows = [row for row in OPCODES.values() if (row.feature == "mvp" or row.feature in features) and row.name not in INSTRUCTIONS]
    return re.compile(b"(?:" + pattern_of(rows, immediates) + b")*+", re.DOTALL)


_BLOCK_WITHOUT_INDEX: Final = re.compile(_PLAIN_BLOCK, re.DOTALL)


def _constant(row: Opcode, content: bytes, start: int, end: int) -> Constant:
    value, _ = decode_signed(content, start + 1, end, _CONSTANT_BITS[row.name])
    return Constant(start, end, value)


def _site(function: int, instruction: str, content: bytes, start: int, end: int) -> Site:
    _, at = read_opcode(content, start, end)
    first, at = decode_unsigned(content, at, end)
    match instruction:
        case "memory.copy":
            source, _ = decode_unsigned(content, at, end)
            return Site(function, instruction, start, end, first, source)
        case "memory.init":
            memory, _ = decode_unsigned(content, at, end)
            return Site(function, instruction, start, end, memory, first)
        case "memory.fill" | "memory.size" | "memory.grow":
            return Site(function, instruction, start, end, first)
        case _:
            memory = 0
            if first & _MULTI_MEMORY_FLAG:
                memory, at = decode_unsigned(content, at, end)
            offset, _ = decode_unsigned(content, at, end, 64)
            return Site(function, instruction, start, end, memory, 0, first & ~_MULTI_MEMORY_FLAG, offset)
