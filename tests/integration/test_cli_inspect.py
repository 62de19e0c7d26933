"""`shmwasm inspect`, as a user has it."""

import json
import subprocess
import sys

import pytest
import wasmtime
from click.testing import CliRunner

from shmwasm.cli import main

MODULE = """(module
  (import "env" "shared_heap_malloc" (func (param i32) (result i32)))
  (import "env" "log" (func (param i32 f64) (result i32 i64)))
  (import "env" "level" (global i32))
  (import "env" "table" (table 1 5 funcref))
  (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
  (memory (export "heap") 2 9) (memory $private i64 1)
  (global (export "count") (mut i64) (i64.const 0))
  (func (export "clear") (param i32)
    (memory.fill (local.get 0) (i32.const 0) (i32.const 64))
    (memory.copy (local.get 0) (i32.const 0) (i32.const 64))
    (memory.copy (local.get 0) (i32.const 64) (i32.const 64))
    (memory.fill $private (i64.const 0) (i32.const 0) (i64.const 1))))"""


@pytest.fixture
def module(tmp_path):
    path = tmp_path / "demo.wat"
    path.write_text(MODULE)
    return path


def inspect(*arguments):
    return CliRunner().invoke(main, ["inspect", *map(str, arguments)])


def test_the_json_tells_all_of_the_module_and_what_is_rewritten_and_why(module):
    result = inspect(module, "--json")
    assert result.exit_code == 0
    facts = json.loads(result.output)
    assert [(one["module"], one["name"], one["kind"], one["type"], one["provided_by"]) for one in facts["imports"]] == [
        ("env", "shared_heap_malloc", "function", "(i32) -> i32", "shmwasm"),
        ("env", "log", "function", "(i32, f64) -> (i32, i64)", "you"),
        ("env", "level", "global", "i32", "you"),
        ("env", "table", "table", "1 to 5 funcref", "made for it"),
        ("wasi_snapshot_preview1", "random_get", "function", "(i32, i32) -> i32", "WASI"),
    ]
    assert facts["exports"] == [
        {"name": "heap", "kind": "memory", "type": "2 to 9 pages"},
        {"name": "count", "kind": "global", "type": "mutable i64"},
        {"name": "clear", "kind": "function", "type": "(i32) -> ()"},
    ]
    assert [(one["exported_as"], one["is_64"], one["is_heap_memory"]) for one in facts["memories"]] == [
        (["heap"], False, True),
        ([], True, False),
    ]
    assert {"multi-value", "bulk-memory", "multi-memory", "memory64", "mutable-global"} == set(facts["features"])
    assert {change["what"]: change["count"] for change in facts["changes"]} == {"memory.copy": 2, "memory.fill": 1}
    assert all(change["why"] for change in facts["changes"])
    assert (facts["is_rewritten"], facts["needs_shared_heap"], facts["needs_wasi"]) == (True, True, True)
    assert facts["functions"] == 1


def test_people_are_told_the_same_in_tables(module):
    output = inspect(module).output
    for part in (
        "env.shared_heap_malloc",
        "(i32, f64) -> (i32, i64)",
        "shared heaps are mapped into it",
        "memory.copy",
        "memory64",
    ):
        assert part in output
    assert "needs a shared heap: yes    needs WASI: yes" in output


def test_a_module_that_stays_as_it_is_says_so(tmp_path):
    (tmp_path / "plain.wat").write_text('(module (memory (export "memory") 1) (func (export "f")))')
    output = inspect(tmp_path / "plain.wat").output
    assert "rewritten at load: none" in output
    assert "needs a shared heap: no    needs WASI: no" in output


def test_names_that_would_drive_the_terminal_are_shown_as_escapes(tmp_path):
    text = r'(module (import "a\1b[31m" "b\0a" (func)) (func (export "\1b[2J\e2\80\ae")))'
    (tmp_path / "odd.wasm").write_bytes(wasmtime.wat2wasm(text))
    for command in (["inspect"], ["run"], ["run", "--invoke", "nothing"]):
        shown = CliRunner().invoke(main, [*command, str(tmp_path / "odd.wasm")], color=True).output
        assert "\x1b" not in shown
        assert "\u202e" not in shown
    shown = CliRunner().invoke(main, ["inspect", str(tmp_path / "odd.wasm")], color=True).output
    assert r"a\x1b[31m.b\n" in shown
    assert r"\x1b[2J\u202e" in shown


def test_of_many_exports_people_see_the_first_and_programs_all(tmp_path):
    (tmp_path / "many.wat").write_text("(module" + "".join(f'(func (export "f{n}"))' for n in range(80)) + ")")
    assert "... and 30 more; --json lists all" in inspect(tmp_path / "many.wat").output
    assert len(json.loads(inspect(tmp_path / "many.wat", "--json").output)["exports"]) == 80


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"plain text", "neither in the binary nor in the text format"),
        (b"\0asm\x0d\0\1\0", "component"),
        (b"\0asm\1\0\0\0\1", "unexpected end"),
        (b"(module (func (result i32)))", "type mismatch"),
        (b'(module (memory (export "shmwasm:memory") 1))', "reserved"),
        (None, "No such file"),
    ],
)
def test_what_is_no_module_is_refused_in_one_line(tmp_path, content, reason):
    path = tmp_path / "module"
    if content is not None:
        path.write_bytes(content)
    run = subprocess.run([sys.executable, "-P", "-m", "shmwasm", "inspect", path], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stdout == ""
    assert run.stderr.count("\n") == 1
    assert reason in run.stderr
    as_json = inspect(path, "--json")
    assert as_json.exit_code == 1
    assert reason in json.loads(as_json.output)["error"]["message"]
