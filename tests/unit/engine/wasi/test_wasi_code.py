from __future__ import annotations

import os

import pytest
import wasmtime

from shmwasm.engine.cache import Cache
from shmwasm.engine.wasi import WasiLinks, compile_adapters, load_adapters
from shmwasm.engine.wasi.code import ADAPTERS
from shmwasm.engine.wasi.functions import FUNCTIONS
from shmwasm.engine.wasi.text import adapters
from shmwasm.errors import ModuleError


def test_the_committed_adapters_are_those_that_the_table_makes():
    for name, text in adapters().items():
        assert ADAPTERS[name].read_bytes() == bytes(wasmtime.wat2wasm(text)), name


def test_the_table_has_all_of_the_engines_functions_with_their_types(engine):
    linker = wasmtime.Linker(engine)
    linker.define_wasi()
    store = wasmtime.Store(engine)
    kinds = {entry.name: entry.type for entry in wasmtime.Module(engine, ADAPTERS["shim"].read_bytes()).exports}
    for name in FUNCTIONS:
        native = linker.get(store, "wasi_snapshot_preview1", name).type(store)
        assert (str(native.params), str(native.results)) == (str(kinds[name].params), str(kinds[name].results)), name
    store.close()


def test_the_adapters_are_compiled_once_and_again_where_the_cache_is_damaged(engine, tmp_path):
    cache = Cache(tmp_path)
    os.close(compile_adapters(cache))
    (kept,) = tmp_path.glob("*.cwasm")
    made = kept.stat()
    os.close(compile_adapters(cache))
    assert kept.stat().st_ino == made.st_ino
    for damage in (b"damaged", kept.read_bytes()[:-100]):
        kept.write_bytes(damage)
        descriptor = compile_adapters(cache)
        load_adapters(engine, descriptor)
        os.close(descriptor)
        assert kept.stat().st_size == made.st_size


def test_what_is_no_artifact_is_refused(engine, tmp_path):
    (tmp_path / "artifact").write_bytes(b"no artifact at all, whatever it is, but long enough")
    with (tmp_path / "artifact").open("rb") as file, pytest.raises(ModuleError, match="adapters of WASI"):
        load_adapters(engine, file.fileno())


def test_a_call_before_the_guest_is_served_traps(engine, adapter_code):
    store, linker = wasmtime.Store(engine), wasmtime.Linker(engine)
    store.set_epoch_deadline(1 << 32)
    WasiLinks(store, adapter_code, linker)
    module = """(module (import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32)))
      (func $start (drop (call $yield))) (start $start))"""
    with pytest.raises(wasmtime.Trap, match="uninitialized element"):
        linker.instantiate(store, wasmtime.Module(engine, module))
    store.close()
