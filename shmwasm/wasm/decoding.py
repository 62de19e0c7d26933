"""From bytes to `Binary`: where everything in a module lies."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from shmwasm.errors import UnsupportedError
from shmwasm.wasm import binary as sections
from shmwasm.wasm.binary import KINDS, SECTION_ORDER, Binary, Element, Import, Section, Span
from shmwasm.wasm.instructions import skip_numbers
from shmwasm.wasm.leb128 import decode_unsigned, malformed
from shmwasm.wasm.opcodes import NUMBER
from shmwasm.wasm.reader import Reader
from shmwasm.wasm.rows import read_data, read_expression, without_rows
from shmwasm.wasm.types import read_global, read_memory, read_table, read_tag, read_types, read_value_type

HEADER: Final = b"\0asm\x01\0\0\0"
"""How every module starts."""

_MOST_MEMORIES: Final = 100
_MOST_SEGMENTS: Final = 100_000
_MOST_ITEMS: Final = 10_000_000
"""The engine's own limits: of tables and memories, of segments, and of an element segment's items."""

_SIMPLE_GLOBAL: Final = re.compile(rb"[\x7c-\x7f][\x00\x01](?:[\x41\x42\x23]%b|\x43.{4}|\x44.{8})\x0b" % NUMBER, re.DOTALL)
"""A global of a number type whose initial expression is a constant, or another global's value."""

_SIMPLE_DATA: Final = re.compile(rb"\x00[\x41\x42]%b\x0b[\x00-\x7f]" % NUMBER)
"""An active data segment of the first memory at a constant offset, up to a length of one byte."""

_NUMBER: Final = re.compile(NUMBER)


def decode(content: bytes) -> Binary:
    """Return where everything in a module lies.

    Raises:
        ModuleError: The bytes are no module. (Not all errors are found: the engine validates.)
        UnsupportedError: It has a section, a type or an opcode that is not known here.
    """
    if content[: len(HEADER)] != HEADER:
        raise malformed("no header of a core module", 0)
    binary = without_rows(content)
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
    type_ = _read_import_type(reader, without_rows(reader.content), kind)
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
            _, mutable = read_global(reader, binary.syntax)
            if mutable:
                binary.syntax.add("mutable-global")
            _note_global(binary, start, reader.position, mutable)
        case 4:
            binary.tags.append(read_tag(reader, binary.syntax))
        case _:
            raise UnsupportedError(f"the kind {kind} of an import at offset {start - 1:#x}", "it is not one of WebAssembly 3.0")
    return Span(start, reader.position)


def _note_global(binary: Binary, start: int, end: int, mutable: int) -> None:
    for column, value in zip(binary.globals.columns, (start, end, mutable), strict=True):
        column.append(value)


def _note_import(binary: Binary, name: tuple[str, str], kind: int, span: Span, type_: Span) -> None:
    among = (binary.functions, binary.tables, binary.memories, binary.globals, binary.tags)[kind]
    binary.imports.append(Import(KINDS[kind], *name, len(among) - 1, span, type_))


def _read_functions(reader: Reader, binary: Binary) -> None:
    count = reader.count()
    found = _NUMBER.findall(reader.content, reader.position, reader.end)
    if len(found) != count:
        raise malformed(f"{count} functions are announced, and {len(found)} there", reader.position)
    # There are far fewer types than functions.
    types = {number: Reader(number, 0, len(number)).unsigned() for number in set(found)}
    binary.functions.extend(map(types.__getitem__, found))
    reader.position += sum(map(len, found))


def _read_tables(reader: Reader, binary: Binary) -> None:
    for _ in range(reader.count(_MOST_MEMORIES)):
        table = read_table(reader, binary.syntax)
        if table.initial is not None:
            table = table._replace(initial=read_expression(reader, binary.syntax))
        binary.tables.append(table)


def _read_memories(reader: Reader, binary: Binary) -> None:
    binary.memories.extend([read_memory(reader, binary.syntax) for _ in range(reader.count(_MOST_MEMORIES))])


def _read_tags(reader: Reader, binary: Binary) -> None:
    binary.tags.extend([read_tag(reader, binary.syntax) for _ in range(reader.count())])


def _read_globals(reader: Reader, binary: Binary) -> None:
    content, end = reader.content, reader.end
    match_simple = _SIMPLE_GLOBAL.match
    starts, ends, mutables = binary.globals.columns
    for _ in range(reader.count()):
        start = reader.position
        found = match_simple(content, start, end)
        if found is not None:
            mutable = content[start + 1]
            reader.position = found.end()
        else:
            _, mutable = read_global(reader, binary.syntax)
            read_expression(reader, binary.syntax)
        starts.append(start)
        ends.append(reader.position)
        mutables.append(mutable)


def _read_exports(reader: Reader, binary: Binary) -> None:
    content, end = reader.content, reader.end
    there = [len(each) for each in (binary.functions, binary.tables, binary.memories, binary.globals, binary.tags)]
    starts, kinds, numbers = binary.exports.columns
    count, position = reader.count(), reader.position
    for _ in range(count):
        start = position
        size, position = decode_unsigned(content, start, end)
        position += size
        if position >= end:
            raise malformed("the bytes end within an export", start)
        kind = content[position]
        number, position = decode_unsigned(content, position + 1, end)
        if kind >= len(KINDS):
            raise UnsupportedError(f"the kind {kind} of the export at offset {start:#x}", "it is not one of WebAssembly 3.0")
        if number >= there[kind]:
            raise malformed(f"an export is the {KINDS[kind]} {number} of {there[kind]}", start)
        starts.append(start)
        kinds.append(kind)
        numbers.append(number)
    reader.position = position


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
        offset = read_expression(reader, binary.syntax)
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
            read_expression(reader, binary.syntax)
    else:
        reader.position = skip_numbers(reader.content, first, reader.end, count)
    return Element(mode, table, offset, bool(flags & 4), count, Span(first, reader.position), Span(start, reader.position))


def _read_data_count(reader: Reader, binary: Binary) -> None:
    binary.syntax.add("bulk-memory")
    binary.data_count = reader.unsigned()


def _read_code(reader: Reader, binary: Binary) -> None:
    content, end = reader.content, reader.end
    starts, ends = binary.bodies.columns
    count, position = reader.count(), reader.position
    for _ in range(count):
        starts.append(position)
        size, after = decode_unsigned(content, position, end)
        position = after + size
        if position > end:
            raise malformed(f"a function's body of {size} bytes is more than there is", starts[-1])
        ends.append(position)
    reader.position = position


def _read_data(reader: Reader, binary: Binary) -> None:
    content, end = reader.content, reader.end
    match_simple = _SIMPLE_DATA.match
    (starts,) = binary.data.columns
    for _ in range(reader.count(_MOST_SEGMENTS)):
        start = reader.position
        starts.append(start)
        found = match_simple(content, start, end) if binary.memories else None
        if found is None:
            _read_segment(reader, binary)
            continue
        after = found.end()
        reader.position = after + content[after - 1]
        if reader.position > end:
            raise malformed("a data segment ends too late", start)


def _read_segment(reader: Reader, binary: Binary) -> None:
    start = reader.position
    segment = read_data(reader, binary.syntax)
    if segment.mode == "active" and segment.memory >= len(binary.memories):
        raise malformed(f"a data segment is for memory {segment.memory} of {len(binary.memories)}", start)


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
