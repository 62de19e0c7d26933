from __future__ import annotations

import pytest
import wasmtime

from shmwasm.engine.traps import GuestTrapError, TrapDescription, describe


def _description(make_guest, body: str, fields: str = "", **options: object) -> TrapDescription:
    guest = make_guest(f'(module $unit {fields} (func $inner {body}) (func $outer (export "f") (call $inner)))', **options)
    with pytest.raises(GuestTrapError) as caught:
        guest.call("f")
    return caught.value.description


@pytest.mark.parametrize(
    ("code", "body"),
    [
        ("memory_out_of_bounds", "(drop (i32.load (i32.const 65536)))"),
        ("unreachable", "unreachable"),
        ("integer_division_by_zero", "(drop (i32.div_u (i32.const 1) (i32.const 0)))"),
        ("integer_overflow", "(drop (i32.div_s (i32.const 0x80000000) (i32.const -1)))"),
        ("bad_conversion_to_integer", "(drop (i32.trunc_f32_s (f32.const nan)))"),
        ("indirect_call_to_null", "(call_indirect (i32.const 0))"),
        ("table_out_of_bounds", "(call_indirect (i32.const 9))"),
        ("heap_misaligned", "(drop (i32.atomic.load (i32.const 1)))"),
        ("stack_overflow", "(call $inner)"),
        ("uncaught_exception", "(throw $tag)"),
    ],
)
def test_each_trap_has_its_name_and_the_guests_frames(make_guest, code, body):
    description = _description(make_guest, body, "(memory 1) (table 1 funcref) (tag $tag)")
    assert description.code == code
    assert "\n" not in description.message
    assert description.message
    assert description.backtrace[0].startswith("unit!inner @ 0x")
    assert not description.interrupted


def test_frames_are_innermost_first_with_offsets_of_the_module(make_guest):
    description = _description(make_guest, "unreachable")
    assert [frame.split(" @ ")[0] for frame in description.backtrace] == ["unit!inner", "unit!outer"]
    assert description.message == "wasm `unreachable` instruction executed"


def test_frames_without_names_have_the_functions_index(make_guest):
    guest = make_guest('(module (func) (func (export "f") unreachable))')
    with pytest.raises(GuestTrapError) as caught:
        guest.call("f")
    assert caught.value.description.backtrace[0].startswith("module!function 1 @ 0x")


def test_exit_of_a_wasi_guest_tells_its_code(make_guest, engine):
    linker = wasmtime.Linker(engine)
    linker.define_wasi()
    guest = make_guest(
        """(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
          (memory (export "memory") 1) (func (export "f") (call $exit (i32.const 7))))""",
        linker=linker,
    )
    guest.store.set_wasi(wasmtime.WasiConfig())
    with pytest.raises(GuestTrapError) as caught:
        guest.call("f")
    assert (caught.value.description.code, caught.value.description.exit_code) == ("exit", 7)


def test_traps_of_a_start_function_are_described_too(make_guest):
    with pytest.raises(wasmtime.Trap) as caught:
        make_guest("(module $unit (func $begin unreachable) (start $begin))")
    description = describe(caught.value)
    assert description.code == "unreachable"
    assert description.backtrace[0].startswith("unit!begin @ 0x")


def test_trap_raised_by_wasmtime_itself_is_described(make_guest):
    guest = make_guest('(module $unit (func $f (export "f") unreachable))')
    with pytest.raises(wasmtime.Trap) as caught:
        guest.exports["f"](guest.store)
    assert describe(caught.value).code == "unreachable"
    assert describe(GuestTrapError(describe(caught.value))).code == "unreachable"


def test_exception_is_described_as_a_host_functions():
    assert describe(ValueError("bad")).message == "a host function raised ValueError: bad"
