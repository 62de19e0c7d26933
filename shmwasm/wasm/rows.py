"""The rows of `Binary` that are read when they are asked for: globals, exports, data segments and bodies.

The decoder has gone over them, and knows where each starts; what it did not need is checked here.
"""

from __future__ import annotations

import functools
import re
from array import array
from functools import partial
from typing import Final

from shmwasm.wasm.binary import KINDS, Binary, Body, Data, Export, Global, Rows, Span
from shmwasm.wasm.instructions import skip_constant_expression
from shmwasm.wasm.leb128 import decode_signed, decode_unsigned, malformed
from shmwasm.wasm.opcodes import NUMBER, VALUE_TYPE
from shmwasm.wasm.reader import Reader
from shmwasm.wasm.types import read_global, read_value_type

PASSIVE: Final = 1
OTHER_MEMORY: Final = 2
"""The flags of data segments that are not active ones of the first memory."""

FEW_LOCALS: Final = b"(?:%b)" % b"|".join(
    (b"\\x%02x" % groups) + groups * (b"(?:" + NUMBER + VALUE_TYPE + b")") for groups in range(9)
)
"""The expression of a body's locals, where they come in at most eight groups."""

_I32_CONST, _I64_CONST = 0x41, 0x42


def without_rows(content: bytes) -> Binary:
    """Return a module of which nothing is known but its bytes."""
    return Binary(
        content,
        globals=Rows(partial(_global, content), array("Q"), array("Q"), bytearray()),
        exports=Rows(partial(_export, content), array("Q"), bytearray(), array("L")),
        data=Rows(partial(_data, content), array("Q")),
        bodies=Rows(partial(_body, content), array("Q"), array("Q")),
    )


def _global(content: bytes, start: int, end: int, _mutable: int) -> Global:
    reader = Reader(content, start, end)
    kind, mutable = read_global(reader, set())
    initial = Span(reader.position, end) if reader.left else None
    return Global(kind, bool(mutable), Span(start, reader.position), initial)


def _export(content: bytes, start: int, kind: int, number: int) -> Export:
    return Export(Reader(content, start, len(content)).name(), KINDS[kind], number)


def _body(content: bytes, start: int, end: int) -> Body:
    _, first = decode_unsigned(content, start, end)
    found = _few_locals().match(content, first, end)
    code = found.end() if found is not None else _skip_locals(content, first, end)
    if code >= end:
        raise malformed("a function's body holds no code", start)
    return Body(start, first, code, end)


@functools.cache
def _few_locals() -> re.Pattern[bytes]:
    return re.compile(FEW_LOCALS)


def _skip_locals(content: bytes, position: int, end: int) -> int:
    reader = Reader(content, position, end)
    for _ in range(reader.count()):
        reader.unsigned()
        read_value_type(reader, set())
    return reader.position


def _data(content: bytes, start: int) -> Data:
    return read_data(Reader(content, start, len(content)), set())


def read_data(reader: Reader, features: set[str]) -> Data:
    """Read a data segment; add the proposals that it shows to `features`."""
    start = reader.position
    flags = reader.unsigned()
    if flags > OTHER_MEMORY:
        raise malformed(f"a data segment has the unknown flags {flags:#x}", start)
    mode, memory, offset, address = "active", 0, None, None
    if flags == PASSIVE:
        mode = "passive"
        features.add("bulk-memory")
    else:
        memory = reader.unsigned() if flags == OTHER_MEMORY else 0
        offset = read_expression(reader, features)
        address = _constant(reader.content, offset)
    content = reader.skip(reader.unsigned())
    return Data(mode, memory, offset, address, content, Span(start, reader.position))


def read_expression(reader: Reader, features: set[str]) -> Span:
    """Read a constant expression; add the proposals that it shows to `features`."""
    start = reader.position
    reader.position, shown = skip_constant_expression(reader.content, start, reader.end)
    features |= shown
    return Span(start, reader.position)


def _constant(content: bytes, expression: Span) -> int | None:
    """Return the value of an expression that is a single constant, as an unsigned address."""
    if content[expression.start] not in {_I32_CONST, _I64_CONST}:
        return None
    bits = 32 if content[expression.start] == _I32_CONST else 64
    value, after = decode_signed(content, expression.start + 1, expression.end, bits)
    return value % (1 << bits) if after == expression.end - 1 else None
