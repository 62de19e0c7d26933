from __future__ import annotations

from collections.abc import Callable

import pytest
import wasmtime

from shmwasm.addresses import WASM_PAGE, WINDOW_END, WINDOW_END_64, AppAddress
from shmwasm.engine.guests import Guest
from shmwasm.engine.heap_memory import heap_memory
from shmwasm.engine.modules import ImportName, describe
from shmwasm.engine.nests import Nest, new_store
from shmwasm.engine.windows import Grant
from shmwasm.errors import InstantiationError, InvalidFreeError, ModuleError, UnknownExportError, UnsupportedError
from shmwasm.posix.segments import Segment
from shmwasm.rewrite import seam

START = WINDOW_END - WASM_PAGE
WHOLE = WINDOW_END_64 // WASM_PAGE
ALIAS = f"""(memory $alias (export "{seam.ALIAS}") 0)
  (global (export "{seam.START}") (mut i64) (i64.const {seam.NOTHING}))
  (global (export "{seam.END}") (mut i64) (i64.const 0))
  (global (export "{seam.MIXED}") (mut i32) (i32.const 0))"""
LOAD = '(func (export "load") (param i32) (result i32) (i32.load (local.get 0)))'


@pytest.fixture
def spawn(engine):
    """Makes guests, and gives their memory back after the test."""
    stores = []

    def make(
        text: str,
        *,
        functions: dict[ImportName, Callable[..., object]] | None = None,
        numbers: dict[ImportName, float] | None = None,
        start: int = WINDOW_END,
    ) -> Guest:
        store = new_store(engine)
        stores.append(store)
        module = wasmtime.Module(engine, text)
        return Guest(
            7,
            Nest(store, {}),
            module,
            describe(module),
            name="unit",
            functions={} if functions is None else functions,
            wasi=None,
            numbers={} if numbers is None else numbers,
            start=start,
        )

    yield make
    for store in stores:
        store.close()


@pytest.fixture
def grant():
    with Segment.create(WASM_PAGE, name_for_errors="heap") as segment:
        yield Grant(heap="heap", start=AppAddress(START), size=WASM_PAGE, descriptor=segment.descriptor, writable=True)


def _call(guest: Guest, name: str, *arguments: object) -> object:
    results = guest.function(name).call(arguments)
    return results[0] if len(results) == 1 else results


# ------------------------------------------------------------ which memory


@pytest.mark.parametrize(
    ("fields", "chosen"),
    [
        ('(memory (export "memory") 1)', "memory"),
        ('(memory (export "first") 1) (memory (export "memory") 2)', "memory"),
        ('(memory (export "first") 1) (memory (export "second") 2)', "first"),
        ('(import "env" "mine" (memory 1)) (memory (export "own") 1)', "own"),
        ('(import "env" "mine" (memory 1)) (memory 1)', ("env", "mine")),
        ('(import "env" "a" (memory 1)) (import "env" "b" (memory 1)) (export "shown" (memory 1))', "shown"),
        (f'(memory (export "{seam.MEMORY}") 1)', seam.MEMORY),
        (f'(memory (export "{seam.MEMORY}") 1) {ALIAS}', seam.MEMORY),
        (f'(import "env" "mine" (memory 1)) {ALIAS}', ("env", "mine")),
        (f'(memory (export "own") 1) {ALIAS}', "own"),
        ("(memory 1)", None),
        ("", None),
    ],
)
def test_chain_is_mapped_into_the_exported_memory_else_the_first(engine, spawn, grant, fields, chosen):
    text = f"(module {fields})"
    found = heap_memory(describe(wasmtime.Module(engine, text)))
    assert (None if found is None else found.name) == chosen
    guest = spawn(text)
    assert (guest.window is None) == (chosen is None)
    if guest.window is not None:
        guest.window.attach([grant])
        guest.window.close()


def test_guest_without_a_memory_that_can_be_reached_shows_none(spawn):
    for fields in ("", "(memory 1)", '(memory (export "memory") i64 1 2 shared)'):
        guest = spawn(f"(module {fields})")
        with pytest.raises(UnsupportedError, match="memory"):
            guest.memory()
        with pytest.raises(UnsupportedError, match="memory"):
            guest.share_memory()


