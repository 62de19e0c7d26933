from __future__ import annotations

import pytest
import wasmtime

from shmwasm.errors import ModuleError, UnsupportedError
from shmwasm.wasm.binary import CODE, CUSTOM, DATA, FunctionType
from shmwasm.wasm.decoding import HEADER, decode
from shmwasm.wasm.features import features_of
from shmwasm.wasm.leb128 import encode_unsigned
from shmwasm.wasm.scanning import Scan


def compiled(text: str):
    return decode(wasmtime.wat2wasm(text))


def bytes_of(binary, span) -> bytes:
    return binary.content[span.start : span.end]


def features(text: str) -> list[str]:
    binary = compiled(text)
    scan = Scan(binary)
    list(scan)
    return features_of(binary, scan)


def test_an_empty_module_holds_nothing():
    binary = decode(HEADER)
    assert (binary.sections, binary.types, len(binary.bodies), binary.start) == ([], [], 0, None)


def test_imports_come_first_in_every_index_space():
    binary = compiled("""(module
        (import "a" "f" (func (param i32) (result i64 f32)))
        (import "a" "t" (table 1 2 externref))
        (import "a" "m" (memory 1 5 shared))
        (import "a" "g" (global (mut i64)))
        (import "a" "e" (tag (param i32)))
        (func (export "own") (param v128))
        (table 3 funcref)
        (memory (export "memory") i64 2)
        (global f32 (f32.const 1))
        (tag (param f64)))""")
    assert [(entry.kind, entry.name, entry.number) for entry in binary.imports] == [
        ("function", "f", 0),
        ("table", "t", 0),
        ("memory", "m", 0),
        ("global", "g", 0),
        ("tag", "e", 0),
    ]
    assert binary.function_type(0) == FunctionType(("i32",), ("i64", "f32"))
    assert binary.function_type(1) == FunctionType(("v128",), ())
    assert [(table.element, table.minimum, table.maximum) for table in binary.tables] == [
        ("externref", 1, 2),
        ("funcref", 3, None),
    ]
    assert [memory[:5] for memory in binary.memories] == [(1, 5, False, True, 65536), (2, None, True, False, 65536)]
    assert [(one.type, one.mutable) for one in binary.globals] == [("i64", True), ("f32", False)]
    assert len(binary.tags) == 2
    assert [(export.name, export.kind, export.number) for export in binary.exports] == [
        ("own", "function", 1),
        ("memory", "memory", 1),
    ]
    assert bytes_of(binary, binary.imports[2].type) == b"\x03\x01\x05"
    assert bytes_of(binary, binary.memories[1].span) == b"\x04\x02"
    assert bytes_of(binary, binary.globals[1].initial) == b"\x43\0\0\x80\x3f\x0b"


def test_types_in_recursive_groups_are_counted_one_by_one():
    binary = compiled("""(module
        (rec (type $list (sub (struct (field i32) (field (ref null $list)) (field (mut i8)))))
             (type $visit (func (param (ref $list)) (result (ref null $visit) funcref)))
             (type $more (sub $list (struct (field i32) (field (ref null $list)) (field (mut i8)) (field i16)))))
        (type $names (array (mut externref)))
        (type (func (param nullref exnref (ref any) (ref null i31)))))""")
    assert binary.types == [
        None,
        FunctionType(("(ref 0)",), ("(ref null 1)", "funcref")),
        None,
        None,
        FunctionType(("nullref", "exnref", "(ref any)", "i31ref"), ()),
    ]


