"""Metering: a module whose functions count what they run, and stop when a given amount is used up.

Theory
------
The guest counts its own fuel down, in a global: one unit for each instruction, and one for each call of a function. An engine
that counts would count the allocator's core with it, whose work depends on what other processes do, and no call would cost the
same twice.

Each stretch of code that nothing branches into is paid for where it begins, all of it: what follows a branch out of its middle
too, although it may not run then. That is more than what runs, but the same each time. Whether anything is left is looked at
where a function and where a turn of a loop begins, so no more runs after the end than once straight through the code. Functions
that the rewriter has appended are not metered: they do what one instruction of the guest does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import Final, NamedTuple

from shmwasm.rewrite import seam
from shmwasm.rewrite.additions import Additions, growth
from shmwasm.rewrite.assembler import i64, if_, op
from shmwasm.rewrite.offsets import Edit, OffsetMap, edited, replacement
from shmwasm.wasm.binary import CODE, Binary
from shmwasm.wasm.decoding import decode
from shmwasm.wasm.instructions import pattern_of, read_instruction
from shmwasm.wasm.leb128 import encode_unsigned
from shmwasm.wasm.opcodes import OPCODES

_FREE: Final = frozenset({"nop", "block", "loop", "else", "end", "try_table"})
"""What is no work."""

_BORDERS: Final = frozenset({"loop", "if", "else", "end"})
"""After these a new stretch begins."""

_LEAVING: Final = frozenset(
    {"unreachable", "br", "br_table", "return", "return_call", "return_call_indirect", "return_call_ref", "throw", "throw_ref"}
)
"""What follows these is never run, up to the next border."""

_CALL: Final = 1

_ANY_OF: Final = pattern_of(row for row in OPCODES.values() if row.name not in _FREE | _BORDERS | _LEAVING)
_ONE: Final = re.compile(_ANY_OF, re.DOTALL)
_STRAIGHT: Final = re.compile(b"(?:" + _ANY_OF + b")++", re.DOTALL)
"""Skips instructions of which each costs a unit, and after which the next one runs."""


class Metered(NamedTuple):
    """A module that meters itself, and the map of its offsets back to the original's."""

    content: bytes
    offsets: OffsetMap


def meter(content: bytes, functions: int) -> Metered:
    """Return a module whose first `functions` functions, imported ones included, are metered.

    It exports `seam.FUEL` and `seam.FUEL_GIVEN`.

    Raises:
        ModuleError: The bytes are no module.
        UnsupportedError: It uses what is not known here.
    """
    binary = decode(content)
    additions = Additions(binary)
    fuel = additions.global_(seam.FUEL, "i64", i64(seam.FUEL_WITHOUT_END))
    additions.global_(seam.FUEL_GIVEN, "i64", i64(seam.FUEL_WITHOUT_END))
    additions.edit(CODE, list(_code_edits(binary, fuel, functions - binary.imported("function"))))
    return Metered(*edited(content, additions.edits()))


def _code_edits(binary: Binary, fuel: int, count: int) -> Iterator[Edit]:
    for start, first_byte, code, end in islice(binary.bodies, count):
        edits = list(_body_edits(binary.content, code, end - 1, fuel))
        yield replacement(start, first_byte, encode_unsigned(end - first_byte + growth(edits)))
        yield from edits


def _body_edits(content: bytes, code: int, end: int, fuel: int) -> Iterator[Edit]:
    """Yield the payments of a function whose own `end` is at `end`."""
    position = begin = code
    cost, looks, runs = _CALL, True, True
    while True:
        found = _STRAIGHT.match(content, position, end)
        if found is not None:
            if runs:  # consecutive matches of one instruction each are the instructions
                cost += len(_ONE.findall(content, position, found.end()))
            position = found.end()
        if position >= end:
            break
        row, position = read_instruction(content, position, end)
        if runs and row.name not in _FREE:
            cost += 1
        if row.name in _BORDERS:
            if cost or looks:
                yield replacement(begin, begin, _payment(fuel, cost, looks=looks))
            begin, cost, looks, runs = position, 0, row.name == "loop", True
        elif row.name in _LEAVING:
            runs = False
    if cost or looks:
        yield replacement(begin, begin, _payment(fuel, cost, looks=looks))


def _payment(fuel: int, cost: int, *, looks: bool) -> bytes:
    left = op("global.get", at=[fuel])
    payment = op("global.set", op("i64.sub", left, i64(cost)), at=[fuel])
    return payment + if_(op("i64.lt_s", left, i64(0)), op("unreachable")) if looks else payment
