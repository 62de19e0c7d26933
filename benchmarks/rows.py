"""What a benchmark yields: rows, each with its budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.measuring import Summary, summarize, summarize_ratio

Unit = Literal["s", "B", "1/s"]


@dataclass(frozen=True, slots=True)
class Budget:
    """What a row may be at most, or must be at least."""

    limit: float
    of: Literal["value", "ratio"]
    sense: Literal["<=", ">="] = "<="

    def allows(self, value: float) -> bool:
        """Return whether a value keeps to it."""
        return value <= self.limit if self.sense == "<=" else value >= self.limit


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that was measured, beside its peer."""

    topic: str
    what: str
    unit: Unit
    ours: Summary
    peer_name: str = ""
    peer: Summary | None = None
    ratio: Summary | None = None
    budget: Budget | None = None
    curve: str = ""
    """What it is a point of, if there is a plot."""
    point: str = ""
    """Where on the curve, as it is shown."""

    @property
    def met(self) -> bool | None:
        """Whether the budget was met; None if there is none, or if what it limits was not measured."""
        if self.budget is None:
            return None
        measured = self.ours if self.budget.of == "value" else self.ratio
        return None if measured is None else self.budget.allows(measured.median)


def at_most(limit: float) -> Budget:
    """Return the budget of a value, in the row's unit."""
    return Budget(limit, "value")


def at_least(limit: float) -> Budget:
    """Return the budget of a value of which more is better."""
    return Budget(limit, "value", ">=")


def ratio_at_most(limit: float) -> Budget:
    """Return the budget of the ratio to the peer."""
    return Budget(limit, "ratio")


def compare(
    topic: str,
    what: str,
    ours: Sequence[float],
    peer_name: str = "",
    peers: Sequence[float] | None = None,
    *,
    budget: Budget | None = None,
    unit: Unit = "s",
    curve: str = "",
    point: str = "",
) -> Row:
    """Return the row of a measurement and, if there is one, of its interleaved peer's."""
    peer = None if peers is None else summarize(peers)
    ratio = None if peers is None else summarize_ratio(ours, peers)
    return Row(topic, what, unit, summarize(ours), peer_name, peer, ratio, budget, curve, point)
