"""Kinds of load for pools, and how each of its calls must end.

The guest is that of `pools.wat`: each call has a cell of its own, whose value says how often it ran.
"""

import collections
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from chaos import CANCELLED, woven

from shmwasm.errors import (
    CallTimeoutError,
    ClosedError,
    FuelExhaustedError,
    WorkerLostError,
    WorkerTrapError,
)
from waiting import PATIENCE

PAGE = 1 << 16
CELLS = 1 << 24
"""Calls of a pool, at most."""
FEW_ROUNDS = 100
"""What a call of `note` may make with a pool's own fuel."""
ENOUGH_FUEL = 1 << 50
DECLARED_PAGES = 64
RECYCLED_AFTER = 20
LIMITED_PAGES = 5
LONGEST_IDLE = 0.05


class Load(NamedTuple):
    """A kind of pools, and what must be seen before it has run for long enough."""

    options: dict[str, Any]
    metered: bool = False
    seen: tuple[str, ...] = ()

    @property
    def steady(self):
        """Whether instances go only when they are killed."""
        return not self.options.keys() & {"fresh", "recycle_after", "on_trap", "min_size"}


LOADS = {
    "metered": Load({"size": 3}, metered=True, seen=("FuelExhaustedError",)),
    "recycling": Load({"size": 3, "recycle_after": RECYCLED_AFTER}, seen=("recycled",)),
    "growing": Load({"min_size": 0, "max_size": 4, "idle_timeout": LONGEST_IDLE}, seen=("grown",)),
    "replacing": Load({"size": 3, "on_trap": "replace"}, seen=("WorkerTrapError", "CallTimeoutError")),
    "limited": Load({"size": 3, "memory_limit": LIMITED_PAGES * PAGE}, seen=("memory not grown",)),
    "fresh": Load({"size": 3, "fresh": True}),
}


def random_load(rng):
    """Return a load that may have any of the options of the others."""
    options = dict(
        rng.choice([{"size": rng.randrange(1, 4)}, LOADS["growing"].options, {"min_size": 1, "max_size": 3, "idle_timeout": 0.2}])
    )
    others = {
        "recycle_after": rng.choice([1, 2, 7, 100]),
        "on_trap": "replace",
        "memory_limit": rng.choice([1, 7, 64]) * PAGE,
        "fresh": True,
        "timeout": 60.0,
    }
    options |= {name: value for name, value in others.items() if rng.random() < 0.4}
    return Load(options, metered=rng.random() < 0.5)


class Desk:
    """The cells of calls, in a shared heap."""

    def __init__(self, heap):
        self.heap = heap
        self.tickets = heap.calloc(4, 1)
        self._block = heap.calloc(CELLS, 1)
        self._lock, self._taken = threading.Lock(), 0
        self.runs = np.frombuffer(self._block.view, np.uint8)
        self.untouched = []
        """Cells of calls that must not run any more."""

    def take(self, count=1):
        """Return the first of some cells that nobody has had; None if there are no more."""
        with self._lock:
            first, self._taken = self._taken, self._taken + count
        return first if self._taken <= CELLS else None

    def address(self, cell):
        return self._block.address + cell

    def clear(self):
        self.runs[: self._taken] = 0
        self._taken = 0
        self.untouched.clear()

    def close(self):
        del self.runs
        self._block.free()
        self.tickets.free()


class Operation(NamedTuple):
    """A call without its cell, whether its result is right, and the error that it ends with instead."""

    export: str
    arguments: tuple[int, ...] = ()
    is_right: Callable[[Any], bool] | None = None
    error: type[Exception] | None = None
    timeout: float | None = None
    fuel: int | None = None


