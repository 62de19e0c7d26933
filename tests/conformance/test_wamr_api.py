"""WAMR's functions for shared heaps, one after the other: what each does, and what it refuses.

`memory.copy`, `memory.fill` and `memory.init`, and memory64, are not covered here.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from shmwasm import errors, wamr
from shmwasm.addresses import MAXIMUM_CHAIN_SIZE, OS_PAGE, SLAB_SIZE, WINDOW_END, WINDOW_END_64

if TYPE_CHECKING:
    from shmwasm import Module, Runtime
    from tests.conformance.conftest import Heap, Load, Memory, Spawn

SEAM = 8


@pytest.fixture
def uninitialised(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process in which `wasm_runtime_init` was not called yet."""
    monkeypatch.setattr(wamr, "_process", wamr._Process())
    yield
    assert wamr._process._runtime is None


# ---------------------------------------------------------------- init, destroy


@pytest.mark.usefixtures("uninitialised")
def test_nothing_works_before_init() -> None:
    arguments = {
        "wasm_runtime_load": [b""],
        "wasm_runtime_unload": [None],
        "wasm_runtime_unchain_shared_heaps": [None, False],
        "wasm_runtime_chain_shared_heaps": [None, None],
        "wasm_runtime_validate_app_addr": [None, 0, 1],
        "wasm_runtime_validate_native_addr": [None, memoryview(b"x"), 1],
        "wasm_runtime_addr_native_to_app": [None, memoryview(b"x")],
        "wasm_runtime_destroy": [],
        "wasm_runtime_instantiate": [None],
        "wasm_runtime_deinstantiate": [None],
        "wasm_runtime_call_wasm": [None],
        "wasm_runtime_create_shared_heap": [wamr.SharedHeapInitArgs(1)],
        "wasm_runtime_reset_shared_heap_chain": [None],
        "wasm_runtime_detach_shared_heap": [None],
        "wasm_runtime_detach_shared_heaps": [None],
    }
    for name in set(wamr.__all__) - {"SharedHeapInitArgs", "wasm_runtime_init"}:
        with pytest.raises(errors.ClosedError, match="wasm_runtime_init comes first"):
            getattr(wamr, name)(*arguments.get(name, [None, 0]))


@pytest.mark.usefixtures("uninitialised")
def test_each_init_needs_its_own_destroy() -> None:
    assert wamr.wasm_runtime_init()
    assert wamr.wasm_runtime_init()
    wamr.wasm_runtime_destroy()
    heap = wamr.wasm_runtime_create_shared_heap(wamr.SharedHeapInitArgs(size=1))
    wamr.wasm_runtime_destroy()
    with pytest.raises(errors.ClosedError):
        heap.malloc(1)
    with pytest.raises(errors.ClosedError):
        wamr.wasm_runtime_destroy()


@pytest.mark.usefixtures("uninitialised")
def test_init_replaces_a_runtime_whose_coordinator_is_gone() -> None:
    wamr.wasm_runtime_init()
    lost = wamr._process.runtime
    os.kill(lost._process.pid, signal.SIGKILL)
    with pytest.raises(errors.CoordinatorLostError):
        lost.verify()
    wamr.wasm_runtime_init()
    assert wamr._process.runtime.verify() == 0
    wamr.wasm_runtime_destroy()


def test_a_function_that_is_not_exported_is_not_found(spawn: Spawn) -> None:
    assert wamr.wasm_runtime_lookup_function(spawn(), "missing") is None


def test_a_function_that_was_looked_up_is_called_with_its_arguments(spawn: Spawn) -> None:
    divide = wamr.wasm_runtime_lookup_function(spawn(), "divide")
    assert divide is not None
    assert wamr.wasm_runtime_call_wasm(divide, -7, 2) == -3


def test_unloading_a_module_leaves_its_instances_and_allows_no_more(spawn: Spawn, load: Load) -> None:
    module = load('(module (memory (export "memory") 1) (func (export "one") (result i32) (i32.const 1)))')
    instance = spawn(module=module)
    wamr.wasm_runtime_unload(module)
    wamr.wasm_runtime_unload(module)
    assert instance.call("one") == 1
    with pytest.raises(errors.ClosedError):
        spawn(module=module)


def test_deinstantiating_twice_is_fine(spawn: Spawn) -> None:
    instance = spawn()
    wamr.wasm_runtime_deinstantiate(instance)
    wamr.wasm_runtime_deinstantiate(instance)
    assert not instance.alive


# ---------------------------------------------------------------- create


