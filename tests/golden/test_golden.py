"""Golden tests of rewriting: for each module in `rewrite/*.wat`, `rewrite/*.txt` lists the rewritten one.

`python tests/golden/test_golden.py` writes the listings anew; read the difference before you commit it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import wasmtime

from shmwasm.rewrite import rewrite
from shmwasm.wasm.binary import Binary, Span
from shmwasm.wasm.decoding import decode
from shmwasm.wasm.instructions import read_instruction, read_opcode
from shmwasm.wasm.leb128 import decode_signed, decode_unsigned

_NO_RESULT = "64"
"""The type of a block that leaves nothing, as a number."""

MODULES = sorted((Path(__file__).parent / "rewrite").glob("*.wat"))


def listing(content: bytes) -> Iterator[str]:
    """Yield the lines that show a module to people: what it declares, and its functions as folded as their blocks."""
    binary = decode(content)
    for entry in binary.imports:
        yield f"import {entry.kind} {entry.module}.{entry.name}"
    for index, memory in enumerate(binary.memories):
        yield f"memory {index}: {'i64' if memory.is_64 else 'i32'}, pages {memory.minimum} to {memory.maximum}"
    for index, table in enumerate(binary.tables):
        yield f"table {index}: {table.element}, {table.minimum} to {table.maximum}"
    for index, entry in enumerate(binary.globals):
        yield f"global {index}: {'mut ' if entry.mutable else ''}{entry.type} = {_expression(content, entry.initial)}"
    for segment, data in enumerate(binary.data):
        place = f"at {_expression(content, data.offset)} of memory {data.memory}" if data.mode == "active" else data.mode
        yield f"data {segment}: {place}, {content[slice(*data.content)]!r}"
    for export in binary.exports:
        yield f"export {export.kind} {export.number} as {export.name}"
    if binary.start is not None:
        yield f"start {binary.start}"
    for function in range(binary.imported("function"), len(binary.functions)):
        yield from _function(binary, function)


def _function(binary: Binary, function: int) -> Iterator[str]:
    kind = binary.function_type(function)
    body = binary.bodies[function - binary.imported("function")]
    yield ""
    yield f"function {function}: ({' '.join(kind.parameters)}) -> ({' '.join(kind.results)})"
    yield f"  locals {' '.join(_locals(binary.content, body.locals, body.code)) or 'none'}"
    depth = 1
    for instruction in _instructions(binary.content, Span(body.code, body.end)):
        name = instruction.split()[0]
        depth -= name in {"end", "else"}
        if depth:  # the function's own end is not shown
            yield "  " * depth + instruction
        depth += name in {"block", "loop", "if", "else"}


def _locals(content: bytes, position: int, end: int) -> Iterator[str]:
    groups, position = decode_unsigned(content, position, end)
    names = {0x7F: "i32", 0x7E: "i64", 0x7D: "f32", 0x7C: "f64", 0x7B: "v128"}
    for _ in range(groups):
        count, position = decode_unsigned(content, position, end)
        yield f"{count}*{names[content[position]]}"
        position += 1


def _expression(content: bytes, span: Span | None) -> str:
    return "imported" if span is None else " ".join(list(_instructions(content, span))[:-1])


def _instructions(content: bytes, span: Span) -> Iterator[str]:
    position = span.start
    while position < span.end:
        row, after = read_instruction(content, position, span.end)
        _, at = read_opcode(content, position, span.end)
        numbers = []
        while at < after:
            signed = row.name.endswith(".const")
            number, at = (decode_signed if signed else decode_unsigned)(content, at, after, 64)
            numbers.append(f"{number:#x}" if abs(number) > 0xFFFF else str(number))
        if row.immediates == ("block",) and numbers == [_NO_RESULT]:
            numbers = []
        yield " ".join([row.name, *numbers])
        position = after


def golden(module: Path) -> str:
    """Return what the file beside a module must hold."""
    content, report = rewrite(bytes(wasmtime.wat2wasm(module.read_text(encoding="utf-8"))))
    changes = [f"changed: {change.what}, {change.count} times" for change in report.changes] or ["unchanged"]
    return "\n".join([*changes, "", *listing(content), ""])


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.stem)
def test_rewritten_module_is_the_one_on_record(module):
    assert golden(module) == module.with_suffix(".txt").read_text(encoding="utf-8")


if __name__ == "__main__":
    for each in MODULES:
        each.with_suffix(".txt").write_text(golden(each), encoding="utf-8")
