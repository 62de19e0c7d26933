"""What loading a module does for its user: it is rewritten, and nobody notices; imports are given, or made."""

from __future__ import annotations

import pytest
import wasmtime

from shmwasm import Runtime, errors
from shmwasm.engine.config import new_engine

TRAPPING = """(module $demo
  (memory (export "memory") 1)
  (func $fill (param i32) (memory.fill (local.get 0) (i32.const 7) (i32.const 16)))
  (func $copied (param i32 i32)
    (call $fill (i32.const 0))
    (memory.copy (local.get 0) (i32.const 0) (i32.const 16))
    (memory.copy (local.get 0) (i32.const 0) (local.get 1)))
  (func $divided (param i32) (result i32)
    (memory.fill (i32.const 64) (i32.const 1) (local.get 0))
    (i32.div_s (i32.const 1) (local.get 0)))
  (func (export "copy") (param i32 i32) (call $copied (local.get 0) (local.get 1)))
  (func (export "divide") (param i32) (result i32) (call $divided (local.get 0))))"""

NUMBERS = """(module
  (import "env" "i32" (global $i32 i32)) (import "env" "i64" (global $i64 (mut i64)))
  (import "env" "f32" (global $f32 f32)) (import "env" "f64" (global $f64 f64))
  (import "env" "memory" (memory 1)) (import "env" "table" (table 2 funcref))
  (data (global.get $i32) "!")
  (func (export "all") (result i32 i64 f32 f64) (global.get $i32) (global.get $i64) (global.get $f32) (global.get $f64))
  (func (export "load") (param i32) (result i32) (i32.load8_u (local.get 0)))
  (func (export "add") (param i64) (global.set $i64 (i64.add (global.get $i64) (local.get 0))))
  (export "memory" (memory 0)))"""


def untouched_backtrace(export: str, *arguments: int) -> list[str]:
    """Return the backtrace of the same trap in the module as it is."""
    engine = new_engine(parallel_compilation=False)
    store = wasmtime.Store(engine)
    store.set_epoch_deadline(1)
    function = wasmtime.Instance(store, wasmtime.Module(engine, TRAPPING), []).exports(store)[export]
    with pytest.raises(wasmtime.Trap) as caught:
        function(store, *arguments)
    return [
        f"{frame.module_name}!{frame.func_name or f'function {frame.func_index}'} @ {frame.module_offset:#x}"
        for frame in caught.value.frames
    ]


@pytest.mark.parametrize(
    ("export", "arguments"),
    [
        ("copy", (0x1000_0000, 4)),  # in a copy of a length that is known
        ("copy", (0, 0x1000_0000)),  # in one that is not
        ("divide", (0,)),  # behind an instruction that was replaced
    ],
)
def test_a_backtrace_tells_the_functions_and_offsets_of_the_users_own_file(
    shared_runtime: Runtime, export: str, arguments: tuple[int, ...]
) -> None:
    module = shared_runtime.load(TRAPPING)
    assert module.compiled.report.changed
    with shared_runtime.spawn(module) as instance, pytest.raises(errors.WorkerTrapError) as caught:
        instance.call(export, *arguments)
    assert caught.value.backtrace == untouched_backtrace(export, *arguments)


def test_nobody_sees_the_names_that_the_rewriter_uses(shared_runtime: Runtime) -> None:
    module = shared_runtime.load(TRAPPING)
    assert set(module.exports) == {"copy", "divide"}
    with shared_runtime.spawn(module) as instance:
        with pytest.raises(errors.UnknownExportError, match=r"its functions are: copy, divide$"):
            instance.call("shmwasm:begin")
        assert not [name for name in dir(instance.exports) if name.startswith("shmwasm:")]


def test_imported_globals_hold_the_numbers_that_are_given_and_the_rest_is_made(shared_runtime: Runtime) -> None:
    given = {"i32": 1000, "i64": (1 << 64) - 1, "f32": 1.5, "f64": 2}
    module = shared_runtime.load(NUMBERS, imports={"env": given})
    with shared_runtime.spawn(module) as instance, shared_runtime.spawn(module) as other:
        assert instance.call("all") == [1000, -1, 1.5, 2.0]
        assert instance.call("load", 1000) == ord("!")
        instance.call("add", 5)
        assert instance.call("all")[1] == 4
        assert other.call("all")[1] == -1


@pytest.mark.parametrize(
    ("name", "given", "error", "message"),
    [
        ("i32", 1 << 32, errors.ArgumentError, "import env.i32 is 4294967296, which does not fit into 32 bits"),
        ("i32", 1.5, errors.ArgumentError, "import env.i32 is 1.5, and must be of type i32"),
        ("f64", "2", errors.ArgumentError, "import env.f64 is '2', which is neither a function nor a number"),
        ("f64", len, errors.ArgumentError, "import env.f64 is .*, and the module imports a global"),
        ("more", 5, errors.ModuleError, "it imports no global env.more, which was given"),
        ("memory", len, errors.ModuleError, "it imports no function env.memory, which was given"),
    ],
)
def test_what_is_no_number_for_a_global_is_refused_by_name(
    shared_runtime: Runtime, name: str, given: object, error: type[Exception], message: str
) -> None:
    numbers = {"i32": 1, "i64": 1, "f32": 1, "f64": 1, name: given}
    with pytest.raises(error, match=message):
        shared_runtime.load(NUMBERS, imports={"env": numbers})


def test_a_global_for_which_no_number_was_given_is_named(shared_runtime: Runtime) -> None:
    with pytest.raises(errors.ModuleError, match=r"it imports the global env.i64, for which no number was given"):
        shared_runtime.load(NUMBERS, imports={"env": {"i32": 1}})


def test_a_number_for_an_imported_function_is_refused(shared_runtime: Runtime) -> None:
    with pytest.raises(errors.ArgumentError, match=r"the import env.f is 5, which cannot be called"):
        shared_runtime.load('(module (import "env" "f" (func)))', imports={"env": {"f": 5}})
