"""Heaps and blocks, as the host uses them."""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np
import posix_ipc
import pytest

from shmwasm import Module, Runtime, SharedHeap, errors
from shmwasm.addresses import MAXIMUM_CHAIN_SIZE, OS_PAGE, SLAB_SIZE, WINDOW_END, unsigned32


def test_a_heap_alone_ends_where_the_window_ends(heap: SharedHeap) -> None:
    assert heap.start + heap.size == WINDOW_END


def test_managed_size_is_rounded_up_to_a_slab(shared_runtime: Runtime) -> None:
    with shared_runtime.create_shared_heap(SLAB_SIZE + 1) as heap:
        assert heap.size == 2 * SLAB_SIZE
        assert len(heap.view) == heap.size


def test_blocks_do_not_overlap_and_keep_their_bytes(heap: SharedHeap) -> None:
    blocks = [heap.malloc(size) for size in (1, 16, 17, 100, 1000, 5000, 40_000, 200_000)]
    for number, block in enumerate(blocks):
        block.view[:] = bytes([number + 1]) * block.size
    for number, block in enumerate(blocks):
        assert bytes(block.view) == bytes([number + 1]) * block.size
    heap.verify()
    for block in blocks:
        block.free()
    heap.verify()
    assert heap.statistics().live_blocks == 0


@pytest.mark.parametrize("alignment", [16, 32, 256, 4096, 65536])
def test_alignment_is_kept_in_the_heap_and_in_the_address(heap: SharedHeap, alignment: int) -> None:
    blocks = [heap.malloc(size, alignment=alignment) for size in (1, 100, 3000, 70_000)]
    assert all(block.offset % alignment == 0 for block in blocks)
    assert all(block.address % min(alignment, OS_PAGE) == 0 for block in blocks)


def test_calloc_zeroes_what_was_there(heap: SharedHeap) -> None:
    first = heap.malloc(640)
    first.view[:] = b"x" * 640
    first.free()
    assert bytes(heap.calloc(10, 64).view) == bytes(640)


def test_realloc_keeps_the_bytes_that_fit(heap: SharedHeap) -> None:
    block = heap.malloc(100)
    block.view[:] = bytes(range(100))
    larger = heap.realloc(block, 50_000)
    assert bytes(larger.view[:100]) == bytes(range(100))
    smaller = heap.realloc(larger, 10)
    assert bytes(smaller.view) == bytes(range(10))
    smaller.free()
    assert heap.statistics().live_blocks == 0


def test_realloc_that_fails_leaves_the_block_alone(heap: SharedHeap) -> None:
    block = heap.malloc(100)
    block.view[:5] = b"hello"
    with pytest.raises(errors.HeapExhaustedError):
        heap.realloc(block, 1 << 30)
    assert bytes(block.view[:5]) == b"hello"
    block.free()


def test_the_old_block_is_unusable_after_realloc(heap: SharedHeap) -> None:
    block = heap.malloc(100)
    moved = heap.realloc(block, 100)
    with pytest.raises(errors.ClosedError, match="freed"):
        _ = block.view
    with pytest.raises(errors.InvalidFreeError):
        heap.free(block)
    moved.free()


def test_raw_addresses_are_allocated_and_freed_signed_or_unsigned(heap: SharedHeap) -> None:
    address = heap.malloc_address(64)
    assert heap.start <= address < WINDOW_END
    heap.free(address)
    address = heap.malloc_address(64)
    heap.free(address - (1 << 32))
    assert heap.statistics().live_blocks == 0


def test_block_at_finds_a_live_block_by_either_address(heap: SharedHeap) -> None:
    block = heap.malloc(100)
    block.view[:5] = b"hello"
    for address in (block.address, block.address - (1 << 32)):
        found = heap.block_at(address)
        assert found.size >= 100
        assert bytes(found.view[:5]) == b"hello"
    block.free()
    with pytest.raises(errors.ArgumentError, match="no live block"):
        heap.block_at(block.address)


def test_block_is_a_context_manager_and_an_index(heap: SharedHeap) -> None:
    with heap.malloc(100) as block:
        assert block.__index__() == block.address
        assert len(block) == 100
        assert heap.statistics().live_blocks == 1
    assert heap.statistics().live_blocks == 0
    block.free()


