from __future__ import annotations

import contextlib
import sys

import pytest
import wasmtime
from hypothesis import given, settings
from hypothesis import strategies as st

from shmwasm.addresses import OS_PAGE, WINDOW_END
from shmwasm.engine.traps import GuestTrapError
from shmwasm.errors import ModuleError, UnsupportedError
from shmwasm.rewrite import HeapMemory, rewrite, seam
from shmwasm.wasm.decoding import decode

HEADER = b"\0asm\1\0\0\0"
COPY = '(func $copy (export "copy") (param i32 i32 i32) (memory.copy (local.get 0) (local.get 1) (local.get 2)))'


def _binary(text: str) -> bytes:
    return bytes(wasmtime.wat2wasm(text))


def _custom(name: str, payload: bytes) -> bytes:
    content = bytes([len(name)]) + name.encode() + payload
    return b"\0" + bytes([len(content)]) + content


# ------------------------------------------------------------ what stays


@pytest.mark.parametrize(
    "text",
    [
        "(module)",
        '(module (memory (export "memory") 1) (func (export "f") (drop (memory.grow (memory.size)))))',
        '(module (memory (export "memory") 1) (memory $b 1)(func (memory.copy $b $b (i32.const 0) (i32.const 0) (i32.const 9))))',
        '(module (memory (export "memory") 1) (start $s) (func $s))',
        '(module (import "env" "memory" (memory 1)))',
        '(module (func (export "f") (result i32) (i32.const 1)))',
    ],
)
def test_module_that_needs_nothing_comes_back_as_it_is(text):
    content = _binary(text)
    rewritten, report = rewrite(content)
    assert rewritten is content
    assert not report.changed
    assert report.changes == []
    assert report.original_offset(5) == 5


def test_what_is_not_edited_stays_to_the_byte(engine):
    # Numbers that are longer than need be, custom sections everywhere, and only the function in the middle has a site.
    body = b"\x00\x20\x00\x41\x80\x80\x00\x6a\x0b"
    site = b"\x00\x20\x00\x20\x00\x20\x00\xfc\x8a\x00\x00\x00\x0b"
    bodies = b"".join(bytes([len(each) | 0x80, 0]) + each for each in (body, site, body))
    kinds = b"\x02\x60\x01\x7f\x01\x7f\x60\x01\x7f\x00"
    sections = [
        (b"\x01", kinds),
        (b"\x03", b"\x03\x00\x01\x00"),
        (b"\x05", b"\x01\x00\x81\x80\x00"),
        (b"\x07", b"\x01\x06memory\x02\x00"),
        (b"\x0a", b"\x83\x00" + bodies),
    ]
    parts = [_custom("first", b"1")]
    for number, payload in sections:
        parts += [number + bytes([len(payload) | 0x80, 0x80, 0]) + payload, _custom("between", number)]
    content = HEADER + b"".join(parts)
    wasmtime.Module(engine, content)
    rewritten, report = rewrite(content)
    wasmtime.Module(engine, rewritten)
    assert _custom("first", b"1") in rewritten
    assert all(_custom("between", number) in rewritten for number, _ in sections)
    assert rewritten.count(bytes([len(body) | 0x80, 0]) + body) == 2
    assert sections[2][1][1:] in rewritten
    site_at, body_at = content.index(b"\xfc\x8a"), content.rindex(body)
    assert report.original_offset(rewritten.rindex(body, 0, rewritten.rindex(b"\x6a") + 2)) == body_at
    assert report.original_offset(rewritten.index(b"\xfc\x0a\x00\x00")) == site_at


def test_functions_keep_their_indices_and_names(engine):
    text = f"""(module (import "env" "f" (func $imported)) (memory (export "memory") 1) {COPY}
      (func $last (export "last") (call $copy (i32.const -1) (i32.const 0) (i32.const 9)) (call $imported)))"""
    content = _binary(text)
    rewritten, report = rewrite(content)
    before, after = decode(content), decode(rewritten)
    assert report.functions == len(before.functions) == 3
    assert list(after.functions)[:3] == list(before.functions)
    assert after.names is not None
    assert before.names is not None
    assert rewritten[slice(*after.names.payload)] == content[slice(*before.names.payload)]
    assert next(export for export in after.exports if export.name == "copy").number == 1