# ------------------------------------------------------------ what is imported besides functions


@pytest.mark.parametrize("limits", ["1", "1 10", "0", "1 10 shared", f"i64 {WHOLE} {WHOLE}"])
def test_imported_memory_is_made_with_the_imports_limits_and_takes_a_chain(spawn, grant, limits):
    wide = limits.startswith("i64")
    pages = f'(global (export "{seam.PAGES}") (mut i64) (i64.const 1))' if wide else ""
    kind = "i64" if wide else "i32"
    guest = spawn(
        f"""(module (import "env" "memory" (memory {limits})) {pages}
          (func (export "load") (param {kind}) (result i32) (i32.load (local.get 0)))
          (func (export "size") (result {kind}) memory.size))"""
    )
    window = guest.window
    assert window is not None
    assert _call(guest, "size") == (WHOLE if wide else int(limits.split()[0]))
    window.attach([grant])
    address = window.guest_address(AppAddress(START + 4))
    assert _call(guest, "load", address) == 0
    assert len(guest.memory()) == WASM_PAGE * (1 if wide else int(limits.split()[0]))
    window.close()


def test_imported_memory_is_kept_below_a_window_to_come(spawn):
    text = """(module (import "env" "memory" (memory 1)) (func $begin (drop (memory.grow (i32.const 65535)))) (start $begin)
      (func (export "size") (result i32) memory.size))"""
    assert _call(spawn(text, start=START), "size") == 1
    assert _call(spawn(text), "size") == WINDOW_END // WASM_PAGE


def test_imported_memory_that_is_too_large_is_refused(spawn):
    with pytest.raises(InstantiationError, match="exceeds memory limits"):
        spawn(f'(module (import "env" "memory" (memory {START // WASM_PAGE + 1})))', start=START)


def test_imported_tables_are_made_empty(spawn):
    guest = spawn(
        """(module (import "env" "functions" (table $f 3 funcref)) (import "env" "others" (table $e 2 9 externref))
          (import "env" "wide" (table $w i64 5 funcref))
          (func (export "sizes") (result i32 i32 i64) (table.size $f) (table.size $e) (table.size $w))
          (func (export "empty") (result i32) (ref.is_null (table.get $f (i32.const 2)))))"""
    )
    assert _call(guest, "sizes") == (3, 2, 5)
    assert _call(guest, "empty") == 1


def test_imported_table_of_other_references_is_unsupported(spawn):
    with pytest.raises(UnsupportedError, match=r"table env\.t"):
        spawn('(module (type $s (struct)) (import "env" "t" (table 1 (ref null $s))))')


def test_imported_table_that_is_too_large_is_refused(spawn):
    with pytest.raises(InstantiationError):
        spawn('(module (import "env" "t" (table 4000000000 funcref)))')


@pytest.mark.parametrize(
    ("kind", "number", "seen"),
    [
        ("i32", -1, -1),
        ("i32", 0xFFFF_FFFE, -2),
        ("i64", 1 << 63, -(1 << 63)),
        ("f32", 0.5, 0.5),
        ("f64", -2.5, -2.5),
        ("f64", 3, 3.0),
    ],
)
@pytest.mark.parametrize("mutable", [True, False])
def test_imported_globals_hold_the_numbers_that_were_given(spawn, kind, number, seen, mutable):
    declared = f"(mut {kind})" if mutable else kind
    text = f"""(module (import "env" "g" (global $g {declared}))
      (func (export "read") (result {kind}) (global.get $g)))"""
    assert _call(spawn(text, numbers={("env", "g"): number}), "read") == seen


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('(module (import "env" "g" (global i32)))', "the global env.g"),
        ('(module (import "env" "t" (tag)))', "the tag env.t"),
        ('(module (import "env" "f" (func)))', "imports env.f"),
        ('(module (import "wasi_snapshot_preview1" "fd_write" (func)))', "WASI was not granted"),
    ],
)
def test_import_that_nobody_provides_is_named(spawn, text, reason):
    with pytest.raises(ModuleError, match=reason):
        spawn(text)


