"""A call's time limit: when to look at the call again, and what to do then. No clock is read here.

Theory
------
A limit is for the time that a call runs; the time in the queue does not count. No message says when the worker takes a call, so
whoever waits looks: in steps of an eighth of the limit, until it is seen that the call runs, or could run, as nothing is before
it. From then on it has its limit, so that it gets no less than that, and at most an eighth more. Then it is ended early, and a
worker that does not come back within a grace period after that is killed. Where a worker prepares something for each call, a call
that could run is looked at until it does; only one that never does has its limit counted from when it should have.

In a batch each call has that limit. How many have returned is seen at each look, so looks go on while it runs: what runs then has
its limit from the first look that finds it running.
"""

from __future__ import annotations

from dataclasses import dataclass

STEPS = 8
"""How often a call is looked at in the time that it may run, before it runs."""

LONGEST_STEP = 0.05
"""Seconds between two looks at most."""


@dataclass(slots=True)
class Clock:
    """The time limit of one call, or of each call of a batch. Times are those of `time.monotonic`.

    Attributes:
        limit: Seconds that the call may run.
        grace: Seconds that the worker gets after that.
        began: When the call was first seen to run, or when it should have begun at the latest; None before.
        ended_early: Whether its time has passed.
        hopeless: Whether the worker's time has passed too.
        progress: Of a batch: how many of its calls had returned at the last look; None for a single call.
    """

    limit: float
    grace: float
    began: float | None = None
    ended_early: bool = False
    hopeless: bool = False
    progress: int | None = None

    def look(self, now: float, *, has_begun: bool, preparation: float = 0.0, progress: int = 0) -> float | None:
        """Take note of what is seen of the call; return when to look again, which may be now, or None for never.

        Args:
            now: The time.
            has_begun: Whether the call runs, or could run.
            preparation: If it does not run although it could: seconds that the worker may need before.
            progress: Of a batch: how many of its calls have returned.
        """
        if self.hopeless:
            return None
        step = now + min(self.limit / STEPS, LONGEST_STEP)
        if self.progress is not None and self.progress != progress and not self.ended_early:
            self.progress, self.began = progress, None
        if self.began is None:
            if not has_begun:
                return step
            self.began = now + preparation
        elif not preparation:
            self.began = min(self.began, now)
        due = self.began + self.limit + (self.grace if self.ended_early else 0.0)
        is_watched = preparation or (self.progress is not None and not self.ended_early)
        return min(due, step) if is_watched else due
