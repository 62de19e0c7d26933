"""Columns of cells, against a plain loop over what a single call does with its arguments."""

from __future__ import annotations

import struct
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmwasm.client.arguments import converters
from shmwasm.client.columns import Rows, Source, is_array, pack, unpack
from shmwasm.engine.modules import FunctionType
from shmwasm.errors import ArgumentError

KINDS = ("i32", "i64", "f32", "f64")
FORMATS = {"i32": "<I4x", "i64": "<Q", "f32": "<f4x", "f64": "<d"}
DTYPES = ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", ">i4", ">f8", "?")


class Index:
    """What is an integer without being an `int`."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


def converter(kinds):
    return converters("f", FunctionType(tuple(kinds), ()), lambda block: block.address)


def one_by_one(rows, kinds):
    """Return the cells of each call, as a single call packs them, and the error of the one that cannot be."""
    convert = converter(kinds)
    packed = []
    for arguments in zip(*rows.columns, strict=True):
        try:
            numbers = convert(arguments)
        except ArgumentError as error:
            return packed, str(error)
        packed.append([struct.pack(FORMATS[kind], number) for kind, number in zip(kinds, numbers, strict=True)])
    return packed, None


def in_one_go(rows, kinds):
    cells = memoryview(bytearray(8 * rows.count * len(kinds)))
    count, error = pack(rows, kinds, cells, convert=converter(kinds), address_of=lambda block: 0)
    columns = [cells[8 * rows.count * place :][: 8 * rows.count] for place in range(len(kinds))]
    calls = [[bytes(column[8 * index :][:8]) for column in columns] for index in range(count)]
    return calls, None if error is None else str(error)


def assert_same(rows, kinds):
    packed, error = in_one_go(rows, kinds)
    expected, expected_error = one_by_one(rows, kinds)
    # What is in the other half of a narrow cell is nobody's affair.
    widths = [4 if kind.endswith("32") else 8 for kind in kinds]
    assert [[cell[:width] for cell, width in zip(call, widths, strict=True)] for call in packed] == [
        [cell[:width] for cell, width in zip(call, widths, strict=True)] for call in expected
    ]
    assert error == expected_error


integers = st.one_of(
    st.integers(-(1 << 31) - 1, 1 << 32),
    st.integers(-(1 << 63) - 1, 1 << 64),
    st.sampled_from([0, -1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, -(1 << 31), (1 << 63) - 1, 1 << 63, (1 << 64) - 1]),
)
floats = st.floats(allow_nan=False)
values = st.one_of(integers, floats, st.booleans(), st.none(), st.text(max_size=1), integers.map(Index), floats.map(np.float64))


@st.composite
def columns(draw, count):
    """A column of one of the sorts that there are."""
    element = draw(st.sampled_from([integers, st.integers(0, 100), floats, values, st.booleans()]))
    sort = draw(st.sampled_from(["sequence", "range", "array"]))
    if sort == "range":
        start, step = draw(integers), draw(st.sampled_from([1, -1, 3, 1 << 31]))
        return range(start, start + step * count, step)
    if sort == "array":
        dtype = np.dtype(draw(st.sampled_from(DTYPES)))
        with np.errstate(over="ignore"):
            return np.frombuffer(draw(st.binary(min_size=8 * count, max_size=8 * count)), "u8").astype(dtype)
    return tuple(draw(element) for _ in range(count))


@given(st.data())
def test_a_column_is_packed_as_its_values_are_one_by_one(data):
    kinds = data.draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=3))
    count = data.draw(st.integers(0, 6))
    assert_same(Rows(count, tuple(data.draw(columns(count)) for _ in kinds)), kinds)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_an_array_of_any_type_is_packed_as_its_elements_are(dtype, kind):
    assert_same(Rows(5, (np.array([0, 1, 100, 77, 3]).astype(dtype),)), [kind])


def test_an_integer_becomes_an_f32_by_way_of_an_f64():
    """Rounding twice is not rounding once; whichever it is, it is the same for all."""
    assert_same(Rows(1, (np.array([(1 << 60) + (1 << 36) + 1]),)), ["f32"])
    assert_same(Rows(1, (((1 << 60) + (1 << 36) + 1,),)), ["f32"])


def test_the_error_is_that_of_the_first_wrong_call_and_its_first_wrong_argument():
    rows = Rows(3, ((1, 2, "x"), (1, 1 << 32, None)))
    calls, error = in_one_go(rows, ["i32", "i32"])
    assert len(calls) == 1
    assert "argument 1" in error
    assert str(1 << 32) in error


@pytest.mark.parametrize("count", [1, 3])
def test_a_wrong_number_of_columns_is_the_error_of_the_first_call(count):
    calls, error = in_one_go(Rows(2, ((1, 2),) * count), ["i32", "i32"])
    assert (calls, "takes 2 arguments" in error) == ([], True)


def test_what_is_added_follows_the_arguments():
    cells = memoryview(bytearray(8 * 2 * 2))
    assert pack(
        Rows(2, ((1, 2),)), ["i64", "i64"], cells, convert=converter(["i64", "i64"]), address_of=lambda block: 0, more=[9]
    ) == (2, None)
    assert cells.cast("q").tolist() == [1, 2, 9, 9]


@given(st.lists(st.tuples(st.integers(-(1 << 31), (1 << 31) - 1), floats), min_size=1, max_size=5), st.integers(0, 3))
def test_results_come_back_as_single_calls_return_them(results, spare):
    capacity = len(results) + spare
    cells = bytearray(b"\xff" * 8 * capacity * 2)
    for index, (integer, real) in enumerate(results):
        struct.pack_into("<i", cells, 8 * index, integer)
        struct.pack_into("<d", cells, 8 * (capacity + index), real)
    assert unpack(bytes(cells), ("i32", "f64"), len(results), capacity) == [list(one) for one in results]
    assert unpack(bytes(cells), ("i32",), len(results), capacity) == [integer for integer, _ in results]
    assert unpack(b"", (), 3) == [None] * 3


class TestSource:
    """Where the arguments of a map come from."""

    def read_all(self, source: Source, step: int) -> list[tuple[Any, ...]]:
        calls: list[tuple[Any, ...]] = []
        while True:
            over = source.total is not None
            available = step if source.total is None else min(step, source.total - len(calls))
            if source.open:
                fetched, over = source.fetch(len(calls), step, time.monotonic() + 10)
                source.add(fetched)
                available = len(fetched[0])
            calls.extend(zip(*source.read(len(calls), available).columns, strict=True))
            if over and (source.total is None or len(calls) == source.total):
                return calls

    @given(st.lists(st.integers(0, 7), min_size=1, max_size=3), st.integers(1, 4), st.data())
    def test_it_gives_what_zip_gives(self, lengths, step, data):
        sorts = [list, tuple, iter, np.array, lambda values: (value for value in values)]
        iterables = [data.draw(st.sampled_from(sorts))(range(length)) for length in lengths]
        source = Source(iterables)
        assert self.read_all(source, step) == [(index,) * len(lengths) for index in range(min(lengths))]

    def test_a_list_is_copied(self):
        values = [1, 2, 3]
        source = Source([values])
        values.clear()
        assert self.read_all(source, 2) == [(1,), (2,), (3,)]

    def test_a_structured_array_stands_for_its_fields(self):
        records = np.array([(1, 2.5), (3, 4.5)], [("a", "i4"), ("b", "f8")])
        assert self.read_all(Source([records, range(2)]), 1) == [(1, 2.5, 0), (3, 4.5, 1)]

    def test_a_slow_iterable_is_not_read_further_than_needed(self):
        taken = []

        def slow():
            for value in range(100):
                taken.append(value)
                yield value

        fetched, over = Source([slow()]).fetch(0, 50, time.monotonic() - 1)
        assert (fetched, over, taken) == ([[0]], False, [0])

    def test_without_iterables_there_are_no_calls(self):
        assert Source([]).total == 0


@pytest.mark.parametrize("value", [[1], np.zeros((2, 2)), np.float64(1), np.ma.array([1]), None])
def test_only_arrays_of_one_dimension_are_taken_as_they_lie(value):
    assert not is_array(value)


def test_arrays_in_files_and_records_are_arrays():
    assert is_array(np.zeros(3))
    assert is_array(np.zeros(3, [("a", "i4")]).view(np.recarray))