@pytest.mark.parametrize(("asked", "given"), [(1, SLAB_SIZE), (SLAB_SIZE, SLAB_SIZE), (SLAB_SIZE + 1, 2 * SLAB_SIZE)])
def test_a_managed_heap_is_rounded_up_to_64_kib(managed: Heap, asked: int, given: int) -> None:
    assert managed(asked).size == given


@pytest.mark.parametrize("size", [0, -1, WINDOW_END, 1 << 40])
def test_a_managed_heap_of_an_impossible_size_is_refused_with_the_size(size: int) -> None:
    with pytest.raises(errors.ArgumentError, match=str(size)):
        wamr.wasm_runtime_create_shared_heap(wamr.SharedHeapInitArgs(size=size))


def test_a_heap_as_large_as_the_window_can_be_made(process: Runtime) -> None:
    with process.create_shared_heap(MAXIMUM_CHAIN_SIZE, reserve=False) as heap:
        assert heap.start == WINDOW_END - MAXIMUM_CHAIN_SIZE


@pytest.mark.parametrize("size", [0, OS_PAGE - 1, OS_PAGE + 1, 3 * OS_PAGE])
def test_preallocated_memory_needs_a_size_in_pages_that_it_has(memory: Memory, size: int) -> None:
    source = memory(2 * OS_PAGE)
    with pytest.raises(errors.ArgumentError, match=str(size)):
        wamr.wasm_runtime_create_shared_heap(wamr.SharedHeapInitArgs(size=size, pre_allocated_addr=source))


def test_preallocated_memory_is_used_as_it_is(memory: Memory, preallocated: Heap) -> None:
    source = memory()
    source.buf[:5] = b"there"
    heap = preallocated(source)
    assert heap.view[:5] == b"there"
    heap.view[:5] = b"again"
    assert bytes(source.buf[:5]) == b"again"


@pytest.mark.parametrize("source", [-1, 10**6, "/nonexistent/file", 1.5])
def test_what_is_no_memory_is_refused(source: object) -> None:
    with pytest.raises(errors.ShmwasmError):
        wamr.wasm_runtime_create_shared_heap(wamr.SharedHeapInitArgs(size=OS_PAGE, pre_allocated_addr=source))


def test_a_file_that_is_larger_than_the_part_that_is_used_becomes_a_heap_of_that_part() -> None:
    with tempfile.TemporaryFile() as file:
        file.truncate(10 * OS_PAGE)
        arguments = wamr.SharedHeapInitArgs(size=OS_PAGE, pre_allocated_addr=file)
        with wamr.wasm_runtime_create_shared_heap(arguments) as heap:
            assert heap.size == OS_PAGE


# ---------------------------------------------------------------- chain, unchain, reset


def test_a_head_lies_directly_below_its_body_and_the_last_ends_at_4_gib(managed: Heap, preallocated: Heap) -> None:
    first, second, third = managed(), preallocated(), preallocated()
    assert wamr.wasm_runtime_chain_shared_heaps(second, third) is second
    assert wamr.wasm_runtime_chain_shared_heaps(first, second) is first
    assert third.start + third.size == WINDOW_END
    assert second.start + second.size == third.start
    assert first.start + first.size == second.start


def test_any_number_of_managed_heaps_can_be_chained(managed: Heap) -> None:
    heaps = [managed() for _ in range(5)]
    for body, head in pairwise(heaps):
        wamr.wasm_runtime_chain_shared_heaps(head, body)
    assert heaps[-1].start == WINDOW_END - 5 * SLAB_SIZE


def test_a_heap_is_not_chained_to_itself(managed: Heap) -> None:
    heap = managed()
    with pytest.raises(errors.ChainError, match="itself"):
        wamr.wasm_runtime_chain_shared_heaps(heap, heap)


def test_a_chain_has_no_cycle(preallocated: Heap) -> None:
    first, second, third = preallocated(), preallocated(), preallocated()
    wamr.wasm_runtime_chain_shared_heaps(second, third)
    wamr.wasm_runtime_chain_shared_heaps(first, second)
    for head in (first, second, third):
        with pytest.raises(errors.ChainError):
            wamr.wasm_runtime_chain_shared_heaps(head, first)
    assert [first.start, second.start, third.start] == [WINDOW_END - count * OS_PAGE for count in (3, 2, 1)]


def test_a_head_that_heads_a_chain_is_not_put_below_another(preallocated: Heap) -> None:
    head, body, other = preallocated(), preallocated(), preallocated()
    wamr.wasm_runtime_chain_shared_heaps(head, body)
    with pytest.raises(errors.ChainError, match="already heads a chain"):
        wamr.wasm_runtime_chain_shared_heaps(head, other)


