"""The command: which topics to measure, and where the results go."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import click
from rich.console import Console

from benchmarks import (
    access,
    bulk,
    calling,
    guest_blocks,
    leasing,
    mapping,
    messaging,
    payloads,
    python_blocks,
    rewriting,
    scaling,
    spawning,
)
from benchmarks.context import Context
from benchmarks.machine import facts
from benchmarks.measuring import elapsed
from benchmarks.page import as_text, write_page
from benchmarks.reporting import as_json, table
from benchmarks.rows import Row

TOPICS: Final[dict[str, Callable[[Context], Iterator[Row]]]] = {
    module.TOPIC: module.rows
    for module in (
        access,
        bulk,
        guest_blocks,
        python_blocks,
        spawning,
        calling,
        payloads,
        mapping,
        leasing,
        messaging,
        scaling,
        rewriting,
    )
}


WIDTH: Final = 150
"""Columns that the table needs; a narrower terminal wraps it."""


@click.command(help=f"Measure what the project promises, each thing beside its peer. Topics: {', '.join(TOPICS)}.")
@click.option("--only", "only", multiple=True, type=click.Choice(list(TOPICS)), help="Measure this topic; may be repeated.")
@click.option("--quick", is_flag=True, help="Do a tenth of the work in a third of the rounds: to see that it runs.")
@click.option("--json", "output", type=click.Path(dir_okay=False, writable=True, path_type=Path), help="Write the results there.")
@click.option(
    "--page", type=click.Path(file_okay=False, path_type=Path), help="Write a page with plots, and JSON, into this directory."
)
def main(only: tuple[str, ...], output: Path | None, page: Path | None, *, quick: bool) -> None:
    """Measure, print the table, write the results."""
    console = Console()
    console.width = max(console.width, WIDTH)
    before = facts()
    measured: list[Row] = []
    seconds = {}
    for topic in only or TOPICS:
        with console.status(f"measuring: {topic}"):
            seconds[topic] = elapsed(lambda topic=topic: measured.extend(TOPICS[topic](Context(quick=quick))))  # type: ignore[misc]
    console.print(table(measured))
    rows = [as_json(row) for row in measured]
    results = {"machine": before, "load_average_after": os.getloadavg(), "quick": quick, "seconds": seconds, "rows": rows}
    if output is not None:
        output.write_text(as_text(results))
    if page is not None:
        write_page(page, measured, results)
