from __future__ import annotations

import os

import pytest
import wasmtime

from shmwasm.addresses import ORIGIN_64, WASM_PAGE, WINDOW_END, WINDOW_END_64, NativeAddress
from shmwasm.engine.heap_memory import check_memories
from shmwasm.engine.modules import describe
from shmwasm.engine.traps import GuestTrapError
from shmwasm.engine.windows import Grant, Window
from shmwasm.errors import AttachError, UnsupportedError
from shmwasm.posix.mappings import is_reserved, map_anywhere
from shmwasm.posix.segments import Segment
from shmwasm.rewrite import seam

SIZE = 1 << 20
START = WINDOW_END - SIZE
"""In everybody's address space but a 64-bit guest's."""

START_64 = WINDOW_END_64 - SIZE
FIRST_PAGES = 2
LOST = 1 << 63

WHOLE = WINDOW_END_64 // WASM_PAGE
FUNCTIONS = f"""
  (global (export "{seam.PAGES}") (mut i64) (i64.const {FIRST_PAGES}))
  (func (export "load") (param i64) (result i32) (i32.load (local.get 0)))
  (func (export "load_far") (param i64) (result i32) (i32.load offset=0xffff0000 (local.get 0)))
  (func (export "store") (param i64 i32) (i32.store (local.get 0) (local.get 1)))
  (func (export "add") (param i64 i32) (result i32) (i32.atomic.rmw.add (local.get 0) (local.get 1)))"""
MODULE = f'(module (memory (export "memory") i64 {WHOLE} {WHOLE}) (data (i64.const 64) "text") {FUNCTIONS})'
TEXT = int.from_bytes(b"text", "little")


class Guest64:
    """A guest with a 64-bit memory, as the rewriter declares it."""

    def __init__(self, guest, **options: object) -> None:
        self.guest = guest
        self.call = guest.call
        self.window = Window(guest.store, guest.memory, pages=guest.exports[seam.PAGES], **options)

    def traps(self, name: str, address: int, *arguments: int) -> bool:
        try:
            self.call(name, address, *arguments)
        except GuestTrapError as trap:
            return trap.description.code == "memory_out_of_bounds"
        return False


@pytest.fixture
def guest(make_guest):
    made = Guest64(make_guest(MODULE, limit=WINDOW_END_64))
    yield made
    made.window.close()


@pytest.fixture
def segment():
    with Segment.create(SIZE, name_for_errors="heap") as made:
        yield made


def _grant(segment: Segment, start: int = START, *, writable: bool = True) -> Grant:
    return Grant(heap="heap", start=start, size=SIZE, descriptor=segment.descriptor, writable=writable)  # type: ignore[arg-type]


def test_chain_lies_at_the_end_of_the_64_bit_range(guest, segment):
    guest.window.attach([_grant(segment)])
    guest.call("store", START_64 + 8, 77)
    assert os.pread(segment.descriptor, 4, 8) == (77).to_bytes(4, "little")
    assert guest.call("add", START_64 + 8, 1) == 77
    assert guest.call("load_far", START_64 + 8 - 0xFFFF_0000) == 78
    assert guest.window.guest_address(START) == START_64 == START + ORIGIN_64
    assert guest.window.native_address(START) == guest.window.base + START_64


def test_32_bit_and_64_bit_instances_share_a_heap(make_guest, guest, segment):
    narrow = make_guest(
        '(module (memory (export "memory") 1) (func (export "load") (param i32) (result i32) (i32.load (local.get 0))))'
    )
    Window(narrow.store, narrow.memory).attach([_grant(segment)])
    guest.window.attach([_grant(segment)])
    guest.call("store", START_64 + 400, 5)
    assert narrow.call("load", START + 400) == 5


@pytest.mark.parametrize("attached", [True, False])
def test_every_address_outside_memory_and_chain_traps(guest, segment, attached):
    if attached:
        guest.window.attach([_grant(segment)])
    end = FIRST_PAGES * WASM_PAGE
    addresses = [end, end - 3, WINDOW_END, START, START_64 - 1, WINDOW_END_64 - 3, WINDOW_END_64, 1 << 47, LOST, 2 * LOST - 4]
    for address in addresses if attached else [*addresses, START_64, WINDOW_END_64 - 4]:
        assert guest.traps("load", address), hex(address)
        assert guest.traps("store", address, 1), hex(address)
    assert guest.traps("load_far", 2 * LOST - 0xFFFF_0000 + 64)
    assert guest.call("load", 64) == TEXT
    assert guest.call("load", end - 4) == 0


def test_nothing_above_the_first_pages_is_accessible_from_the_beginning(guest):
    end = FIRST_PAGES * WASM_PAGE
    assert is_reserved(NativeAddress(guest.window.base + end), WINDOW_END_64 - end)


def test_stores_into_a_read_only_heap_trap(guest, segment):
    descriptor = segment.read_only_descriptor()
    guest.window.attach([Grant(heap="heap", start=START, size=SIZE, descriptor=descriptor, writable=False)])  # type: ignore[arg-type]
    os.close(descriptor)
    assert guest.traps("store", START_64, 1)
    assert guest.call("load", START_64) == 0


