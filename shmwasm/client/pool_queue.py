"""What waits in a pool for an instance: calls, maps that have more lots, and lots that are to be run by somebody else.

Locking
-------
All of it is called with the lock of `Notes` held.
"""

from __future__ import annotations

import time
from collections import deque

from shmwasm.client.mapping import Lot, Mapping
from shmwasm.client.pool_lines import Job


class PoolQueue:
    """The one queue of a pool. Maps take their turns in it, a lot at a time."""

    def __init__(self) -> None:
        self._works: deque[Job | Lot | Mapping] = deque()

    def __bool__(self) -> bool:
        return bool(self._works)

    @property
    def jobs(self) -> list[Job]:
        """The calls that wait."""
        return [work for work in self._works if isinstance(work, Job)]

    @property
    def waiting_since(self) -> float | None:
        """When the first began to wait."""
        return self._works[0].queued if self._works else None

    def append(self, job: Job) -> None:
        """Take a call."""
        self._works.append(job)

    def append_map(self, mapping: Mapping) -> None:
        """Take a map, if it has more lots; it is there once."""
        if not mapping.in_queue and mapping.has_more:
            mapping.in_queue = True
            mapping.queued = time.monotonic()
            self._works.append(mapping)

    def give_back(self, work: Job | Lot) -> None:
        """Take what was given to an instance, and has not begun: it is the next."""
        self._works.appendleft(work)

    def give_back_rest(self, lot: Lot, done: int) -> None:
        """Take what is left of a lot, if that is wanted, and the lots after it."""
        if done < lot.rows.count:
            rest = lot.rest(done)
            if rest.mapping.wants(rest):
                self._works.appendleft(rest)
        self.append_map(lot.mapping)

    def next(self, limit: int | None) -> Job | Lot | None:
        """Take out what is to be done next, which has at most `limit` calls; None if nothing is."""
        while self._works:
            work = self._works.popleft()
            if isinstance(work, Job):
                if not work.over:
                    return work
            elif isinstance(work, Lot):
                lot = self._within(work, limit)
                if lot is not None:
                    return lot
            else:
                lot = work.cut(limit)
                work.in_queue = False
                if lot is not None:
                    if work.has_more:
                        work.in_queue = True
                        self._works.append(work)
                    return lot
        return None

    def end_all(self, error: BaseException) -> list[Job]:
        """Take out all that waits, and end the maps with that error; return the calls, which are to end with it too."""
        jobs = [job for job in self.jobs if not job.over]
        while self._works:
            work = self._works.popleft()
            if not isinstance(work, Job):
                mapping = work if isinstance(work, Mapping) else work.mapping
                mapping.end_early(error)
                mapping.in_queue = False
                if isinstance(work, Lot):
                    mapping.wants(work)
        return jobs

    def clear(self) -> None:
        """Forget all that waits."""
        self._works.clear()

    def _within(self, lot: Lot, limit: int | None) -> Lot | None:
        """Return as much of a lot as may be given to an instance, and keep the rest; None if it is not wanted any more."""
        if not lot.mapping.wants(lot):
            return None
        if limit is None or lot.rows.count <= limit:
            return lot
        self._works.appendleft(lot.rest(limit))
        return lot.first(limit)
