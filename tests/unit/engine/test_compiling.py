from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import wasmtime

from shmwasm.core import CORE_MODULE
from shmwasm.engine.artifacts import FOOTER, notes_of, pack
from shmwasm.engine.cache import Cache
from shmwasm.engine.compiling import compile_module
from shmwasm.engine.facts import packed, unpacked
from shmwasm.engine.modules import FunctionType, Import, MemoryType, ModuleDescription, deserialize
from shmwasm.errors import ModuleError, UnsupportedError
from shmwasm.rewrite import rewrite, seam

COPIES = """(module (memory (export "memory") 1 9)
    (func (export "copy") (param i32 i32 i32) (memory.copy (local.get 0) (local.get 1) (local.get 2))))"""
WIDE = """(module (import "env" "memory" (memory i64 2 7)) (export "again" (memory 0)) (memory (export "other") i64 3)
    (func (export "size") (result i64) (memory.size)))"""

LARGE = "(module (memory 1) " + "(func (param i32) (result i32) (i32.mul (local.get 0) (i32.load (local.get 0))))" * 1000 + ")"
"""A module whose compilation takes much longer than all else."""


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


def kept_file(cache: Cache) -> Path:
    (file,) = cache.directory.glob("*.cwasm")
    return file


def test_what_was_cached_comes_back_with_the_same_facts(engine, cache):
    with compile_module(COPIES, cache, engine=engine) as made, compile_module(COPIES, cache, engine=engine) as found:
        assert made.facts == found.facts
        assert made.report.changed
        assert [change.what for change in found.report.changes] == ["memory.copy"]
        assert os.path.sameopenfile(made.descriptor, found.descriptor)


def test_the_description_is_the_originals(engine, cache):
    with compile_module(COPIES, cache, engine=engine) as module:
        assert set(module.description.exports) == {"memory", "copy"}
        assert set(module.functions) == {"copy"}
        code = deserialize(engine, module.descriptor)
        assert seam.ALIAS in {entry.name for entry in code.exports}


def test_a_64_bit_memory_is_described_as_it_was_declared(engine):
    with compile_module(WIDE, engine=engine) as module:
        assert module.facts.is_64
        assert module.description == ModuleDescription(
            (Import("env", "memory", MemoryType(2, 7, is_64=True, shared=False)),),
            {
                "again": MemoryType(2, 7, is_64=True, shared=False),
                "other": MemoryType(3, None, is_64=True, shared=False),
                "size": FunctionType((), ("i64",)),
            },
        )


def damaged(content: bytes, how: str) -> bytes:
    match how:
        case "cut off":
            return content[:-1]
        case "half":
            return content[: len(content) // 2]
        case "longer":
            return content + b"\0"
        case "another code":
            return b"\x7fELF" + b"?" * (len(content) - 4)
        case "another footer":
            return content[: -FOOTER.size] + bytes(FOOTER.size)
        case _:
            at = len(content) - FOOTER.size - 5
            return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize("how", ["cut off", "half", "longer", "another code", "another footer", "other notes"])
@pytest.mark.parametrize("noticed", [True, False])
def test_a_damaged_artifact_is_made_anew(engine, cache, how, noticed):
    compile_module(COPIES, cache, engine=engine).close()
    file, time = kept_file(cache), kept_file(cache).stat().st_mtime
    file.write_bytes(damaged(file.read_bytes(), how))
    if not noticed:
        os.utime(file, (time, time))  # as if it had never been written to
    with compile_module(COPIES, cache, engine=engine) as module:
        assert module.report.changed
        deserialize(engine, module.descriptor)
    assert kept_file(cache).stat().st_mtime == time


def test_notes_are_found_under_their_own_key_only(tmp_path):
    (tmp_path / "artifact").write_bytes(pack("key", bytearray(b"code"), b"notes"))
    with (tmp_path / "artifact").open("rb") as file:
        assert notes_of("key", file.fileno()) == b"notes"
        assert notes_of("another", file.fileno()) is None


def test_facts_are_written_and_read_back(engine, cache):
    text = """(module (import "a" "f" (func (param i32) (result i64))) (import "a" "t" (table 1 funcref))
      (import "a" "g" (global (mut f32))) (func (export "h") (param i32) (result i64) unreachable) (tag (export "e"))
      (memory (export "m") 2 3) (func (export "i") (memory.fill (i32.const 0) (i32.const 0) (i32.const 0))))"""
    with compile_module(text, cache, engine=engine) as module:
        facts = unpacked(packed(module.facts))
        assert facts == module.facts
        assert facts.description.exports["h"] is facts.description.imports[0].type


def test_the_engine_validates_the_original(engine):
    # After rewriting, this call would be of a function that was appended.
    invalid = wasmtime.wat2wasm(COPIES).replace(b"\xfc\x0a\0\0\x0b", b"\x10\x01\x01\x01\x0b")
    with pytest.raises(ModuleError, match="unknown function"):
        compile_module(invalid, engine=engine)


def test_a_module_that_cannot_be_rewritten_is_refused_by_what_it_has(engine, cache):
    with pytest.raises(UnsupportedError, match="'shmwasm:start'"):
        compile_module('(module (global (export "shmwasm:start") i32 (i32.const 0)))', cache, engine=engine)
    assert list(cache.directory.glob("*.cwasm")) == []


def test_our_own_modules_are_not_rewritten_and_the_core_would_not_change(engine, cache):
    with compile_module(COPIES, cache, engine=engine, own=True) as module:
        assert not module.report.changed
        assert seam.ALIAS not in {entry.name for entry in deserialize(engine, module.descriptor).exports}
        with compile_module(COPIES, cache, engine=engine) as guest:
            assert guest.key != module.key
    assert not rewrite(CORE_MODULE.read_bytes()).report.changed


PROGRAM = """
import os, sys
from pathlib import Path
from shmwasm.engine.cache import Cache
from shmwasm.engine.compiling import compile_module
from shmwasm.engine.config import new_engine
engine, text = new_engine(parallel_compilation=False), Path(sys.argv[2]).read_text()
print("ready", flush=True)
sys.stdin.readline()
with compile_module(text, Cache(Path(sys.argv[1])), engine=engine) as module:
    print(os.fstat(module.descriptor).st_ino)
"""


def test_processes_that_load_a_new_module_at_once_do_the_work_once(cache, tmp_path):
    """Were it done twice, each would hold the file that it wrote itself."""
    (tmp_path / "module.wat").write_text(LARGE)
    command = [sys.executable, "-c", PROGRAM, str(cache.directory), str(tmp_path / "module.wat")]
    loading = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for process in loading:
        assert process.stdout.readline() == "ready\n"
    for process in loading:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert len({process.communicate()[0] for process in loading}) == 1
    assert [process.returncode for process in loading] == [0] * 3


def test_threads_that_load_a_new_module_at_once_do_the_work_once(engine, cache):
    start, files = threading.Barrier(4), []

    def load() -> None:
        start.wait()
        with compile_module(LARGE, cache, engine=engine) as module:
            files.append(os.fstat(module.descriptor).st_ino)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(files) == 4
    assert len(set(files)) == 1


def test_a_write_that_fails_leaves_no_part_of_a_file(engine, cache):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(UnsupportedError, match="compiled module in memory"):
            compile_module(COPIES, cache, engine=engine)  # the limit is of files in memory, too
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert list(cache.directory.glob("*cwasm*")) == []