class Judge:
    """Judges the calls of one pool.

    Attributes:
        seen: How many calls ended how.
        unseen: How many there may have been whose end nobody saw.
        closing: Set before the pool is ended in the middle of its calls.
        judged: How many calls were judged that are not of maps.
    """

    def __init__(self, tally, load, desk, fuel):
        self.tally, self.load, self.desk, self._fuel = tally, load, desk, fuel
        self.seen, self.unseen, self.closing, self.judged = collections.Counter(), 0, False, 0
        self._lock, self._places, self._lost = threading.Lock(), set(), collections.Counter()

    # ------------------------------------------------------------ what to call

    def operation(self, rng):
        """Return something to call."""
        fuel = ENOUGH_FUEL if self.load.metered else None
        match rng.randrange(12):
            case 0:
                return Operation("spin", error=CallTimeoutError, timeout=rng.uniform(0.0005, 0.005), fuel=fuel)
            case 1:
                return Operation("fail", error=WorkerTrapError, fuel=fuel)
            case 2:
                pages = rng.randrange(4)
                return Operation("grow", (pages,), lambda found: self._has_grown(pages, *found))
            case 3 | 4:
                return Operation("who", (), lambda found: self._is_place(*found))
            case 5:
                return self._metered_note(rng, 20_000) if self.load.metered else self._note(rng, 1_000_000)
            case _:
                return self._note(rng, FEW_ROUNDS + 1)

    def endless(self):
        """Return what does not end in time by itself."""
        return Operation("spin", error=CallTimeoutError, timeout=PATIENCE, fuel=ENOUGH_FUEL if self.load.metered else None)

    def _note(self, rng, most):
        seed, rounds = rng.randrange(1 << 63), rng.randrange(most)
        return Operation("note", (seed, rounds), lambda found: found == woven(seed, rounds))

    def _metered_note(self, rng, most):
        operation = self._note(rng, most)
        needed, missing = self._fuel(operation.arguments[1]), rng.choice([0, 1, 1000])
        error = FuelExhaustedError if missing else None
        return operation._replace(fuel=max(1, needed - missing), error=error)

    def _has_grown(self, pages, before, answer, after):
        limit = self.load.options.get("memory_limit", DECLARED_PAGES * PAGE) // PAGE
        fits = before + pages <= limit
        self.tally.note("memory grown" if fits else "memory not grown")
        if self.load.options.get("fresh") and before != 1:
            return False
        return (answer, after) == ((before, before + pages) if fits else (-1, before))

    def _is_place(self, ticket, count, remembered, stopped):
        """Look at what `who` answers: each instance has a ticket, and its calls have numbers."""
        options = self.load.options
        with self._lock:
            new = (ticket, count) not in self._places
            self._places.add((ticket, count))
        right = new and ticket >= 0 and count == remembered
        right &= count <= options.get("recycle_after", count)
        if options.get("fresh"):
            right &= count == 1
        if options.get("fresh") or options.get("on_trap") == "replace":
            right &= stopped == 0
        return right

    # ------------------------------------------------------------ how it ended

    def judge(self, operation, cell, result, error, *, shared=False, cancelled=False, abandoned=False):
        """Judge how a call ended.

        Args:
            operation: What was called.
            cell: Its cell.
            result: What it returned.
            error: What it raised, or None.
            shared: Whether it was made on each instance, with the same cell.
            cancelled: Whether a cancel was told to be in time.
            abandoned: Whether its task was cancelled, so that nobody knows how it ended.
        """
        runs = int(self.desk.runs[cell])
        self.judged += 1
        if error is None:
            if operation.error is not None or not operation.is_right(result) or (runs == 0 if shared else runs != 1) or cancelled:
                self.tally.problem(f"{operation} returned {result} after {runs} runs")
            self.count("returned")
        elif isinstance(error, CANCELLED) and (cancelled or abandoned):
            if cancelled and runs:
                self.tally.problem(f"{operation} was cancelled and ran")
            if cancelled:
                self.desk.untouched.append(cell)
            self.count("cancelled" if cancelled else "abandoned")
        else:
            self.judge_error(operation, operation.error, error, runs, fuel=operation.fuel, shared=shared)

    def judge_error(self, what, expected, error, runs, *, fuel=None, shared=False):
        """Judge what a call raised that ran so often."""
        if runs > 1 and not shared:
            self.tally.problem(f"{what} ran {runs} times")
        if isinstance(error, WorkerLostError):
            gone = shared and not self.load.steady and error.signal is None and not error.exit_code
            if not (self.tally.was_killed(error) or gone or self.closing):
                self.tally.unexpected(what, error)
            self.count("WorkerLostError" if not shared else "lost there")
            self._count_loss(error, runs, shared=shared)
        elif expected is not None and type(error) is expected:
            if isinstance(error, FuelExhaustedError) and fuel is not None and error.fuel != fuel:
                self.tally.problem(f"{what} was given {error.fuel} units of fuel")
            self.count(type(error).__name__)
        elif self.closing and isinstance(error, (*CANCELLED, ClosedError)):
            self.count("closed")
        else:
            self.tally.unexpected(what, error)

    def count(self, how, times=1):
        with self._lock:
            self.seen[how] += times
        self.tally.note(how, times)

    def miss(self, calls):
        """Take note of calls whose ends nobody saw."""
        with self._lock:
            self.unseen += calls

    def note_shared(self, cell, calls):
        """Take note of calls that have ended and had one cell together."""
        runs = int(self.desk.runs[cell])
        self.seen["shared cells"] += runs > 1
        if runs > calls:
            self.tally.problem(f"{calls} calls ran {runs} times")

    def _count_loss(self, error, runs, *, shared):
        """Only one call runs on a worker, so only one fails with it."""
        if shared or not runs:
            self.seen["lost before it ran"] += not shared
            return
        with self._lock:
            self._lost[error.instance] += 1
            if self._lost[error.instance] > 1 and not self.closing:
                self.tally.problem(f"more than one call that ran was lost with {error}")

    # ------------------------------------------------------------ the pool

    def check_statistics(self, found, *, exact):
        """Compare a pool's statistics with what was seen, once nothing is under way."""
        seen, unseen = self.seen, self.unseen
        traps = seen["WorkerTrapError"] + seen["FuelExhaustedError"]
        lost, lost_there = seen["WorkerLostError"], seen["lost there"]
        # A call may fail because the only worker was lost that could have run it, before that was the pool's.
        unbegun = 0 if exact else seen["lost before it ran"]
        ended = seen["returned"] + traps + seen["CallTimeoutError"] + lost
        if exact and (unseen or lost_there):
            self.tally.problem(f"{unseen} calls and {lost_there} losses were not to be")
        for name, value, least, most in (
            ("calls", found.calls, ended - unbegun, ended + unseen + lost_there),
            ("traps", found.traps, traps, traps + unseen),
            ("timeouts", found.timeouts, seen["CallTimeoutError"], seen["CallTimeoutError"] + unseen),
            ("losses", found.losses, lost - unbegun, lost + unseen + lost_there),
            ("queue times", found.queue_time.count, found.calls, found.calls),
            ("run times", found.run_time.count, found.calls, found.calls),
            ("instances", found.size, 0 if "min_size" in self.load.options else found.started - found.replaced, found.size),
            ("busy ones", found.busy, 0, 0),
            ("queued calls", found.queued, 0, 0),
        ):
            if not least <= value <= most:
                self.tally.problem(f"the pool counted {value} {name}, not {least} to {most}: {found}; seen: {dict(seen)}")
        if (repeated := np.count_nonzero(self.desk.runs > 1) - seen["shared cells"]) > 0:
            self.tally.problem(f"{repeated} calls ran more than once")
        if any(self.desk.runs[cell] for cell in self.desk.untouched):
            self.tally.problem("a call ran that had been cancelled")
