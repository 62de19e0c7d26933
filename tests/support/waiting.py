"""Waiting for what is certain to happen."""

from __future__ import annotations

import time
from collections.abc import Callable
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
