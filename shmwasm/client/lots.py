"""How a map's calls are cut into lots, which one instance runs in one go: pure.

Theory
------
A lot costs the client some 100 µs, however many calls it has, and whatever a lot contains waits for all that is before it in the
lot. So lots are small until it is known how long the calls take, then as large as take `TARGET`; and towards the end smaller
again, so that all instances finish together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

TARGET: Final = 0.004
"""Seconds that a lot should take."""

GROWTH: Final = 8
"""How many times larger than the one before a lot can be, as the first ones tell more of the client than of the calls."""


@dataclass(slots=True)
class Pace:
    """How fast a map's calls are, and how many of them therefore make a lot.

    Attributes:
        largest: How many calls a lot may have.
        step: How many it may have for what is known so far.
    """

    largest: int
    step: int = 1

    def size(self, remaining: int | None, instances: int) -> int:
        """Return how many calls the next lot should have, at least 1.

        Args:
            remaining: How many there are left; None if nobody knows.
            instances: How many take part.
        """
        fair = self.largest if remaining is None else -(-remaining // (2 * max(instances, 1)))
        return max(1, min(self.step, self.largest, fair))

    def note(self, count: int, seconds: float) -> None:
        """Learn from a lot of `count` calls that took so long."""
        if not count:
            return
        wanted = int(min(TARGET * count / max(seconds, 1e-9), self.largest))
        if seconds > TARGET:
            # Not at once, as anything may have held one lot up.
            self.step = max(1, min(self.step, max(wanted, self.step // GROWTH)))
        else:
            self.step = min(self.largest, max(self.step, min(wanted, count * GROWTH)))
