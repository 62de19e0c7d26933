"""Modules and guests that mean no good: an error or a module, never a death."""

from __future__ import annotations

import contextlib
import os
import random
import threading
from pathlib import Path

import pytest
import wasmtime

from processes import descriptors_of
from shmwasm import Module, Runtime, SharedHeap, errors, on_client

DEEP = "".join(["(block " * 800, "nop", ")" * 800])
PARAMETERS = " ".join(["i32"] * 1000)

REFUSED_AT_LOAD = {
    "imports a tag": '(module (import "env" "tag" (tag)))',
    "imports a global": '(module (import "env" "g" (global i32)))',
    "1001 parameters": f"(module (func (param {PARAMETERS} i32)))",
    "1001 results": f"(module (func (result {PARAMETERS} i32) unreachable))",
    "65537 pages": "(module (memory 65537))",
    "a duplicate export": '(module (func (export "a")) (func (export "a")))',
}
REFUSED_AT_SPAWN = {
    "reaches the window": '(module (memory (export "memory") 65536))',
    "one page too many": '(module (memory (export "memory") 65521))',
    "several memories": '(module (memory (export "memory") 1) (memory (export "other") 65536))',
    "64-bit and shared": '(module (memory (export "memory") i64 1 2 shared))',
    "64-bit and larger than the window's end": '(module (memory (export "memory") i64 0x10_0001))',
    "no memory": "(module)",
    "shared": '(module (memory (export "memory") 1 65536 shared))',
    "a start function without end": "(module (func $s unreachable) (start $s))",
    "data outside": '(module (memory (export "memory") 1) (data (i32.const 65536) "x"))',
    "a huge table": '(module (memory (export "memory") 1) (table 0xffff_ffff funcref))',
}
FINE = {
    "1000 parameters": f'(module (memory (export "memory") 1) (func (export "f") (param {PARAMETERS})))',
    "1000 results": f'(module (memory (export "memory") 1) (func (export "f") (result {PARAMETERS}) unreachable))',
    "imports a memory": '(module (import "env" "memory" (memory 1)))',
    "imports a table": '(module (import "env" "table" (table 1 funcref)) (memory (export "memory") 1))',
    "64-bit": '(module (memory (export "memory") i64 1))',
    "deep": f'(module (memory (export "memory") 1) (func (export "f") {DEEP}))',
    "odd names": '(module (memory (export "memory") 1) '
    '(func (export "") (export "\\f0\\9f\\90\\b8") (export "a b\\0c") (export "__class__")))',
    "many exports": '(module (memory (export "memory") 1) (func $f)'
    + "".join(f'(export "name {number}" (func $f))' for number in range(5000))
    + ")",
}


def test_every_beginning_of_a_module_is_refused_or_a_module_and_leaves_nothing_open(shared_runtime: Runtime) -> None:
    text = f"""(module (import "env" "shared_heap_malloc" (func (param i32) (result i32))) (memory (export "memory") 1)
      (table 4 funcref) (elem (i32.const 0) 0 1) (global (mut i32) (i32.const 3)) (data $hello "hello")
      (func $start (export "f") (memory.init $hello (i32.const 0) (i32.const 0) (i32.const 5)) (data.drop $hello)
        (memory.copy (i32.const 0) (i32.const 8) (i32.const 4)) {DEEP}) (start $start))"""
    whole = bytes(wasmtime.wat2wasm(text))
    before = descriptors_of()
    for end in (*range(250), *range(len(whole) - 250, len(whole))):
        with contextlib.suppress(errors.ModuleError):  # one that ends between two sections may be a module
            shared_runtime.load(whole[:end]).close()
    assert descriptors_of() <= before


@pytest.mark.parametrize("text", REFUSED_AT_LOAD.values(), ids=REFUSED_AT_LOAD)
def test_a_module_that_cannot_run_here_is_refused_when_it_is_loaded(shared_runtime: Runtime, text: str) -> None:
    with pytest.raises((errors.ModuleError, errors.UnsupportedError)):
        shared_runtime.load(text)


@pytest.mark.parametrize("text", REFUSED_AT_SPAWN.values(), ids=REFUSED_AT_SPAWN)
def test_a_module_that_cannot_be_attached_is_an_error_of_spawn(shared_runtime: Runtime, heap: SharedHeap, text: str) -> None:
    try:
        module = shared_runtime.load(text)
    except (errors.ModuleError, errors.UnsupportedError):
        return
    with pytest.raises(errors.ShmwasmError):
        shared_runtime.spawn(module, shared_heap=heap)


@pytest.mark.parametrize("text", FINE.values(), ids=FINE)
def test_an_odd_module_works_as_any_other(shared_runtime: Runtime, heap: SharedHeap, text: str) -> None:
    module = shared_runtime.load(text)
    with shared_runtime.spawn(module, shared_heap=heap) as instance:
        for name in list(module.exports)[:10]:
            arguments = [1] * len(module.exports[name].parameters)
            try:
                instance.call(name, *arguments)
            except errors.WorkerTrapError as trap:
                assert trap.code == "unreachable"  # noqa: PT017  either is right
            assert name in instance.exports


