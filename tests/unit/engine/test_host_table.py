from __future__ import annotations

import gc
import os
import weakref

import pytest

from shmwasm.addresses import WASM_PAGE, WINDOW_END, WINDOW_END_64, AppAddress
from shmwasm.engine.host_table import HostTable
from shmwasm.engine.traps import GuestTrapError
from shmwasm.engine.windows import Grant, Window
from shmwasm.errors import ArgumentError
from shmwasm.posix.segments import Segment
from shmwasm.rewrite import seam

START = WINDOW_END - WASM_PAGE

FUNCTIONS = f"""
  (table $host (export "{seam.HOST}") {seam.HOST_FUNCTIONS} funcref)
  (type $wait32 (func (param i64 i32 i64) (result i32)))
  (type $wait64 (func (param i64 i64 i64) (result i32)))
  (type $notify (func (param i64 i32) (result i32)))
  (type $grow (func (param i64) (result i64)))
  (func (export "wait32") (param i64 i32 i64) (result i32)
    (call_indirect $host (type $wait32) (local.get 0) (local.get 1) (local.get 2) (i32.const {seam.HOST_WAIT32})))
  (func (export "wait64") (param i64 i64 i64) (result i32)
    (call_indirect $host (type $wait64) (local.get 0) (local.get 1) (local.get 2) (i32.const {seam.HOST_WAIT64})))
  (func (export "notify") (param i64 i32) (result i32)
    (call_indirect $host (type $notify) (local.get 0) (local.get 1) (i32.const {seam.HOST_NOTIFY})))
  (func (export "grow") (param i64) (result i64)
    (call_indirect $host (type $grow) (local.get 0) (i32.const {seam.HOST_GROW})))"""
MODULE_32 = f'(module (memory (export "memory") 1) {FUNCTIONS})'
MODULE_64 = f"""(module (memory (export "memory") i64 {WINDOW_END_64 // WASM_PAGE} {WINDOW_END_64 // WASM_PAGE})
  (global (export "{seam.PAGES}") (mut i64) (i64.const 1)) {FUNCTIONS})"""


class Recorder:
    """Futexes that note what they are asked for."""

    def __init__(self) -> None:
        self.seen: list[tuple[object, ...]] = []
        self.answer: int | Exception = 0

    def wait32(self, address: int, expected: int, timeout_ns: int) -> int:
        return self._note("wait32", address, expected, timeout_ns)

    def wait64(self, address: int, expected: int, timeout_ns: int) -> int:
        return self._note("wait64", address, expected, timeout_ns)

    def notify(self, address: int, count: int) -> int:
        return self._note("notify", address, count)

    def _note(self, *asked: object) -> int:
        self.seen.append(asked)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def futexes():
    return Recorder()


@pytest.fixture(params=[MODULE_32, MODULE_64], ids=["32", "64"])
def guest(make_guest, request, futexes):
    """A guest, attached to one heap; `first` is the heap's first address as the guest has it."""
    made = make_guest(request.param, limit=WINDOW_END_64)
    made.window = Window(made.store, made.memory, pages=made.exports.get(seam.PAGES))
    made.host_table = HostTable(made.store)
    made.host_table.fill(made.exports[seam.HOST], made.window, futexes)
    with Segment.create(WASM_PAGE, name_for_errors="heap") as segment:
        read_only = segment.read_only_descriptor()
        grant = Grant(heap="heap", start=AppAddress(START), size=WASM_PAGE, descriptor=read_only, writable=False)
        made.window.attach([grant])
        os.close(read_only)
        made.first = made.window.guest_address(AppAddress(START))
        yield made
        made.window.close()


def test_waits_and_notifications_get_the_native_address_in_the_mapping(guest, futexes):
    place = guest.window.base + guest.first
    futexes.answer = 2
    assert guest.call("wait32", guest.first + 8, -7, 1 << 40) == 2
    assert guest.call("wait64", guest.first + WASM_PAGE - 8, 1 << 63, -1) == 2
    assert guest.call("notify", guest.first, -1) == 2
    assert futexes.seen == [
        ("wait32", place + 8, -7, 1 << 40),
        ("wait64", place + WASM_PAGE - 8, -(1 << 63), -1),
        ("notify", place, (1 << 32) - 1),
    ]


@pytest.mark.parametrize("offset", [-4, -(1 << 31), WASM_PAGE, WASM_PAGE - 2, 1 << 62, -(1 << 62)])
def test_address_outside_the_chain_reaches_no_futex(guest, futexes, offset):
    address = (guest.first + offset) & ((1 << 64) - 1)
    for name, arguments in (("wait32", (0, 0)), ("wait64", (0, 0)), ("notify", (1,))):
        with pytest.raises(GuestTrapError) as caught:
            guest.call(name, address, *arguments)
        assert isinstance(caught.value.__cause__, ArgumentError)
    assert futexes.seen == []


def test_detached_addresses_reach_no_futex(guest, futexes):
    guest.window.detach()
    with pytest.raises(GuestTrapError, match="do not lie in an attached heap"):
        guest.call("notify", guest.first, 1)
    assert futexes.seen == []


def test_what_a_futex_raises_ends_the_call(guest, futexes):
    futexes.answer = RuntimeError("overdue")
    with pytest.raises(GuestTrapError) as caught:
        guest.call("wait32", guest.first, 0, 0)
    assert caught.value.__cause__ is futexes.answer


def test_without_futexes_a_wait_is_a_trap(make_guest):
    guest = make_guest(MODULE_32)
    HostTable(guest.store).fill(guest.exports[seam.HOST], Window(guest.store, guest.memory), None)
    with pytest.raises(GuestTrapError) as caught:
        guest.call("wait32", START, 0, 0)
    assert caught.value.description.code == "indirect_call_to_null"


def test_32_bit_memory_is_not_grown_by_the_host(make_guest, futexes):
    guest = make_guest(MODULE_32)
    HostTable(guest.store).fill(guest.exports[seam.HOST], Window(guest.store, guest.memory), futexes)
    with pytest.raises(GuestTrapError) as caught:
        guest.call("grow", 1)
    assert caught.value.description.code == "indirect_call_to_null"


def test_functions_do_not_keep_what_they_serve(make_guest, futexes):
    guest = make_guest(MODULE_32)
    made = HostTable(guest.store)
    made.fill(guest.exports[seam.HOST], Window(guest.store, guest.memory), futexes)
    gone = weakref.ref(made)
    del made
    gc.collect()
    assert gone() is None
