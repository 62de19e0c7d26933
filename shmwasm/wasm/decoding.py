"""From bytes to `Binary`: where everything in a module lies."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from shmwasm.errors import UnsupportedError
from shmwasm.wasm import binary as sections
from shmwasm.wasm.binary import KINDS, SECTION_ORDER, Binary, Data, Element, Import, Section, Span
from shmwasm.wasm.instructions import skip_constant_expression, skip_numbers
from shmwasm.wasm.leb128 import decode_signed, decode_unsigned, malformed
from shmwasm.wasm.opcodes import NUMBER, VALUE_TYPE
from shmwasm.wasm.reader import Reader
from shmwasm.wasm.types import NUMBER_TYPES, read_global, read_memory, read_table, read_tag, read_types, read_value_type

HEADER: Final = b"\0asm\x01\0\0\0"
"""How every module starts."""

_MOST_MEMORIES: Final = 100
_MOST_SEGMENTS: Final = 100_000
_MOST_ITEMS: Final = 10_000_000
"""The engine's own limits: of tables and memories, of segments, and of an element segment's items."""

_I32_CONST, _I64_CONST, _END = 0x41, 0x42, 0x0B


@functools.cache
def _body() -> re.Pattern[bytes]:
    """Return the expression of a body's size, and its locals where they come in at most eight groups."""
    group = NUMBER + VALUE_TYPE
    groups = b"|".join(rb"%b(?:%b){%d}" % (bytes([count]), group, count) for count in range(1, 9))
    return re.compile(rb"(%b)(?:\x00|%b)" % (NUMBER, groups))


_SIMPLE_GLOBAL: Final = re.compile(rb"[\x7c-\x7f][\x00\x01](?:[\x41\x42\x23]%b|\x43.{4}|\x44.{8})\x0b" % NUMBER, re.DOTALL)
"""A global of a number type whose initial expression is a constant, or another global's value."""


def decode(content: bytes) -> Binary:
    """Return where everything in a module lies.

    Raises:
        ModuleError: The bytes are no module. (Not all errors are found: the engine validates.)
        UnsupportedError: It has a section, a type or an opcode that is not known here.
    """
    if content[: len(HEADER)] != HEADER:
        raise malformed("no header of a core module", 0)
    binary = Binary(content)
    position, last = len(HEADER), -1
    while position < len(content):
        number = content[position]
        size, start = decode_unsigned(content, position + 1, len(content))
        if size > len(content) - start:
            raise malformed(f"a section of {size} bytes is more than there is", position)
        reader = Reader(content, start, start + size)
        if number == sections.CUSTOM:
            name = reader.name()
            binary.sections.append(Section(number, position, Span(start, start + size), name))
        else:
            last = _check_order(number, last, position)
            binary.sections.append(Section(number, position, Span(start, start + size)))
            _READERS[number](reader, binary)
            reader.finish()
        position = start + size
    _check_counts(binary)
    return binary


def _check_order(number: int, last: int, position: int) -> int:
    if number not in _READERS:
        raise UnsupportedError(f"the section {number} at offset {position:#x}", "it is not one of WebAssembly 3.0")
    rank = SECTION_ORDER.index(number)
    if rank <= last:
        raise malformed(f"section {number} is not in its place", position)
    return rank


def _check_counts(binary: Binary) -> None:
    defined = len(binary.functions) - binary.imported("function")
    if defined != len(binary.bodies):
        raise malformed(f"{defined} functions are declared, and {len(binary.bodies)} have bodies", len(binary.content))
    if binary.data_count is not None and binary.data_count != len(binary.data):
        raise malformed(f"{binary.data_count} data segments are announced, and {len(binary.data)} there", len(binary.content))


def _expression(reader: Reader, binary: Binary) -> Span:
    start = reader.position
    reader.position, features = skip_constant_expression(reader.content, start, reader.end)
    binary.syntax |= features
    return Span(start, reader.position)


def _read_imports(reader: Reader, binary: Binary) -> None:
    for _ in range(reader.count()):
        start = reader.position
        module, name = reader.name(), reader.name()
        form = reader.byte()
        if name or form not in _GROUPS:
            type_ = _read_import_type(reader, binary, form)
            _note_import(binary, (module, name), form, Span(start, reader.position), type_)
            continue
        binary.syntax.add("compact-imports")
        _GROUPS[form](reader, binary, module)


