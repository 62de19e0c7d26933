from __future__ import annotations

import os

import pytest
import wasmtime

from shmwasm.engine.calls import ExportedFunction
from shmwasm.engine.wasi import grant_wasi
from shmwasm.errors import ArgumentError
from shmwasm.protocol.messages import WasiOptions

MODULE = """(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $environment (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_prestat_get" (func $prestat (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_create_directory" (func $mkdir (param i32 i32 i32) (result i32)))
  (memory (export "memory") 1) (data (i32.const 64) "text\\n") (data (i32.const 96) "made")
  (data (i32.const 0) "\\40\\00\\00\\00\\05\\00\\00\\00")
  (func (export "write") (param i32) (result i32) (call $write (local.get 0) (i32.const 0) (i32.const 1) (i32.const 32)))
  (func (export "read") (result i32)
    (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 32))) (i32.load (i32.const 32)))
  (func (export "arguments") (result i32) (drop (call $args (i32.const 32) (i32.const 36))) (i32.load (i32.const 32)))
  (func (export "variables") (result i32) (drop (call $environment (i32.const 32) (i32.const 36))) (i32.load (i32.const 32)))
  (func (export "directory") (param i32) (result i32) (call $prestat (local.get 0) (i32.const 32)))
  (func (export "mkdir") (result i32) (call $mkdir (i32.const 3) (i32.const 96) (i32.const 4))))"""

BAD_DESCRIPTOR = 8


@pytest.fixture
def run(engine):
    """Grants options to a fresh guest, and returns what its export returns."""
    stores = []

    def call(options: WasiOptions, name: str, *arguments: int) -> object:
        store, linker = wasmtime.Store(engine), wasmtime.Linker(engine)
        stores.append(store)
        store.set_epoch_deadline(1 << 32)
        grant_wasi(store, options)
        linker.define_wasi()
        function = linker.instantiate(store, wasmtime.Module(engine, MODULE)).exports(store)[name]
        assert isinstance(function, wasmtime.Func)
        return ExportedFunction(store, function, name).call(arguments)[0]

    yield call
    for store in stores:
        store.close()


@pytest.fixture
def run_in_child(run):
    """As `run`, in a forked child: what wasmtime opens at the first use of a file, it keeps open for good. Results below 256."""

    def call(options: WasiOptions, name: str, *arguments: int) -> int:
        child = os.fork()
        if child == 0:
            result = 255
            try:
                result = run(options, name, *arguments)
            finally:
                os._exit(result)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    return call


def test_nothing_is_granted_by_default(run_in_child, capfd):
    assert run_in_child(WasiOptions(), "arguments") == 0
    assert run_in_child(WasiOptions(), "variables") == 0
    assert run_in_child(WasiOptions(), "read") == 0
    assert run_in_child(WasiOptions(), "directory", 3) == BAD_DESCRIPTOR
    for descriptor in (1, 2):
        assert run_in_child(WasiOptions(), "write", descriptor) == 0
    assert capfd.readouterr() == ("", "")


def test_arguments_and_variables_are_those_given(run):
    assert run(WasiOptions(args=["program", "one"]), "arguments") == 2
    assert run(WasiOptions(env={"NAME": "value"}), "variables") == 1


def test_inherited_output_appears(run_in_child, capfd):
    assert run_in_child(WasiOptions(stdout="inherit"), "write", 1) == 0
    assert run_in_child(WasiOptions(stderr="inherit"), "write", 2) == 0
    assert capfd.readouterr() == ("text\n", "text\n")


def test_output_goes_to_a_file_or_an_open_descriptor(run_in_child, tmp_path):
    assert run_in_child(WasiOptions(stdout=str(tmp_path / "out")), "write", 1) == 0
    assert (tmp_path / "out").read_text() == "text\n"
    reading, writing = os.pipe()
    assert run_in_child(WasiOptions(stderr=f"/proc/self/fd/{writing}"), "write", 2) == 0
    os.close(writing)
    assert os.read(reading, 100) == b"text\n"
    os.close(reading)


def test_input_comes_from_a_file(run_in_child, tmp_path):
    (tmp_path / "in").write_text("abc")
    assert run_in_child(WasiOptions(stdin=str(tmp_path / "in")), "read") == 3


def test_directories_are_granted_writable_or_not(run_in_child, tmp_path):
    given = {str(tmp_path): "/data"}
    assert run_in_child(WasiOptions(preopens=given), "directory", 3) == 0
    assert run_in_child(WasiOptions(preopens=given, read_only_preopens=["/data"]), "mkdir") not in {0, 255}
    assert not (tmp_path / "made").exists()
    assert run_in_child(WasiOptions(preopens=given), "mkdir") == 0
    assert (tmp_path / "made").is_dir()


@pytest.mark.parametrize(
    "options",
    [
        WasiOptions(stdin="/absent/in"),
        WasiOptions(stdout="/absent/out"),
        WasiOptions(stderr="/absent/out"),
        WasiOptions(preopens={"/absent": "/data"}),
    ],
)
def test_what_cannot_be_opened_is_named(run, options):
    with pytest.raises(ArgumentError, match="absent"):
        run(options, "arguments")


@pytest.mark.parametrize("options", [WasiOptions(args=["a\0b"]), WasiOptions(env={"A": "b\0"}), WasiOptions(stdout="a\0")])
def test_null_characters_are_refused(run, options):
    with pytest.raises(ArgumentError, match="null character"):
        run(options, "arguments")