def test_a_chain_that_does_not_fit_into_the_window_is_refused(process: Runtime) -> None:
    with process.create_shared_heap(2 << 30, reserve=False) as head, process.create_shared_heap(2 << 30, reserve=False) as body:
        with pytest.raises(errors.ChainError, match=str(1 << 32)):
            wamr.wasm_runtime_chain_shared_heaps(head, body)
        assert head.start == body.start == 2 << 30


def test_none_in_place_of_a_heap_is_a_named_error(managed: Heap, spawn: Spawn) -> None:
    heap, instance = managed(), spawn()
    with pytest.raises(errors.ArgumentError, match="None"):
        wamr.wasm_runtime_chain_shared_heaps(heap, None)
    with pytest.raises(errors.ArgumentError, match="None"):
        wamr.wasm_runtime_chain_shared_heaps(None, heap)
    with pytest.raises(errors.ArgumentError, match="None"):
        wamr.wasm_runtime_unchain_shared_heaps(None, False)
    with pytest.raises(errors.ArgumentError, match="None"):
        wamr.wasm_runtime_reset_shared_heap_chain(None)
    with pytest.raises(errors.ArgumentError, match="None"):
        wamr.wasm_runtime_attach_shared_heap(instance, None)
    with pytest.raises(errors.ArgumentError, match="None"):
        wamr.wasm_runtime_instantiate(None)
    assert instance.call("divide", 4, 2) == 2


def test_unchaining_a_body_is_refused(preallocated: Heap) -> None:
    head, body = preallocated(), preallocated()
    wamr.wasm_runtime_chain_shared_heaps(head, body)
    with pytest.raises(errors.ChainError, match="body"):
        wamr.wasm_runtime_unchain_shared_heaps(body, entire_chain=False)


def test_a_heap_alone_is_not_unchained(preallocated: Heap) -> None:
    with pytest.raises(errors.ChainError, match="heads no chain"):
        wamr.wasm_runtime_unchain_shared_heaps(preallocated(), entire_chain=True)


def test_unchained_heaps_end_at_4_gib_again(managed: Heap, preallocated: Heap) -> None:
    head, body = managed(), preallocated()
    wamr.wasm_runtime_chain_shared_heaps(head, body)
    assert wamr.wasm_runtime_unchain_shared_heaps(head, entire_chain=True) is body
    assert head.start == WINDOW_END - head.size
    assert body.start == WINDOW_END - body.size


def test_a_block_moves_with_its_heap(managed: Heap, preallocated: Heap) -> None:
    head, body = managed(), preallocated()
    block = head.malloc(8)
    before = block.address
    wamr.wasm_runtime_chain_shared_heaps(head, body)
    assert block.address == before - body.size
    head.free(block.address)


def test_resetting_a_body_is_refused(managed: Heap, preallocated: Heap) -> None:
    head, body = managed(), preallocated()
    wamr.wasm_runtime_chain_shared_heaps(head, body)
    with pytest.raises(errors.ChainError, match="body"):
        wamr.wasm_runtime_reset_shared_heap_chain(body)


def test_reset_empties_managed_heaps_and_zeroes_preallocated_ones(managed: Heap, preallocated: Heap) -> None:
    head, body = managed(), preallocated()
    wamr.wasm_runtime_chain_shared_heaps(head, body)
    head.malloc(100)
    body.view[:4] = b"full"
    assert wamr.wasm_runtime_reset_shared_heap_chain(head)
    assert head.statistics().live_blocks == 0
    assert bytes(body.view) == bytes(body.size)


# ---------------------------------------------------------------- attach, detach


@pytest.mark.parametrize("attach", [wamr.wasm_runtime_attach_shared_heap, wamr.wasm_runtime_attach_shared_heaps])
@pytest.mark.parametrize("detach", [wamr.wasm_runtime_detach_shared_heap, wamr.wasm_runtime_detach_shared_heaps])
def test_both_spellings_attach_and_detach(preallocated: Heap, spawn: Spawn, attach: object, detach: object) -> None:
    heap, instance = preallocated(), spawn()
    assert attach(instance, heap)
    instance.call("store8", heap.start, 7)
    assert heap.view[0] == 7
    detach(instance)
    with pytest.raises(errors.WorkerTrapError):
        instance.call("store8", heap.start, 8)
    assert heap.view[0] == 7


