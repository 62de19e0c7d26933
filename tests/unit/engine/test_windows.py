from __future__ import annotations

import ctypes
import mmap
import os

import pytest
import wasmtime

from shmwasm.addresses import OS_PAGE, WASM_PAGE, WINDOW_END
from shmwasm.engine.heap_memory import check_memories
from shmwasm.engine.modules import MemoryType, ModuleDescription
from shmwasm.engine.traps import GuestTrapError
from shmwasm.engine.windows import Grant, Window, reserve
from shmwasm.errors import ArgumentError, AttachError, UnsupportedError
from shmwasm.posix.mappings import is_reserved, map_anywhere
from shmwasm.posix.segments import Segment

SIZE = 1 << 20
START = WINDOW_END - SIZE

FUNCTIONS = """
  (func (export "load") (param i32) (result i32) (i32.load (local.get 0)))
  (func (export "store") (param i32 i32) (i32.store (local.get 0) (local.get 1)))
  (func (export "size") (result i32) memory.size)
  (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))"""
GUEST = f"""(module (memory (export "memory") 1) (data (i32.const 64) "text") {FUNCTIONS})"""
TEXT = int.from_bytes(b"text", "little")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


@pytest.fixture
def segment():
    with Segment.create(SIZE, name_for_errors="heap") as made:
        yield made


@pytest.fixture
def guest(make_guest):
    return make_guest(GUEST)


@pytest.fixture
def window(guest):
    made = Window(guest.store, guest.memory)
    yield made
    made.close()


def _grant(segment: Segment, start: int = START, size: int | None = None, *, prefault: bool = False) -> Grant:
    return Grant(
        heap=segment.name_for_errors,
        start=start,  # type: ignore[arg-type]
        size=segment.size if size is None else size,
        descriptor=segment.descriptor,
        writable=True,
        prefault=prefault,
    )


def _traps(guest, name: str, *arguments: int) -> bool:
    """Return whether the call traps because of its address."""
    try:
        guest.call(name, *arguments)
    except GuestTrapError as trap:
        return trap.description.code == "memory_out_of_bounds"
    return False


@pytest.mark.parametrize("prefault", [True, False])
def test_guest_and_segment_see_each_others_writes(guest, window, segment, prefault):
    window.attach([_grant(segment, prefault=prefault)])
    guest.call("store", START + 8, 77)
    assert os.pread(segment.descriptor, 4, 8) == (77).to_bytes(4, "little")
    os.pwrite(segment.descriptor, (78).to_bytes(4, "little"), SIZE - 4)
    assert guest.call("load", WINDOW_END - 4) == 78


def test_addresses_between_memory_and_window_trap(guest, window, segment):
    window.attach([_grant(segment)])
    for address in (WASM_PAGE, 1 << 31, START - 4, START - 1, WINDOW_END - 3):
        assert _traps(guest, "load", address)
        assert _traps(guest, "store", address, 1)


def test_access_may_straddle_two_heaps(guest, window, segment):
    with Segment.create(SIZE, name_for_errors="body") as body:
        window.attach([_grant(segment), _grant(segment, START - SIZE)][::-1])
        window.detach()
        window.attach([_grant(body, START), _grant(segment, START - SIZE)])
        guest.call("store", START - 2, 0x44332211)
        assert os.pread(segment.descriptor, 2, SIZE - 2) == b"\x11\x22"
        assert os.pread(body.descriptor, 2, 0) == b"\x33\x44"