def test_trap_in_appended_code_leads_back_to_the_instruction(make_guest, make_chain):
    text = f"""(module (memory (export "memory") 1) {COPY}
      (func (export "run") (call $copy (i32.const -8) (i32.const 0) (i32.const 100))))"""
    original = decode(_binary(text))
    guest = make_guest(text)
    guest.window.attach(make_chain((OS_PAGE, True)).grants())
    with pytest.raises(GuestTrapError) as trap:
        guest.call("run")
    frames = trap.value.description.backtrace
    offsets = [guest.report.original_offset(int(frame.rsplit(" ", 1)[1], 16)) for frame in frames[-2:]]
    for offset, body in zip(offsets, original.bodies, strict=True):
        assert body.code <= offset < body.end
    assert original.content[offsets[0] : offsets[0] + 2] == b"\xfc\x0a"
    assert len(frames) == 3


# ------------------------------------------------------------ what is appended


@pytest.mark.parametrize("missing", ["global", "table", "memory", "type", "nothing"])
def test_sections_that_are_missing_are_made_at_their_places(engine, missing):
    parts = {
        "type": "(type (func (param f64)))",
        "global": "(global i32 (i32.const 1))",
        "table": "(table 1 funcref) (elem (i32.const 0) $wait)",
        "memory": "",
    }
    parts.pop(missing, None)
    memory = '(import "env" "memory" (memory 1))' if missing == "memory" else '(memory (export "memory") 1)'
    text = f"""(module {memory} (tag) {" ".join(parts.values())} (data "passive")
      (func $wait (result i32) (memory.atomic.wait32 (i32.const 0) (i32.const 0) (i64.const 0)))
      (func (memory.init 0 (i32.const 0) (i32.const 0) (i32.const 0))))"""
    rewritten, report = rewrite(_binary(text))
    wasmtime.Module(engine, rewritten)
    assert report.changed
    assert {seam.START, seam.END, seam.MIXED, seam.ALIAS, seam.HOST} <= {export.name for export in decode(rewritten).exports}


def test_appended_locals_do_not_meet_those_that_are_there(make_guest):
    guest = make_guest("""(module (memory (export "memory") 1)
      (func (export "f") (param i32 i64) (result i64) (local f32 f32 v128 externref i32) (local i64)
        (local.set 6 (i32.const 5)) (local.set 7 (i64.const 40))
        (memory.fill (i32.const 16) (local.get 0) (i32.const 8))
        (memory.copy (i32.const 32) (i32.const 16) (local.get 0))
        (i64.add (i64.add (local.get 1) (local.get 7)) (i64.extend_i32_u (local.get 6)))))""")
    assert guest.call("f", 8, 100) == 145
    assert guest.peek(16, 24) == bytes([8]) * 8 + bytes(8) + bytes([8]) * 8


def test_instructions_in_blocks_and_unreachable_code_stay_valid(engine):
    text = """(module (memory (export "memory") 1) (memory $other i64 1)
      (func (export "f") (param i32) (result i32)
        (block $out (result i32)
          (loop $again (memory.fill (local.get 0) (i32.const 1) (i32.const 2)) (br_if $again (local.get 0)))
          (br $out (i32.const 1)) (memory.copy) (unreachable) (memory.fill))
        (return) (memory.copy (i32.const 0) (i32.const 0) (i32.const 4)) (memory.copy $other 0)))"""
    rewritten, _ = rewrite(_binary(text))
    wasmtime.Module(engine, rewritten)


# ------------------------------------------------------------ the heap memory


@pytest.mark.parametrize(
    ("fields", "index", "export"),
    [
        ('(memory (export "memory") 1)', 0, "memory"),
        ('(memory (export "a") 1) (memory (export "memory") 1)', 1, "memory"),
        ('(memory 1) (memory (export "b") 1) (memory (export "c") 1)', 1, "b"),
        ("(memory 1) (memory 1)", 0, seam.MEMORY),
        ('(import "env" "memory" (memory 1)) (memory 1)', 0, None),
        ('(import "env" "memory" (memory 1)) (memory (export "own") 1)', 1, "own"),
    ],
)
def test_heap_memory_is_the_one_called_memory_else_the_first_exported_else_the_first(engine, fields, index, export):
    rewritten, report = rewrite(_binary(f"(module {fields})"))
    wasmtime.Module(engine, rewritten)
    assert report.heap_memory is not None
    assert (report.heap_memory.index, report.heap_memory.export) == (index, export)
    found = {one.name: one.number for one in decode(rewritten).exports}
    assert export is None or found[export] == index
    assert report.changed == (export == seam.MEMORY)