def test_memory_grows_by_whole_pages_of_zeros_up_to_the_window(guest, segment):
    assert guest.window.memory_size == FIRST_PAGES * WASM_PAGE
    assert guest.window.grow(0) == FIRST_PAGES
    assert guest.window.grow(1) == FIRST_PAGES
    assert guest.call("load", FIRST_PAGES * WASM_PAGE) == 0
    guest.call("store", (FIRST_PAGES + 1) * WASM_PAGE - 4, 3)
    assert guest.traps("load", (FIRST_PAGES + 1) * WASM_PAGE)
    assert guest.window.memory_size == (FIRST_PAGES + 1) * WASM_PAGE
    guest.window.attach([_grant(segment)])
    rest = START_64 // WASM_PAGE - FIRST_PAGES - 1
    assert guest.window.grow(rest + 1) == -1
    assert guest.window.grow(rest) == FIRST_PAGES + 1
    guest.call("store", START_64 - 4, 9)
    assert guest.window.grow(1) == -1
    assert os.pread(segment.descriptor, 4, 0) == bytes(4)


@pytest.mark.parametrize("pages", [-1, -(1 << 63), WHOLE, 1 << 46, (1 << 63) - 1])
def test_hostile_growth_is_refused_and_changes_nothing(guest, pages):
    assert guest.window.grow(pages) == -1
    assert guest.window.memory_size == FIRST_PAGES * WASM_PAGE
    assert guest.traps("load", FIRST_PAGES * WASM_PAGE)


def test_memory_is_kept_below_a_chain_that_is_still_to_come(make_guest, segment):
    guest = Guest64(make_guest(MODULE, limit=WINDOW_END_64), start=START)
    assert guest.window.grow(WHOLE - FIRST_PAGES - SIZE // WASM_PAGE + 1) == -1
    guest.window.attach([_grant(segment)])
    guest.window.detach()
    assert guest.window.grow(WHOLE - FIRST_PAGES) == FIRST_PAGES


def test_memory_that_reaches_the_window_is_refused_and_nothing_changes(guest, segment):
    assert guest.window.grow(START_64 // WASM_PAGE) == FIRST_PAGES
    with pytest.raises(AttachError, match=hex(START_64)):
        guest.window.attach([_grant(segment)])
    guest.call("store", START_64, 5)
    assert os.pread(segment.descriptor, 4, 0) == bytes(4)


def test_memory_grows_empty_over_what_a_chain_left(guest, segment):
    guest.window.attach([_grant(segment)])
    guest.call("store", START_64, 5)
    guest.window.detach()
    assert guest.traps("load", START_64)
    assert guest.window.grow(WHOLE - FIRST_PAGES) == FIRST_PAGES
    assert guest.call("load", START_64) == 0


def test_other_memories_of_the_store_cannot_become_larger_than_4_gib(make_guest):
    """The store's limit admits the 64-bit memory at its creation, and then no more than a 32-bit one."""
    text = f"""(module (memory (export "memory") i64 {WHOLE} {WHOLE}) (memory $other i64 0) {FUNCTIONS}
      (func (export "grow") (param i64) (result i64) (memory.grow $other (local.get 0))))"""
    guest = Guest64(make_guest(text, limit=WINDOW_END_64))
    assert guest.call("grow", WINDOW_END // WASM_PAGE + 1) == -1


def test_shared_linear_memory_is_seen_by_who_maps_its_file(guest, segment):
    guest.call("store", 128, 1)
    memory = guest.window.share_memory()
    assert (memory.size, memory.capacity) == (FIRST_PAGES * WASM_PAGE, WINDOW_END_64)
    guest.window.attach([_grant(segment)])
    with map_anywhere(memory.descriptor, memory.capacity, writable=True) as mapping:
        words = mapping.view.cast("I")
        assert (words[16], words[32]) == (TEXT, 1)
        assert guest.window.grow(3) == FIRST_PAGES
        guest.call("store", FIRST_PAGES * WASM_PAGE, 7)
        assert words[FIRST_PAGES * WASM_PAGE // 4] == 7
        assert guest.traps("load", (FIRST_PAGES + 3) * WASM_PAGE)
    assert guest.window.share_memory().size == (FIRST_PAGES + 3) * WASM_PAGE
    guest.call("store", START_64, 8)
    guest.window.detach()
    assert guest.traps("load", START_64)
    assert os.pread(memory.descriptor, 4, START_64) == bytes(4)
    assert os.pread(segment.descriptor, 4, 0) == (8).to_bytes(4, "little")


@pytest.mark.parametrize("limits", ["i64 2", f"i64 2 {WHOLE}", f"i64 {WHOLE - 1} {WHOLE}"])
def test_64_bit_memory_that_is_not_declared_whole_is_refused(make_guest, limits):
    guest = make_guest(f'(module (memory (export "memory") {limits}) {FUNCTIONS})', limit=WINDOW_END_64)
    with pytest.raises(UnsupportedError, match="whole range"):
        Guest64(guest)


def test_64_bit_memory_that_was_not_rewritten_is_refused_before_there_is_an_instance(engine):
    for limits in ("i64 1", "i64 1 2 shared"):
        description = describe(wasmtime.Module(engine, f'(module (memory (export "memory") {limits}))'))
        with pytest.raises(UnsupportedError, match="64-bit"):
            check_memories(description, START, heap="frames")
    check_memories(describe(wasmtime.Module(engine, MODULE)), START, heap="frames")


def test_64_bit_memory_that_takes_no_chain_does_not_stand_in_the_way(engine):
    description = describe(wasmtime.Module(engine, '(module (memory (export "memory") 1) (memory (export "other") i64 1))'))
    check_memories(description, START, heap="frames")