def test_memory_cannot_grow_into_a_writable_heap(guest, window, segment):
    """Without the store's limit, it could, and the heap would be reported as the guest's own memory."""
    window.attach([_grant(segment)])
    assert guest.call("grow", WINDOW_END // WASM_PAGE - 1) == -1
    assert guest.call("grow", START // WASM_PAGE) == -1
    assert guest.call("grow", START // WASM_PAGE - 1) == 1
    assert guest.call("grow", 1) == -1


def test_memory_cannot_grow_into_a_read_only_heap(guest, window, segment):
    """Without the store's limit, and with a writable descriptor, growing would make the heap writable."""
    read_only = segment.read_only_descriptor()
    window.attach([Grant(heap="heap", start=START, size=SIZE, descriptor=read_only, writable=False)])  # type: ignore[arg-type]
    os.close(read_only)
    assert guest.call("grow", WINDOW_END // WASM_PAGE - 1) == -1
    assert guest.call("grow", START // WASM_PAGE) == -1
    assert _traps(guest, "store", START, 1)
    assert guest.call("grow", START // WASM_PAGE - 1) == 1
    assert guest.call("size") == START // WASM_PAGE
    assert guest.call("grow", 1) == -1
    assert _traps(guest, "store", START, 1)


def test_read_only_heap_stays_read_only_even_if_its_pages_are_made_writable(guest, window, segment):
    read_only = segment.read_only_descriptor()
    window.attach([Grant(heap="heap", start=START, size=SIZE, descriptor=read_only, writable=False)])  # type: ignore[arg-type]
    os.close(read_only)
    assert _libc.mprotect(window.base + START, SIZE, mmap.PROT_READ | mmap.PROT_WRITE) == -1
    os.pwrite(segment.descriptor, b"data", 0)
    assert guest.call("load", START) == int.from_bytes(b"data", "little")
    assert _traps(guest, "store", START, 1)


def test_limit_holds_from_before_the_first_instruction(make_guest):
    """A start function that grows at once must not reach a window that is attached right afterwards."""
    text = f"""(module (memory (export "memory") 1) (global $grown (mut i32) (i32.const 0))
      (func $start (global.set $grown (memory.grow (i32.const {WINDOW_END // WASM_PAGE - 1}))))
      (func (export "grown") (result i32) (global.get $grown)) (start $start))"""
    assert make_guest(text, limit=START).call("grown") == -1
    assert make_guest(text).call("grown") == 1


def test_reserve_refuses_modules_whose_minimum_reaches_the_window(engine):
    store = wasmtime.Store(engine)
    reserve(store, START)
    with pytest.raises(wasmtime.WasmtimeError, match="exceeds memory limits"):
        wasmtime.Instance(store, wasmtime.Module(engine, f"(module (memory {START // WASM_PAGE + 1}))"), [])
    wasmtime.Instance(store, wasmtime.Module(engine, f"(module (memory {START // WASM_PAGE}))"), [])
    store.close()


@pytest.mark.parametrize(
    ("memory", "refusal"),
    [
        (MemoryType(START // WASM_PAGE, None, is_64=False, shared=False), None),
        (MemoryType(1, 65536, is_64=False, shared=False), None),
        (MemoryType(1, START // WASM_PAGE, is_64=False, shared=True), None),
        (MemoryType(START // WASM_PAGE + 1, None, is_64=False, shared=False), AttachError),
        (MemoryType(1, START // WASM_PAGE + 1, is_64=False, shared=True), AttachError),
        (MemoryType(1, None, is_64=True, shared=False), UnsupportedError),
    ],
)
def test_memories_are_checked_before_there_is_an_instance(memory, refusal):
    description = ModuleDescription((), {"memory": memory})
    if refusal is None:
        check_memories(description, START, heap="frames")
        return
    with pytest.raises(refusal):
        check_memories(description, START, heap="frames")


def test_memory_that_reaches_the_window_is_refused_and_nothing_changes(guest, window, segment):
    assert guest.call("grow", START // WASM_PAGE) == 1
    with pytest.raises(AttachError, match="reaches the window"):
        window.attach([_grant(segment)])
    assert window.grants == ()
    guest.call("store", START, 5)
    assert os.pread(segment.descriptor, 4, 0) == bytes(4)
    assert guest.call("grow", 1) != -1


def test_second_attach_is_refused_until_detached(guest, window, segment):
    window.attach([_grant(segment)])
    with pytest.raises(AttachError, match="detach it first"):
        window.attach([_grant(segment)])
    guest.call("store", START, 5)
    window.detach()
    window.attach([_grant(segment)])
    assert guest.call("load", START) == 5


def test_detached_addresses_trap_and_memory_may_grow_over_them_empty(guest, window, segment):
    window.attach([_grant(segment)])
    guest.call("store", START, 5)
    window.detach()
    window.detach()
    assert _traps(guest, "load", START)
    assert is_reserved(window.base + START, SIZE)
    assert guest.call("grow", WINDOW_END // WASM_PAGE - 1) == 1
    assert guest.call("load", START) == 0
    guest.call("store", START, 6)
    assert os.pread(segment.descriptor, 4, 0) == (5).to_bytes(4, "little")


def test_failure_half_way_unmaps_everything_and_gives_the_addresses_back(guest, window, segment):
    with Segment.create(OS_PAGE, name_for_errors="short") as short:
        grants = [_grant(segment, START - SIZE), _grant(short, START, SIZE)]
        with pytest.raises(ArgumentError, match="fewer than"):
            window.attach(grants)
    assert window.grants == ()
    assert _traps(guest, "load", START - SIZE)
    assert is_reserved(window.base + START - SIZE, 2 * SIZE)
    assert guest.call("grow", WINDOW_END // WASM_PAGE - 1) == 1


@pytest.mark.parametrize(
    ("start", "size"),
    [(START, 0), (START, -OS_PAGE), (START + 1, OS_PAGE), (START, 5), (WINDOW_END - OS_PAGE, 2 * OS_PAGE), (-OS_PAGE, OS_PAGE)],
)
def test_grants_outside_the_address_space_are_refused(window, segment, start, size):
    with pytest.raises(ArgumentError, match="cannot lie at"):
        window.attach([_grant(segment, start, size)])


def test_overlapping_and_absent_grants_are_refused(window, segment):
    with pytest.raises(ArgumentError, match="cannot lie at"):
        window.attach([_grant(segment), _grant(segment, START + OS_PAGE, OS_PAGE)])
    with pytest.raises(ArgumentError, match="no heaps"):
        window.attach([])


def test_writable_grant_of_a_read_only_descriptor_is_refused(guest, window, segment):
    read_only = segment.read_only_descriptor()
    with pytest.raises(ArgumentError, match="reading only"):
        window.attach([Grant(heap="heap", start=START, size=SIZE, descriptor=read_only, writable=True)])  # type: ignore[arg-type]
    os.close(read_only)
    assert _traps(guest, "load", START)


def test_next_instance_does_not_inherit_the_heap_of_a_dropped_one(make_guest, segment):
    """With wasmtime's pooling allocator it would: a slot is used again as it is."""
    os.pwrite(segment.descriptor, b"secret", 0)
    for _ in range(3):
        guest = make_guest(GUEST)
        assert _traps(guest, "load", START)
        assert guest.call("grow", WINDOW_END // WASM_PAGE - 1) == 1
        assert guest.call("load", START) == 0
        guest.store.close()
        guest = make_guest(GUEST)
        Window(guest.store, guest.memory).attach([_grant(segment)])
        assert guest.call("load", START) == int.from_bytes(b"secr", "little")
        guest.store.close()


def test_two_instances_of_one_process_share_a_heap_at_the_same_address(make_guest, segment):
    guests = [make_guest(GUEST), make_guest(GUEST)]
    for guest in guests:
        Window(guest.store, guest.memory).attach([_grant(segment)])
    guests[0].call("store", START + 4, 123)
    assert guests[1].call("load", START + 4) == 123


def test_other_memories_of_the_store_keep_working_below_the_limit(make_guest, segment):
    guest = make_guest(f"""(module (memory (export "memory") 1) (memory $other (export "other") 3) {FUNCTIONS}
      (func (export "grow_other") (param i32) (result i32) (memory.grow $other (local.get 0))))""")
    Window(guest.store, guest.memory).attach([_grant(segment)])
    assert guest.call("grow_other", 10) == 3
    assert guest.call("grow_other", WINDOW_END // WASM_PAGE - 13) == -1


def test_memory_without_pages_takes_a_chain(make_guest, segment):
    guest = make_guest(f'(module (memory (export "memory") 0) {FUNCTIONS})')
    Window(guest.store, guest.memory).attach([_grant(segment)])
    guest.call("store", START, 1)
    assert _traps(guest, "load", 0)


def test_64_bit_memory_is_unsupported(make_guest):
    guest = make_guest('(module (memory (export "memory") i64 1))')
    with pytest.raises(UnsupportedError, match="64-bit"):
        Window(guest.store, guest.memory)


def test_shared_memory_takes_a_chain_only_above_its_maximum(make_guest, segment):
    guest = make_guest(f'(module (memory (export "memory") 1 65536 shared) {FUNCTIONS})')
    with pytest.raises(AttachError, match="may grow into"):
        Window(guest.store, guest.memory).attach([_grant(segment)])
    guest = make_guest(f'(module (memory (export "memory") 1 4 shared) {FUNCTIONS})')
    Window(guest.store, guest.memory).attach([_grant(segment)])
    guest.call("store", START, 3)
    assert guest.call("grow", 100) == -1


def test_shared_linear_memory_is_seen_by_who_maps_its_file(guest, window):
    guest.call("store", 128, 1)
    memory = window.share_memory()
    assert memory.size == WASM_PAGE
    with map_anywhere(memory.descriptor, memory.capacity, writable=True) as mapping:
        words = mapping.view.cast("I")
        assert (words[16], words[32]) == (TEXT, 1)
        words[33] = 2
        assert guest.call("load", 132) == 2
        assert guest.call("grow", 3) == 1
        guest.call("store", 3 * WASM_PAGE, 7)
        assert words[3 * WASM_PAGE // 4] == 7
    assert window.share_memory() == memory._replace(size=4 * WASM_PAGE)


def test_shared_linear_memory_is_as_sparse_as_the_memory_was(make_guest):
    guest = make_guest(f'(module (memory (export "memory") 1024) {FUNCTIONS})')
    guest.call("store", 50 << 20, 9)
    window = Window(guest.store, guest.memory)
    memory = window.share_memory()
    assert os.fstat(memory.descriptor).st_blocks * 512 <= 4 << 20
    assert guest.call("load", 50 << 20) == 9
    window.close()
    window.close()


def test_shared_linear_memory_stays_contained_and_cannot_be_cut_short(guest, window):
    memory = window.share_memory()
    assert _traps(guest, "load", WASM_PAGE)
    with pytest.raises(PermissionError):
        os.ftruncate(memory.descriptor, 0)


def test_shared_linear_memory_and_a_chain_go_together_in_any_order(guest, window, segment):
    window.attach([_grant(segment)])
    memory = window.share_memory()
    guest.call("store", START, 1)
    window.detach()
    assert _traps(guest, "load", START)
    window.attach([_grant(segment)])
    assert guest.call("load", START) == 1
    window.detach()
    assert guest.call("grow", WINDOW_END // WASM_PAGE - 1) == 1
    guest.call("store", START, 8)
    assert os.pread(memory.descriptor, 4, START) == (8).to_bytes(4, "little")
    assert os.pread(segment.descriptor, 4, 0) == (1).to_bytes(4, "little")
