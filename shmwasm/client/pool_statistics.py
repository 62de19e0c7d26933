"""What a pool counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

BUCKETS: Final = 64


@dataclass(slots=True)
class Histogram:
    """How often something took how long, in buckets whose bounds are powers of two.

    Attributes:
        counts: `counts[i]` of the times, in nanoseconds, were at least 2**(i-1) and below 2**i; those of `counts[0]` were 0.
        total: The sum of all, in seconds.
    """

    counts: list[int] = field(default_factory=lambda: [0] * BUCKETS)
    total: float = 0.0

    @property
    def count(self) -> int:
        """How many times there are."""
        return sum(self.counts)

    @property
    def mean(self) -> float:
        """The mean, in seconds; 0 where there is nothing."""
        return self.total / (self.count or 1)

    def add(self, seconds: float, times: int = 1) -> None:
        """Add a time, as often as it was measured."""
        self.counts[min(max(int(seconds * 1e9), 0).bit_length(), BUCKETS - 1)] += times
        self.total += seconds * times

    def quantile(self, part: float) -> float:
        """Return a time, in seconds, that `part` (0 to 1) of all are below: the bound of a bucket, so up to twice as much."""
        wanted, seen = part * self.count, 0
        for bucket, count in enumerate(self.counts):
            seen += count
            if count and seen >= wanted:
                return float(1 << bucket) * 1e-9
        return 0.0

    def copy(self) -> Histogram:
        """Return one that does not change with this one."""
        return Histogram(list(self.counts), self.total)


@dataclass(slots=True)
class PoolStatistics:
    """What a pool did and has, at one moment. The times are seen from this process.

    Attributes:
        calls: How many calls have ended on an instance, however they ended.
        traps: How many of them trapped.
        timeouts: How many passed their time limit.
        losses: How many were lost with their worker.
        started: How many instances were made.
        replaced: How many of them took the place of one that died, or that had trapped or done its calls.
        size: How many instances there are, busy ones included.
        busy: How many of them have something to do.
        starting: How many are being made.
        queued: How many submitted calls wait for an instance; those of maps are not counted before they are given to one.
        queue_time: How long each call waited before an instance took it, or before its lot was taken.
        run_time: How long each call ran; in a lot of a map, all its calls took the same.
    """

    calls: int = 0
    traps: int = 0
    timeouts: int = 0
    losses: int = 0
    started: int = 0
    replaced: int = 0
    size: int = 0
    busy: int = 0
    starting: int = 0
    queued: int = 0
    queue_time: Histogram = field(default_factory=Histogram)
    run_time: Histogram = field(default_factory=Histogram)