def test_a_second_heap_is_not_attached(preallocated: Heap, spawn: Spawn) -> None:
    first, second = preallocated(), preallocated()
    instance = spawn(first)
    with pytest.raises(errors.AttachError):
        wamr.wasm_runtime_attach_shared_heap(instance, second)
    assert instance.shared_heap is first


def test_a_body_is_not_attached(preallocated: Heap, spawn: Spawn) -> None:
    head, body = preallocated(), preallocated()
    wamr.wasm_runtime_chain_shared_heaps(head, body)
    with pytest.raises(errors.AttachError):
        spawn(body)


def test_a_heap_is_attached_again_after_it_was_detached(managed: Heap, spawn: Spawn) -> None:
    heap = managed()
    instance = spawn(heap)
    for _ in range(3):
        assert instance.call("malloc_store_load_free") == 10
        wamr.wasm_runtime_detach_shared_heap(instance)
        assert instance.call("malloc", 4) == 0
        wamr.wasm_runtime_attach_shared_heap(instance, heap)
    assert instance.call("malloc_store_load_free") == 10


def test_detaching_an_instance_that_is_attached_to_nothing_is_refused(spawn: Spawn) -> None:
    with pytest.raises(errors.AttachError):
        wamr.wasm_runtime_detach_shared_heap(spawn())


def test_a_heap_is_refused_where_linear_memory_reaches_it(process: Runtime, spawn: Spawn, load: Load) -> None:
    module = load('(module (memory (export "memory") 2))')
    with process.create_shared_heap(MAXIMUM_CHAIN_SIZE, reserve=False) as heap, pytest.raises(errors.AttachError):
        spawn(heap, module)


def test_a_read_only_heap_cannot_be_written_by_the_guest(managed: Heap, spawn: Spawn) -> None:
    heap, instance = managed(), spawn()
    block = heap.calloc(4)
    instance.attach_shared_heap(heap, read_only=True)
    assert instance.call("load8", block) == 0
    with pytest.raises(errors.WorkerTrapError):
        instance.call("store8", block, 1)
    assert bytes(block.view) == bytes(4)


# ---------------------------------------------------------------- malloc, free


def test_malloc_gives_an_app_offset_and_the_same_bytes(managed: Heap, spawn: Spawn) -> None:
    heap = managed()
    instance = spawn(heap)
    offset, native = wamr.wasm_runtime_shared_heap_malloc(instance, 100)
    assert native is not None
    assert len(native) == 100
    assert offset % 16 == 0
    native[3] = 42
    assert instance.call("load8", offset + 3) == 42
    wamr.wasm_runtime_shared_heap_free(instance, offset)


@pytest.mark.parametrize("size", [0, SLAB_SIZE + 1, 1 << 32, (1 << 32) + 16, 1 << 50])
def test_malloc_of_nothing_or_too_much_gives_0(managed: Heap, spawn: Spawn, size: int) -> None:
    assert wamr.wasm_runtime_shared_heap_malloc(spawn(managed()), size) == (0, None)


def test_malloc_without_a_managed_heap_gives_0(preallocated: Heap, spawn: Spawn) -> None:
    assert wamr.wasm_runtime_shared_heap_malloc(spawn(preallocated()), 16) == (0, None)
    assert wamr.wasm_runtime_shared_heap_malloc(spawn(), 16) == (0, None)


def test_malloc_takes_the_heaps_in_the_order_of_the_chain(managed: Heap, preallocated: Heap, spawn: Spawn) -> None:
    first, between, second = managed(), preallocated(), managed()
    wamr.wasm_runtime_chain_shared_heaps(between, second)
    wamr.wasm_runtime_chain_shared_heaps(first, between)
    instance = spawn(first)
    offsets = [wamr.wasm_runtime_shared_heap_malloc(instance, SLAB_SIZE)[0] for _ in range(3)]
    assert offsets == [first.start, second.start, 0]
    for offset in offsets[:2]:
        wamr.wasm_runtime_shared_heap_free(instance, offset)


def test_the_guest_frees_what_the_host_allocated_and_the_other_way_round(managed: Heap, spawn: Spawn) -> None:
    heap = managed(2 * SLAB_SIZE)
    instance = spawn(heap)
    ours, _ = wamr.wasm_runtime_shared_heap_malloc(instance, 32)
    theirs = instance.call("malloc", 32)
    instance.call("free", ours)
    wamr.wasm_runtime_shared_heap_free(instance, theirs)
    assert heap.statistics().live_blocks == 0


