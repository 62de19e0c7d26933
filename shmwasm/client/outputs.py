"""An array that a map's results are written to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shmwasm import errors
from shmwasm.client.columns import is_array, result_column, result_dtype

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Output:
    """A user's array for the results of an export.

    Args:
        array: The array: one-dimensional, writable; with a field for each result if there are several.
        export: The exported function's name.
        kinds: The results' types.

    Attributes:
        room: How many results it can take.

    Raises:
        ArgumentError: It cannot take such results.
    """

    def __init__(self, array: object, export: str, kinds: tuple[str, ...]) -> None:
        if not is_array(array):
            raise errors.ArgumentError(f"out must be a numpy array of one dimension, not {errors.shown(array)}")
        if not array.flags.writeable:
            raise errors.ArgumentError("the array out cannot be written to")
        names = array.dtype.names
        self._columns: list[npt.NDArray[Any]] = [array] if names is None else [array[name] for name in names]
        if len(self._columns) != len(kinds):
            raise errors.ArgumentError(
                f"out has room for {len(self._columns)} values of each call; {export!r} returns {len(kinds)} ({', '.join(kinds)})"
            )
        for kind, column in zip(kinds, self._columns, strict=True):
            if not _takes(column.dtype, kind):
                raise errors.ArgumentError(f"out, of type {column.dtype}, cannot take the results of {export!r}, of type {kind}")
        self._kinds = kinds
        self.array = array
        self.room = len(array)

    def part(self, count: int) -> npt.NDArray[Any]:
        """Return the array, if it has so many elements, or the part with the first so many."""
        return self.array if count == len(self.array) else self.array[:count]

    def store(self, start: int, count: int, cells: memoryview, capacity: int) -> None:
        """Write the results of `count` calls, from columns of cells."""
        import numpy as np  # noqa: PLC0415  whoever gives an array has it

        for place, (kind, column) in enumerate(zip(self._kinds, self._columns, strict=True)):
            results = np.asarray(result_column(cells, kind, place, count, capacity))
            np.copyto(column[start : start + count], results, casting="unsafe")


def _takes(dtype: np.dtype[Any], kind: str) -> bool:
    """Return whether an array of such elements can take results of a type: any of them, or the bits of an integer."""
    import numpy as np  # noqa: PLC0415  see above

    result = np.dtype(result_dtype(kind))
    return np.can_cast(result, dtype, "safe") or (dtype.kind == "u" and result.kind == "i" and dtype.itemsize == result.itemsize)
