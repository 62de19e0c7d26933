"""`shmwasm doctor`: can this machine do it, and is anything left over?"""

from __future__ import annotations

import sys
from dataclasses import asdict

import click
from rich.console import Console
from rich.text import Text

from shmwasm.cli.findings import Level, diagnose, worst
from shmwasm.cli.machine import gather
from shmwasm.cli.reporting import print_json, reported

_STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.PROBLEM: "bold red"}


@click.command(
    epilog="""\b
Examples:
  shmwasm doctor
  shmwasm doctor --json
"""
)
@reported
def doctor(*, as_json: bool) -> None:
    """Look at this machine: shared memory, limits, kernel, engine, cache, leftovers.

    Each finding is ok, a warning or a problem, and whatever is not ok comes with its remedy. Exits with 1 if there is a problem.
    """
    findings = diagnose(gather())
    level = worst(findings)
    if as_json:
        print_json({"level": level, "findings": [asdict(finding) for finding in findings]})
    else:
        console = Console(highlight=False, soft_wrap=True)
        for finding in findings:
            console.print(Text(f"{finding.level:8}", _STYLES[finding.level]) + Text(f"{finding.subject}: {finding.detail}", ""))
            if finding.remedy is not None:
                console.print(Text(f"{'':8}{finding.remedy}", "italic"))
    if level is Level.PROBLEM:
        sys.exit(1)
