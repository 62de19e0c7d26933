from __future__ import annotations

import math
import threading

import pytest
import wasmtime
from hypothesis import given
from hypothesis import strategies as st

from shmwasm.engine.calls import ExportedFunction
from shmwasm.engine.traps import GuestTrapError
from shmwasm.errors import ArgumentError, HostFunctionError, UnsupportedError, WorkerTrapError

ECHO = "".join(f'(func (export "{kind}") (param {kind}) (result {kind}) (local.get 0))' for kind in ("i32", "i64", "f32", "f64"))


@pytest.fixture(scope="module")
def echo(engine):
    store = wasmtime.Store(engine)
    store.set_epoch_deadline(1 << 32)
    exports = wasmtime.Instance(store, wasmtime.Module(engine, f"(module {ECHO})"), []).exports(store)
    functions = {name: ExportedFunction(store, exports[name], name) for name in ("i32", "i64", "f32", "f64")}
    yield lambda kind, value: functions[kind].call([value])[0]
    store.close()


def _signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


@given(kind=st.sampled_from(["i32", "i64"]), data=st.data())
def test_integers_go_in_signed_or_unsigned_and_come_out_signed(echo, kind, data):
    bits = int(kind[1:])
    value = data.draw(st.integers(-(1 << (bits - 1)), (1 << bits) - 1))
    assert echo(kind, value) == _signed(value, bits)


@given(st.floats())
def test_doubles_come_back_as_they_were(echo, value):
    result = echo("f64", value)
    assert result == value or (math.isnan(result) and math.isnan(value))


@given(st.floats(width=32))
def test_floats_come_back_as_they_were(echo, value):
    result = echo("f32", value)
    assert result == value or (math.isnan(result) and math.isnan(value))


def test_doubles_beyond_a_float_become_infinite(echo):
    assert echo("f32", 1e300) == math.inf
    assert echo("f32", -1e300) == -math.inf


def test_integers_pass_as_floats_and_indexes_as_integers(echo):
    class Index:
        def __index__(self) -> int:
            return 0xFFFF_0000

    assert echo("f64", 3) == 3.0
    assert echo("i32", Index()) == _signed(0xFFFF_0000, 32)
    assert echo("i32", True) == 1


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("i32", 1 << 32),
        ("i32", -(1 << 31) - 1),
        ("i64", 1 << 64),
        ("i64", -(1 << 63) - 1),
        ("i32", 1.0),
        ("i32", "1"),
        ("i64", None),
        ("f32", "1"),
        ("f64", 10**400),
        ("f64", b"x"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_by_name(echo, kind, value):
    with pytest.raises(ArgumentError, match=kind):
        echo(kind, value)


@pytest.mark.parametrize("arguments", [[], [1, 2]])
def test_wrong_number_of_arguments_is_refused(make_guest, arguments):
    with pytest.raises(ArgumentError, match="takes 1 argument"):
        make_guest(f"(module {ECHO})").function("i32").call(arguments)


def test_many_values_of_all_types_go_in_and_out_in_order(make_guest):
    guest = make_guest("""(module (func (export "turn") (param i32 i64 f32 f64) (result f64 f32 i64 i32)
      (local.get 3) (local.get 2) (local.get 1) (local.get 0)))""")
    assert guest.function("turn").call([-1, -2, 0.5, 0.25]) == (0.25, 0.5, -2, -1)
    assert guest.function("turn").call([0xFFFF_FFFF, 1, 0.5, 0.25]) == (0.25, 0.5, 1, -1)


def test_more_results_than_arguments_fit(make_guest):
    guest = make_guest('(module (func (export "f") (result i32 i32 i32) (i32.const 1) (i32.const 2) (i32.const 3)))')
    assert guest.function("f").call([]) == (1, 2, 3)


def test_nothing_in_and_nothing_out(make_guest):
    assert make_guest('(module (func (export "f")))').function("f").call(()) == ()


@pytest.mark.parametrize("kind", ["v128", "funcref", "externref"])
def test_other_value_types_are_unsupported(make_guest, kind):
    guest = make_guest(f'(module (func (export "f") (param {kind})))')
    with pytest.raises(UnsupportedError, match=kind):
        guest.function("f")


def _linker_with(engine: wasmtime.Engine, function, kind: wasmtime.FuncType | None = None) -> wasmtime.Linker:
    linker = wasmtime.Linker(engine)
    linker.define_func("env", "host", kind or wasmtime.FuncType([], []), function)
    return linker


CALLS_HOST = '(module (import "env" "host" (func $host)) (func (export "f") (call $host)) (func (export "g") unreachable))'


def test_exception_in_a_host_function_is_the_cause_of_the_trap(make_guest, engine):
    def fail() -> None:
        raise KeyError("absent")

    guest = make_guest(CALLS_HOST, linker=_linker_with(engine, fail))
    with pytest.raises(GuestTrapError) as caught:
        guest.call("f")
    assert isinstance(caught.value.__cause__, KeyError)
    description = caught.value.description
    assert description.code == "host_function"
    assert description.exception == "KeyError"
    assert "in fail" in description.details
    assert len(description.backtrace) == 1
    error = description.to_error(5, "f")
    assert isinstance(error, HostFunctionError)
    assert (error.instance, error.export, error.exception) == (5, "f", "KeyError")


def test_exception_of_one_call_is_not_blamed_on_the_next(make_guest, engine):
    def fail() -> None:
        raise KeyError("absent")

    guest = make_guest(CALLS_HOST, linker=_linker_with(engine, fail))
    for _ in range(2):
        with pytest.raises(GuestTrapError):
            guest.call("f")
    with pytest.raises(GuestTrapError) as caught:
        guest.call("g")
    assert caught.value.__cause__ is None
    assert caught.value.description.code == "unreachable"
    assert type(caught.value.description.to_error(1, "g")) is WorkerTrapError


def test_interrupt_from_the_keyboard_is_not_the_guests_trap(make_guest, engine):
    def interrupt() -> None:
        raise KeyboardInterrupt

    guest = make_guest(CALLS_HOST, linker=_linker_with(engine, interrupt))
    with pytest.raises(KeyboardInterrupt):
        guest.call("f")


def test_host_function_may_call_the_function_that_called_it(make_guest, engine):
    i32 = wasmtime.ValType.i32()
    functions: list[ExportedFunction] = []

    def host(value: int) -> int:
        return 1 if value == 0 else value * int(functions[0].call([value])[0])

    guest = make_guest(
        """(module (import "env" "host" (func $host (param i32) (result i32)))
          (func (export "factorial") (param i32) (result i32) (call $host (i32.sub (local.get 0) (i32.const 1)))))""",
        linker=_linker_with(engine, host, wasmtime.FuncType([i32], [i32])),
    )
    functions.append(guest.function("factorial"))
    assert functions[0].call([6]) == (120,)


def test_other_threads_run_during_a_call_and_can_interrupt_it(make_guest, engine):
    guest = make_guest('(module (func (export "spin") (loop (br 0))) (func (export "one") (result i32) (i32.const 1)))')
    guest.store.set_epoch_deadline(1)
    timer = threading.Timer(0.01, engine.increment_epoch)
    timer.start()
    with pytest.raises(GuestTrapError) as caught:
        guest.call("spin")
    timer.join()
    assert caught.value.description.interrupted
    guest.store.set_epoch_deadline(1)
    assert guest.call("one") == 1
