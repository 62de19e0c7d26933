"""What the mind waits for no longer than a time. The shell has the clock; to it a deadline is only a value to hand back."""

from __future__ import annotations

from dataclasses import dataclass

RECALL_SECONDS = 0.02
"""How long a lease waits for other peers to give slabs back."""

HELLO_SECONDS = 10.0
"""How long a new connection may stay silent."""


@dataclass(frozen=True, slots=True)
class HelloDeadline:
    """The client must have said `Hello`."""

    peer: int


@dataclass(frozen=True, slots=True)
class RecallDeadline:
    """The peers asked in this round must have given back what they can."""

    heap: int
    round: int


@dataclass(frozen=True, slots=True)
class SpawnDeadline:
    """The worker's instance must be ready, `seconds` after its client asked for it."""

    worker: int
    seconds: float


Deadline = HelloDeadline | RecallDeadline | SpawnDeadline