def test_a_mutated_module_is_refused_or_loaded(shared_runtime: Runtime, echo_text: str) -> None:
    dice = random.Random(5)
    valid = bytes(wasmtime.wat2wasm(echo_text))
    for _ in range(500):
        mutated = bytearray(valid)
        for _ in range(dice.choice([1, 1, 2, 8])):
            place = dice.randrange(8, len(mutated))
            match dice.randrange(3):
                case 0:
                    mutated[place] = dice.randrange(256)
                case 1:
                    del mutated[place : place + dice.randrange(1, 9)]
                case _:
                    mutated[place:place] = dice.randbytes(dice.randrange(1, 9))
        try:
            shared_runtime.load(bytes(mutated)).close()
        except (errors.ModuleError, errors.UnsupportedError):
            continue


def test_a_start_function_that_never_returns_holds_nobody_up(echo_text: str) -> None:
    with Runtime() as runtime:
        endless = runtime.load("(module (func $s (loop $forever (br $forever))) (start $s))")
        raised: list[BaseException] = []

        def spawn() -> None:
            try:
                runtime.spawn(endless)
            except errors.ShmwasmError as error:
                raised.append(error)

        waiting = threading.Thread(target=spawn)
        waiting.start()
        with runtime.spawn(runtime.load(echo_text)) as other:
            assert other.call("add", 1, 2) == 3
        assert waiting.is_alive()
    waiting.join(30)
    assert isinstance(raised[0], errors.ShmwasmError)


WILD = """(module
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "random_get" (func $random_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open" (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "env" "look" (func $look (param i32 i32)))
  (memory (export "memory") 1)
  (func (export "fd_write") (param i32 i32) (result i32)
    (call $fd_write (i32.const 1) (local.get 0) (local.get 1) (local.get 0)))
  (func (export "random_get") (param i32 i32) (result i32) (call $random_get (local.get 0) (local.get 1)))
  (func (export "args_get") (param i32 i32) (result i32) (call $args_get (local.get 0) (local.get 1)))
  (func (export "open") (param i32 i32) (result i32)
    (call $open (local.get 0) (i32.const 0) (local.get 0) (local.get 1) (i32.const 0) (i64.const -1) (i64.const -1) (i32.const 0)
      (local.get 0)))
  (func (export "look") (param i32 i32) (result i32) (call $look (local.get 0) (local.get 1)) (i32.const 0)))"""


def test_wild_pointers_for_host_functions_are_errors_or_traps(shared_runtime: Runtime, heap: SharedHeap) -> None:
    module = shared_runtime.load(WILD, imports={"env": {"look": on_client(lambda caller, a, n: caller.view(a, n) and None)}})
    with shared_runtime.spawn(module, shared_heap=heap) as instance:
        before = bytes(heap.view)
        for name in ("fd_write", "random_get", "args_get", "open", "look"):
            for address in (0, 65535, 65536, 1 << 31, heap.start - 1, heap.start, 0xFFFF_FFFF):
                for size in (1, 65537, 0x7FFF_FFFF, 0xFFFF_FFFF):
                    if address >= heap.start and address + size <= 1 << 32:
                        continue  # all of it lies in the heap: as good as any
                    try:
                        instance.call(name, address, size, timeout=30)
                    except errors.WorkerTrapError as trap:
                        assert trap.instance == instance.number  # noqa: PT017  either is right
        assert instance.alive
        assert bytes(heap.view) == before


def _fifo(directory: Path) -> Path:
    os.mkfifo(directory / "fifo")
    return directory / "fifo"


@pytest.mark.parametrize("read_only", [False, True])
def test_memory_of_an_odd_kind_is_refused(shared_runtime: Runtime, tmp_path: Path, *, read_only: bool) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "private").write_bytes(b"x")
    for path in (_fifo(tmp_path), tmp_path, tmp_path / "empty", tmp_path / "absent", "/dev/null", "/dev/zero", "/proc/self/maps"):
        with pytest.raises(errors.ArgumentError, match=str(path)):
            shared_runtime.create_shared_heap(pre_allocated=path, read_only=read_only)
    reading, writing = os.pipe()
    only = os.open(tmp_path / "private", os.O_WRONLY)
    closed = os.dup(only)
    os.close(closed)
    for descriptor in (reading, writing, only, closed, -1, 1 << 40, -(1 << 70), True):
        with pytest.raises(errors.ArgumentError, match=str(descriptor)):
            shared_runtime.create_shared_heap(pre_allocated=descriptor, read_only=read_only)
    for odd in (b"path", 1.5, [], object()):
        with pytest.raises(errors.ArgumentError):
            shared_runtime.create_shared_heap(pre_allocated=odd, read_only=read_only)
    for descriptor in (reading, writing, only):
        os.close(descriptor)


def test_a_module_is_not_waited_for_at_a_pipe(shared_runtime: Runtime, tmp_path: Path) -> None:
    with pytest.raises(errors.ModuleError, match="no regular file"):
        shared_runtime.load(_fifo(tmp_path))


def test_a_module_of_a_name_that_is_no_text_is_loaded(shared_runtime: Runtime, tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff.wat"
    Path(os.fsdecode(path)).write_text('(module (func (export "one") (result i32) (i32.const 1)))')
    module = shared_runtime.load(Path(os.fsdecode(path)))
    assert isinstance(module, Module)
    with shared_runtime.spawn(module) as instance:
        assert instance.call("one") == 1
