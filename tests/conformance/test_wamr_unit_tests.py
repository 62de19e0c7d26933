"""The behaviours of WAMR's own unit tests for shared heaps, by their numbers in its order.

Where WAMR traps at the seam of two heaps, ours works.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from shmwasm import errors, on_client, wamr
from shmwasm.addresses import OS_PAGE, SLAB_SIZE, WINDOW_END, WINDOW_END_64

if TYPE_CHECKING:
    from shmwasm import Instance, Module, Runtime, SharedHeap
    from shmwasm.engine.callers import Caller
    from tests.conformance.conftest import Heap, Load, Memory, Spawn


FILLING = """(module
  (memory (export "memory") 1)
  (func (export "memory_fill") (param i32 i32 i32) (memory.fill (local.get 0) (local.get 1) (local.get 2))))"""


def traps(instance: Instance, export: str, *arguments: int) -> bool:
    """Tell whether the call traps because of the memory it touches."""
    try:
        instance.call(export, *arguments)
    except errors.WorkerTrapError as error:
        return error.code == "memory_out_of_bounds"
    return False


@pytest.fixture
def pair(preallocated: Heap) -> tuple[SharedHeap, SharedHeap]:
    """A chain of two preallocated heaps of a page."""
    first, second = preallocated(), preallocated()
    wamr.wasm_runtime_chain_shared_heaps(first, second)
    return first, second


def test_01_a_guest_allocates_stores_loads_and_frees(managed: Heap, spawn: Spawn) -> None:
    instance = spawn(managed())
    assert instance.call("malloc_store_load_free") == 10
    wamr.wasm_runtime_detach_shared_heap(instance)


def test_02_a_guest_gets_null_for_more_than_the_heap(managed: Heap, spawn: Spawn) -> None:
    heap = managed()
    instance = spawn(heap)
    assert instance.call("malloc", heap.size + 1) == 0
    assert instance.call("malloc", 0xFFFF_FFFF) == 0


def test_03_a_guest_gets_null_from_a_preallocated_heap(preallocated: Heap, spawn: Spawn) -> None:
    assert spawn(preallocated()).call("malloc", 4) == 0


def test_04_the_host_converts_an_address_in_a_block_and_none_4_gib_beyond(managed: Heap, spawn: Spawn) -> None:
    instance = spawn(managed())
    offset, native = wamr.wasm_runtime_shared_heap_malloc(instance, 10)
    assert native is not None
    assert wamr.wasm_runtime_validate_app_addr(instance, offset, 10)
    assert wamr.wasm_runtime_addr_app_to_native(instance, offset + 4) is not None
    beyond = offset + (1 << 32) + 0x1FFF
    assert not wamr.wasm_runtime_validate_app_addr(instance, beyond, 1)
    assert wamr.wasm_runtime_addr_app_to_native(instance, beyond) is None
    wamr.wasm_runtime_shared_heap_free(instance, offset)


def test_05_first_and_last_byte_of_a_preallocated_heap_are_read_and_written(
    memory: Memory, preallocated: Heap, spawn: Spawn
) -> None:
    source = memory(OS_PAGE)
    source.buf[0], source.buf[OS_PAGE - 1] = 3, 4
    heap = preallocated(source)
    instance = spawn(heap)
    assert instance.call("exchange8", heap.start, 101) == 3
    assert instance.call("exchange8", WINDOW_END - 1, 98) == 4
    assert (source.buf[0], source.buf[OS_PAGE - 1]) == (101, 98)


def test_06_first_and_last_bytes_of_a_chain_are_read_and_written(pair: tuple[SharedHeap, SharedHeap], spawn: Spawn) -> None:
    first, second = pair
    instance = spawn(first)
    places = [(first, first.size - 1), (second, 0), (first, 0), (second, second.size - 1)]
    for value, (heap, offset) in enumerate(places, start=11):
        assert instance.call("exchange8", heap.start + offset, value) == 0
    assert [heap.view[offset] for heap, offset in places] == [11, 12, 13, 14]


def test_07_memory_fill_reaches_the_bytes_at_the_edges_of_both_heaps(
    pair: tuple[SharedHeap, SharedHeap], spawn: Spawn, load: Load
) -> None:
    first, second = pair
    instance = spawn(first, load(FILLING))
    places = [(first, first.size - 1), (second, 0), (second, second.size - 1)]
    for value, (heap, offset) in enumerate(places, start=21):
        instance.call("memory_fill", heap.start + offset, value, 1)
        instance.call("memory_fill", heap.start + offset, 99, 0)
    instance.call("memory_fill", WINDOW_END - 1, 99, 0)
    assert [heap.view[offset] for heap, offset in places] == [21, 22, 23]


def test_08_memory_fill_works_over_the_seam_and_traps_over_the_end_before_it_writes(
    pair: tuple[SharedHeap, SharedHeap], spawn: Spawn, load: Load
) -> None:
    first, second = pair
    instance = spawn(first, load(FILLING))
    instance.call("memory_fill", second.start - 8, 7, 16)
    assert bytes(first.view[-9:]) == b"\0" + b"\7" * 8
    assert bytes(second.view[:9]) == b"\7" * 8 + b"\0"
    assert traps(instance, "memory_fill", WINDOW_END - 8, 9, 9)
    assert traps(instance, "memory_fill", first.start, 9, first.size + second.size + 1)
    assert not any(9 in bytes(heap.view) for heap in pair)


def test_09_two_bytes_at_the_edges_of_a_heap_trap(preallocated: Heap, spawn: Spawn) -> None:
    heap = preallocated()
    instance = spawn(heap)
    assert traps(instance, "exchange16", WINDOW_END - 1, 1)
    assert traps(instance, "exchange16", heap.start - 1, 1)
    assert bytes(heap.view) == bytes(heap.size)


def test_10_two_bytes_over_the_seam_work_and_trap_at_the_end(pair: tuple[SharedHeap, SharedHeap], spawn: Spawn) -> None:
    first, second = pair
    instance = spawn(first)
    assert instance.call("exchange16", second.start - 1, 0x0201) == 0
    assert (first.view[-1], second.view[0]) == (1, 2)
    assert traps(instance, "exchange16", WINDOW_END - 1, 1)


def test_11_two_bytes_at_the_edges_of_a_heap_trap_in_a_64_bit_guest(preallocated: Heap, spawn: Spawn, guest_64: Module) -> None:
    heap = preallocated()
    instance = spawn(heap, guest_64)
    assert traps(instance, "exchange16", WINDOW_END_64 - 1, 1)
    assert traps(instance, "exchange16", WINDOW_END_64, 1)
    assert traps(instance, "exchange16", WINDOW_END_64 - heap.size - 1, 1)
    assert bytes(heap.view) == bytes(heap.size)


def test_12_two_bytes_over_the_seam_work_in_a_64_bit_guest_and_trap_at_the_end(
    pair: tuple[SharedHeap, SharedHeap], spawn: Spawn, guest_64: Module
) -> None:
    first, second = pair
    instance = spawn(first, guest_64)
    assert instance.call("exchange16", WINDOW_END_64 - second.size - 1, 0x0201) == 0
    assert (first.view[-1], second.view[0]) == (1, 2)
    assert traps(instance, "exchange16", WINDOW_END_64 - 1, 1)


def test_13_a_guests_block_converts_to_native_and_back(managed: Heap, spawn: Spawn) -> None:
    instance = spawn(managed())
    address = instance.call("malloc", 16)
    assert isinstance(address, int)
    native = wamr.wasm_runtime_addr_app_to_native(instance, address)
    assert native is not None
    assert wamr.wasm_runtime_addr_native_to_app(instance, native) == address & 0xFFFF_FFFF
    instance.call("free", address)


@pytest.fixture
def calling(load: Load) -> Module:
    """A guest that gives an address to a host function, which writes there."""

    def write(caller: Caller, address: int) -> None:
        caller.view(address, 4)[:] = b"host"

    return load(
        """(module
             (import "host" "write" (func $write (param i32)))
             (memory (export "memory") 1)
             (func (export "write") (param i32) (call $write (local.get 0))))""",
        imports={"host": {"write": on_client(write)}},
    )


def test_14_an_address_below_the_heap_given_to_a_host_function_traps(managed: Heap, spawn: Spawn, calling: Module) -> None:
    heap = managed()
    instance = spawn(heap, calling)
    with pytest.raises(errors.HostFunctionError, match=f"{heap.start - 1:#x}"):
        instance.call("write", heap.start - 1)
    instance.call("write", heap.start)
    assert bytes(heap.view[:4]) == b"host"


def test_15_an_address_below_a_mixed_chain_given_to_a_host_function_traps(
    managed: Heap, preallocated: Heap, spawn: Spawn, calling: Module
) -> None:
    body, head = managed(), preallocated()
    wamr.wasm_runtime_chain_shared_heaps(head, body)
    instance = spawn(head, calling)
    with pytest.raises(errors.HostFunctionError, match=f"{head.start - 1:#x}"):
        instance.call("write", head.start - 1)
    for heap in (head, body):
        instance.call("write", heap.start)
        assert bytes(heap.view[:4]) == b"host"


def test_16_a_guest_allocates_from_both_of_two_managed_heaps(managed: Heap, spawn: Spawn) -> None:
    first, second = managed(), managed()
    wamr.wasm_runtime_chain_shared_heaps(first, second)
    instance = spawn(first)
    blocks = [instance.call("malloc", SLAB_SIZE) for _ in range(3)]
    assert [block & 0xFFFF_FFFF for block in blocks if isinstance(block, int)] == [first.start, second.start, 0]
    for block in blocks[1::-1]:
        instance.call("free", block)
    assert instance.call("malloc_store_load_free") == 10


def test_17_an_attached_head_is_not_chained(preallocated: Heap, spawn: Spawn) -> None:
    attached, other = preallocated(), preallocated()
    spawn(attached)
    for head, body in ((attached, other), (other, attached)):
        with pytest.raises(errors.ChainError, match="attached"):
            wamr.wasm_runtime_chain_shared_heaps(head, body)


def test_18_a_body_gets_no_second_head_and_a_chain_no_reversal(pair: tuple[SharedHeap, SharedHeap], preallocated: Heap) -> None:
    first, second = pair
    with pytest.raises(errors.ChainError, match="already a body"):
        wamr.wasm_runtime_chain_shared_heaps(preallocated(), second)
    with pytest.raises(errors.ChainError, match="already a body"):
        wamr.wasm_runtime_chain_shared_heaps(second, first)


def test_19_heaps_are_unchained_and_chained_anew(preallocated: Heap) -> None:
    one, two, three = preallocated(), preallocated(), preallocated()
    assert wamr.wasm_runtime_chain_shared_heaps(two, three) is two
    assert wamr.wasm_runtime_chain_shared_heaps(one, two) is one
    assert wamr.wasm_runtime_unchain_shared_heaps(one, entire_chain=False) is two
    assert wamr.wasm_runtime_unchain_shared_heaps(two, entire_chain=False) is three
    assert wamr.wasm_runtime_chain_shared_heaps(three, two) is three
    assert wamr.wasm_runtime_chain_shared_heaps(one, three) is one
    assert wamr.wasm_runtime_unchain_shared_heaps(one, entire_chain=True) is two
    assert {one.start, two.start, three.start} == {WINDOW_END - OS_PAGE}


def test_20_after_a_reset_the_first_address_is_given_again(managed: Heap, spawn: Spawn) -> None:
    heap = managed()
    before = spawn(heap)
    address = before.call("malloc", 48)
    wamr.wasm_runtime_detach_shared_heap(before)
    wamr.wasm_runtime_reset_shared_heap_chain(heap)
    assert spawn(heap).call("malloc", 48) == address


def test_21_reset_zeroes_a_preallocated_heap(preallocated: Heap, spawn: Spawn) -> None:
    heap = preallocated()
    instance = spawn(heap)
    instance.call("fill", heap.start, 0xEE, heap.size)
    assert bytes(heap.view) == b"\xee" * heap.size
    wamr.wasm_runtime_detach_shared_heap(instance)
    wamr.wasm_runtime_reset_shared_heap_chain(heap)
    assert bytes(heap.view) == bytes(heap.size)


def test_22_reset_is_refused_while_attached(pair: tuple[SharedHeap, SharedHeap], spawn: Spawn) -> None:
    first, second = pair
    second.view[0] = 9
    instance = spawn(first)
    with pytest.raises(errors.ChainError, match="attached"):
        wamr.wasm_runtime_reset_shared_heap_chain(first)
    assert second.view[0] == 9
    wamr.wasm_runtime_detach_shared_heap(instance)
    assert wamr.wasm_runtime_reset_shared_heap_chain(first)
    assert second.view[0] == 0


def test_23_the_highest_addresses_convert_and_back(pair: tuple[SharedHeap, SharedHeap], spawn: Spawn) -> None:
    instance = spawn(pair[0])
    for address in (0xFFFF_FFFF, 0xFFFF_F000):
        native = wamr.wasm_runtime_addr_app_to_native(instance, address)
        assert native is not None
        assert wamr.wasm_runtime_addr_native_to_app(instance, native) == address


def test_24_a_byte_just_below_the_chain_traps(pair: tuple[SharedHeap, SharedHeap], spawn: Spawn) -> None:
    instance = spawn(pair[0])
    assert traps(instance, "load8", pair[0].start - 1)
    assert traps(instance, "store8", pair[0].start - 1, 1)
    assert not traps(instance, "load8", pair[0].start)


@pytest.mark.parametrize("count", [2, 20], ids=["25_two", "36_twenty"])
def test_many_instances_use_one_heap_at_once(managed: Heap, process: Runtime, guest: Module, count: int) -> None:
    heap = managed(2 * count * SLAB_SIZE)
    with process.pool(guest, size=count, shared_heap=heap) as pool:
        futures = [instance.submit("malloc_store_load_free") for instance in pool.instances for _ in range(5)]
        assert [future.result() for future in futures] == [10] * (5 * count)
    assert heap.statistics().live_blocks == 0
    heap.verify()


def test_26_of_two_writers_at_once_every_byte_is_one_of_theirs(managed: Heap, spawn: Spawn) -> None:
    heap = managed(4 * SLAB_SIZE)
    one, other = spawn(heap), spawn(heap)
    block = heap.malloc(SLAB_SIZE)
    futures = [
        instance.submit("fill", block, value, block.size) for _ in range(10) for instance, value in ((one, 0x55), (other, 0xAA))
    ]
    for future in futures:
        future.result()
    assert set(bytes(block.view)) <= {0x55, 0xAA}


def test_27_what_a_third_instance_writes_a_fourth_reads(managed: Heap, spawn: Spawn) -> None:
    heap = managed()
    spawn(heap)
    spawn(heap)
    third, fourth = spawn(heap), spawn(heap)
    block = heap.malloc(4)
    third.call("store32", block, 123)
    assert fourth.call("load32", block) == 123


def test_28_the_host_writes_and_clears_what_the_guest_reads(managed: Heap, spawn: Spawn) -> None:
    instance = spawn(managed())
    offset, native = wamr.wasm_runtime_shared_heap_malloc(instance, 16)
    assert native is not None
    native[:] = b"\x7f" * 16
    assert instance.call("load32", offset + 12) == 0x7F7F7F7F
    native[:] = bytes(16)
    assert instance.call("load32", offset + 12) == 0


def test_29_unaligned_access_to_a_heap_works(managed: Heap, spawn: Spawn) -> None:
    instance = spawn(managed())
    offset, native = wamr.wasm_runtime_shared_heap_malloc(instance, 16)
    assert native is not None
    for shift in range(1, 8):
        instance.call("exchange64", offset + shift, 0x0102030405060708)
        assert bytes(native[shift : shift + 8]) == bytes(range(8, 0, -1))


def test_30_memory_grows_to_its_maximum_beside_a_heap(managed: Heap, spawn: Spawn) -> None:
    instance = spawn(managed())
    assert instance.call("grow", 1) == 1
    assert instance.call("grow", 2) == 2
    assert instance.call("size") == 4
    assert instance.call("grow", 1) == -1
    assert instance.call("malloc_store_load_free") == 10


@pytest.mark.parametrize("address", [0x100, 0x103], ids=["31_aligned", "32_unaligned"])
def test_private_memory_is_read_and_written_beside_a_heap(managed: Heap, spawn: Spawn, address: int) -> None:
    instance = spawn(managed())
    instance.call("store32", address, 0x01020304)
    assert instance.call("load32", address) == 0x01020304
    assert instance.call("load8", address) == 4


def test_33_a_managed_heap_of_no_bytes_is_refused() -> None:
    with pytest.raises(errors.ArgumentError):
        wamr.wasm_runtime_create_shared_heap(wamr.SharedHeapInitArgs(size=0))


@pytest.mark.parametrize("size", [255, OS_PAGE - 1])
def test_33_a_managed_heap_of_a_few_bytes_has_64_kib(managed: Heap, size: int) -> None:
    assert managed(size).size == SLAB_SIZE


def test_33_a_heap_of_more_than_1_gib_is_made(process: Runtime) -> None:
    # Not reserved: the machine that runs the tests may have a small /dev/shm.
    with process.create_shared_heap((1 << 30) + 1, reserve=False) as heap:
        assert heap.size == (1 << 30) + SLAB_SIZE


@pytest.mark.parametrize("size", [0, OS_PAGE - 1])
def test_34_preallocated_memory_of_no_whole_page_is_refused(memory: Memory, size: int) -> None:
    with pytest.raises(errors.ArgumentError, match=str(size)):
        wamr.wasm_runtime_create_shared_heap(wamr.SharedHeapInitArgs(size=size, pre_allocated_addr=memory()))


def test_35_dividing_by_zero_still_traps(managed: Heap, spawn: Spawn) -> None:
    instance = spawn(managed())
    with pytest.raises(errors.WorkerTrapError) as trapped:
        instance.call("divide", 1, 0)
    assert trapped.value.code == "integer_division_by_zero"
    assert instance.call("divide", 6, 2) == 3


@pytest.fixture(params=[b"", b"\0asm", b"\0asm\1\0\0\0"], ids=["37_random", "38_with_magic", "39_with_header"])
def noise(request: pytest.FixtureRequest) -> bytes:
    """A megabyte of random bytes, the same every time."""
    return request.param + random.Random(0).randbytes(1 << 20)


def test_random_bytes_are_refused_and_nothing_dies(spawn: Spawn, noise: bytes) -> None:
    with pytest.raises(errors.ModuleError):
        wamr.wasm_runtime_load(noise)
    assert spawn().call("divide", 6, 2) == 3