def test_segments_tell_where_their_bytes_lie():
    binary = compiled("""(module
        (import "a" "base" (global i32))
        (memory 1) (memory i64 1) (table 4 funcref) (table 4 funcref)
        (func $f)
        (elem (i32.const 1) $f $f)
        (elem (table 1) (offset (i32.const 2)) func $f)
        (elem declare func $f)
        (elem funcref (ref.func $f) (ref.null func))
        (data (i32.const -1) "wrapped")
        (data (memory 1) (i64.const 70000) "far")
        (data "passive")
        (data (global.get 0) "moved"))""")
    assert [(one.mode, one.table, one.expressions, one.length) for one in binary.elements] == [
        ("active", 0, False, 2),
        ("active", 1, False, 1),
        ("declarative", 0, False, 1),
        ("passive", 0, True, 2),
    ]
    assert bytes_of(binary, binary.elements[3].items) == b"\xd2\0\x0b\xd0\x70\x0b"
    assert [(one.mode, one.memory, one.address, bytes_of(binary, one.content)) for one in binary.data] == [
        ("active", 0, 0xFFFF_FFFF, b"wrapped"),
        ("active", 1, 70000, b"far"),
        ("passive", 0, None, b"passive"),
        ("active", 0, None, b"moved"),
    ]
    assert bytes_of(binary, binary.data[3].offset) == b"\x23\0\x0b"


def test_a_computed_offset_is_no_constant():
    binary = compiled('(module (memory 1) (data (offset (i32.add (i32.const 1) (i32.const 2))) "x"))')
    assert binary.data[0].address is None


def test_bodies_tell_locals_from_code():
    binary = compiled("(module (func) (func (local i32 i32 f64) (local v128) nop) (func (local (ref null func)) nop nop))")
    assert [body.end - body.code for body in binary.bodies] == [1, 2, 3]
    assert binary.content[binary.bodies[1].locals : binary.bodies[1].code] == b"\x03\x02\x7f\x01\x7c\x01\x7b"
    assert binary.bodies[0].start < binary.bodies[0].locals < binary.bodies[0].code
    assert binary.bodies[-1].end == binary.section(CODE).payload.end
    assert binary.bodies[1:] == list(binary.bodies)[1:]


def test_many_groups_of_locals_are_passed(functions, body, section, refusal):
    declared = encode_unsigned(300) + b"\x01\x63\x70\x81\x80\0\x7f" * 150
    module = HEADER + section(1, b"\x60\0\0") + section(3, b"\0") + section(10, body(b"\x20\x80\x02\x1a\x0b", declared))
    assert refusal(module) is None
    assert module[decode(module).bodies[0].code :] == b"\x20\x80\x02\x1a\x0b"


def test_custom_sections_may_stand_anywhere_and_twice(custom, section, refusal):
    module = HEADER + custom(b"a", b"1") + section(1, b"\x60\0\0") + custom(b"name") + custom(b"a") + section(11) + custom(b"z")
    assert refusal(module) is None
    binary = decode(module)
    assert [(one.number, one.name) for one in binary.sections] == [(0, "a"), (1, ""), (0, "name"), (0, "a"), (11, ""), (0, "z")]
    assert binary.names == binary.sections[2]
    assert binary.section(DATA).start == binary.sections[4].start
    assert binary.sections[0].number == CUSTOM
    joined = b"".join(module[one.start : one.payload.end] for one in binary.sections)
    assert HEADER + joined == module


def test_lengths_and_counts_may_be_padded(refusal):
    module = HEADER + b"\x01\x86\x80\0\x81\0\x60\x80\0\0" + b"\x03\x83\0\x81\0\0" + b"\x0a\x88\0\x81\0\x84\0\x80\0\x01\x0b"
    assert refusal(module) is None
    binary = decode(module)
    assert len(binary.types) == 1
    assert module[binary.bodies[0].code : binary.bodies[0].end] == b"\x01\x0b"


