"""Which processors threads run on, and how to be on another one than somebody else."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Final

_PROCESSOR: Final = 36
"""Which field of `/proc/PID/stat`, after the process's name, is the processor that it ran on last (proc(5): the 39th of all)."""

_current = ctypes.PyDLL(None)["sched_getcpu"]


def usable_processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0))


def shares_processor(pid: int) -> bool:
    """Return whether another process's main thread ran last where this thread runs now; False if there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    here: int = _current()
    return int(fields[_PROCESSOR]) == here


def change_processor() -> None:
    """Move this thread to another processor, if it may use one; it may use as many as before."""
    usable = os.sched_getaffinity(0)
    others = usable - {_current()}
    if others:
        try:
            os.sched_setaffinity(0, others)
        finally:
            os.sched_setaffinity(0, usable)
