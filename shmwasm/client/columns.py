"""Arguments of many calls as columns of cells, and cells as results: pure.

Theory
------
The calls of a batch have their arguments in columns: for each parameter the cells of all calls, 8 bytes each. A column is packed
in one go, without Python for each call: a numpy array is copied, a sequence of plain numbers packed by one format. If there is
anything else among the values, the calls go one by one through the function that converts the arguments of single ones, so that
the same values are taken, and the same errors raised, as by a call of its own for each.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, repeat
from typing import TYPE_CHECKING, Any, Final, TypeGuard

from shmwasm.client.blocks import Block
from shmwasm.core.requests import CELL
from shmwasm.engine.numbers import BITS
from shmwasm.errors import ArgumentError

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

Column = Sequence[Any]
"""The values of one parameter: a sequence, or a numpy array of one dimension."""

Convert = Callable[[Sequence[Any]], Sequence[int | float]]
"""Makes of one call's arguments numbers in the ranges of their types, integers unsigned, or raises."""

AddressOf = Callable[[Any], int]
"""Returns where the instance sees a block, or raises `ArgumentError`."""

_NARROW: Final = frozenset({"i32", "f32"})
"""Types that fill half of a cell."""

_DTYPES: Final = {"i32": "<i4", "i64": "<i8", "f32": "<f4", "f64": "<f8"}
_PLAIN: Final[dict[str, set[type]]] = {
    "i32": {int, bool},
    "i64": {int, bool},
    "f32": {float, int, bool},
    "f64": {float, int, bool},
}
"""Types of which it is known what converting their values does."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The arguments of some calls."""

    count: int
    columns: tuple[Column, ...]

    def part(self, start: int, count: int) -> Rows:
        """Return the arguments of `count` of these calls, from the one at `start`."""
        return Rows(count, tuple(column[start : start + count] for column in self.columns))


class Source:
    """Where the arguments of a map come from: one iterable for each parameter, or structured arrays with a field for each.

    Lists are copied at once. Arrays are not: they are read when their turn comes.

    Attributes:
        columns: How many values there are for each call.
        open: Whether somebody's code must run to go on: then `read` gives only what was fetched, once each.
        total: How many calls there will be, or None if only fetching tells.
    """

    def __init__(self, iterables: Sequence[Iterable[Any]]) -> None:
        columns = [column for one in iterables for column in _columns_of(one)]
        self.columns = len(columns)
        iterators = [column for column in columns if not _is_known(column)]
        self._known = [column if _is_known(column) else None for column in columns]
        self._bound = min((len(column) for column in self._known if column is not None), default=None)
        self._single = len(iterators) == 1
        self._values = iterators[0] if self._single else zip(*iterators, strict=False)
        self._fetched: list[list[Any]] = [[] for _ in iterators]
        self.open = bool(iterators)
        self.total = None if self.open else self._bound or 0

    def fetch(self, at: int, count: int, until: float) -> tuple[list[list[Any]], bool]:
        """Fetch the arguments of up to `count` calls, from the one at `at` on, where that runs somebody's code.

        Args:
            at: How many were fetched before.
            count: How many to fetch.
            until: When to stop (`time.monotonic`), after the first.

        Returns:
            What is to be added, and whether there is no more.
        """
        wanted = count if self._bound is None else min(count, self._bound - at)
        fetched: list[Any] = []
        stopped = False
        for value in islice(self._values, wanted):
            fetched.append(value)
            if time.monotonic() > until:
                stopped = True
                break
        over = len(fetched) < count and not stopped
        if self._single or not fetched:
            return [fetched], over
        return [list(column) for column in zip(*fetched, strict=True)], over

    def add(self, fetched: list[list[Any]]) -> None:
        """Add what was fetched."""
        for column, more in zip(self._fetched, fetched, strict=False):
            column.extend(more)

    def read(self, start: int, count: int) -> Rows:
        """Return the arguments of `count` calls, from the one at `start` on."""
        fetched = iter(self._fetched)
        columns: list[Column] = []
        for known in self._known:
            if known is not None:
                columns.append(known[start : start + count])
            else:
                column = next(fetched)
                columns.append(column[:count])
                del column[:count]
        return Rows(count, tuple(columns))


def _is_known(column: object) -> bool:
    return isinstance(column, tuple | range) or is_array(column)


def is_array(value: object) -> TypeGuard[Array]:
    """Return whether a value is a numpy array whose elements can be taken as they lie in memory."""
    kind = type(value)
    if kind.__module__.partition(".")[0] != "numpy" and not hasattr(kind, "__array_interface__"):
        return False
    import numpy as np  # noqa: PLC0415  an option, and whoever has an array has it

    return isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray) and value.ndim == 1


