"""The dispatcher that is made for a module, with the real core, in one process: the client's calls, then the worker's turn."""

import math
import struct

import pytest
import wasmtime
from hypothesis import given, settings
from hypothesis import strategies as st

from shmwasm.core import layout
from shmwasm.core.dispatching import BELLS, CORE, CORE_IMPORTS, GUEST, RUN, cells_of, dispatched, dispatcher_text
from shmwasm.core.requests import SIGNED_CELLS
from shmwasm.engine.modules import FunctionType

NUMBERS = ("i32", "i64", "f32", "f64")
KINDS = st.builds(
    FunctionType,
    parameters=st.lists(st.sampled_from(NUMBERS), max_size=9).map(tuple),
    results=st.lists(st.sampled_from(NUMBERS), max_size=9).map(tuple),
)
VALUES = {
    "i32": st.integers(-(1 << 31), (1 << 31) - 1),
    "i64": st.integers(-(1 << 63), (1 << 63) - 1),
    "f32": st.floats(width=32),
    "f64": st.floats(),
}


def guest_text(functions):
    """Return a module in which result i of a function is parameter i, or 7 where there is none of that type."""
    lines = ["(module"]
    for name, kind in functions.items():
        parameters = f"(param {' '.join(kind.parameters)})" if kind.parameters else ""
        results = f"(result {' '.join(kind.results)})" if kind.results else ""
        values = " ".join(
            f"(local.get {index})" if kind.parameters[index : index + 1] == (value,) else f"({value}.const 7)"
            for index, value in enumerate(kind.results)
        )
        lines.append(f'(func (export "{name}") {parameters} {results} {values})')
    return "\n".join([*lines, ")"])


def expected(kind, arguments):
    return tuple(
        arguments[index] if kind.parameters[index : index + 1] == (value,) else 7 for index, value in enumerate(kind.results)
    )


def same(left, right):
    return len(left) == len(right) and all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(left, right, strict=True))


@given(st.lists(KINDS, max_size=8), st.data())
@settings(max_examples=40, deadline=None)
def test_dispatcher_passes_the_bits_of_every_argument_and_result(new_pair, kinds, data):
    functions = {f"f{index}": kind for index, kind in enumerate(kinds)}
    with new_pair(guest_text(functions), functions) as pair:
        for number, kind in enumerate(kinds):
            arguments = [data.draw(VALUES[value]) for value in kind.parameters]
            request = pair.submit(number, kind, arguments)
            assert pair.run() == layout.RING_PARK
            assert pair.client.wait(request) == layout.RING_DONE
            assert same(request.results(), expected(kind, arguments))
            pair.client.give(request)


@given(KINDS, st.integers(1, 40), st.sampled_from([0, layout.CALL_STOPPABLE]), st.data())
@settings(max_examples=25, deadline=None)
def test_batch_takes_columns_of_arguments_and_gives_columns_of_results(new_pair, kind, count, flags, data):
    rows = [[data.draw(VALUES[value]) for value in kind.parameters] for _ in range(count)]
    with new_pair(guest_text({"f": kind}), {"f": kind}) as pair:
        buffer = pair.client.batch_buffer(1)
        start = layout.RING_BATCH_SIZE
        for column, value in enumerate(kind.parameters):
            for row in range(count):
                struct.pack_into("<" + SIGNED_CELLS[value], buffer, 8 * (count * column + row), rows[row][column])
        results = 8 * count * len(kind.parameters)
        request = pair.client.batch_request(0, count, start, start + results)
        pair.client.submit(request, flags)
        assert pair.run() == layout.RING_PARK
        assert pair.client.wait(request) == layout.RING_DONE
        assert request.progress == count
        for row in range(count):
            found = [
                struct.unpack_from("<" + SIGNED_CELLS[value], buffer, results + 8 * (count * column + row))[0]
                for column, value in enumerate(kind.results)
            ]
            assert same(found, expected(kind, rows[row]))
        pair.client.give(request)


def test_only_functions_of_numbers_are_dispatched():
    functions = {
        "a": FunctionType((), ("externref",)),
        "b": FunctionType(("i32",), ()),
        "c": FunctionType(("v128",), ()),
        "d": FunctionType((), ("f64", "f64")),
    }
    assert dispatched(functions) == ["b", "d"]
    assert cells_of({name: functions[name] for name in dispatched(functions)}) == 2


