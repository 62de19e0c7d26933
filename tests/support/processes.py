"""Looking at processes from outside, as the kernel shows them."""

from __future__ import annotations

from pathlib import Path


def state_of(pid: int) -> str:
    """Return the letter that the kernel has for what a process does: "S" where it sleeps, "T" where it was stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def children_of(pid: int) -> list[int]:
    """Return the children of a process that has one thread."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def descriptors_of(pid: int | str = "self") -> int:
    """Return how many descriptors a process has open, by default this one."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
