"""Types: of values, functions, memories, tables and globals."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from shmwasm.errors import UnsupportedError
from shmwasm.wasm.binary import Binary, FunctionType, Memory, Span, Table
from shmwasm.wasm.leb128 import decode_signed, malformed
from shmwasm.wasm.reader import Reader

NUMBER_TYPES: Final = MappingProxyType({0x7F: "i32", 0x7E: "i64", 0x7D: "f32", 0x7C: "f64", 0x7B: "v128"})
"""The value types that are one byte and no references."""

_HEAP_TYPES: Final = MappingProxyType(
    {
        0x70: "func",
        0x6F: "extern",
        0x6E: "any",
        0x6D: "eq",
        0x6C: "i31",
        0x6B: "struct",
        0x6A: "array",
        0x69: "exn",
        0x71: "none",
        0x72: "noextern",
        0x73: "nofunc",
        0x74: "noexn",
    }
)

_SHORT_NAMES: Final = MappingProxyType(
    {"none": "nullref", "noextern": "nullexternref", "nofunc": "nullfuncref", "noexn": "nullexnref"}
)

_FEATURES: Final = MappingProxyType(
    {"v128": "simd", "funcref": "reference-types", "externref": "reference-types", "exnref": "exceptions"}
)

_REFERENCE, _NULLABLE_REFERENCE = 0x64, 0x63
_PACKED_TYPES: Final = frozenset({0x78, 0x77})  # i8 and i16: in structs and arrays only

_FUNCTION, _STRUCT, _ARRAY = 0x60, 0x5F, 0x5E
_SUBTYPE, _FINAL_SUBTYPE, _RECURSIVE = 0x50, 0x4F, 0x4E

_TABLE_WITH_EXPRESSION: Final = 0x40

_HAS_MAXIMUM, _SHARED, _IS_64, _HAS_PAGE_SIZE = 1, 2, 4, 8


def read_value_type(reader: Reader, features: set[str]) -> str:
    """Read a value type; add the proposals that it shows to `features`."""
    at = reader.position
    byte = reader.byte()
    if byte in NUMBER_TYPES:
        name = NUMBER_TYPES[byte]
    elif byte in _HEAP_TYPES:
        heap = _HEAP_TYPES[byte]
        name = _SHORT_NAMES.get(heap, f"{heap}ref")
    elif byte in {_REFERENCE, _NULLABLE_REFERENCE}:
        features.add("function-references")
        null = "null " if byte == _NULLABLE_REFERENCE else ""
        return f"(ref {null}{_read_heap_type(reader)})"
    else:
        raise UnsupportedError(f"the value type {byte:#04x} at offset {at:#x}", "it is not one of WebAssembly 3.0")
    if byte not in NUMBER_TYPES or name == "v128":
        features.add(_FEATURES.get(name, "gc"))
    return name


def read_types(reader: Reader, binary: Binary) -> None:
    """Read the section of types."""
    for _ in range(reader.count()):
        if reader.left and reader.peek() == _RECURSIVE:
            reader.byte()
            binary.syntax.add("gc")
            for _ in range(reader.count()):
                binary.types.append(_read_subtype(reader, binary.syntax))
        else:
            binary.types.append(_read_subtype(reader, binary.syntax))


def read_limits(reader: Reader, features: set[str]) -> tuple[int, int, int | None, int]:
    """Read limits: their flags, minimum, maximum, and the size of a page."""
    at = reader.position
    flags = reader.byte()
    if flags & ~(_HAS_MAXIMUM | _SHARED | _IS_64 | _HAS_PAGE_SIZE):
        raise malformed(f"limits have the unknown flags {flags:#04x}", at)
    bits = 64 if flags & _IS_64 else 32
    minimum = reader.unsigned(bits)
    maximum = reader.unsigned(bits) if flags & _HAS_MAXIMUM else None
    if flags & _IS_64:
        features.add("memory64")
    if flags & _SHARED:
        features.add("threads")
    exponent = 16
    if flags & _HAS_PAGE_SIZE:
        features.add("custom-page-sizes")
        exponent = reader.unsigned()
        if exponent > 16:
            raise malformed(f"a page of 2^{exponent} bytes is too large", at)
    return flags, minimum, maximum, 1 << exponent


def read_memory(reader: Reader, features: set[str]) -> Memory:
    """Read a memory's type."""
    start = reader.position
    flags, minimum, maximum, page_size = read_limits(reader, features)
    return Memory(minimum, maximum, bool(flags & _IS_64), bool(flags & _SHARED), page_size, Span(start, reader.position))


def read_table(reader: Reader, features: set[str]) -> Table:
    """Read a table's type; that of one with an initial expression as well, up to the expression."""
    if reader.left and reader.peek() == _TABLE_WITH_EXPRESSION:
        reader.byte()
        if reader.byte():
            raise malformed("a table is of an unknown form", reader.position - 1)
        features.add("function-references")
        return _read_table_type(reader, features)._replace(initial=Span(reader.position, reader.position))
    return _read_table_type(reader, features)


def read_global(reader: Reader, features: set[str]) -> tuple[str, int]:
    """Read a global's type: its value's, and 1 if it is mutable."""
    kind = read_value_type(reader, features)
    mutable = reader.byte()
    if mutable > 1:
        raise malformed(f"a global has the unknown flags {mutable:#04x}", reader.position - 1)
    return kind, mutable


def read_tag(reader: Reader, features: set[str]) -> int:
    """Read a tag's type; return its type index."""
    features.add("exceptions")
    if reader.byte():
        raise malformed("a tag has an unknown attribute", reader.position - 1)
    return reader.unsigned()


def _read_heap_type(reader: Reader) -> str:
    at = reader.position
    if reader.peek() in _HEAP_TYPES:
        return _HEAP_TYPES[reader.byte()]
    index, reader.position = decode_signed(reader.content, at, reader.end, 33)
    if index < 0:
        raise UnsupportedError(f"the heap type at offset {at:#x}", "it is not one of WebAssembly 3.0")
    return str(index)


def _read_subtype(reader: Reader, features: set[str]) -> FunctionType | None:
    if reader.peek() in {_SUBTYPE, _FINAL_SUBTYPE}:
        reader.byte()
        features.add("gc")
        for _ in range(reader.count()):
            reader.unsigned()
    at = reader.position
    match reader.byte():
        case 0x60:
            return _read_function_type(reader, features)
        case 0x5F:
            features.add("gc")
            for _ in range(reader.count()):
                _read_field(reader, features)
        case 0x5E:
            features.add("gc")
            _read_field(reader, features)
        case form:
            raise UnsupportedError(f"the form {form:#04x} of a type at offset {at:#x}", "it is not one of WebAssembly 3.0")
    return None


def _read_function_type(reader: Reader, features: set[str]) -> FunctionType:
    parameters = tuple([read_value_type(reader, features) for _ in range(reader.count())])
    results = tuple([read_value_type(reader, features) for _ in range(reader.count())])
    if len(results) > 1:
        features.add("multi-value")
    return FunctionType(parameters, results)


def _read_field(reader: Reader, features: set[str]) -> None:
    if reader.peek() in _PACKED_TYPES:
        reader.byte()
    else:
        read_value_type(reader, features)
    if reader.byte() > 1:
        raise malformed("a field has unknown flags", reader.position - 1)


def _read_table_type(reader: Reader, features: set[str]) -> Table:
    start = reader.position
    element = read_value_type(reader, set())
    if element != "funcref":
        features.add("reference-types")
    flags, minimum, maximum, _ = read_limits(reader, features)
    return Table(element, minimum, maximum, bool(flags & _IS_64), Span(start, reader.position))
