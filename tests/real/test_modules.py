"""Modules that others built, with every compiler whose output is at hand, are understood and rewritten whole."""

import json
import subprocess
from pathlib import Path

import pytest
import wasmtime

from shmwasm.engine.config import new_engine
from shmwasm.rewrite import rewrite
from shmwasm.wasm.binary import CUSTOM
from shmwasm.wasm.decoding import decode
from shmwasm.wasm.scanning import Scan

MODULES = {
    "@chainsafe/as-sha256@1.2.5/build/optimized.simd.wasm": "AssemblyScript, SIMD",
    "@cwasm/jpeg-turbo@0.1.3/jpeg-turbo.wasm": "clang, WASI: libjpeg-turbo",
    "@cwasm/lodepng@0.1.9/lodepng.wasm": "clang, WASI: LodePNG",
    "@cwasm/webp@0.1.5/webp.wasm": "clang, WASI: libwebp",
    "@duckdb/duckdb-wasm@1.32.0/dist/duckdb-coi.wasm": "emscripten, threads, SIMD, exceptions of old: DuckDB",
    "@duckdb/duckdb-wasm@1.32.0/dist/duckdb-eh.wasm": "emscripten, exceptions of old: DuckDB",
    "@duckdb/duckdb-wasm@1.32.0/dist/duckdb-mvp.wasm": "emscripten: DuckDB",
    "@jitl/quickjs-ng-wasmfile-release-sync@0.32.0/dist/emscripten-module.wasm": "emscripten: QuickJS",
    "@jsquash/png@3.1.1/codec/pkg/squoosh_png_bg.wasm": "wasm-bindgen: Rust's png",
    "@resvg/resvg-wasm@2.6.2/index_bg.wasm": "wasm-bindgen: resvg",
    "@sqlite.org/sqlite-wasm@3.54.1-build1/dist/sqlite3.wasm": "emscripten, imported memory: SQLite",
    "blake3-wasm@3.0.0/dist/wasm/blake3.wasm": "emscripten, SIMD: BLAKE3",
    "brotli-wasm@3.0.1/pkg.web/brotli_wasm_bg.wasm": "wasm-bindgen: Brotli",
    "esbuild-wasm@0.28.2/esbuild.wasm": "Go: esbuild",
    "ghostty-web@0.4.0/ghostty-vt.wasm": "Zig: the terminal of Ghostty",
    "rabin-wasm@0.1.5/dist/rabin.wasm": "AssemblyScript: Rabin fingerprints",
    "sh-syntax@0.7.0/main.wasm": "TinyGo: a shell's parser",
    "sql.js@1.16.0/dist/sql-wasm-debug.wasm": "emscripten, not optimized: SQLite",
    "sql.js@1.16.0/dist/sql-wasm.wasm": "emscripten: SQLite",
    "tree-sitter-python@0.25.0/tree-sitter-python.wasm": "clang, a side module of tree-sitter: Python's grammar",
    "web-tree-sitter@0.27.1/web-tree-sitter.wasm": "emscripten, a main module with imported memory and table: tree-sitter",
    "xxhash-wasm@1.1.0/workerd/xxhash.wasm": "wat2wasm, a name section that is cut off: xxHash",
}

OLD_EXCEPTIONS = [path for path, what in MODULES.items() if "exceptions of old" in what]
"""The engine accepts exceptions only as they were standardized."""

LARGEST_COUNTED = 1_000_000  # bytes: the text of a module is twenty times as long

pytestmark = pytest.mark.timeout(400)  # the first test downloads the packages


def ask_wabt(npm, question, files):
    command = ["node", str(Path(__file__).with_name("wabt.js")), str(npm / "wabt@1.0.39/index.js"), question, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def custom_sections(content):
    sections = decode(content).sections
    return [(one.name, content[one.payload.start : one.payload.end]) for one in sections if one.number == CUSTOM]


def test_every_module_that_is_fetched_is_listed_with_its_compiler(npm):
    assert {str(path.relative_to(npm)) for path in npm.rglob("*.wasm")} == set(MODULES)


@pytest.mark.parametrize("path", MODULES)
def test_a_module_is_decoded_to_its_last_byte(npm, path):
    content = (npm / path).read_bytes()
    binary = decode(content)
    ends = [8, *(section.payload.end for section in binary.sections)]
    assert [section.start for section in binary.sections] == ends[:-1]
    assert ends[-1] == len(content)
    for _ in Scan(binary):  # raises unless each function ends where its body does
        pass


@pytest.mark.parametrize("path", MODULES)
def test_a_module_is_valid_after_rewriting_and_its_custom_sections_are_what_they_were(npm, tmp_path, path):
    content = (npm / path).read_bytes()
    rewritten = rewrite(content)
    assert rewritten.report.changed == (rewritten.content != content)
    assert custom_sections(rewritten.content) == custom_sections(content)
    if path in OLD_EXCEPTIONS:
        file = tmp_path / "rewritten.wasm"
        file.write_bytes(rewritten.content)
        assert ask_wabt(npm, "validate", [file]) == [None]
    else:
        wasmtime.Module.validate(new_engine(parallel_compilation=False), rewritten.content)


def test_the_report_counts_the_instructions_that_a_disassembler_of_others_counts(npm):
    files = [
        npm / path for path, what in MODULES.items() if (npm / path).stat().st_size < LARGEST_COUNTED and "cut off" not in what
    ]
    assert len(files) > 10
    for file, counted in zip(files, ask_wabt(npm, "count", files), strict=True):
        changes = rewrite(file.read_bytes()).report.changes
        assert {change.what: change.count for change in changes if change.what.startswith("memory.")} == counted, file