def test_module_without_functions_has_a_dispatcher_that_only_waits(new_pair):
    with new_pair("(module)", {}) as pair:
        assert pair.run() == layout.RING_PARK
        pair.client.call_attention()
        assert pair.run() == layout.RING_ATTENTION


def test_largest_signature_of_webassembly_has_a_dispatcher(engine):
    kind = FunctionType(("i64",) * 1000, ("f32",) * 1000)
    module = wasmtime.Module(engine, dispatcher_text({"f": kind}))
    imports = [(item.module, item.name) for item in module.imports]
    assert imports == [*((CORE, name) for name in CORE_IMPORTS), (BELLS, "sleep"), (BELLS, "ring"), (GUEST, "0")]
    assert [item.name for item in module.exports] == [RUN]
    assert cells_of({"f": kind}) == layout.RING_MAXIMUM_CELLS


DIVIDE = '(module (func (export "f") (param i32) (result i32) (i32.div_s (i32.const 100) (local.get 0))))'


def test_trap_in_a_batch_leaves_the_progress_and_the_results_before_it(new_pair):
    functions = {"f": FunctionType(("i32",), ("i32",))}
    with new_pair(DIVIDE, functions) as pair:
        cells = pair.client.batch_buffer(0).cast("Q")
        cells[:4] = memoryview(struct.pack("<4Q", 4, 5, 0, 10)).cast("Q")
        request = pair.client.batch_request(0, 4, 0, 32)
        pair.client.submit(request)
        with pytest.raises(wasmtime.Trap, match="divide by zero"):
            pair.run()
        pair.worker.end(pair.worker.slot(), layout.CALL_TRAPPED)
        assert pair.client.wait(request) == layout.RING_FAILED
        assert (request.status, request.progress) == (layout.CALL_TRAPPED, 2)
        assert cells[4:8].tolist() == [25, 20, 0, 0]


def test_calls_after_one_that_trapped_run(new_pair):
    functions = {"f": FunctionType(("i32",), ("i32",))}
    with new_pair(DIVIDE, functions) as pair:
        bad, good = pair.submit(0, functions["f"], [0]), pair.submit(0, functions["f"], [50])
        with pytest.raises(wasmtime.Trap):
            pair.run()
        pair.worker.end(pair.worker.slot(), layout.CALL_TRAPPED)
        assert pair.run() == layout.RING_PARK
        assert (pair.client.wait(bad), pair.client.wait(good)) == (layout.RING_FAILED, layout.RING_DONE)
        assert good.results() == (2,)


FUELLED = """(module (global $given (export "given") (mut i64) (i64.const 0))
  (global $fuel (export "fuel") (mut i64) (i64.const 0))
  (func (export "f") (param i32) (result i64)
    (if (i64.lt_s (global.get $fuel) (i64.extend_i32_s (local.get 0))) (then unreachable))
    (global.set $fuel (i64.const 0))
    (global.get $given)))"""
"""A guest that needs as much fuel as its argument says, and returns what it was given."""


def test_dispatcher_of_a_metered_module_gives_each_call_its_fuel(new_pair):
    own, called = FunctionType(("i32",), ("i64",)), FunctionType(("i32", "i64"), ("i64",))
    with new_pair(FUELLED, {"f": own}, cells=cells_of({"f": called}), metered=True) as pair:
        requests = [pair.submit(0, called, (number, 10 * number)) for number in (1, 2, 3)]
        assert pair.run() == layout.RING_PARK
        assert [pair.client.wait(request) for request in requests] == [layout.RING_DONE] * 3
        assert [request.results() for request in requests] == [(10,), (20,), (30,)]
        pair.submit(0, called, (11, 10))
        with pytest.raises(wasmtime.Trap, match="unreachable"):
            pair.run()


def test_batch_of_a_metered_module_has_a_column_of_fuel(new_pair):
    with new_pair(FUELLED, {"f": FunctionType(("i32",), ("i64",))}, cells=2, metered=True) as pair:
        cells = pair.client.batch_buffer(0).cast("Q")
        cells[:6] = memoryview(struct.pack("<6Q", 4, 5, 6, 40, 50, 5)).cast("Q")
        request = pair.client.batch_request(0, 3, 0, 64)
        pair.client.submit(request)
        with pytest.raises(wasmtime.Trap, match="unreachable"):
            pair.run()
        pair.worker.end(pair.worker.slot(), layout.CALL_TRAPPED)
        assert pair.client.wait(request) == layout.RING_FAILED
        assert request.progress == 2
        assert cells[8:11].tolist() == [40, 50, 0]