@pytest.mark.parametrize("kind", ["v128", "funcref", "externref"])
def test_imported_global_of_anything_but_a_number_is_unsupported(spawn, kind):
    with pytest.raises(UnsupportedError, match=r"global env\.g"):
        spawn(f'(module (import "env" "g" (global {kind})))', numbers={("env", "g"): 1})


# ------------------------------------------------------------ the start function that the rewriter takes out


BEGIN = f"""(module (import "env" "note" (func $note (param i32))) (memory (export "memory") 1) {ALIAS}
  (global $begun (mut i32) (i32.const 0)) (func (export "begun") (result i32) (global.get $begun))
  (func (export "{seam.BEGIN}") (call $note (i32.const 3)) (global.set $begun (i32.const 1))))"""


def test_start_function_that_was_taken_out_runs_once_before_any_call(spawn):
    seen = []
    guest = spawn(BEGIN, functions={("env", "note"): seen.append})
    assert seen == [3]
    assert _call(guest, "begun") == 1


def test_start_function_that_was_taken_out_fails_as_any(spawn):
    def refuse(value: int) -> None:
        raise InvalidFreeError("frames", 16, "it is no block")

    with pytest.raises(InstantiationError, match="0x10"):
        spawn(BEGIN, functions={("env", "note"): refuse})
    with pytest.raises(InstantiationError, match="unreachable"):
        spawn(f'(module (func (export "{seam.BEGIN}") unreachable))')


def test_start_function_that_was_taken_out_may_grow_a_64_bit_memory_below_the_window_to_come(spawn, grant):
    guest = spawn(
        f"""(module (memory (export "memory") i64 {WHOLE} {WHOLE}) (global (export "{seam.PAGES}") (mut i64) (i64.const 1))
          (table $host (export "{seam.HOST}") {seam.HOST_FUNCTIONS} funcref) (type $grow (func (param i64) (result i64)))
          (global $refused (mut i64) (i64.const 0)) (global $done (mut i64) (i64.const 0))
          (func $grow (param i64) (result i64)
            (call_indirect $host (type $grow) (local.get 0) (i32.const {seam.HOST_GROW})))
          (func (export "{seam.BEGIN}")
            (global.set $refused (call $grow (i64.const {WHOLE - 1})))
            (global.set $done (call $grow (i64.const {WHOLE - 2}))))
          (func (export "seen") (result i64 i64) (global.get $refused) (global.get $done)))""",
        start=START,
    )
    assert _call(guest, "seen") == (-1, 1)
    assert guest.window is not None
    guest.window.attach([grant])
    guest.window.close()


def test_reserved_exports_are_not_the_guests(spawn):
    guest = spawn(f'(module (memory (export "memory") 1) (func (export "{seam.BEGIN}")))')
    assert not guest.exports(seam.BEGIN)
    with pytest.raises(UnknownExportError):
        guest.function(seam.BEGIN)


def test_tens_of_thousands_of_exports_are_no_matter_for_a_spawn(spawn):
    count = 50_000  # listing them one by one would take minutes
    exports = "".join(f'(export "{number}" (func $last))' for number in range(count))
    guest = spawn(f"(module (func $last (result i32) (i32.const 7)) {exports})")
    assert _call(guest, f"{count - 1}") == 7


def test_import_whose_type_is_another_is_named(spawn):
    text = '(module (import "my" "number" (global i32)) (import "my" "number" (global f64)))'
    with pytest.raises(InstantiationError, match=r"my::number.*expected global of type `i32`, found global of type `f64`"):
        spawn(text, numbers={("my", "number"): 1})


def test_guest_with_an_alias_is_attached_through_both_mappings(spawn, grant):
    guest = spawn(
        f"""(module (memory (export "memory") 1) {ALIAS} {LOAD}
          (func (export "fill") (param i32) (memory.fill $alias (local.get 0) (i32.const 0x11) (i32.const 4))))"""
    )
    assert guest.window is not None
    guest.window.attach([grant])
    _call(guest, "fill", seam.ALIAS_CHAIN + 16)
    assert _call(guest, "load", START + 16) == 0x11111111
    guest.window.close()