@pytest.mark.parametrize("distance", [1, 8, 16, -16, -(1 << 16), 1 << 16, 1 << 32])
def test_a_free_of_what_is_no_block_is_refused_and_changes_nothing(managed: Heap, spawn: Spawn, distance: int) -> None:
    heap = managed()
    instance = spawn(heap)
    offset, native = wamr.wasm_runtime_shared_heap_malloc(instance, 64)
    assert native is not None
    before = heap.statistics()
    with pytest.raises(errors.InvalidFreeError):
        wamr.wasm_runtime_shared_heap_free(instance, offset + distance)
    assert heap.statistics() == before
    wamr.wasm_runtime_shared_heap_free(instance, offset)


def test_a_second_free_is_refused(managed: Heap, spawn: Spawn) -> None:
    instance = spawn(managed())
    offset, _ = wamr.wasm_runtime_shared_heap_malloc(instance, 64)
    wamr.wasm_runtime_shared_heap_free(instance, offset)
    with pytest.raises(errors.InvalidFreeError, match=f"{offset:#x}"):
        wamr.wasm_runtime_shared_heap_free(instance, offset)


def test_a_guests_free_of_null_does_nothing(managed: Heap, spawn: Spawn) -> None:
    spawn(managed()).call("free", 0)


@pytest.mark.parametrize("address", [1, 0x1000, 0xFFFF_0010, 0xFFFF_FFFF])
def test_a_guests_free_of_what_is_no_block_traps_with_the_address(managed: Heap, spawn: Spawn, address: int) -> None:
    instance = spawn(managed())
    instance.call("malloc", 16)
    with pytest.raises(errors.WorkerTrapError, match=f"{address:#x}"):
        instance.call("free", address)
    assert instance.call("malloc_store_load_free") == 10


# ---------------------------------------------------------------- address conversion


def test_a_range_may_cross_from_heap_to_heap(managed: Heap, preallocated: Heap, spawn: Spawn) -> None:
    head, body = managed(), preallocated()
    wamr.wasm_runtime_chain_shared_heaps(head, body)
    instance = spawn(head)
    assert wamr.wasm_runtime_validate_app_addr(instance, body.start - SEAM, 2 * SEAM)
    assert wamr.wasm_runtime_validate_app_addr(instance, head.start, head.size + body.size)
    assert not wamr.wasm_runtime_validate_app_addr(instance, head.start, head.size + body.size + 1)
    assert not wamr.wasm_runtime_validate_app_addr(instance, head.start - 1, 2)
    assert not wamr.wasm_runtime_validate_app_addr(instance, head.start, -1)


def test_linear_memory_is_valid_up_to_its_present_end(managed: Heap, spawn: Spawn) -> None:
    instance = spawn(managed())
    assert wamr.wasm_runtime_validate_app_addr(instance, 0, 1 << 16)
    assert not wamr.wasm_runtime_validate_app_addr(instance, 0, (1 << 16) + 1)
    assert wamr.wasm_runtime_get_app_addr_range(instance, 5) == (0, 1 << 16)
    instance.call("grow", 1)
    assert wamr.wasm_runtime_validate_app_addr(instance, 0, 2 << 16)
    assert wamr.wasm_runtime_get_app_addr_range(instance, 1 << 16) == (0, 2 << 16)


def test_the_range_of_an_address_in_a_chain_is_the_window(managed: Heap, preallocated: Heap, spawn: Spawn) -> None:
    head, body = managed(), preallocated()
    wamr.wasm_runtime_chain_shared_heaps(head, body)
    instance = spawn(head)
    for address in (head.start, body.start, WINDOW_END - 1, -1):
        assert wamr.wasm_runtime_get_app_addr_range(instance, address) == (head.start, WINDOW_END)
    assert wamr.wasm_runtime_get_app_addr_range(instance, head.start - 1) is None
    assert wamr.wasm_runtime_get_app_addr_range(instance, WINDOW_END) is None


def test_app_and_native_addresses_convert_into_each_other(managed: Heap, preallocated: Heap, spawn: Spawn) -> None:
    head, body = managed(), preallocated()
    wamr.wasm_runtime_chain_shared_heaps(head, body)
    instance = spawn(head)
    for address, rest in (
        (0x40, (1 << 16) - 0x40),
        (head.start + 10, head.size - 10),
        (body.start - 1, 1),
        (body.start, body.size),
        (WINDOW_END - 1, 1),
    ):
        native = wamr.wasm_runtime_addr_app_to_native(instance, address)
        assert native is not None
        assert len(native) == rest
        assert wamr.wasm_runtime_addr_native_to_app(instance, native) == address
        assert wamr.wasm_runtime_validate_native_addr(instance, native, rest)
        assert not wamr.wasm_runtime_validate_native_addr(instance, native, rest + 1)
        native[0] = 77
        assert instance.call("load8", address) == 77


