"""One `map` of a pool: what was cut into lots, what came back, and who waits for it.

Theory
------
A map's calls are cut into *lots*, which one instance runs in one go (see `lots`). A lot that ends early, for one of its calls
failed, leaves a rest, which is a lot again. What comes back is kept as it is until somebody takes it, and the map does not run
further ahead of whoever does than `ahead` calls, so that an endless one takes no endless memory.

A failed call ends its map, as it ends `Executor.map`: what is after it and has not begun is dropped, what is before it is still
run, as its results come first. With `return_exceptions` nothing ends the map.

Locking
-------
`_lock` guards everything here. The pool cuts and settles lots, under its own lock; the one thread that takes the results reads
the arguments too, where that runs somebody's code.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from shmwasm.client.columns import Rows, Source, unpack
from shmwasm.client.lots import Pace
from shmwasm.client.outputs import Output
from shmwasm.errors import ShmwasmError
from shmwasm.posix.conditions import Condition
from shmwasm.posix.reentry import afterwards, on_top_of_lock, refuse_on_top
from shmwasm.posix.signals import interrupts_put_off

AHEAD: Final = 1 << 21
"""How many calls a map that needs nobody's code to go on runs ahead: their results take 16 MiB."""

LEAST_AHEAD: Final = 256
"""How many arguments are read ahead, at least, where somebody's code gives them."""

READING_TIME: Final = 0.002
"""Seconds for which arguments are read at a time, unless one takes longer."""


@dataclass(slots=True, eq=False)
class Lot:
    """Some calls of a map, which follow each other."""

    mapping: Mapping
    start: int
    rows: Rows
    queued: float
    """When its map began to wait for an instance."""

    def rest(self, done: int) -> Lot:
        """Return what is left of it without its first `done` calls."""
        return Lot(self.mapping, self.start + done, self.rows.part(done, self.rows.count - done), self.queued)

    def first(self, count: int) -> Lot:
        """Return its first `count` calls."""
        return Lot(self.mapping, self.start, self.rows.part(0, count), self.queued)


@dataclass(slots=True)
class Segment:
    """Results that follow each other: as cells, or as values."""

    count: int
    cells: bytes = b""
    capacity: int = 0
    values: list[Any] | None = None
    error: BaseException | None = None


@dataclass(slots=True)
class Wishes:
    """What the user wants of a map; see `InstancePool.map`."""

    timeout: float | None = None
    """Seconds that each call may run."""
    fuel: int | None = None
    """Units of fuel that each may use; None for an instance's usual amount."""
    deadline: float | None = None
    largest: int = 1
    """How many calls a lot may have."""
    buffer: int | None = None
    ordered: bool = True
    return_exceptions: bool = False
    progress: Callable[[int, int | None], object] | None = None
    output: Output | None = None
    results: tuple[str, ...] = field(default=())


class Look(NamedTuple):
    """What whoever takes the results finds.

    Attributes:
        segment: The next results, if they are there. Whoever has used them says so by `consumed`.
        finished: Whether there are no more.
        done: How many calls have ended.
        idle: Whether there is nothing to do until something changes.
    """

    segment: Segment | None
    finished: bool
    done: int
    idle: bool


