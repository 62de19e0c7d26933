from __future__ import annotations

import ctypes

import pytest
import wasmtime

from shmwasm.addresses import WINDOW_END, NativeAddress
from shmwasm.engine.config import GUARD_SIZE, SETTINGS, fingerprint, new_engine
from shmwasm.engine.modules import deserialize
from shmwasm.posix.mappings import is_reserved


@pytest.mark.parametrize("memory", ["0", "1", "1 4", "1 4 shared"])
def test_four_gigabytes_and_the_guard_are_reserved_for_every_memory(make_guest, memory):
    guest = make_guest(f'(module (memory (export "memory") {memory}))')
    pointer = guest.memory.data_ptr() if isinstance(guest.memory, wasmtime.SharedMemory) else guest.memory.data_ptr(guest.store)
    base = ctypes.cast(pointer, ctypes.c_void_p).value
    assert base is not None
    used = int(memory.split()[0]) << 16
    assert is_reserved(NativeAddress(base + used), WINDOW_END + GUARD_SIZE - used)


@pytest.mark.parametrize(
    "text",
    [
        "(module (memory i64 1))",
        "(module (memory 1) (memory 2))",
        "(module (memory 1 2 shared))",
        "(module (func (result v128) (v128.const i64x2 1 2)))",
        "(module (memory 1) (func (memory.fill (i32.const 0) (i32.const 0) (i32.const 1))))",
        "(module (tag $tag) (func (throw $tag)))",
        "(module (type (struct (field i32))))",
        "(module (func (return_call 0)))",
        "(module (func (param v128 v128) (result v128) (i8x16.relaxed_swizzle (local.get 0) (local.get 1))))",
        "(module (func (param i64 i64) (result i64 i64) (i64.mul_wide_u (local.get 0) (local.get 1))))",
        "(module (global i32 (i32.add (i32.const 1) (i32.const 2))))",
        "(module (table i64 1 funcref))",
        "(module (memory 1) (func (result i32) (i32.atomic.load (i32.const 0))))",
    ],
)
def test_proposals_that_compilers_use_are_on(engine, text):
    wasmtime.Module(engine, text)


def test_code_compiled_in_parallel_runs_in_an_engine_that_does_not(engine, tmp_path):
    path = tmp_path / "code"
    path.write_bytes(wasmtime.Module(new_engine(parallel_compilation=True), "(module (func))").serialize())
    with path.open("rb") as file:
        assert isinstance(deserialize(engine, file.fileno()), wasmtime.Module)


def test_fingerprint_is_stable_and_settings_cannot_change_under_it():
    assert fingerprint() == fingerprint()
    with pytest.raises(TypeError):
        SETTINGS["memory_may_move"] = True  # type: ignore[index]