def test_imports_may_come_in_groups(section, refusal):
    one_type = b"\x01a\0\x7e\0\0\x02\x01f\x01g"
    own_types = b"\x01b\0\x7f\x02\x01h\0\0\x01m\x02\0\x01"
    module = HEADER + section(1, b"\x60\0\0") + section(2, one_type, own_types, b"\x01c\0\0\0")
    assert refusal(module) is None
    binary = decode(module)
    assert [(one.module, one.name, one.kind, one.number) for one in binary.imports] == [
        ("a", "f", "function", 0),
        ("a", "g", "function", 1),
        ("b", "h", "function", 2),
        ("b", "m", "memory", 0),
        ("c", "", "function", 3),
    ]
    assert "compact-imports" in binary.syntax


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(module (memory 1) (func (i32.store (i32.const 0) (i32.const 1))))", []),
        ("(module (func (result i32 i32) unreachable))", ["multi-value"]),
        ("(module (func (i32.const 1) (block (param i32) drop)))", ["multi-value"]),
        ("(module (func (drop (i32.extend8_s (i32.const 1)))))", ["sign-extension"]),
        ("(module (memory 1) (memory 1))", ["multi-memory"]),
        ("(module (memory 1) (memory 1) (func (drop (i32.load 1 (i32.const 1)))))", ["multi-memory"]),
        ("(module (memory i64 1))", ["memory64"]),
        ("(module (memory 1 1 shared))", ["threads"]),
        ("(module (table 1 externref))", ["reference-types"]),
        ('(module (global (export "g") (mut i32) (i32.const 1)))', ["mutable-global"]),
        ("(module (global i32 (i32.add (i32.const 1) (i32.const 1))))", ["extended-const"]),
        ('(module (memory 1) (data "x"))', ["bulk-memory"]),
        ("(module (tag))", ["exceptions"]),
        ("(module (func return_call 0))", ["tail-call"]),
        ("(module (type (struct)))", ["gc"]),
        ("(module (func (param externref)))", ["reference-types"]),
        ("(module (func (param v128)))", ["simd"]),
        ("(module (func (param v128) (drop (i8x16.relaxed_swizzle (local.get 0) (local.get 0)))))", ["simd", "relaxed-simd"]),
    ],
)
def test_the_proposals_in_use_are_found(text, expected):
    assert features(text) == expected


def test_every_error_tells_the_offset():
    with pytest.raises(UnsupportedError, match="the section 77 at offset 0x8 is not supported"):
        decode(HEADER + b"\x4d\0")
    with pytest.raises(ModuleError, match="more than there is at offset 0x8"):
        decode(HEADER + b"\x01\x05\0")


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        (b"\x01\x01", "more than there is"),
        (b"\x01\x02\0\0", "left over"),
        (b"\x01\x05\xff\xff\xff\xff\x0f", "more than 1000000"),
        (b"\x01\x01\x05", "more than fits"),
        (b"\x03\x01\0\x01\x01\0", "not in its place"),
        (b"\x01\x01\0\x01\x01\0", "not in its place"),
        (b"\0\x02\x05a", "more than there are"),
        (b"\0\x02\x01\xff", "not UTF-8"),
        (b"\x03\x02\x01\0", "1 functions are declared, and 0 have bodies"),
        (b"\x0c\x01\x02", "2 data segments are announced, and 0 there"),
        (b"\x07\x05\x01\x01f\0\0", "is the function 0 of 0"),
        (b"\x08\x01\0", "start function is 0 of 0"),
        (b"\x05\x03\x01\x40\0", "unknown flags"),
        (b"\x0b\x02\x01\x07", "unknown flags"),
        (b"\x06\x06\x01\x7f\0\x10\0\x0b", "call stands in a constant expression"),
        (b"\x06\x05\x01\x7f\0\x41\x0b", "end"),
    ],
)
def test_what_is_malformed_is_refused(tail, reason):
    with pytest.raises(ModuleError, match=reason):
        decode(HEADER + tail)


@pytest.mark.parametrize("start", [b"", b"\0as", b"MZ\0\0\0\0\0\0", b"\0asm\x0d\0\x01\0"])
def test_other_files_are_no_modules(start):
    with pytest.raises(ModuleError, match="no header of a core module"):
        decode(start)
