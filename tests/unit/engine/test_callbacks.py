from __future__ import annotations

import gc
import math
import weakref

import pytest
import wasmtime

from shmwasm.engine.callbacks import new_host_function
from shmwasm.engine.calls import ExportedFunction
from shmwasm.engine.modules import FunctionType
from shmwasm.engine.traps import HOST_FUNCTION, GuestTrapError
from shmwasm.errors import UnsupportedError


@pytest.fixture
def store(engine):
    made = wasmtime.Store(engine)
    made.set_epoch_deadline(1 << 32)
    yield made
    made.close()


@pytest.fixture
def call_through(store):
    """Calls a Python function through a guest that passes its arguments and results on."""

    def call(function, parameters: tuple[str, ...], results: tuple[str, ...], *arguments: object) -> tuple[object, ...]:
        kind = FunctionType(parameters, results)
        signature = f"(param {' '.join(parameters)}) (result {' '.join(results)})"
        passed = " ".join(f"(local.get {index})" for index in range(len(parameters)))
        text = f'(module (import "" "f" (func $f {signature})) (func (export "call") {signature} (call $f {passed})))'
        native = new_host_function(store, "f", kind, function)
        export = wasmtime.Instance(store, wasmtime.Module(store.engine, text), [native]).exports(store)["call"]
        assert isinstance(export, wasmtime.Func)
        return ExportedFunction(store, export, "call").call(arguments)

    return call


def test_arguments_arrive_signed_and_in_order(call_through):
    seen = []
    call_through(lambda *values: seen.append(values), ("i32", "i64", "f32", "f64"), (), 1 << 31, (1 << 64) - 1, 0.5, -2.25)
    assert seen == [(-(1 << 31), -1, 0.5, -2.25)]


@pytest.mark.parametrize(
    ("kind", "returned", "seen"),
    [
        ("i32", -1, -1),
        ("i32", 0xFFFF_FFFF, -1),
        ("i32", True, 1),
        ("i64", -(1 << 63), -(1 << 63)),
        ("i64", (1 << 64) - 2, -2),
        ("f32", 1.5, 1.5),
        ("f32", 1e300, math.inf),
        ("f64", 1e300, 1e300),
        ("f64", 3, 3.0),
    ],
)
def test_one_result_is_returned_whatever_its_sign(call_through, kind, returned, seen):
    assert call_through(lambda: returned, (), (kind,)) == (seen,)


def test_several_results_are_returned_in_order(call_through):
    assert call_through(lambda value: [value, 2.5, -3], ("i64",), ("i64", "f32", "i32"), 7) == (7, 2.5, -3)


def test_exception_ends_the_guests_call_and_the_next_one_runs(call_through):
    error = ValueError("wrong")

    def fail(value: int) -> int:
        if value:
            raise error
        return 5

    with pytest.raises(GuestTrapError) as caught:
        call_through(fail, ("i32",), ("i32",), 1)
    assert caught.value.__cause__ is error
    assert caught.value.description.code == HOST_FUNCTION
    assert call_through(fail, ("i32",), ("i32",), 0) == (5,)


def test_interrupt_of_the_user_is_not_the_guests(call_through):
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call_through(interrupt, (), ())


def test_result_of_a_wrong_shape_ends_the_guests_call(call_through):
    for returned in ("text", None):
        with pytest.raises(GuestTrapError):
            call_through(lambda result=returned: result, (), ("i32",))
    with pytest.raises(GuestTrapError):
        call_through(lambda: [1], (), ("i32", "i32"))


def test_function_may_call_the_guest_again(call_through):
    def count_down(value: int) -> int:
        return call_through(count_down, ("i32",), ("i32",), value - 1)[0] + 1 if value else 0  # type: ignore[no-any-return]

    assert call_through(count_down, ("i32",), ("i32",), 20) == (20,)


def test_types_that_hold_more_than_numbers_are_refused(store):
    with pytest.raises(UnsupportedError, match="v128"):
        new_host_function(store, "env.f", FunctionType(("v128",), ()), print)


def test_function_is_forgotten_with_its_store(engine):
    class Function:
        def __call__(self) -> None:
            pass

    store, function = wasmtime.Store(engine), Function()
    gone = weakref.ref(function)
    new_host_function(store, "f", FunctionType((), ()), function)
    del function
    gc.collect()
    assert gone() is not None
    store.close()
    gc.collect()
    assert gone() is None
