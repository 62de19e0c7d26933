"""What a benchmark yields: rows, each with its budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.measuring import Summary, summarize, summarize_ratio

Unit = Literal["s", "B", "1/s"]


@dataclass(frozen=True, slots=True)
class Budget:
    """What a row may be at most."""

    limit: float
    of: Literal["value", "ratio"]
    binding: bool = True
    """False where the budget is that of work to come, and is shown for comparison."""


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

    @property
    def met(self) -> bool | None:
        """Whether the budget was met; None if there is none, or if what it limits was not measured."""
        if self.budget is None:
            return None
        measured = self.ours if self.budget.of == "value" else self.ratio
        return None if measured is None else measured.median <= self.budget.limit


def at_most(limit: float, *, binding: bool = True) -> Budget:
    """Return the budget of a value, in the row's unit."""
    return Budget(limit, "value", binding)


def ratio_at_most(limit: float, *, binding: bool = True) -> Budget:
    """Return the budget of the ratio to the peer."""
    return Budget(limit, "ratio", binding)


def compare(
    topic: str,
    what: str,
    ours: Sequence[float],
    peer_name: str = "",
    peers: Sequence[float] | None = None,
    *,
    budget: Budget | None = None,
    unit: Unit = "s",
) -> Row:
    """Return the row of a measurement and, if there is one, of its interleaved peer's."""
    if peers is None:
        return Row(topic, what, unit, summarize(ours), peer_name, budget=budget)
    return Row(topic, what, unit, summarize(ours), peer_name, summarize(peers), summarize_ratio(ours, peers), budget)