def _read_group(reader: Reader, binary: Binary, module: str) -> None:
    """Read imports from one module, each with its type."""
    for _ in range(reader.count()):
        start = reader.position
        name = reader.name()
        kind = reader.byte()
        type_ = _read_import_type(reader, binary, kind)
        _note_import(binary, (module, name), kind, Span(start, reader.position), type_)


def _read_group_of_one_type(reader: Reader, binary: Binary, module: str) -> None:
    """Read imports from one module that are all of one type."""
    kind = reader.byte()
    start = reader.position
    type_ = _read_import_type(reader, Binary(reader.content), kind)
    for _ in range(reader.count()):
        at = reader.position
        name = reader.name()
        _read_import_type(Reader(reader.content, start, reader.end), binary, kind)
        _note_import(binary, (module, name), kind, Span(at, reader.position), type_)


_GROUPS: Final[Mapping[int, Callable[[Reader, Binary, str], None]]] = MappingProxyType(
    {0x7F: _read_group, 0x7E: _read_group_of_one_type}
)


def _read_import_type(reader: Reader, binary: Binary, kind: int) -> Span:
    """Read the type of what is imported, and add that to what there is of its kind."""
    start = reader.position
    match kind:
        case 0:
            binary.functions.append(reader.unsigned())
        case 1:
            binary.tables.append(read_table(reader, binary.syntax))
        case 2:
            binary.memories.append(read_memory(reader, binary.syntax))
        case 3:
            name, mutable = read_global(reader, binary.syntax)
            if mutable:
                binary.syntax.add("mutable-global")
            binary.globals.append(name, mutable, start, reader.position, reader.position)
        case 4:
            binary.tags.append(read_tag(reader, binary.syntax))
        case _:
            raise UnsupportedError(f"the kind {kind} of an import at offset {start - 1:#x}", "it is not one of WebAssembly 3.0")
    return Span(start, reader.position)


def _note_import(binary: Binary, name: tuple[str, str], kind: int, span: Span, type_: Span) -> None:
    among = (binary.functions, binary.tables, binary.memories, binary.globals, binary.tags)[kind]
    binary.imports.append(Import(KINDS[kind], *name, len(among) - 1, span, type_))


def _read_functions(reader: Reader, binary: Binary) -> None:
    binary.functions.extend([reader.unsigned() for _ in range(reader.count())])


def _read_tables(reader: Reader, binary: Binary) -> None:
    for _ in range(reader.count(_MOST_MEMORIES)):
        table = read_table(reader, binary.syntax)
        if table.initial is not None:
            table = table._replace(initial=_expression(reader, binary))
        binary.tables.append(table)


def _read_memories(reader: Reader, binary: Binary) -> None:
    binary.memories.extend([read_memory(reader, binary.syntax) for _ in range(reader.count(_MOST_MEMORIES))])


def _read_tags(reader: Reader, binary: Binary) -> None:
    binary.tags.extend([read_tag(reader, binary.syntax) for _ in range(reader.count())])


def _read_globals(reader: Reader, binary: Binary) -> None:
    content, end = reader.content, reader.end
    for _ in range(reader.count()):
        start = reader.position
        found = _SIMPLE_GLOBAL.match(content, start, end)
        if found is not None:
            reader.position = found.end()
            binary.globals.append(NUMBER_TYPES[content[start]], content[start + 1], start, start + 2, reader.position)
        else:
            kind, mutable = read_global(reader, binary.syntax)
            initial = _expression(reader, binary)
            binary.globals.append(kind, mutable, start, initial.start, initial.end)


def _read_exports(reader: Reader, binary: Binary) -> None:
    content, end = reader.content, reader.end
    there = [len(each) for each in (binary.functions, binary.tables, binary.memories, binary.globals, binary.tags)]
    names, kinds, numbers = binary.exports.columns
    for _ in range(reader.count()):
        at = reader.position
        names.append(reader.name())
        kind = reader.byte()
        number, reader.position = decode_unsigned(content, reader.position, end)
        if kind >= len(KINDS):
            raise UnsupportedError(f"the kind {kind} of the export {names[-1]!r}", "it is not one of WebAssembly 3.0")
        if number >= there[kind]:
            raise malformed(f"the export {names[-1]!r} is the {KINDS[kind]} {number} of {there[kind]}", at)
        kinds.append(kind)
        numbers.append(number)


def _read_start(reader: Reader, binary: Binary) -> None:
    at = reader.position
    binary.start = reader.unsigned()
    if binary.start >= len(binary.functions):
        raise malformed(f"the start function is {binary.start} of {len(binary.functions)}", at)


