"""The C library's `struct timespec`."""

from __future__ import annotations

import ctypes

NS = 1_000_000_000
"""Nanoseconds in a second."""


class Timespec(ctypes.Structure):
    """Seconds, and nanoseconds beyond them."""

    _fields_ = (("seconds", ctypes.c_int64), ("nanoseconds", ctypes.c_int64))


def timespec(nanoseconds: int) -> Timespec:
    """Return so many nanoseconds, at least 0, as the C library takes them."""
    return Timespec(*divmod(nanoseconds, NS))
