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
from itertools import chain
from types import MappingProxyType
from typing import Final, NamedTuple

from shmwasm.wasm.binary import Binary
from shmwasm.wasm.instructions import pattern_of, read_instruction, read_opcode
from shmwasm.wasm.leb128 import decode_signed, decode_unsigned, malformed
from shmwasm.wasm.opcodes import IMMEDIATES, NUMBER, OPCODES, VALUE_TYPE, Opcode
from shmwasm.wasm.rows import FEW_LOCALS

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
_CONSTANT_BITS: Final = MappingProxyType({0x41: 32, 0x42: 64})
"""The opcodes of i32.const and i64.const."""


class Operation(NamedTuple):
    """What an instruction does that works on a whole memory, or waits in it: the same at every site whose bytes are the same.

    Attributes:
        instruction: One of `INSTRUCTIONS`.
        memory: The memory; for memory.copy the one that is written.
        source: The memory that memory.copy reads, or the data segment of memory.init; else 0.
        align: For wait and notify, the alignment's exponent.
        offset: For wait and notify, the static offset.
        length: For memory.copy, memory.fill and memory.init, the constant directly before it, if there is one; signed.
    """

    instruction: str
    memory: int
    source: int = 0
    align: int = 0
    offset: int = 0
    length: int | None = None


class Site(NamedTuple):
    """Where such an instruction stands.

    Attributes:
        function: The index of the function that it stands in, imports included.
        constant: The first byte of the constant that is its length; its own first byte if there is none.
        start: Its first byte.
        end: One past its last byte.
        operation: What it does.
    """

    function: int
    constant: int
    start: int
    end: int
    operation: Operation


class _Expressions(NamedTuple):
    """The expressions of a scan that knows some proposals.

    Attributes:
        body: Matches a body's size, its locals, and what `skip` does.
        skip: Skips all instructions of no interest.
    """

    body: re.Pattern[bytes]
    skip: re.Pattern[bytes]


class Scan:
    """Goes through a module's code, once. Iterating over it gives the sites, in order; after that `features` is complete.

    Iterating raises `ModuleError` where a function does not end where its body does or an instruction is cut off, and
    `UnsupportedError` at an opcode that is not in the table.
    """

    def __init__(self, binary: Binary) -> None:
        self.features: set[str] = set()
        """The proposals whose opcodes were met."""
        self._binary = binary
        self._expressions = _expressions(frozenset())
        self._known: dict[bytes, tuple[int, Operation]] = {}  # the size of the constant, and what follows it

    def __iter__(self) -> Iterator[Site]:
        return chain.from_iterable(self.functions())

    def functions(self) -> Iterator[list[Site]]:
        """Yield the sites of each function that has any, as iterating over the scan does."""
        content, bodies = self._binary.content, self._binary.bodies
        imported = self._binary.imported("function")
        match_body = self._expressions.body.match
        for function, (start, end) in enumerate(zip(*bodies.columns, strict=True), imported):
            last = end - 1  # the function's own `end`
            found = match_body(content, start, last)
            position = found.end() if found is not None else bodies[function - imported].code
            if content[last] != _END:
                raise malformed(f"the function {function} does not end", last)
            if position < last:
                sites = self._sites(function, position, last)
                match_body = self._expressions.body.match
                if sites:
                    yield sites

    def _sites(self, function: int, position: int, last: int) -> list[Site]:
        """Return the sites of a function, from its first stop to its `end`."""
        content, known = self._binary.content, self._known
        match_site, skip = _site_expression().match, self._expressions.skip.match
        sites = []
        while position < last:
            found = match_site(content, position, last)
            if found is not None:
                after, written = found.end(), found[0]
                if written not in known:
                    known[written] = self._read_site(found)
                    skip = self._expressions.skip.match
                constant, operation = known[written]
                sites.append(Site(function, position, position + constant, after, operation))
            else:
                row, after = read_instruction(content, position, last)
                if self._learn(row, content, position, last):
                    skip = self._expressions.skip.match
                if row.name in INSTRUCTIONS:
                    sites.append(Site(function, position, position, after, _operation(row.name, content, position, after)))
            found = skip(content, after, last)
            position = found.end() if found is not None else after
        return sites

    def _read_site(self, found: re.Match[bytes]) -> tuple[int, Operation]:
        """Return the size of the constant that a site begins with, and what the instruction after it does."""
        content, (start, end) = found.string, found.span()
        at = start + len(found[1] or b"")
        row, _ = read_instruction(content, at, end)
        self._learn(row, content, at, end)
        operation = _operation(row.name, content, at, end)
        if at > start:
            value, _ = decode_signed(content, start + 1, at, _CONSTANT_BITS[content[start]])
            operation = operation._replace(length=value)
        return at - start, operation

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
        if new:
            self.features |= shown
            self._expressions = _expressions(frozenset(self.features))
        return new


@functools.cache
def _expressions(features: frozenset[str]) -> _Expressions:
    """Return the expressions where these proposals are in use."""
    immediates = {**IMMEDIATES, "i32": NUMBER + _NOT_BEFORE_BULK, "i64": NUMBER + _NOT_BEFORE_BULK}
    if "multi-value" not in features:
        immediates["block"] = _PLAIN_BLOCK
    rows = [row for row in OPCODES.values() if (row.feature == "mvp" or row.feature in features) and row.name not in INSTRUCTIONS]
    skip = b"(?:" + pattern_of(rows, immediates) + b")*+"
    return _Expressions(re.compile(NUMBER + FEW_LOCALS + skip, re.DOTALL), re.compile(skip, re.DOTALL))


@functools.cache
def _site_expression() -> re.Pattern[bytes]:
    """Return the expression of a site, and of the constant directly before a bulk instruction."""
    instructions = pattern_of(row for row in OPCODES.values() if row.name in INSTRUCTIONS)
    return re.compile(rb"(?:([\x41\x42]%b)(?=\xfc))?(?:%b)" % (NUMBER, instructions), re.DOTALL)


_BLOCK_WITHOUT_INDEX: Final = re.compile(_PLAIN_BLOCK, re.DOTALL)


def _operation(instruction: str, content: bytes, start: int, end: int) -> Operation:
    _, at = read_opcode(content, start, end)
    first, at = decode_unsigned(content, at, end)
    match instruction:
        case "memory.copy":
            source, _ = decode_unsigned(content, at, end)
            return Operation(instruction, first, source)
        case "memory.init":
            memory, _ = decode_unsigned(content, at, end)
            return Operation(instruction, memory, first)
        case "memory.fill" | "memory.size" | "memory.grow":
            return Operation(instruction, first)
        case _:
            memory, align = 0, first & ~_MULTI_MEMORY_FLAG
            if align >= _MULTI_MEMORY_FLAG:
                raise malformed(f"an alignment to 2^{align} bytes is too large", start)
            if first & _MULTI_MEMORY_FLAG:
                memory, at = decode_unsigned(content, at, end)
            offset, _ = decode_unsigned(content, at, end, 64)
            return Operation(instruction, memory, 0, align, offset)