def _read_elements(reader: Reader, binary: Binary) -> None:
    for _ in range(reader.count(_MOST_SEGMENTS)):
        binary.elements.append(_read_element(reader, binary))


def _read_element(reader: Reader, binary: Binary) -> Element:
    """Read an element segment. Flags: 1 not active, 2 a table is given (or: declarative), 4 expressions."""
    start = reader.position
    flags = reader.unsigned()
    if flags > 7:
        raise malformed(f"an element segment has the unknown flags {flags:#x}", start)
    mode, table, offset = "active", 0, None
    if flags & 1:
        mode = "declarative" if flags & 2 else "passive"
        binary.syntax.add("bulk-memory")
    else:
        table = reader.unsigned() if flags & 2 else 0
        offset = _expression(reader, binary)
    if flags & 3:
        if flags & 4:
            read_value_type(reader, binary.syntax)
        elif reader.byte():
            raise malformed("an element segment is of an unknown kind", reader.position - 1)
    count = reader.count(_MOST_ITEMS)
    first = reader.position
    if flags & 4:
        binary.syntax.add("reference-types")
        for _ in range(count):
            _expression(reader, binary)
    else:
        reader.position = skip_numbers(reader.content, first, reader.end, count)
    return Element(mode, table, offset, bool(flags & 4), count, Span(first, reader.position), Span(start, reader.position))


def _read_data_count(reader: Reader, binary: Binary) -> None:
    binary.syntax.add("bulk-memory")
    binary.data_count = reader.unsigned()


def _read_code(reader: Reader, binary: Binary) -> None:
    content, limit = reader.content, reader.end
    starts, locals_, codes, ends = binary.bodies.columns
    match_body = _body().match
    count, position = reader.count(), reader.position
    for _ in range(count):
        found = match_body(content, position, limit)
        size, after = decode_unsigned(content, position, limit)
        end = after + size
        if end > limit:
            raise malformed(f"a function's body of {size} bytes is more than there is", position)
        code = found.end() if found is not None else _skip_locals(content, after, end)
        if code >= end:
            raise malformed("a function's body holds no code", position)
        starts.append(position)
        locals_.append(after)
        codes.append(code)
        ends.append(end)
        position = end
    reader.position = position


def _skip_locals(content: bytes, position: int, end: int) -> int:
    reader = Reader(content, position, end)
    for _ in range(reader.count()):
        reader.unsigned()
        read_value_type(reader, set())
    return reader.position


def _read_data(reader: Reader, binary: Binary) -> None:
    for _ in range(reader.count(_MOST_SEGMENTS)):
        start = reader.position
        flags = reader.unsigned()
        if flags > 2:
            raise malformed(f"a data segment has the unknown flags {flags:#x}", start)
        mode, memory, offset, address = "active", 0, None, None
        if flags == 1:
            mode = "passive"
            binary.syntax.add("bulk-memory")
        else:
            memory = reader.unsigned() if flags == 2 else 0
            if memory >= len(binary.memories):
                raise malformed(f"a data segment is for memory {memory} of {len(binary.memories)}", start)
            offset = _expression(reader, binary)
            address = _constant(reader.content, offset)
        span = reader.skip(reader.unsigned())
        binary.data.append(Data(mode, memory, offset, address, span, Span(start, reader.position)))


def _constant(content: bytes, expression: Span) -> int | None:
    """Return the value of an expression that is a single constant, as an unsigned address."""
    if content[expression.start] not in {_I32_CONST, _I64_CONST}:
        return None
    bits = 32 if content[expression.start] == _I32_CONST else 64
    value, after = decode_signed(content, expression.start + 1, expression.end, bits)
    return value % (1 << bits) if after == expression.end - 1 else None


_READERS: Final[Mapping[int, Callable[[Reader, Binary], None]]] = MappingProxyType(
    {
        sections.TYPE: read_types,
        sections.IMPORT: _read_imports,
        sections.FUNCTION: _read_functions,
        sections.TABLE: _read_tables,
        sections.MEMORY: _read_memories,
        sections.TAG: _read_tags,
        sections.GLOBAL: _read_globals,
        sections.EXPORT: _read_exports,
        sections.START: _read_start,
        sections.ELEMENT: _read_elements,
        sections.DATA_COUNT: _read_data_count,
        sections.CODE: _read_code,
        sections.DATA: _read_data,
    }
)