class Mapping:
    """One map.

    Args:
        export: The exported function's name.
        source: The arguments.
        wishes: How it is to be done.
        instances: Tells how many instances take part.
        more: Called by whoever takes results when the pool can go on with this map.
        check_may_block: Raises where waiting would be for ever; called with the lock held, which a wait lets go of.

    Attributes:
        queued: Since when there has been something to do that waits; kept by the pool.
        in_queue: Whether it is in the pool's queue; kept by the pool.
    """

    def __init__(
        self,
        export: str,
        source: Source,
        wishes: Wishes,
        *,
        instances: Callable[[], int],
        more: Callable[[Mapping], None],
        check_may_block: Callable[[], None],
    ) -> None:
        self.export = export
        self.wishes = wishes
        self.queued = time.monotonic()
        self.in_queue = False
        self._source = source
        self._pace = Pace(wishes.largest)
        self._instances = instances
        self._more = more
        self._check_may_block = check_may_block
        self.interrupted = False
        """Whether something else than a call ended the wait for its results: then what runs is not wanted either."""
        self._lock = self._changed = Condition()
        self._wake: Callable[[], None] | None = None
        self._end = source.total
        self._read = 0
        self._cut = 0
        self._settled = 0
        self._done = 0
        self._consumed = 0
        self._segments: dict[int, Segment] = {}
        self._failed_at: int | None = None
        self._ended_by: BaseException | None = None
        self._closed = False

    # ------------------------------------------------------------ the pool's side

    @property
    def has_more(self) -> bool:
        """Whether `cut` has something to give."""
        with self._lock:
            return self._available() > 0

    @property
    def open(self) -> bool:
        """Whether somebody's code gives its arguments."""
        return self._source.open

    @property
    def is_cut(self) -> bool:
        """Whether no more will be cut."""
        with self._lock:
            return self._end is not None and self._cut >= self._last()

    def cut(self, limit: int | None = None) -> Lot | None:
        """Return the next lot that an instance may run, of at most `limit` calls; None if there is none now."""
        with self._lock:
            available = self._available()
            if available <= 0:
                return None
            if limit is not None:
                available = min(available, limit)
            remaining = available if self._source.open else self._last() - self._cut
            count = min(self._pace.size(remaining, self._instances()), available)
            lot = Lot(self, self._cut, self._source.read(self._cut, count), self.queued)
            self._cut += count
            return lot

    def wants(self, lot: Lot) -> bool:
        """Return whether a lot is still to be run; if not, it is dropped."""
        with self._lock:
            wanted = not self._closed and self._ended_by is None and lot.start < self._last()
            if not wanted:
                self._settle(lot.rows.count)
            return wanted

    def note_pace(self, count: int, seconds: float) -> None:
        """Take note of how long a lot took."""
        with self._lock:
            self._pace.note(count, seconds)

    def returned(self, lot: Lot, count: int, cells: memoryview, capacity: int) -> None:
        """Take the results of a lot's first `count` calls, from columns that have `capacity` cells."""
        if not count:
            return
        if self.wishes.output is not None:
            with self._lock:
                if not self._closed:
                    self.wishes.output.store(lot.start, count, cells, capacity)
                self._deposit(lot.start, Segment(count, values=[]))
        else:
            kept = bytes(cells[: 8 * len(self.wishes.results) * capacity])
            with self._lock:
                self._deposit(lot.start, Segment(count, kept, capacity))

    def failed(self, index: int, error: BaseException) -> None:
        """Take the error of one call."""
        with self._lock:
            if not self.wishes.return_exceptions and (self._failed_at is None or index < self._failed_at):
                self._failed_at = index
            self._deposit(index, Segment(1, error=error))

    def end_early(self, error: BaseException) -> None:
        """Cut no more, and let go of what is waiting: whoever takes the results gets those that there are, and this error."""
        with self._lock:
            if self._ended_by is None:
                self._ended_by = error
            self._tell_of_change()

    # ------------------------------------------------------------ the side of whoever takes the results

    def feed(self) -> None:
        """Read arguments, where that runs somebody's code, as far ahead as may be, but not for long."""
        until = time.monotonic() + READING_TIME
        stride = 1
        while time.monotonic() <= until and (count := min(self._readable(), stride)) > 0:
            fetched, over = self._source.fetch(self._read, count, until)
            with self._lock:
                self._source.add(fetched)
                self._read += len(fetched[0])
                if over:
                    self._end = self._read
            self._more(self)
            stride *= 2

    def segments(self) -> Iterator[Segment]:
        """Give what has come back, once each, in order if that is wished, until all has.

        Raises:
            TimeoutError: The map's time has passed.
        """
        told = 0
        while True:
            refuse_on_top("taking a map's results")
            self.feed()
            with self._lock:
                look = self._look(told)
                if look.idle:
                    self._wait()
            told = self.report(told, look.done)
            if look.segment is not None:
                yield look.segment
                self.consumed(look.segment)
            elif look.finished:
                return

    def look(self, told: int, wake: Callable[[], None]) -> Look:
        """Look for results without waiting. If there is nothing to do, `wake` is called once, in any thread, when there may be.

        Args:
            told: How many calls are known to have ended.
            wake: Must neither block nor raise.

        Raises:
            TimeoutError: There is nothing, and the map's time has passed.
        """
        with self._lock:
            look = self._look(told)
            self._wake = wake if look.idle else None
            if look.idle:
                self.remaining()
            return look

    def consumed(self, segment: Segment) -> None:
        """Take note that results were used, so that others may follow."""
        with self._lock:
            resumes = self._available() <= 0
            self._consumed += segment.count
            resumes = resumes and self._available() > 0
        if resumes:
            self._more(self)

    def report(self, told: int, done: int) -> int:
        """Tell the user how many calls have ended, if that has changed; return it."""
        if done != told and self.wishes.progress is not None:
            self.wishes.progress(done, self._end)
        return done

    def remaining(self) -> float | None:
        """Return for how many seconds the results may be waited for; None for ever.

        Raises:
            TimeoutError: Not any more.
        """
        remaining = None if self.wishes.deadline is None else self.wishes.deadline - time.monotonic()
        if remaining is not None and remaining <= 0:
            raise TimeoutError
        return remaining

    def results(self) -> Iterator[Any]:
        """Give the results one by one; raise what a call raised when its turn comes."""
        results = self._watched_results()
        next(results)
        return results

    def _watched_results(self) -> Iterator[Any]:
        try:
            yield None  # what ends it after this, and be it before the first result, is noticed
            yield from self._results()
        except BaseException as error:
            self.leave(error)
            raise
        finally:
            self.close()

    def _results(self) -> Iterator[Any]:
        for segment in self.segments():
            yield from self.values(segment)

    def values(self, segment: Segment) -> list[Any]:
        """Return results as the user has them; raises the error that stands in their place, if that is wished."""
        if segment.error is not None:
            if self.wishes.return_exceptions:
                return [segment.error]
            raise segment.error
        if segment.values is not None:
            return segment.values
        return unpack(segment.cells, self.wishes.results, segment.count, segment.capacity)

    def fill(self) -> Any:
        """Wait until all results are in the output; return it, or the part of it that was filled.

        Raises:
            ShmwasmError: What the first call raised that did not return.
        """
        for _ in self.results():
            pass
        return self.filled()

    def filled(self) -> Any:
        """Return the output, once all results are in it, or the part of it that was filled."""
        assert self.wishes.output is not None
        with self._lock:
            return self.wishes.output.part(self._end or 0)

    def leave(self, error: BaseException) -> None:
        """Close, because of an error; unless it is a call's own, what runs ends, too.

        So it does where a signal's handler raises, which may raise anything, and where the map's time has passed.
        """
        self.interrupted = not isinstance(error, (ShmwasmError, GeneratorExit))
        self.close()

    def close(self) -> None:
        """Let go of what has not begun: nobody wants it any more."""
        if on_top_of_lock():  # the iterator over the results is collected
            afterwards(self.close)
            return
        with interrupts_put_off():
            with self._lock:
                self._closed = True
                self._segments.clear()
            self._more(self)

    @property
    def closed(self) -> bool:
        """Whether nobody wants its results any more."""
        return self._closed

    def _readable(self) -> int:
        """Return how many calls' arguments are to be read now."""
        with self._lock:
            if not self._source.open or self._end is not None or self._closed or self._ended_by or self._failed_at is not None:
                return 0
            count = self._room()
            if self.wishes.output is not None:
                count = min(count, self.wishes.output.room - self._read)
                if self._read == self.wishes.output.room:
                    self._end = self._read
            return count

    # ------------------------------------------------------------ the lock is held

    def _hungry(self) -> bool:
        """Return whether instances would have nothing to do if their arguments were not read now."""
        unread = self._source.open and self._end is None and self._failed_at is None and self._ended_by is None
        return unread and self._room() > 0 and self._read - self._settled < 2 * self._instances()

    def _last(self) -> int:
        """Return where the map ends, as far as is known."""
        known = [one for one in (self._end, self._failed_at) if one is not None]
        return min(known, default=1 << 62)

    def _available(self) -> int:
        """Return how many calls can be cut."""
        if self._closed or self._ended_by is not None:
            return 0
        if self._source.open:
            return min(self._read, self._last()) - self._cut
        return min(self._last() - self._cut, self._room())

    def _room(self) -> int:
        """Return how many more calls may run ahead of whoever takes the results."""
        if self.wishes.buffer is not None:
            ahead = self.wishes.buffer
        elif not self._source.open:
            ahead = AHEAD if self.wishes.output is None else 1 << 62
        else:
            ahead = min(AHEAD, max(LEAST_AHEAD, 4 * self._instances() * self._pace.step))
        return ahead - (max(self._read, self._cut) - self._consumed)

    def _deposit(self, start: int, segment: Segment) -> None:
        if not self._closed:
            self._segments[start] = segment
        self._done += segment.count
        self._settle(segment.count)

    def _settle(self, count: int) -> None:
        self._settled += count
        self._tell_of_change()

    def _tell_of_change(self) -> None:
        self._changed.notify_all()
        wake, self._wake = self._wake, None
        if wake is not None:
            wake()

    def _look(self, told: int) -> Look:
        segment = self._take()
        finished = segment is None and self._is_finished()
        idle = segment is None and not finished and self._done == told and not self._hungry()
        return Look(segment, finished, self._done, idle)

    def _take(self) -> Segment | None:
        if self._closed:
            return None
        if self.wishes.ordered:
            return self._segments.pop(self._consumed, None)
        for start in self._segments:
            return self._segments.pop(start)
        return None

    def _is_finished(self) -> bool:
        if self._closed or self._consumed == self._end:
            return True
        if self._ended_by is not None and self._settled == self._cut:
            raise self._ended_by
        return False

    def _wait(self) -> None:
        self._check_may_block()
        self._changed.wait(self.remaining())
