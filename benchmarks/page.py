"""The results as a page of the documentation: what machine it was, the curves, the tables; and the same as JSON beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks import reporting
from benchmarks.plotting import plot
from benchmarks.rows import Row

OURS = "shmwasm"


def write_page(directory: Path, rows: Sequence[Row], results: Mapping[str, Any]) -> None:
    """Write `results.md`, `results.json` and a plot for each curve; remove the plots that were there.

    Args:
        directory: Where to; made if it is not there.
        rows: What was measured.
        results: The same for JSON, with the facts of the machine, and whether it was quick.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for old in directory.glob("*.svg"):
        old.unlink()
    (directory / "results.json").write_text(as_text(results))
    pictures = []
    for curve, points in curves(rows).items():
        name = re.sub(r"[^a-z0-9]+", "-", curve.lower()).strip("-") + ".svg"
        places = list(dict.fromkeys(row.point for row in points))
        (directory / name).write_text(plot(f"{curve} ({points[0].unit}, logarithmic)", places, lines(points), points[0].unit))
        pictures.append(f"![{curve}]({name})\n")
    parts = ["# Results of a run\n", *_machine(results), "## Curves\n", *pictures, "## Tables\n", *_tables(rows)]
    (directory / "results.md").write_text("\n".join(parts))


def as_text(results: Mapping[str, Any]) -> str:
    """Return the results as the text of a JSON file."""
    return json.dumps(results, indent=2, allow_nan=False) + "\n"


def curves(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Return the rows of each curve."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.curve:
            found.setdefault(row.curve, []).append(row)
    return found


def lines(rows: Sequence[Row]) -> dict[str, list[float | None]]:
    """Return the lines of one curve: ours, then each peer's, with a value or None for each point in the order of the rows.

    Where the peer is another point of the same curve, ours is all there is.
    """
    points = list(dict.fromkeys(row.point for row in rows))
    values: dict[str, dict[str, float]] = {OURS: {}}
    for row in rows:
        values[OURS][row.point] = row.ours.median
        if row.peer is not None and row.peer_name not in points:
            values.setdefault(row.peer_name, {})[row.point] = row.peer.median
    return {name: [line.get(point) for point in points] for name, line in values.items()}


def _machine(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the numbers depend on, and how much they can be trusted."""
    machine = results["machine"]
    before, after = (
        ", ".join(f"{load:.1f}" for load in loads) for loads in (machine["load_average"], results["load_average_after"])
    )
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items() if version)
    yield (
        f"{machine['processors']} processors ({machine['processor']}), {machine['system']} {machine['kernel']}, Python "
        f"{machine['python']}; {packages}.\n"
    )
    yield f"Load average before: {before}; after: {after}.\n"
    if machine["load_average"][0] > 1:
        yield (
            "Other programs were running: with more to run than processors, what waits (calls, leases, starting) is slower than "
            "it would be alone. Only the ratios can be judged, and with care.\n"
        )
    if results["quick"]:
        yield "This was a quick run: its numbers are too coarse to judge by.\n"
    yield "How it was measured: [](../benchmarks.md). All numbers: {download}`results.json`.\n"


def _tables(rows: Iterable[Row]) -> Iterator[str]:
    for topic, group in groupby(rows, key=lambda row: row.topic):
        yield f"### {topic}\n"
        yield "| what | ours | peer | | ratio | budget | met |\n| --- | ---: | ---: | --- | ---: | ---: | --- |"
        for row in group:
            yield f"| {' | '.join(cell.replace('|', '/') for cell in reporting.cells(row))} |"
        yield ""
