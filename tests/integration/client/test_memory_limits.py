"""How far a guest's own memories may grow: `memory_limit`."""

from __future__ import annotations

import pytest

from shmwasm import Runtime, SharedHeap, errors
from shmwasm.addresses import WASM_PAGE, WINDOW_END

GROWING = """(module (memory (export "memory") {kind} 1 100) (memory (export "other") 2)
  (global $at_start (mut {kind}) ({kind}.const 0))
  (func $begin (global.set $at_start (memory.grow ({kind}.const 8)))) (start $begin)
  (func (export "at_start") (result {kind}) (global.get $at_start))
  (func (export "load") (param {kind}) (result i32) (i32.load8_u (local.get 0)))
  (func (export "store") (param {kind} i32) (i32.store8 (local.get 0) (local.get 1)))
  (func (export "fill") (param {kind} i32 {kind}) (memory.fill (local.get 0) (local.get 1) (local.get 2)))
  (func (export "grow") (param {kind}) (result {kind}) (memory.grow (local.get 0)))
  (func (export "grow_other") (param i32) (result i32) (memory.grow 1 (local.get 0))))"""
LIMIT = 8 * WASM_PAGE

pytestmark = pytest.mark.parametrize("kind", ["i32", "i64"])


def test_no_memory_of_a_guest_grows_beyond_its_share_of_the_limit(shared_runtime: Runtime, kind: str) -> None:
    module = shared_runtime.load(GROWING.format(kind=kind))
    with shared_runtime.spawn(module, memory_limit=2 * LIMIT) as instance:
        assert instance.call("at_start") == -1
        assert instance.call("grow", 7) == 1
        instance.call("store", LIMIT - 1, 5)
        assert instance.call("grow", 1) == -1
        with pytest.raises(errors.WorkerTrapError):
            instance.call("load", LIMIT)
        assert instance.call("grow_other", 7) == -1
        assert instance.call("grow_other", 6) == 2
        assert instance.call("grow_other", 1) == -1
    with shared_runtime.spawn(module) as instance:
        assert instance.call("at_start") == 1


def test_an_attached_heap_is_no_part_of_the_limit(shared_runtime: Runtime, heap: SharedHeap, kind: str) -> None:
    module = shared_runtime.load(GROWING.format(kind=kind))
    with shared_runtime.spawn(module, shared_heap=heap, memory_limit=2 * LIMIT) as instance, heap.malloc(2 * LIMIT) as block:
        for _ in range(2):
            instance.call("fill", block, 7, block.size)
            assert set(block.view) == {7}
            assert instance.call("grow", 8) == -1
            instance.detach_shared_heap()
            assert instance.call("grow", 8) == -1
            instance.attach_shared_heap(heap)
        assert instance.call("grow", 7) == 1


def test_a_limit_above_the_window_leaves_the_window_alone(shared_runtime: Runtime, heap: SharedHeap, kind: str) -> None:
    module = shared_runtime.load(GROWING.replace(" 100)", ")").format(kind=kind))
    with shared_runtime.spawn(module, shared_heap=heap, memory_limit=1 << 40) as instance, heap.malloc(1) as block:
        assert instance.call("grow", WINDOW_END // WASM_PAGE if kind == "i32" else 1 << 30) == -1
        block.view[0] = 3
        assert instance.call("load", block) == 3


def test_modules_that_start_with_more_are_refused_by_name(shared_runtime: Runtime, kind: str) -> None:
    module = shared_runtime.load(GROWING.format(kind=kind), name="growing")
    message = r"262142 bytes, 131071 for each of 2 memories, is too low: memory 1 of 'growing' starts with 131072 bytes"
    with pytest.raises(errors.ArgumentError, match=message):
        shared_runtime.spawn(module, memory_limit=4 * WASM_PAGE - 2)
    with pytest.raises(errors.ArgumentError, match=r"memory 0 of 'growing' starts with 65536 bytes"):
        shared_runtime.pool(module, size=1, memory_limit=0)
    for limit in (-1, 1.5, "all"):
        with pytest.raises(errors.ArgumentError, match="a memory limit in bytes"):
            shared_runtime.spawn(module, memory_limit=limit)  # type: ignore[arg-type]


def test_what_the_maximum_of_one_memory_leaves_is_for_the_others(shared_runtime: Runtime, kind: str) -> None:
    module = shared_runtime.load(GROWING.replace("1 100", "1 3").format(kind=kind))
    with shared_runtime.spawn(module, memory_limit=3 * WASM_PAGE + LIMIT) as instance:
        assert instance.call("grow", 3) == -1
        assert instance.call("grow", 2) == 1
        assert instance.call("grow_other", 7) == -1
        assert instance.call("grow_other", 6) == 2


def test_shared_memories_are_bound_by_their_own_maximum(shared_runtime: Runtime, kind: str) -> None:
    module = shared_runtime.load(f'(module (memory (export "memory") {kind} 1 8 shared))', name="threads")
    shared_runtime.spawn(module, memory_limit=LIMIT).close()
    with pytest.raises(errors.ArgumentError, match=r"memory 0 of 'threads' is shared, and may grow to 524288 bytes"):
        shared_runtime.spawn(module, memory_limit=LIMIT - 1)
