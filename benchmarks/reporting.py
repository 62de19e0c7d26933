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
        *shown_cells, met = cells(row)
        shown.add_row(*shown_cells, met and f"[{'green' if row.met else 'bold red'}]{met}")
    return shown


def cells(row: Row) -> list[str]:
    """Return a row as a table shows it: what, ours, the peer's, whose that is, the ratio, the budget, whether it was met."""
    return [
        row.what,
        quantity(row.ours, row.unit),
        quantity(row.peer, row.unit) if row.peer else "",
        row.peer_name,
        ratio(row.ratio) if row.ratio else "",
        budget(row.budget, row.unit) if row.budget else "",
        {None: "", True: "yes", False: "NO"}[row.met],
    ]


def as_json(row: Row) -> dict[str, object]:
    """Return a row for JSON: its fields, in seconds and bytes, and whether its budget was met."""
    return {**dataclasses.asdict(row), "met": row.met}


def quantity(summary: Summary, unit: Unit) -> str:
    """Return a median and its spread in the prefix that suits the median: `8.41 ± 0.03 ns`."""
    scale, name = prefix(summary.median, unit)
    return f"{summary.median / scale:.3g} ± {summary.spread / scale:.1g} {name}"


def number(value: float, unit: Unit) -> str:
    """Return a value in the prefix that suits it: `2 µs`."""
    scale, name = prefix(value, unit)
    return f"{value / scale:g} {name}"


def ratio(summary: Summary) -> str:
    """Return a ratio and its spread."""
    if summary.median < 0.1:
        return f"1 / {1 / summary.median:,.0f}"
    if summary.median >= 100:
        return f"{summary.median:,.0f} ± {summary.spread:,.0f}"
    return f"{summary.median:.3f} ± {summary.spread:.3f}"


def prefix(value: float, unit: Unit) -> tuple[float, str]:
    """Return the largest prefix that the value is not smaller than: what it is divided by, and its name."""
    prefixes = _PREFIXES[unit]
    return next((prefix for prefix in prefixes if value >= prefix[0]), prefixes[-1])


def budget(limit: Budget, unit: Unit) -> str:
    """Return a budget as it is shown: `<= 2 µs`."""
    if limit.of == "ratio":
        return f"{limit.sense} {limit.limit:g}x"
    return f"{limit.sense} {number(limit.limit, unit)}"
