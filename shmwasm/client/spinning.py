"""Who may poll: waiting by looking again and again is the fastest there is, as long as there is a processor for it.

Theory
------
A client that looks for the end of a call and a worker that looks for the next one answer each other within a microsecond. Where
there are more of them than processors, each look takes time from whoever it waits for, so then nobody polls: all sleep, and are
woken. How many workers poll is known without asking: each one that was woken, until its ring says that it sleeps. So the
question is settled anew whenever one is woken, which is the only time that a polling worker can be one too many; and where
nobody polls, each call wakes its worker.

Polling is for calls that follow each other closely. A worker that was woken for a single one sleeps as soon as it is done: the
kernel likes to run it where its client runs, who would only come back when the worker stops looking for the next call.

What other programs do with the processors is not known here. A client whose calls outlast its patience looks less often by
itself.
"""

from __future__ import annotations

import os
from typing import Final, Protocol

from shmwasm.posix.conditions import Lock
from shmwasm.posix.processors import usable_processors

WORKER_LOOKS: Final = 50_000
"""How often a worker looks for the next call before it parks: about 100 microseconds, more than it takes to wake one."""

CLIENT_LOOKS: Final = 2_500
"""How often a client looks for the end of its call, while no other thread may run: about 5 microseconds."""


class Pollable(Protocol):
    """A call ring, as far as it is needed here."""

    def is_parked(self) -> bool:
        """Return whether the worker sleeps."""

    def set_spin(self, looks: int) -> None:
        """Set how often the worker looks for a call before it parks."""

    def set_patience(self, looks: int) -> None:
        """Set how often the client looks for the end of a call."""


class Pollers:
    """Settles who polls among this process and the workers that it calls.

    Args:
        processors: How many processors there are for them.
    """

    def __init__(self, processors: int) -> None:
        self._processors = processors
        self.reset()

    def reset(self) -> None:
        """Start anew, in a forked child, which has none of its parent's workers."""
        self._lock = Lock()  # another thread may have held it
        self._awake: set[Pollable] = set()
        self._polling: set[Pollable] = set()

    def woke(self, ring: Pollable, *, closely: bool) -> bool:
        """Take note that the worker of `ring` is being woken; return whether it and its client may poll.

        Args:
            ring: Whose worker.
            closely: Whether its last call was just before.
        """
        if not closely and ring not in self._polling:
            return False
        with self._lock:
            if not closely:
                self._polling.discard(ring)
                self._awake.discard(ring)
                ring.set_spin(0)
                ring.set_patience(0)
                return False
            self._awake.discard(ring)
            awake: list[Pollable] = []
            while self._awake and len(awake) < self._processors:
                other = self._awake.pop()
                if not other.is_parked():
                    awake.append(other)
            may_poll = len(awake) + 1 < self._processors  # one is left for this process
            self._awake.update(awake, [ring])
            self._polling.add(ring)
            for one in [ring] if may_poll else self._polling:
                one.set_spin(WORKER_LOOKS if may_poll else 0)
                one.set_patience(CLIENT_LOOKS if may_poll else 0)
            if not may_poll:
                self._polling.clear()
            return may_poll

    def forget(self, ring: Pollable) -> None:
        """Count a worker no more, as it is gone."""
        with self._lock:
            self._awake.discard(ring)
            self._polling.discard(ring)


pollers: Final = Pollers(usable_processors())
"""This process's."""

os.register_at_fork(after_in_child=pollers.reset)
