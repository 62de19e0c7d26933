from __future__ import annotations

import pytest
import wasmtime

from shmwasm.addresses import ORIGIN_64, OS_PAGE, WASM_PAGE, WINDOW_END, WINDOW_END_64
from shmwasm.errors import InstantiationError
from shmwasm.rewrite import rewrite, seam

WHOLE = WINDOW_END_64 // WASM_PAGE
FUNCTIONS = """
  (func (export "size") (result i64) memory.size)
  (func (export "grow") (param i64) (result i64) (memory.grow (local.get 0)))
  (func (export "load") (param i64) (result i32) (i32.load (local.get 0)))
  (func (export "store") (param i64 i32) (i32.store (local.get 0) (local.get 1)))"""


def module(limits: str, more: str = "") -> str:
    return f'(module (memory (export "memory") i64 {limits}) {FUNCTIONS} {more})'


def test_guest_sees_the_size_that_it_declared_and_grew_to(make_guest):
    guest = make_guest(module("2"))
    assert guest.call("size") == 2
    assert guest.call("grow", 0) == 2
    assert guest.trap("load", 2 * WASM_PAGE) == "memory_out_of_bounds"
    assert guest.call("grow", 3) == 2
    assert guest.call("size") == 5
    guest.call("store", 5 * WASM_PAGE - 4, 7)
    assert guest.call("load", 5 * WASM_PAGE - 4) == 7
    assert guest.trap("load", 5 * WASM_PAGE) == "memory_out_of_bounds"


@pytest.mark.parametrize("delta", [3, WHOLE, 1 << 48, 1 << 63, (1 << 64) - 1, (1 << 64) - 2])
def test_growth_beyond_the_declared_maximum_is_refused(make_guest, delta):
    guest = make_guest(module("2 4"))
    assert guest.call("grow", delta) == -1
    assert guest.call("size") == 2
    assert guest.call("grow", 2) == 2
    assert guest.call("grow", 1) == -1


def test_memory_without_a_maximum_ends_where_the_window_does(make_guest):
    guest = make_guest(module("2"))
    assert guest.call("grow", WHOLE - 1) == -1
    assert guest.call("grow", (1 << 64) - 2) == -1


def test_growth_stops_at_the_chain(make_guest, make_chain):
    guest = make_guest(module("2"))
    guest.window.attach(make_chain((WASM_PAGE, True)).grants())
    assert guest.call("grow", WHOLE - 2) == -1
    assert guest.call("size") == 2
    guest.call("store", ORIGIN_64 + WINDOW_END - OS_PAGE, 5)
    assert guest.call("load", ORIGIN_64 + WINDOW_END - OS_PAGE) == 5


def test_start_function_finds_the_memory_as_it_is_declared(make_guest):
    start = """(global $seen (export "seen") (mut i64) (i64.const 0)) (start $first)
      (func $first (drop (memory.grow (i64.const 1))) (global.set $seen (memory.size))
        (i32.store (i64.const 131072) (i32.const 9)))"""
    guest = make_guest(module("2", start))
    assert guest.exports["seen"].value(guest.store) == 3
    assert guest.call("load", 2 * WASM_PAGE) == 9
    with pytest.raises(InstantiationError, match="out of bounds"):
        make_guest(module("2", "(start $first) (func $first (drop (i32.load (i64.const 131072))))"))


@pytest.mark.parametrize("address", [2 * WASM_PAGE - 2, 1 << 30, WINDOW_END_64 - 8, (1 << 64) - 1])
def test_data_beyond_the_declared_memory_ends_instantiation(make_guest, address):
    with pytest.raises(InstantiationError, match="out of bounds"):
        make_guest(module("2", f'(data (i64.const {address}) "text")'))
    guest = make_guest(module("2", '(data (i64.const 131068) "text")'))
    assert guest.call("load", 2 * WASM_PAGE - 4) == int.from_bytes(b"text", "little")


def test_imported_64_bit_memory_is_declared_over_the_whole_range(make_guest):
    guest = make_guest(f'(module (import "env" "memory" (memory i64 2 9)) {FUNCTIONS} (data (i64.const 4) "text"))')
    assert guest.call("size") == 2
    assert guest.call("load", 4) == int.from_bytes(b"text", "little")
    assert guest.call("grow", 7) == 2
    assert guest.call("grow", 1) == -1
    assert guest.trap("load", 9 * WASM_PAGE) == "memory_out_of_bounds"


def test_other_64_bit_memories_keep_their_instructions(make_guest):
    other = """(memory $other (export "other") i64 1 2)
      (func (export "other_size") (result i64) (memory.size $other))
      (func (export "other_grow") (param i64) (result i64) (memory.grow $other (local.get 0)))"""
    guest = make_guest(module("2", other))
    assert (guest.call("other_size"), guest.call("other_grow", 1), guest.call("other_size")) == (1, 1, 2)
    assert guest.call("size") == 2


@pytest.mark.parametrize(
    ("limits", "more"),
    [
        ("1 2 shared", ""),
        (f"{WHOLE + 1}", ""),
        ("1", '(global $base (import "env" "base") i64) (data (global.get $base) "text")'),
    ],
)
def test_64_bit_memory_that_can_have_no_chain_stays_as_it_is(limits, more):
    content = bytes(wasmtime.wat2wasm(f'(module {more} (memory (export "memory") i64 {limits}) {FUNCTIONS})'))
    rewritten, report = rewrite(content)
    assert rewritten == content
    assert not report.changed
    assert seam.PAGES.encode() not in rewritten