def pack(
    rows: Rows, kinds: Sequence[str], cells: memoryview, *, convert: Convert, address_of: AddressOf, more: Sequence[int] = ()
) -> tuple[int, Exception | None]:
    """Pack the arguments of some calls into columns of cells.

    Args:
        rows: The arguments.
        kinds: The parameters' types.
        cells: Where to; the column of parameter i starts `8 * rows.count * i` bytes after the first.
        convert: What single calls do with their arguments.
        address_of: What it does with a block.
        more: What it adds to them.

    Returns:
        How many calls have arguments as they should, from the first on, and the error of the one after those.
    """
    size = CELL * rows.count
    parts = [cells[place * size : (place + 1) * size] for place in range(len(kinds))]
    columns = [*rows.columns, *([one] * rows.count for one in more)]
    if len(columns) == len(kinds) and all(map(_pack_column, kinds, columns, parts, repeat(address_of))):
        return rows.count, None
    targets = [_numbers(kind, part) for kind, part in zip(kinds, parts, strict=True)]
    for index, arguments in enumerate(zip(*rows.columns, strict=True)):
        try:
            numbers = convert(arguments)
        except Exception as error:  # noqa: BLE001  a value's own code ran, or it is refused: that call's error
            return index, error
        for target, number in zip(targets, numbers, strict=True):
            target[index] = number
    return rows.count, None


def unpack(cells: bytes | memoryview, kinds: Sequence[str], count: int, capacity: int | None = None) -> list[Any]:
    """Return the results of `count` calls, each as a single call returns it, from columns that have `capacity` cells."""
    if not kinds:
        return [None] * count
    columns = [result_column(cells, kind, place, count, capacity or count).tolist() for place, kind in enumerate(kinds)]
    return columns[0] if len(columns) == 1 else [list(results) for results in zip(*columns, strict=True)]


def result_column(cells: bytes | memoryview, kind: str, place: int, count: int, capacity: int) -> memoryview:
    """Return the results at one place of `count` calls, as a view that has one element for each: integers signed."""
    part = memoryview(cells)[place * capacity * CELL :][: count * CELL].cast("B")
    match kind:
        case "i32":
            return part.cast("i")[::2]
        case "i64":
            return part.cast("q")
    return _numbers(kind, part)


def result_dtype(kind: str) -> str:
    """Return the numpy dtype of results of a type."""
    return _DTYPES[kind]


def _columns_of(iterable: Iterable[Any]) -> Iterator[Any]:
    """Give the columns that an argument of `map` stands for."""
    if is_array(iterable):
        names = iterable.dtype.names
        if names is None:
            yield iterable
        else:
            for name in names:
                yield iterable[name]
    elif type(iterable) is list:
        yield tuple(iterable)
    elif type(iterable) in {tuple, range}:
        yield iterable
    else:
        yield iter(iterable)


def _numbers(kind: str, cells: memoryview) -> memoryview[Any]:
    """Return a view that has one element for each cell: integers unsigned."""
    match kind:
        case "i32":
            return cells.cast("I")[::2]
        case "i64":
            return cells.cast("Q")
        case "f32":
            return cells.cast("f")[::2]
    return cells.cast("d")


def _pack_column(kind: str, column: Column, cells: memoryview, address_of: AddressOf) -> bool:
    """Pack a column in one go; return False if its values must be looked at one by one."""
    if is_array(column):
        return _pack_array(kind, column, cells)
    if isinstance(column, range):
        return _pack_plain(kind, column, cells)
    found = set(map(type, column)) - _PLAIN[kind]
    if not found:
        return _pack_plain(kind, column, cells)
    if found != {Block} or kind not in BITS:
        return False
    try:
        return _pack_plain(kind, [address_of(one) if type(one) is Block else one for one in column], cells)
    except ArgumentError:
        return False


def _pack_array(kind: str, array: Array, cells: memoryview) -> bool:
    """Pack a column that is an array; return False if its elements must be looked at one by one."""
    import numpy as np  # noqa: PLC0415  see `is_array`

    if array.dtype.kind not in ("iu" if kind in BITS else "iufb") or not len(array):
        return not len(array)
    if kind == "i32" and array.dtype.itemsize > 4 and not -(1 << 31) <= int(array.min()) <= int(array.max()) < 1 << 32:
        return False
    target = np.frombuffer(cells, _DTYPES[kind])
    if kind in _NARROW:
        target = target[::2]
    with np.errstate(over="ignore"):  # what is too large for an f32 is infinite, as in a single call
        # An integer becomes an f32 by way of an f64, as a single call's does.
        exact = array if kind != "f32" or (array.dtype.kind == "f" and array.dtype.itemsize <= 8) else array.astype("f8")
        np.copyto(target, exact, casting="unsafe")
    return True


def _pack_plain(kind: str, values: Column, cells: memoryview) -> bool:
    """Pack a column of plain numbers; return False if its values must be looked at one by one."""
    count = len(values)
    try:
        if kind == "f32":
            narrow = bytearray(4 * count)
            struct.pack_into(f"<{count}f", narrow, 0, *values)
            cells.cast("f")[::2] = memoryview(narrow).cast("f")
            return True
        if kind == "i32" and count:
            low, high = sorted((values[0], values[-1])) if isinstance(values, range) else (min(values), max(values))
            if low < -(1 << 31) or high >= 1 << 32:
                return False
        struct.pack_into(f"<{count}{'d' if kind == 'f64' else 'q'}", cells, 0, *values)
    except (struct.error, OverflowError):
        return False
    return True
