from __future__ import annotations

import fcntl
import os
import pathlib

import msgspec
import pytest
import wasmtime

from shmwasm.engine.cache import Cache
from shmwasm.engine.compiling import compile_module
from shmwasm.engine.modules import (
    FunctionType,
    GlobalType,
    Import,
    MemoryType,
    ModuleDescription,
    OtherType,
    describe,
    deserialize,
    kind_of,
    read_module,
)
from shmwasm.errors import ClosedError, ModuleError, UnsupportedError

TEXT = '(module (func (export "one") (result i32) (i32.const 1)))'
BINARY = bytes(wasmtime.wat2wasm(TEXT))


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


def _run(engine: wasmtime.Engine, artifact: int) -> object:
    store = wasmtime.Store(engine)
    store.set_epoch_deadline(1 << 32)
    function = wasmtime.Instance(store, deserialize(engine, artifact), []).exports(store)["one"]
    assert isinstance(function, wasmtime.Func)
    return function(store)


@pytest.mark.parametrize("kind", ["text", "bytes", "bytearray", "text path", "binary path", "path as text", "text as bytes"])
def test_modules_are_read_from_bytes_text_and_paths(tmp_path, kind):
    (tmp_path / "a.wat").write_text(TEXT)
    (tmp_path / "a.wasm").write_bytes(BINARY)
    source = {
        "text": TEXT,
        "bytes": BINARY,
        "bytearray": bytearray(BINARY),
        "text path": tmp_path / "a.wat",
        "binary path": tmp_path / "a.wasm",
        "path as text": str(tmp_path / "a.wasm"),
        "text as bytes": TEXT.encode(),
    }[kind]
    assert read_module(source)[1] == BINARY  # type: ignore[arg-type]


@pytest.mark.parametrize("kept", [True, False])
def test_compiled_code_runs_in_another_engine_from_its_descriptor_alone(engine, cache, kept):
    with compile_module(TEXT, cache if kept else None) as module:
        assert fcntl.fcntl(module.descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        assert not os.get_inheritable(module.descriptor)
        assert _run(engine, module.descriptor) == 1
        assert module.functions == {"one": FunctionType((), ("i32",))}


def test_cached_code_is_used_again_under_the_same_key(engine, cache):
    with compile_module(TEXT, cache, engine=engine) as first, compile_module(BINARY, cache, engine=engine) as second:
        assert first.key == second.key
        assert os.path.sameopenfile(first.descriptor, second.descriptor)
    with compile_module("(module)", cache, engine=engine) as other:
        assert other.key != first.key


@pytest.mark.parametrize("damage", [b"", b"\x7fELF", b"garbage" * 1000])
def test_damaged_cache_files_are_made_anew(engine, cache, damage):
    compile_module(TEXT, cache, engine=engine).close()
    (file,) = cache.directory.glob("*.cwasm")
    file.write_bytes(damage)
    with compile_module(TEXT, cache, engine=engine) as module:
        assert _run(engine, module.descriptor) == 1
    assert file.read_bytes() != damage


def test_description_tells_all_imports_and_exports_and_crosses_processes(engine):
    module = wasmtime.Module(
        engine,
        """(module (import "env" "log" (func (param i32 i64) (result f32 f64))) (import "env" "memory" (memory 2 9 shared))
          (import "env" "table" (table 1 funcref)) (import "env" "tag" (tag)) (global (export "g") i32 (i32.const 0))
          (memory (export "m") i64 1) (func (export "f") (param v128 funcref externref)))""",
    )
    description = describe(module)
    assert description == ModuleDescription(
        imports=(
            Import("env", "log", FunctionType(("i32", "i64"), ("f32", "f64"))),
            Import("env", "memory", MemoryType(2, 9, is_64=False, shared=True)),
            Import("env", "table", OtherType("table")),
            Import("env", "tag", OtherType("tag")),
        ),
        exports={
            "g": GlobalType("i32", mutable=False),
            "m": MemoryType(1, None, is_64=True, shared=False),
            "f": FunctionType(("v128", "funcref", "externref"), ()),
        },
    )
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(description), type=ModuleDescription) == description
    assert len(description.memories) == 2


