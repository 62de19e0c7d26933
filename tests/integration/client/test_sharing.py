"""Several clients on one coordinator."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator

import pytest

from shmwasm import Module, Runtime, SharedHeap, errors


@pytest.fixture
def other(shared_runtime: Runtime) -> Iterator[Runtime]:
    """Another client of the same coordinator."""
    with Runtime(connect=shared_runtime.address) as runtime:
        yield runtime


def test_whoever_opens_a_head_may_use_the_whole_chain(
    shared_runtime: Runtime, other: Runtime, heap: SharedHeap, echo_module: Module
) -> None:
    with shared_runtime.create_shared_heap(1 << 20, name="body") as body:
        shared_runtime.chain_shared_heaps(heap, body)
        theirs, their_body = other.open_shared_heap(heap.name), other.open_shared_heap("body")
        assert (theirs.start, their_body.start) == (heap.start, body.start)
        assert other.chain_of(theirs) == [theirs, their_body]
        block = their_body.calloc(8)
        block.view[0] = 9
        module = other.load(
            '(module (memory (export "memory") 1) (func (export "load") (param i32) (result i32) (i32.load8_u (local.get 0))))'
        )
        with other.spawn(module, shared_heap=theirs) as instance:
            assert instance.call("load", block) == 9
            with pytest.raises(errors.ChainError):
                shared_runtime.unchain_shared_heaps(heap)


def test_a_chain_that_moves_moves_for_every_client(shared_runtime: Runtime, other: Runtime, heap: SharedHeap) -> None:
    theirs = other.open_shared_heap(heap.name)
    block = theirs.malloc(100)
    with shared_runtime.create_shared_heap(1 << 20) as body:
        shared_runtime.chain_shared_heaps(heap, body)
        other.status()  # answered after the news of the move
        assert theirs.start == heap.start
        assert block.address == heap.start + block.offset
        heap.free(block.address)
    assert theirs.statistics().live_blocks == 0


def test_blocks_are_allocated_and_freed_while_another_client_moves_their_heap(
    shared_runtime: Runtime, other: Runtime, heap: SharedHeap
) -> None:
    theirs, body = other.open_shared_heap(heap.name), other.create_shared_heap(1 << 20)
    done = threading.Event()

    def move() -> None:
        while not done.is_set():
            other.chain_shared_heaps(theirs, body)
            other.unchain_shared_heaps(theirs)

    mover = threading.Thread(target=move)
    mover.start()
    try:
        starts, limit = set(), time.monotonic() + 20
        for turn in itertools.count():
            block = heap.malloc(64)
            assert heap.usable_size(block) == 64
            starts.add(heap.start)
            block.free()
            if turn > 20_000 and len(starts) > 1:
                break
            assert time.monotonic() < limit
    finally:
        done.set()
        mover.join()
    assert heap.statistics().live_blocks == 0


def test_a_client_cannot_touch_the_instances_of_another(shared_runtime: Runtime, other: Runtime, echo_module: Module) -> None:
    with pytest.raises(errors.ArgumentError, match="loaded"):
        other.spawn(echo_module)


def test_a_heap_in_use_by_another_client_is_not_reset(shared_runtime: Runtime, other: Runtime, heap: SharedHeap) -> None:
    theirs = other.open_shared_heap(heap.name)
    with pytest.raises(errors.ChainError):
        heap.reset()
    theirs.close()
    heap.reset()
