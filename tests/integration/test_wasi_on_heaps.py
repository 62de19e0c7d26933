"""A program of the C library's, with pointers into shared heaps where it expects memory of its own."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from shmwasm import WasiOptions
from shmwasm.errors import WorkerTrapError

FILES = Path(__file__).with_name("wasi_guests") / "files.wasm"


@pytest.fixture
def heap(shared_runtime):
    with shared_runtime.create_shared_heap(8 << 20) as made:
        yield made


@pytest.fixture
def content(tmp_path):
    made = os.urandom(3_000_001)
    (tmp_path / "from").write_bytes(made)
    return made


@pytest.fixture(scope="module")
def program(shared_runtime):
    with shared_runtime.load(FILES) as module:
        yield module


@pytest.fixture
def files(shared_runtime, program, heap, tmp_path):
    with shared_runtime.spawn(program, shared_heap=heap, wasi=WasiOptions(preopens={str(tmp_path): "/data"})) as instance:
        yield instance


def text(heap, string):
    block = heap.malloc(len(string) + 1)
    block.view[: len(string)] = string.encode()
    block.view[len(string)] = 0
    return block


@pytest.mark.parametrize("size", [4 << 20, 65536, 1000])
def test_a_program_copies_a_file_through_a_block(files, heap, tmp_path, content, size):
    with heap.malloc(size) as buffer:
        copied = files.call("copy_file", text(heap, "/data/from"), text(heap, "/data/to"), buffer, size)
        assert copied == len(content)
        assert (tmp_path / "to").read_bytes() == content
        last = content[-(len(content) % size) :]
        assert buffer.view[: len(last)] == last


def test_a_program_gathers_what_lies_in_heaps_and_elsewhere(files, heap, tmp_path):
    parts = [os.urandom(size) for size in (10, 70_000, 1)]
    blocks = [heap.malloc(len(part)) for part in parts]
    for block, part in zip(blocks, parts, strict=True):
        block.view[: len(part)] = part
    array = heap.malloc(8 * len(parts))
    array.view[:24] = b"".join(struct.pack("<II", block.address, len(part)) for block, part in zip(blocks, parts, strict=True))
    done = 0
    while done < sum(map(len, parts)):
        left = struct.unpack("<6I", array.view[:24])
        written = files.call("append", text(heap, "/data/to"), array, 3)
        assert written > 0
        done += written
        array.view[:24] = struct.pack("<6I", *advanced(left, written))
    assert (tmp_path / "to").read_bytes() == b"".join(parts)


def advanced(buffers, done):
    result = []
    for pointer, size in zip(buffers[::2], buffers[1::2], strict=True):
        step = min(done, size)
        done -= step
        result += [pointer + step, size - step]
    return result


def test_results_go_into_a_block_and_not_into_a_heap_that_is_read_only(files, heap, tmp_path, content):
    status, name, noise = heap.malloc(256), text(heap, "/data/from"), heap.malloc(256)
    assert files.call("size_of", name, status) == len(content)
    assert files.call("randomize", noise, 256) == 0
    assert bytes(noise.view[:256]) != bytes(256)
    files.detach_shared_heap()
    files.attach_shared_heap(heap, read_only=True)
    before = bytes(noise.view[:256])
    with pytest.raises(WorkerTrapError, match="out of bounds"):
        files.call("randomize", noise, 256)
    assert bytes(noise.view[:256]) == before
    address = noise.address
    files.detach_shared_heap()
    with pytest.raises(WorkerTrapError, match="out of bounds"):
        files.call("randomize", address, 256)


START = """(module
  (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func $start (drop (call $random (i32.const 0) (i32.const 8))))
  (start $start)
  (func (export "first") (result i64) (i64.load (i32.const 0))))"""


def test_a_start_function_may_call_wasi(shared_runtime):
    with shared_runtime.load(START) as module, shared_runtime.spawn(module, wasi=WasiOptions()) as instance:
        assert instance.call("first") != 0


@pytest.mark.usefixtures("importable_tests")
def test_a_users_own_function_comes_before_wasis(shared_runtime, heap):
    module = """(module
      (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
      (import "wasi_snapshot_preview1" "clock_time_get" (func $clock (param i32 i64 i32) (result i32)))
      (memory (export "memory") 1)
      (func (export "random") (param i32) (result i32) (call $random (local.get 0) (i32.const 8)))
      (func (export "clock") (param i32) (result i32) (call $clock (i32.const 0) (i64.const 0) (local.get 0))))"""
    own = {"wasi_snapshot_preview1": {"random_get": constant}}
    block = heap.malloc(64)
    block.view[:8] = bytes(8)
    with (
        shared_runtime.load(module, imports=own) as loaded,
        shared_runtime.spawn(loaded, shared_heap=heap, wasi=WasiOptions()) as instance,
    ):
        assert instance.call("random", block) == 77
        assert instance.call("clock", block) == 0
        assert bytes(block.view[:8]) != bytes(8)


def constant(caller, address, size):
    return 77


RANDOM = """(module
  (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
  {memory}
  (func (export "random") (param i32) (result i32) (call $random (local.get 0) (i32.const 8)))
  {more})"""
COPY = """(func (export "copy") (param i32 i32 i32) (memory.copy (local.get 0) (local.get 1) (local.get 2)))"""


@pytest.mark.parametrize(
    ("memory", "more"),
    [
        ('(memory (export "memory") 1)', COPY),
        ('(memory (export "other") 1)', ""),
        ('(import "env" "memory" (memory 1))', ""),
        ('(import "env" "memory" (memory 1 2 shared))', ""),
        ("(memory 1)", COPY),
    ],
    ids=["exported", "exported otherwise", "imported", "imported shared", "internal"],
)
def test_wherever_a_module_has_its_memory_wasi_reaches_the_heap(shared_runtime, heap, memory, more):
    block = heap.calloc(64)
    with (
        shared_runtime.load(RANDOM.format(memory=memory, more=more)) as module,
        shared_runtime.spawn(module, shared_heap=heap, wasi=WasiOptions()) as instance,
    ):
        assert instance.call("random", block) == 0
        assert bytes(block.view[:8]) != bytes(8)
        assert instance.call("random", 100) == 0
        with pytest.raises(WorkerTrapError, match="out of bounds"):
            instance.call("random", heap.start - 65536)
        if more:
            instance.call("copy", block.address + 8, block, 8)
            assert block.view[8:16] == block.view[:8]


def test_a_64_bit_guest_survives_a_bad_pointer(shared_runtime, heap):
    with (
        shared_runtime.load(RANDOM.format(memory='(memory (export "memory") i64 1)', more="")) as module,
        shared_runtime.spawn(module, shared_heap=heap, wasi=WasiOptions()) as instance,
    ):
        assert instance.call("random", 65536 - 8) == 0
        for address in (65536 - 7, heap.start, 1 << 31):
            with pytest.raises(WorkerTrapError, match="out of bounds"):
                instance.call("random", address)
        assert instance.call("random", 0) == 0
