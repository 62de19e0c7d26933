"""What calls in instances of their own share all the same, and what WASI gives to each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from processes import descriptors_of
from shmwasm import Caller, Module, Runtime, SharedHeap, WasiOptions, errors, on_client
from waiting import PATIENCE

MALLOC = """(module
  (import "env" "shared_heap_malloc" (func $malloc (param i32) (result i32)))
  (import "env" "shared_heap_free" (func $free (param i32)))
  (memory (export "memory") 1)
  (global $kept (mut i32) (i32.const 0))
  (func (export "keep") (param i32) (result i32)
    (global.set $kept (call $malloc (i32.const 64))) (i32.store (global.get $kept) (local.get 0)) (global.get $kept))
  (func (export "kept") (result i32) (global.get $kept))
  (func (export "free") (param i32) (call $free (local.get 0)))
  (func (export "load") (param i32) (result i32) (i32.load (local.get 0)))
  (func (export "copy") (param i32 i32)
    (i32.store (i32.const 0) (i32.load (local.get 1))) (memory.copy (local.get 0) (i32.const 0) (i32.const 4))))"""


WIDE = """(module
  (memory (export "memory") i64 1 16)
  (func (export "load") (param i64) (result i32) (i32.load (local.get 0)))
  (func (export "add") (param i64) (result i32)
    (i32.store (i64.const 8) (i32.add (i32.load (i64.const 8)) (i32.const 1)))
    (i32.store (local.get 0) (i32.add (i32.load (local.get 0)) (i32.load (i64.const 8))))
    (drop (memory.grow (i64.const 1)))
    (i32.wrap_i64 (memory.size))))"""


WASI = """(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $environment (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\\40\\00\\00\\00\\05\\00\\00\\00") (data (i32.const 64) "text\\0a") (data (i32.const 96) "file")
  (func (export "write") (param i32) (result i32) (call $write (local.get 0) (i32.const 0) (i32.const 1) (i32.const 32)))
  (func (export "write_from") (param i32 i32) (result i32)
    (i32.store (i32.const 48) (local.get 0)) (i32.store (i32.const 52) (local.get 1))
    (call $write (i32.const 1) (i32.const 48) (i32.const 1) (local.get 0)))
  (func (export "read") (result i32)
    (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 32))) (i32.load8_u (i32.const 64)))
  (func (export "counts") (result i32)
    (drop (call $args (i32.const 32) (i32.const 36))) (drop (call $environment (i32.const 40) (i32.const 44)))
    (i32.add (i32.mul (i32.load (i32.const 32)) (i32.const 10)) (i32.load (i32.const 40))))
  (func (export "open") (result i32)
    (if (call $open (i32.const 3) (i32.const 0) (i32.const 96) (i32.const 4) (i32.const 9)
      (i64.const 66) (i64.const 66) (i32.const 0) (i32.const 32)) (then unreachable))
    (i32.load (i32.const 32))))"""


@pytest.fixture(scope="module")
def allocating(shared_runtime: Runtime) -> Iterator[Module]:
    with shared_runtime.load(MALLOC, name="allocating") as module:
        yield module


def test_blocks_that_a_call_leaves_behind_stay(shared_runtime: Runtime, allocating: Module, heap: SharedHeap) -> None:
    with shared_runtime.pool(allocating, size=1, fresh=True, shared_heap=heap) as pool:
        kept = [pool.submit("keep", number).result() & 0xFFFF_FFFF for number in range(50)]
        assert len(set(kept)) == 50
        assert pool.submit("kept").result() == 0
        assert list(pool.map("load", kept)) == list(range(50))
        assert heap.statistics().live_blocks == 50
        for address in kept:
            pool.submit("free", address).result()
        with pytest.raises(errors.WorkerTrapError):
            pool.submit("free", kept[0]).result()
        assert heap.statistics().live_blocks == 0
    shared_runtime.verify()


def test_chains_stay_attached_and_can_be_changed(shared_runtime: Runtime, allocating: Module) -> None:
    with (
        shared_runtime.create_shared_heap(1 << 20) as head,
        shared_runtime.create_shared_heap(1 << 20) as body,
        shared_runtime.create_shared_heap(1 << 20) as other,
    ):
        shared_runtime.chain_shared_heaps(head, body)
        with (
            shared_runtime.pool(allocating, size=2, fresh=True, shared_heap=head) as pool,
            head.calloc(64) as low,
            body.calloc(64) as high,
        ):
            high.view[:4] = (99).to_bytes(4, "little")
            pool.submit("copy", low, high).result()
            assert list(pool.map("load", [low, high] * 10)) == [99] * 20
        with shared_runtime.pool(allocating, size=1, fresh=True) as pool:
            instance = pool.instances[0]
            assert pool.submit("load", 8).result() == 0
            instance.attach_shared_heap(head)
            with head.calloc(64) as low, body.calloc(64) as high:
                low.view[:4] = (77).to_bytes(4, "little")
                assert [instance.call("load", low), instance.call("load", high)] == [77, 0]
                for _ in range(3):
                    instance.call("copy", high, low)
                assert bytes(high.view[:4]) == bytes(low.view[:4])
                address = high.address
            instance.detach_shared_heap()
            with pytest.raises(errors.WorkerTrapError):
                instance.call("load", address)
            with pytest.raises(errors.WorkerTrapError):
                instance.call("load", address)
            with other.calloc(64) as block:
                instance.attach_shared_heap(other, read_only=True)
                block.view[:1] = b"r"
                assert [instance.call("load", block) for _ in range(3)] == [ord("r")] * 3
                with pytest.raises(errors.WorkerTrapError):
                    instance.call("copy", block, block)
                instance.detach_shared_heap()
        shared_runtime.unchain_shared_heaps(head, entire_chain=True)


def test_attaching_prepares_anew_what_is_ready(shared_runtime: Runtime, allocating: Module, heap: SharedHeap) -> None:
    text = """(module
      (import "env" "shared_heap_malloc" (func $malloc (param i32) (result i32)))
      (memory (export "memory") 1)
      (global $has (mut i32) (i32.const 0))
      (func (export "prepare") (global.set $has (i32.ne (call $malloc (i32.const 16)) (i32.const 0))))
      (func (export "has") (result i32) (global.get $has)))"""
    with shared_runtime.load(text) as module, shared_runtime.pool(module, size=1, fresh=True, init="prepare") as pool:
        instance = pool.instances[0]
        assert [instance.call("has"), instance.call("has")] == [0, 0]
        instance.attach_shared_heap(heap)
        assert [instance.call("has"), instance.call("has")] == [1, 1]
        instance.detach_shared_heap()
        assert [instance.call("has"), instance.call("has")] == [0, 0]


def test_64_bit_guests_keep_their_window(shared_runtime: Runtime, heap: SharedHeap) -> None:
    with (
        shared_runtime.load(WIDE, name="wide") as module,
        heap.calloc(64) as block,
        shared_runtime.pool(module, size=1, fresh=True, shared_heap=heap) as pool,
    ):
        instance = pool.instances[0]
        assert [instance.call("add", block) for _ in range(20)] == [2] * 20
        assert pool.submit("load", block).result() == 20
        assert int.from_bytes(block.view[:4], "little") == 20


kept_views: list[memoryview] = []
"""What host functions of a worker keep."""


def keep(caller: Caller, address: int) -> int:
    """What a guest calls: keeps what it can see there, in several ways."""
    view = caller.view(address, 4)
    kept_views[:] = [view, caller.memory, view[:2], view.cast("I")]
    return len(kept_views)


def look(_caller: Caller, index: int) -> int:
    """What a guest calls: tells what something shows that was kept, and writes there."""
    found = kept_views[index][0]
    kept_views[index][0] = 7
    return int(found)


@pytest.mark.usefixtures("importable_tests")
@pytest.mark.parametrize("memory", ["1 4", "i64 1 4"])
def test_views_that_a_host_function_keeps_end_with_the_call(shared_runtime: Runtime, memory: str) -> None:
    address, convert = ("i64", "(i32.wrap_i64 (local.get 0))") if "i64" in memory else ("i32", "(local.get 0)")
    text = f"""(module
      (import "env" "keep" (func $keep (param {address}) (result i32)))
      (import "env" "look" (func $look (param i32) (result i32)))
      (memory (export "memory") {memory})
      (data ({address}.const 16) "ABCD")
      (func (export "keep") (param {address}) (result i32) (call $keep (local.get 0)))
      (func (export "look") (param {address}) (result i32) (call $look {convert}))
      (func (export "load") (param {address}) (result i32)
        (drop (memory.grow ({address}.const 1))) (i32.load8_u (local.get 0))))"""
    with (
        shared_runtime.load(text, imports={"env": {"keep": keep, "look": look}}, name="keeping") as module,
        shared_runtime.pool(module, size=1, fresh=True) as pool,
    ):
        for _ in range(3):
            assert pool.submit("keep", 16).result(PATIENCE) == 4
            for released in (0, 1):
                with pytest.raises(errors.HostFunctionError, match="released"):
                    pool.submit("look", released).result(PATIENCE)
            assert pool.submit("look", 2).result(PATIENCE) == 0
            assert pool.submit("look", 3).result(PATIENCE) == 7
            assert list(pool.map("load", [16] * 10)) == [ord("A")] * 10
        assert pool.statistics().started == 1


def test_functions_of_the_client_see_the_memory_of_the_call(shared_runtime: Runtime, heap: SharedHeap) -> None:
    text = """(module
      (import "env" "tell" (func $tell (param i32) (result i32)))
      (memory (export "memory") 1 4)
      (func (export "write") (param i32) (result i32)
        (i32.store8 (i32.const 100) (i32.add (i32.load8_u (i32.const 100)) (local.get 0)))
        (drop (memory.grow (i32.const 1)))
        (drop (call $tell (i32.const 100)))
        (i32.store8 (i32.const 100) (i32.add (i32.load8_u (i32.const 100)) (i32.const 1)))
        (call $tell (i32.const 100))))"""
    told: list[tuple[int, int]] = []

    def tell(caller: Caller, address: int) -> int:
        told.append((caller.memory[address], len(caller.memory)))
        return caller.memory[address]

    with (
        shared_runtime.load(text, imports={"env": {"tell": on_client(tell)}}, name="telling") as module,
        shared_runtime.pool(module, size=1, fresh=True, shared_heap=heap) as pool,
    ):
        assert [pool.submit("write", number).result() for number in range(20)] == list(range(1, 21))
    assert told == [pair for number in range(20) for pair in ((number, 2 << 16), (number + 1, 2 << 16))]


def test_wasi_is_as_new_for_each_call_and_output_goes_on(shared_runtime: Runtime, heap: SharedHeap, tmp_path: Path) -> None:
    (tmp_path / "input").write_text("abcdefghijklmnopqrstuvwxyz")
    options = WasiOptions(
        args=["one", "two"],
        env={"NAME": "value"},
        stdin=str(tmp_path / "input"),
        stdout=str(tmp_path / "out"),
        stderr=str(tmp_path / "err"),
        preopens={str(tmp_path): "/"},
    )

    def files() -> int:
        return descriptors_of(pool.instances[0].pid)

    with (
        shared_runtime.load(WASI, name="wasi") as module,
        shared_runtime.pool(module, size=1, fresh=True, wasi=options, shared_heap=heap) as pool,
    ):
        assert [pool.submit("counts").result() for _ in range(3)] == [21] * 3
        assert [pool.submit("read").result() for _ in range(3)] == [ord("a")] * 3
        first = pool.submit("open").result()
        before = files()
        assert [pool.submit("open").result() for _ in range(40)] == [first] * 40
        assert files() < before + 10  # it may be making an instance
        assert list(pool.map("write", [1] * 30)) == [0] * 30
        assert [pool.submit("write", 2).result() for _ in range(3)] == [0] * 3
        with heap.calloc(8) as block:  # read from the heap, and the number of bytes is written there
            for _ in range(5):
                block.view[:] = b"a block\n"
                assert pool.submit("write_from", block, 8).result() == 0
                assert int.from_bytes(block.view[:4], "little") == 8
    assert (tmp_path / "out").read_text() == "text\n" * 30 + "a block\n" * 5
    assert (tmp_path / "err").read_text() == "text\n" * 3