def test_ndarray_sees_the_block_without_a_copy(heap: SharedHeap) -> None:
    block = heap.malloc(4 * 6)
    array = block.ndarray("f4", (2, 3))
    array[1, 2] = 7.5
    assert np.frombuffer(block.view, "f4")[5] == 7.5
    assert block.ndarray("u1").shape == (24,)
    with pytest.raises((ValueError, TypeError)):
        block.ndarray("f8", (10, 10))


def test_exhaustion_says_what_was_asked_and_what_is_left(heap: SharedHeap) -> None:
    with pytest.raises(errors.HeapExhaustedError) as caught:
        heap.malloc(8 << 20)
    assert caught.value.requested == 8 << 20
    assert caught.value.heap == heap.name
    for size in (0, 1 << 40):
        with pytest.raises(errors.HeapExhaustedError):
            heap.malloc(size)


def test_a_full_heap_is_usable_again_after_frees(heap: SharedHeap) -> None:
    blocks = []
    with contextlib.suppress(errors.HeapExhaustedError):
        while True:
            blocks.append(heap.malloc(10_000))
    assert len(blocks) >= heap.size // 10_000 * 0.8
    for block in blocks:
        block.free()
    heap.malloc(heap.size // 2).free()
    heap.verify()


@pytest.mark.parametrize("size", [10, 100, 100_000])
def test_a_wrong_free_is_refused_and_changes_nothing(heap: SharedHeap, size: int) -> None:
    block = heap.malloc(size)
    bystander = heap.malloc(size)
    for wrong in (block.address + 16 * 4096, block.address + 1, block.address + 8, heap.start - 16, 0, 5, WINDOW_END - 16):
        if wrong == bystander.address:
            continue
        with pytest.raises(errors.InvalidFreeError, match=hex(wrong)):
            heap.free(wrong)
    heap.free(block.address)
    with pytest.raises(errors.InvalidFreeError):
        heap.free(block.address)
    with pytest.raises(errors.InvalidFreeError):
        block.free()
    heap.verify()
    assert heap.statistics().live_blocks == 1
    bystander.free()


def test_a_block_of_another_heap_is_refused(shared_runtime: Runtime, heap: SharedHeap) -> None:
    with shared_runtime.create_shared_heap(1 << 20) as other:
        block = other.malloc(10)
        with pytest.raises(errors.InvalidFreeError, match=other.name):
            heap.free(block)
        block.free()


def test_scrub_zeroes_what_is_freed(shared_runtime: Runtime) -> None:
    with shared_runtime.create_shared_heap(1 << 20, scrub=True) as heap:
        for size in (64, 100_000):
            block = heap.malloc(size)
            offset = block.offset
            block.view[:] = b"s" * size
            block.free()
            assert bytes(heap.view[offset : offset + size]) == bytes(size)
            address = heap.malloc_address(size)
            heap.view[address - heap.start] = 1
            heap.free(address)
            assert heap.view[address - heap.start] == 0


def test_views_outlive_the_heap(shared_runtime: Runtime) -> None:
    heap = shared_runtime.create_shared_heap(1 << 20)
    view, array = heap.view, heap.malloc(100).ndarray("u1")
    array[0] = 9
    heap.close()
    heap.close()
    view[5] = 6
    assert (view[5], array[0]) == (6, 9)


def test_a_closed_heap_says_so(shared_runtime: Runtime) -> None:
    heap = shared_runtime.create_shared_heap(1 << 20)
    block = heap.malloc(10)
    heap.close()
    for use in (
        lambda: heap.malloc(1),
        lambda: heap.malloc_address(1),
        lambda: heap.calloc(1),
        lambda: heap.free(block),
        lambda: heap.view,
        lambda: block.view,
        heap.statistics,
        heap.verify,
        heap.reset,
        lambda: shared_runtime.chain_shared_heaps(heap, heap),
    ):
        with pytest.raises((errors.ClosedError, errors.UnknownHeapError)):
            use()


@pytest.fixture(params=["shared_memory", "posix_ipc", "descriptor", "path", "file"])
def source(request: pytest.FixtureRequest, tmp_path: Path):
    """Two OS pages of memory that exists already, given in each way."""
    content = b"prealloc" * (2 * OS_PAGE // 8)
    if request.param == "shared_memory":
        memory = SharedMemory(create=True, size=2 * OS_PAGE)
        memory.buf[:] = content
        yield memory
        memory.close()
        memory.unlink()
    elif request.param == "posix_ipc":
        shared = posix_ipc.SharedMemory(None, posix_ipc.O_CREX, size=2 * OS_PAGE)
        os.write(shared.fd, content)
        yield shared
        shared.close_fd()
        shared.unlink()
    else:
        path = tmp_path / "data"
        path.write_bytes(content)
        if request.param == "path":
            yield path
        else:
            with path.open("r+b") as file:
                yield file if request.param == "file" else file.fileno()


@pytest.mark.parametrize("read_only", [False, True])
def test_preallocated_memory_is_shared_with_guests(
    shared_runtime: Runtime, echo_module: Module, source: object, read_only: bool
) -> None:
    with shared_runtime.create_shared_heap(pre_allocated=source, read_only=read_only) as heap:
        assert (heap.size, heap.managed) == (2 * OS_PAGE, False)
        assert bytes(heap.view[:8]) == b"prealloc"
        assert heap.view.readonly == read_only
        with shared_runtime.spawn(echo_module, shared_heap=heap) as instance:
            assert instance.call("load", heap.start + 1) == ord("r")
            if read_only:
                with pytest.raises(errors.WorkerTrapError):
                    instance.call("store", heap.start, 1)
            else:
                instance.call("store", heap.start, ord("X"))
                assert bytes(heap.view[:8]) == b"Xrealloc"
        with pytest.raises(errors.HeapExhaustedError):
            heap.malloc(10)
        with pytest.raises(errors.InvalidFreeError):
            heap.free(heap.start)


def test_a_file_of_any_length_becomes_whole_pages(shared_runtime: Runtime, echo_module: Module, tmp_path: Path) -> None:
    path = tmp_path / "odd"
    path.write_bytes(b"z" * (OS_PAGE + 7))
    with shared_runtime.create_shared_heap(pre_allocated=path, read_only=True) as heap:
        assert heap.size == 2 * OS_PAGE
        assert bytes(heap.view[OS_PAGE : OS_PAGE + 9]) == b"z" * 7 + bytes(2)
        with shared_runtime.spawn(echo_module, shared_heap=heap) as instance:
            assert instance.call("load", heap.start + OS_PAGE + 6) == ord("z")
            assert instance.call("load", heap.start + OS_PAGE + 7) == 0


def test_named_heap_is_found_by_its_name(shared_runtime: Runtime) -> None:
    with shared_runtime.create_shared_heap(1 << 20, name="frames") as heap:
        assert shared_runtime.open_shared_heap("frames") is heap
        with pytest.raises(errors.ArgumentError, match="frames"):
            shared_runtime.create_shared_heap(1 << 20, name="frames")
        with Runtime(connect=shared_runtime.address) as other, other.open_shared_heap("frames") as same:
            heap.view[:5] = b"hello"
            assert bytes(same.view[:5]) == b"hello"
    with pytest.raises(errors.UnknownHeapError, match="frames"):
        shared_runtime.open_shared_heap("frames")


def test_a_block_freed_by_another_client_is_free(shared_runtime: Runtime, heap: SharedHeap) -> None:
    blocks = [heap.malloc(100) for _ in range(1000)]
    with Runtime(connect=shared_runtime.address) as other:
        theirs = other.open_by_token(heap.capability()[1])
        for block in blocks:
            theirs.free(block.address)
        with pytest.raises(errors.InvalidFreeError):
            theirs.free(blocks[0].address)
    assert heap.statistics().live_blocks == 0
    heap.verify()


def test_where_only_the_owner_may_free_others_are_refused(shared_runtime: Runtime) -> None:
    with shared_runtime.create_shared_heap(1 << 20, remote_free=False) as heap:
        block = heap.malloc(100)
        with Runtime(connect=shared_runtime.address) as other:
            theirs = other.open_by_token(heap.capability()[1])
            with pytest.raises(errors.InvalidFreeError, match="another process"):
                theirs.free(block.address)
        block.free()


def test_pickled_block_is_the_same_bytes(heap: SharedHeap) -> None:
    block = heap.malloc(100)
    block.view[:5] = b"hello"
    same = pickle.loads(pickle.dumps(block))
    assert same.heap is heap
    assert bytes(same.view[:5]) == b"hello"


def test_quota_stops_a_client_but_not_the_heap(shared_runtime: Runtime, heap: SharedHeap) -> None:
    with Runtime(connect=shared_runtime.address, quota=4 * SLAB_SIZE) as limited:
        theirs = limited.open_by_token(heap.capability()[1])
        with pytest.raises(errors.QuotaExceededError) as caught:
            [theirs.malloc(30_000) for _ in range(20)]
        assert caught.value.quota == 4 * SLAB_SIZE
    heap.malloc(8 * SLAB_SIZE).free()


def test_what_a_departed_client_allocated_stays_or_goes_as_the_heap_says(shared_runtime: Runtime) -> None:
    for on_death, live in (("keep", 10), ("free", 0)):
        with shared_runtime.create_shared_heap(1 << 20, on_death=on_death) as heap:
            with Runtime(connect=shared_runtime.address) as other:
                theirs = other.open_by_token(heap.capability()[1])
                blocks = [theirs.malloc(100) for _ in range(10)]
                blocks[3].view[:5] = b"hello"
                offset = blocks[3].offset
            assert heap.statistics().live_blocks == live
            if live:
                assert bytes(heap.view[offset : offset + 5]) == b"hello"
                heap.free(heap.start + offset)
                assert heap.statistics().live_blocks == live - 1
            heap.verify()


def test_chain_is_laid_out_below_the_windows_end(shared_runtime: Runtime) -> None:
    heaps = [shared_runtime.create_shared_heap(size << 16) for size in (1, 2, 3)]
    one, two, three = heaps
    assert shared_runtime.chain_shared_heaps(two, three) is two
    assert shared_runtime.chain_shared_heaps(one, two) is one
    assert [heap.start for heap in heaps] == [WINDOW_END - (6 << 16), WINDOW_END - (5 << 16), WINDOW_END - (3 << 16)]
    block = two.malloc(10)
    assert block.address == two.start + block.offset
    assert shared_runtime.unchain_shared_heaps(one) is two
    assert one.start == WINDOW_END - one.size
    assert shared_runtime.unchain_shared_heaps(two, entire_chain=True) is three
    assert two.start == WINDOW_END - two.size
    assert block.address == two.start + block.offset
    block.free()
    for heap in heaps:
        heap.close()


def test_reset_empties_managed_heaps_and_zeroes_the_others(shared_runtime: Runtime, tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"x" * OS_PAGE)
    with (
        shared_runtime.create_shared_heap(1 << 20) as head,
        shared_runtime.create_shared_heap(pre_allocated=path) as body,
    ):
        shared_runtime.chain_shared_heaps(head, body)
        first = head.malloc(100)
        head.malloc(70_000)
        head.reset()
        assert head.statistics().live_blocks == 0
        assert bytes(body.view) == bytes(OS_PAGE)
        assert head.malloc(100).address == first.address
        head.verify()
        with pytest.raises(errors.ChainError):
            body.reset()


def test_a_guest_allocates_from_every_heap_of_a_chain_of_a_hundred(shared_runtime: Runtime, allocating_module: Module) -> None:
    with contextlib.ExitStack() as opened:
        heaps = [opened.enter_context(shared_runtime.create_shared_heap(SLAB_SIZE)) for _ in range(100)]
        for head, body in reversed(list(itertools.pairwise(heaps))):
            shared_runtime.chain_shared_heaps(head, body)
        with shared_runtime.spawn(allocating_module, shared_heap=heaps[0]) as instance:
            blocks = [unsigned32(instance.call("malloc", SLAB_SIZE)) for _ in heaps]
            assert blocks == [heap.start for heap in heaps]
            for number, block in enumerate(blocks):
                instance.call("store", block, number)
            assert [heap.view[0] for heap in heaps] == list(range(100))
            assert instance.call("malloc", SLAB_SIZE) == 0


def test_a_chain_larger_than_the_window_is_refused(shared_runtime: Runtime, tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(MAXIMUM_CHAIN_SIZE)
    with (
        shared_runtime.create_shared_heap(pre_allocated=path) as large,
        shared_runtime.create_shared_heap(1 << 20) as small,
        pytest.raises(errors.ChainError, match=str(MAXIMUM_CHAIN_SIZE)),
    ):
        shared_runtime.chain_shared_heaps(small, large)
