"""Waiting for what is certain to happen, and looking at processes until it has."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 50.0
"""Seconds that anything may take which is certain to happen, on a machine however busy; never waited in full."""


def eventually(condition: Callable[[], T], patience: float = PATIENCE) -> T:
    """Wait until a condition holds, and return its value."""
    deadline = time.monotonic() + patience
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{condition} did not come true within {patience} s"
        time.sleep(0.001)
    return value


def state_of(pid: int) -> str:
    """Return the letter that the kernel has for what a process does: "S" where it sleeps, "T" where it was stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