def test_imports_are_told_apart_by_kind():
    with compile_module(
        """(module (import "a" "f" (func (param i32))) (import "a" "t" (table 1 funcref)) (import "b" "m" (memory 1))
          (import "b" "g" (global (mut f32))) (import "b" "e" (tag)))"""
    ) as it:
        assert it.imported_functions == {("a", "f"): FunctionType(("i32",), ())}
        assert it.imported_globals == {("b", "g"): GlobalType("f32", mutable=True)}
        assert [kind_of(one.type) for one in it.description.imports] == ["function", "table", "memory", "global", "tag"]


@pytest.mark.parametrize("kind", ["anyref", "i31ref", "exnref", "structref", "(ref func)", "(ref null 0)", "(ref 0)"])
def test_types_that_wasmtimes_interface_cannot_name_do_not_end_the_process(engine, kind):
    module = wasmtime.Module(engine, f'(module (type (func)) (func (export "f") (param i32 {kind}) (result {kind}) unreachable))')
    assert describe(module).exports["f"] == FunctionType(("i32", "reference"), ("reference",))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (b"", "neither in the binary nor in the text format"),
        (b"garbage", "67 61 72 62"),
        (b"\0asm", "no core module"),
        (b"\0asm\x0d\0\1\0", "component"),
        (b"\0asm\1\0\0\0\1", "unexpected end"),
        (b"\xff" * 10, "ff ff ff ff"),
        ("(module (func (result i32)))", "type mismatch"),
        ("(module (nonsense))", "expected"),
        ("/absent.wasm", "No such file"),
        ("a\0b", "null"),
        ("/", "directory"),
        (None, "neither bytes nor text"),
        (7, "neither bytes nor text"),
    ],
)
def test_bad_modules_are_refused_with_the_reason_in_one_line(engine, cache, source, reason):
    with pytest.raises(ModuleError, match=reason) as caught:
        compile_module(source, cache, engine=engine)
    assert "\n" not in str(caught.value)


def test_bad_file_is_named(tmp_path):
    (tmp_path / "broken.wasm").write_bytes(b"\0asm\1\0\0\0\xff")
    with pytest.raises(ModuleError, match=r"broken\.wasm"):
        compile_module(tmp_path / "broken.wasm")


def test_file_that_is_no_regular_one_is_refused_with_one_reason():
    with pytest.raises(ModuleError) as caught:
        read_module("/dev/null")
    assert (caught.value.module, caught.value.reason) == ("/dev/null", "it is no regular file")


def test_module_that_ends_before_its_version_is_refused_with_its_length():
    with pytest.raises(ModuleError, match="ends after 6 bytes"):
        read_module(BINARY[:6])


def test_what_is_no_code_is_not_deserialized(engine, tmp_path):
    (tmp_path / "file").write_bytes(b"nothing to run")
    with (tmp_path / "file").open("rb") as file, pytest.raises(ModuleError, match="compiled code"):
        deserialize(engine, file.fileno())


def test_code_of_other_settings_is_not_deserialized(engine, tmp_path):
    config = wasmtime.Config()
    config.memory_reservation = 0
    config.memory_may_move = True
    (tmp_path / "code").write_bytes(wasmtime.Module(wasmtime.Engine(config), TEXT).serialize())
    with (tmp_path / "code").open("rb") as file, pytest.raises(ModuleError, match="compiled code"):
        deserialize(engine, file.fileno())


def test_closed_module_says_so():
    module = compile_module(TEXT)
    module.close()
    module.close()
    with pytest.raises(ClosedError):
        _ = module.descriptor


def test_cache_that_others_can_write_to_is_refused_with_the_remedy(tmp_path):
    for mode in (0o770, 0o702):
        directory = tmp_path / f"{mode:o}"
        directory.mkdir()
        directory.chmod(mode)
        with pytest.raises(UnsupportedError, match="chmod 700"):
            compile_module(TEXT, Cache(directory))


def test_module_path_may_be_any_path_object(tmp_path):
    class Path(os.PathLike[str]):
        def __fspath__(self) -> str:
            return str(tmp_path / "m.wasm")

    pathlib.Path(Path()).write_bytes(BINARY)
    assert read_module(Path()) == (str(tmp_path / "m.wasm"), BINARY)