def test_report_says_what_the_module_is():
    text = f"""(module (import "env" "shared_heap_malloc" (func (param i32) (result i32)))
      (import "env" "memory" (memory 3 9 shared)) {COPY})"""
    report = rewrite(_binary(text)).report
    assert report.heap_memory == HeapMemory(index=0, export=None, imported=True, is_64=False, shared=True, minimum=3, maximum=9)
    assert report.needs_shared_heap
    assert {"bulk-memory", "threads"} <= set(report.features)
    assert [(change.what, change.count) for change in report.changes] == [("memory.copy", 1)]
    assert 0 < report.code_size < 40
    assert rewrite(_binary("(module)")).report.heap_memory is None
    assert not rewrite(_binary("(module)")).report.needs_shared_heap


def test_hidden_memory_takes_part(make_guest, make_chain):
    guest = make_guest("""(module (memory 1) (data "x")
      (func (export "copy") (param i32 i32 i32) (memory.copy (local.get 0) (local.get 1) (local.get 2)))
      (func (export "load") (param i32) (result i32) (i32.load (local.get 0))))""")
    guest.window.attach(make_chain((OS_PAGE, True)).grants())
    guest.poke(100, b"over there")
    guest.call("copy", WINDOW_END - OS_PAGE, 100, 10)
    assert guest.peek(WINDOW_END - OS_PAGE, 10) == b"over there"


# ------------------------------------------------------------ the start function


def test_start_function_waits_for_the_engine_only_where_wasi_is_imported():
    start = "(start $s) (func $s)"
    plain = decode(rewrite(_binary(f'(module (memory (export "memory") 1) {start})')).content)
    assert plain.start == 0
    text = f'(module (import "wasi_snapshot_preview1" "proc_exit" (func (param i32))) (memory (export "memory") 1) {start})'
    rewritten, report = rewrite(_binary(text))
    with_wasi = decode(rewritten)
    assert with_wasi.start is None
    assert [export.number for export in with_wasi.exports if export.name == seam.BEGIN] == [1]
    assert [change.what for change in report.changes] == ["start function"]


# ------------------------------------------------------------ refusals


def test_export_under_a_reserved_name_is_refused():
    with pytest.raises(UnsupportedError, match=r"'shmwasm:start'.*reserved"):
        rewrite(_binary('(module (func (export "shmwasm:start")))'))
    rewrite(_binary('(module (func (export "shmwasm")))'))


@pytest.mark.parametrize("content", [b"", b"\0asm", HEADER + b"\x0a\x05\x01", b"\x7fELF" + bytes(60)])
def test_bytes_that_are_no_module_are_refused(content):
    with pytest.raises(ModuleError):
        rewrite(content)


MUTATED = _binary(f"""(module (import "env" "memory" (memory 1)) (memory $wide i64 1 4) (memory $far 1)
  (global (mut i64) (i64.const 1)) (table 2 funcref) (elem (i32.const 0) $copy) (data "passive")
  (data (i32.const 8) "active") {COPY}
  (func (export "more") (param i32 i64) (local f32 v128 funcref)
    (memory.fill (local.get 0) (i32.const 1) (i32.const 300)) (memory.copy 0 $far (i32.const 0) (i32.const 8) (local.get 0))
    (memory.init 0 (i32.const 0) (i32.const 0) (i32.const 2)) (drop (memory.grow $wide (local.get 1)))
    (drop (memory.atomic.notify offset=4 (i32.const 0) (i32.const 1)))))""")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(8, len(MUTATED) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_module_is_refused_by_name_or_rewritten(damage):
    content = bytearray(MUTATED)
    for position, byte in damage:
        content[position] = byte
    with contextlib.suppress(ModuleError, UnsupportedError):
        rewritten, report = rewrite(bytes(content))
        assert (rewritten == content) == (not report.changed)


def test_rewritten_module_is_refused():
    rewritten = rewrite(_binary(f'(module (memory (export "memory") 1) {COPY})')).content
    with pytest.raises(UnsupportedError, match="reserved"):
        rewrite(rewritten)


def test_rewriting_does_not_keep_the_module_alive():
    content = _binary(f'(module (memory (export "memory") 1) {COPY})')
    before = sys.getrefcount(content)  # bytes cannot be referred to weakly
    rewrite(content)
    assert sys.getrefcount(content) == before
