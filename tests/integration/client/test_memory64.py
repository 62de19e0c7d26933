"""Guests with 64-bit addresses, and heaps that they share with 32-bit ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shmwasm import Caller, Instance, Module, Runtime, SharedHeap, errors, on_client
from shmwasm.addresses import ORIGIN_64, SLAB_SIZE, WASM_PAGE, WINDOW_END, WINDOW_END_64

GUEST_64 = """(module
  (import "env" "shared_heap_malloc" (func $malloc (param i64) (result i64)))
  (import "env" "shared_heap_free" (func $free (param i64)))
  (import "env" "write" (func $write (param i64)))
  (memory (export "memory") i64 1 16)
  (func (export "malloc") (param i64) (result i64) (call $malloc (local.get 0)))
  (func (export "free") (param i64) (call $free (local.get 0)))
  (func (export "load") (param i64) (result i32) (i32.load (local.get 0)))
  (func (export "store") (param i64 i32) (i32.store (local.get 0) (local.get 1)))
  (func (export "narrow") (param i32) (result i32) (local.get 0))
  (func (export "follow") (param i64) (result i32) (i32.load (i64.load (local.get 0))))
  (func (export "write") (param i64) (call $write (local.get 0))))"""


def write(caller: Caller, address: int) -> None:
    """What the guest calls: writes at the address that it is given."""
    caller.view(address, 4)[:] = b"host"


@pytest.fixture(scope="module")
def module_64(shared_runtime: Runtime) -> Module:
    return shared_runtime.load(GUEST_64, imports={"env": {"write": on_client(write)}}, name="64-bit guest")


@pytest.fixture
def wide(shared_runtime: Runtime, module_64: Module, heap: SharedHeap) -> Iterator[Instance]:
    """A 64-bit instance, attached to `heap`."""
    with shared_runtime.spawn(module_64, shared_heap=heap) as one:
        yield one


def test_a_block_is_passed_to_a_64_bit_guest_as_the_guest_sees_it(wide: Instance, heap: SharedHeap) -> None:
    with heap.calloc(64) as block:
        wide.call("store", block, 0x01020304)
        assert bytes(block.view[:4]) == b"\x04\x03\x02\x01"
        assert wide.call("load", block.address_in(wide)) == 0x01020304
        assert WINDOW_END_64 - heap.size <= block.address_in(wide) < WINDOW_END_64


def test_instances_of_both_widths_see_one_block_at_their_own_addresses(
    wide: Instance, instance: Instance, heap: SharedHeap
) -> None:
    with heap.calloc(64) as block:
        wide.call("store", block, 77)
        assert instance.call("load", block) == 77
        instance.call("store", block, 99)
        assert wide.call("load", block) == 99
        assert block.address_in(instance) == block.address == heap.start + block.offset
        assert block.address_in(wide) == block.address + ORIGIN_64


def test_pointers_in_shared_data_are_those_of_every_64_bit_instance(
    shared_runtime: Runtime, module_64: Module, wide: Instance, heap: SharedHeap
) -> None:
    with heap.calloc(64) as target, heap.calloc(64) as pointer, shared_runtime.spawn(module_64, shared_heap=heap) as other:
        target.view[:4] = b"\x2a\0\0\0"
        pointer.view[:8] = target.address_in(wide).to_bytes(8, "little")
        assert wide.call("follow", pointer) == other.call("follow", pointer) == 42


@pytest.mark.parametrize("how", ["detached", "freed", "foreign"])
def test_a_block_has_no_address_where_the_instance_does_not_see_it(
    shared_runtime: Runtime, wide: Instance, heap: SharedHeap, how: str
) -> None:
    with shared_runtime.create_shared_heap(SLAB_SIZE) as other:
        block = (other if how == "foreign" else heap).malloc(64)
        if how == "detached":
            wide.detach_shared_heap()
        elif how == "freed":
            block.free()
        with pytest.raises(errors.ArgumentError, match="freed" if how == "freed" else "not attached"):
            block.address_in(wide)
        if how != "freed":
            block.free()


def test_a_block_has_no_address_in_an_instance_that_was_closed(
    shared_runtime: Runtime, module_64: Module, heap: SharedHeap
) -> None:
    gone = shared_runtime.spawn(module_64, shared_heap=heap)
    gone.close()
    with heap.malloc(64) as block, pytest.raises(errors.ClosedError, match=f"instance {gone.number}"):
        block.address_in(gone)


@pytest.mark.parametrize("no_instance", [None, 5, "wide"])
def test_a_block_has_no_address_in_what_is_no_instance(heap: SharedHeap, no_instance: object) -> None:
    with heap.malloc(64) as block, pytest.raises(errors.ArgumentError, match="not an instance"):
        block.address_in(no_instance)


def test_a_block_does_not_fit_into_a_32_bit_parameter_of_a_64_bit_guest(wide: Instance, heap: SharedHeap) -> None:
    with heap.malloc(64) as block, pytest.raises(errors.ArgumentError, match="no i32"):
        wide.call("narrow", block)


def test_what_a_64_bit_guest_allocates_is_found_and_freed_by_its_address(wide: Instance, heap: SharedHeap) -> None:
    first, second, third = (wide.call("malloc", 100) for _ in range(3))
    assert all(WINDOW_END_64 - heap.size <= address < WINDOW_END_64 for address in (first, second, third))
    wide.call("store", first, 5)
    block = heap.block_at(first, 100)
    assert (block.view[0], block.address_in(wide)) == (5, first)
    assert heap.usable_size(first) >= 100
    heap.free(first)
    heap.free_address(second)
    wide.call("free", third)
    assert heap.statistics().live_blocks == 0


@pytest.mark.parametrize("size", [0, 1 << 32, (1 << 32) + 64, 1 << 63, (1 << 64) - 1])
def test_a_64_bit_guest_gets_null_for_a_size_that_cannot_be_had(wide: Instance, heap: SharedHeap, size: int) -> None:
    assert wide.call("malloc", size) == 0
    assert heap.statistics().live_blocks == 0


@pytest.mark.parametrize("place", ["twice", "inside", "32-bit", "private", "wrapped"])
def test_a_bad_free_of_a_64_bit_guest_traps_with_its_address(wide: Instance, heap: SharedHeap, place: str) -> None:
    address = wide.call("malloc", 64)
    wrong = {"twice": address, "inside": address + 16, "32-bit": address - ORIGIN_64, "private": 4096, "wrapped": -16}[place]
    if place == "twice":
        wide.call("free", address)
    with pytest.raises(errors.WorkerTrapError, match=f"{wrong % (1 << 64):#x}"):
        wide.call("free", wrong)
    wide.call("free", 0)
    heap.verify()


@pytest.mark.parametrize("address", [WINDOW_END, ORIGIN_64 - 16, WINDOW_END_64, 1 << 63])
def test_an_address_between_the_windows_is_none(heap: SharedHeap, address: int) -> None:
    for use in (heap.block_at, heap.free, heap.free_address, heap.usable_size):
        with pytest.raises(errors.ArgumentError, match=r"address"):
            use(address)


def test_a_64_bit_address_outside_the_heap_is_no_block(heap: SharedHeap) -> None:
    with pytest.raises(errors.ArgumentError, match="not in shared heap"):
        heap.block_at(ORIGIN_64 + heap.start - 16)
    with pytest.raises(errors.InvalidFreeError):
        heap.free(ORIGIN_64 + heap.start - 16)


def test_host_functions_see_a_64_bit_guests_memory_and_heap(wide: Instance, heap: SharedHeap) -> None:
    with heap.calloc(64) as block:
        wide.call("write", block)
        assert bytes(block.view[:4]) == b"host"
        wide.call("write", 256)
        assert bytes(wide.memory[256:260]) == b"host"
        for wrong in (block.address, -16, WASM_PAGE, WINDOW_END_64 - 2):
            with pytest.raises(errors.HostFunctionError, match="lie neither"):
                wide.call("write", wrong)


def test_a_scrubbed_heap_is_clean_after_a_64_bit_guests_free(shared_runtime: Runtime, module_64: Module) -> None:
    with (
        shared_runtime.create_shared_heap(SLAB_SIZE, scrub=True) as heap,
        shared_runtime.spawn(module_64, shared_heap=heap) as instance,
    ):
        address = instance.call("malloc", 64)
        instance.call("store", address, -1)
        block = heap.block_at(address)
        assert bytes(block.view[:4]) == b"\xff" * 4
        instance.call("free", address)
        assert bytes(heap.view[block.offset : block.offset + 4]) == bytes(4)


def test_a_64_bit_instance_attaches_and_detaches_between_calls(
    shared_runtime: Runtime, module_64: Module, heap: SharedHeap
) -> None:
    with shared_runtime.spawn(module_64) as instance, heap.calloc(64) as block:
        address = block.address + ORIGIN_64
        for read_only in (False, True):
            with pytest.raises(errors.WorkerTrapError):
                instance.call("load", address)
            instance.attach_shared_heap(heap, read_only=read_only)
            assert instance.call("load", block) == 0
            if read_only:
                with pytest.raises(errors.WorkerTrapError):
                    instance.call("store", block, 1)
            instance.detach_shared_heap()
