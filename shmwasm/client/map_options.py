"""What a user wants of a map, checked."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypedDict

from shmwasm import errors
from shmwasm.client import checks
from shmwasm.client.mapping import Wishes
from shmwasm.client.outputs import Output
from shmwasm.client.pool_exports import PoolExport
from shmwasm.client.pool_life import FRESH_LOT, PoolOptions
from shmwasm.core import layout
from shmwasm.core.requests import CELL


class MapOptions(TypedDict):
    """The options of `InstancePool.map`, as they were given."""

    timeout: float | None
    chunksize: int | None
    buffersize: int | None
    call_timeout: float | None
    fuel: int | None
    ordered: bool
    return_exceptions: bool
    progress: Callable[[int, int | None], object] | None
    out: Any


def wishes_of(options: MapOptions, export: PoolExport, pool: PoolOptions, total: int | None) -> Wishes:
    """Return what is wanted of a map.

    Args:
        options: What was given.
        export: What is called.
        pool: How the pool is.
        total: How many calls there are; None if nobody knows.

    Raises:
        ArgumentError: An option cannot be; the message names it.
        UnsupportedError: There is a limit of fuel, and the module is not metered.
    """
    limit = checks.time_limit(options["call_timeout"]) or pool.timeout
    until = None
    if options["timeout"] is not None:
        until = time.monotonic() + checks.seconds(options["timeout"], "a time limit")
    buffer = options["buffersize"]
    progress = options["progress"]
    if progress is not None and not callable(progress):
        raise errors.ArgumentError(f"progress must be a function, not {errors.shown(progress)}")
    wishes = Wishes(
        timeout=limit,
        fuel=export.amount_of_fuel(options["fuel"]),
        deadline=until,
        largest=_largest_lot(options["chunksize"], export, pool, limited=limit is not None),
        buffer=None if buffer is None else checks.whole_number(buffer, "buffersize", low=1),
        ordered=checks.flag(options["ordered"], "ordered"),
        return_exceptions=checks.flag(options["return_exceptions"], "return_exceptions"),
        progress=progress,
        results=export.kind.results,
    )
    if options["out"] is not None:
        wishes.output = _output(options["out"], export, wishes, total)
    return wishes


def _largest_lot(chunksize: int | None, export: PoolExport, pool: PoolOptions, *, limited: bool) -> int:
    largest = layout.RING_BATCH_SIZE // (CELL * max(export.cells, 1))
    if chunksize is not None:
        largest = min(largest, checks.whole_number(chunksize, "chunksize", low=1))
    if pool.fresh:
        # What a worker does between two fresh calls of a lot is no call's time.
        return 1 if limited else min(largest, FRESH_LOT)
    return largest


def _output(out: object, export: PoolExport, wishes: Wishes, total: int | None) -> Output:
    if wishes.return_exceptions:
        raise errors.ArgumentError("out has no room for errors: it cannot be given together with return_exceptions")
    output = Output(out, export.name, wishes.results)
    if total is not None and total != output.room:
        raise errors.ArgumentError(f"out has room for {output.room} results, and there are {total} calls")
    return output
