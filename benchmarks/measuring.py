"""Measuring on a machine that is busy with other things.

Theory
------
What is compared is interleaved, A B, B A, A B, so that a slow second of the machine meets both sides, and neither is always the
first. A ratio is the median of the ratios within the rounds, not the ratio of two medians: within a round both sides had the same
machine. The spread is the median absolute deviation, which a few disturbed rounds do not move.

What only computes is timed by the processor time of its thread or process, which leaves out what the machine did for others
meanwhile. What waits, for a process or a message, is timed by the clock on the wall.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Clock = Callable[[], float]
"""Returns seconds; only differences count."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What was measured in several rounds."""

    median: float
    spread: float
    """The median absolute deviation from the median."""
    rounds: int


def summarize(samples: Sequence[float]) -> Summary:
    """Return the median of the samples and how far they spread; there must be one at least."""
    median = statistics.median(samples)
    return Summary(median, statistics.median(abs(sample - median) for sample in samples), len(samples))


def summarize_ratio(ours: Sequence[float], peers: Sequence[float]) -> Summary:
    """Return the ratio of two interleaved measurements, taken within each round."""
    return summarize([our / peer for our, peer in zip(ours, peers, strict=True)])


def interleave(*subjects: Callable[[], float], rounds: int, warmups: int = 1) -> list[list[float]]:
    """Let the subjects measure themselves in turns.

    Args:
        subjects: Each does its work once and returns the measured value.
        rounds: How often each is asked; every other round in reverse order.
        warmups: Rounds before those, whose values are dropped.

    Returns:
        The values of each subject, in the order of the rounds.
    """
    values: list[list[float]] = [[] for _ in subjects]
    places = list(range(len(subjects)))
    for number in range(-warmups, rounds):
        for place in places if number % 2 == 0 else reversed(places):
            value = subjects[place]()
            if number >= 0:
                values[place].append(value)
    return values


def elapsed(work: Callable[[], object], *, clock: Clock = time.perf_counter) -> float:
    """Return the seconds that `work` took by a clock."""
    start = clock()
    work()
    return clock() - start


def median_elapsed(work: Callable[[], object], times: int, *, clock: Clock = time.perf_counter) -> float:
    """Return the median of the seconds that `work` took by a clock, each time taken by itself."""
    return statistics.median(elapsed(work, clock=clock) for _ in range(times))


def round_trips(work: Callable[[], object], times: int) -> list[float]:
    """Return how many seconds `work` took, each time by itself, in ascending order."""
    clock = time.perf_counter
    taken = []
    for _ in range(times):
        start = clock()
        work()
        taken.append(clock() - start)
    taken.sort()
    return taken


def percentile(ascending: Sequence[float], share: float) -> float:
    """Return the smallest value that is not exceeded by that share of the values: 0.99 for all but each hundredth."""
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)]


def process_clock(pid: int) -> Clock:
    """Return the clock of the processor time that all threads of a living process have used."""
    libc = ctypes.CDLL(None)
    number = ctypes.c_int32()
    failure = libc.clock_getcpuclockid(ctypes.c_int32(pid), ctypes.byref(number))
    if failure:
        raise OSError(failure, os.strerror(failure))
    return functools.partial(time.clock_gettime, number.value)