def test_a_64_bit_instances_addresses_convert_like_those_of_a_32_bit_one(
    managed: Heap, preallocated: Heap, spawn: Spawn, guest_64: Module
) -> None:
    head, body = preallocated(), managed()
    wamr.wasm_runtime_chain_shared_heaps(head, body)
    instance = spawn(head, guest_64)
    window = (WINDOW_END_64 - head.size - body.size, WINDOW_END_64)
    for address, rest in ((0x40, (1 << 16) - 0x40), (window[0], head.size), (WINDOW_END_64 - 1, 1)):
        native = wamr.wasm_runtime_addr_app_to_native(instance, address)
        assert native is not None
        assert len(native) == rest
        assert wamr.wasm_runtime_addr_native_to_app(instance, native) == address
        native[0] = 77
        assert instance.call("exchange8", address, 0) == 77
    assert wamr.wasm_runtime_get_app_addr_range(instance, window[0]) == window
    assert wamr.wasm_runtime_validate_app_addr(instance, window[0], head.size + body.size)
    assert not wamr.wasm_runtime_validate_app_addr(instance, window[0], head.size + body.size + 1)
    for address in (head.start, window[0] - 1, WINDOW_END_64, -1):
        assert wamr.wasm_runtime_get_app_addr_range(instance, address) is None
        assert wamr.wasm_runtime_addr_app_to_native(instance, address) is None
    offset, native = wamr.wasm_runtime_shared_heap_malloc(instance, 16)
    assert window[0] + head.size <= offset < WINDOW_END_64
    assert native is not None
    assert wamr.wasm_runtime_addr_native_to_app(instance, native) == offset
    wamr.wasm_runtime_shared_heap_free(instance, offset)
    with pytest.raises(errors.InvalidFreeError):
        wamr.wasm_runtime_shared_heap_free(instance, offset)


def test_what_the_instance_does_not_see_has_no_app_address(managed: Heap, spawn: Spawn) -> None:
    attached, other = managed(), managed()
    instance = spawn(attached)
    for native in (other.view, memoryview(b"elsewhere")):
        assert wamr.wasm_runtime_addr_native_to_app(instance, native) is None
        assert not wamr.wasm_runtime_validate_native_addr(instance, native, 1)


@pytest.mark.parametrize("native", [None, 4096, memoryview(b"abcdef")[::2]])
def test_what_is_no_view_of_bytes_is_refused(spawn: Spawn, native: object) -> None:
    with pytest.raises(errors.ArgumentError, match="view of bytes"):
        wamr.wasm_runtime_addr_native_to_app(spawn(), native)


# ---------------------------------------------------------------- access


def test_memory_does_not_grow_into_the_heap(process: Runtime, spawn: Spawn, load: Load) -> None:
    module = load(
        """(module (memory (export "memory") 1)
             (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0))))"""
    )
    with process.create_shared_heap(MAXIMUM_CHAIN_SIZE - (1 << 16), reserve=False) as heap:
        instance = spawn(heap, module)
        assert instance.call("grow", 2) == -1
        assert instance.call("grow", 1) == 1
        assert instance.call("grow", 1) == -1
        assert heap.start == 2 << 16


def test_an_access_that_straddles_two_heaps_works(preallocated: Heap, spawn: Spawn) -> None:
    head, body = preallocated(), preallocated()
    wamr.wasm_runtime_chain_shared_heaps(head, body)
    head.view[-4:] = bytes([1, 2, 3, 4])
    body.view[:4] = bytes([5, 6, 7, 8])
    instance = spawn(head)
    assert instance.call("exchange64", body.start - 4, -1) == int.from_bytes(range(1, 9), "little")
    assert bytes(head.view[-5:]) == b"\0" + 4 * b"\xff"
    assert bytes(body.view[:5]) == 4 * b"\xff" + b"\0"


def test_a_block_has_the_same_app_address_in_every_instance(managed: Heap, spawn: Spawn) -> None:
    heap = managed()
    one, other = spawn(heap), spawn(heap)
    address = one.call("malloc", 16)
    one.call("store32", address, 0x1234)
    assert other.call("load32", address) == 0x1234
    other.call("free", address)
