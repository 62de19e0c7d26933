"""Rows as a table for people, and as JSON for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from rich.table import Table

from benchmarks.measuring import Summary
from benchmarks.rows import Budget, Row, Unit

_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_BYTES = ((float(1 << 30), "GiB"), (float(1 << 20), "MiB"), (float(1 << 10), "KiB"), (1.0, "B"))
_RATES = ((1e6, "M/s"), (1e3, "k/s"), (1.0, "/s"))
_PREFIXES = {"s": _SECONDS, "B": _BYTES, "1/s": _RATES}


def table(rows: Iterable[Row]) -> Table:
    """Return the table that is printed."""
    shown = Table(title="shmwasm beside its peers: median ± median absolute deviation", expand=False)
    for heading in ("what", "ours", "peer", "", "ratio", "budget", "met"):
        shown.add_column(heading, justify="right" if heading in {"ours", "peer", "ratio", "budget"} else "left")
    topic = None
    for row in rows:
        if topic not in {None, row.topic}:
            shown.add_section()
        topic = row.topic
        shown.add_row(
            row.what,
            quantity(row.ours, row.unit),
            quantity(row.peer, row.unit) if row.peer else "",
            row.peer_name,
            f"{row.ratio.median:.3f} ± {row.ratio.spread:.3f}" if row.ratio else "",
            _budget(row.budget, row.unit) if row.budget else "",
            _verdict(row),
        )
    return shown


def as_json(row: Row) -> dict[str, object]:
    """Return a row for JSON: its fields, in seconds and bytes, and whether its budget was met."""
    return {**dataclasses.asdict(row), "met": row.met}


def quantity(summary: Summary, unit: Unit) -> str:
    """Return a median and its spread in the prefix that suits the median: `8.41 ± 0.03 ns`."""
    scale, name = _prefix(summary.median, unit)
    return f"{summary.median / scale:.3g} ± {summary.spread / scale:.1g} {name}"


def _prefix(value: float, unit: Unit) -> tuple[float, str]:
    prefixes = _PREFIXES[unit]
    return next((prefix for prefix in prefixes if value >= prefix[0]), prefixes[-1])


def _budget(budget: Budget, unit: Unit) -> str:
    if budget.of == "ratio":
        return f"<= {budget.limit:g}x"
    scale, name = _prefix(budget.limit, unit)
    return f"<= {budget.limit / scale:g} {name}"


def _verdict(row: Row) -> str:
    if row.budget is None or row.met is None:
        return ""
    if not row.budget.binding:
        return "later" if not row.met else "yes"
    return "[green]yes[/green]" if row.met else "[bold red]NO[/bold red]"
