"""A time limit for what a guest does between calls, while it is made: nobody outside waits for that, or could end it."""

from __future__ import annotations

import _thread
import os
import sys
import time
from typing import Final

from shmwasm.posix.timers import Timer
from shmwasm.worker.leaving import leave

GRACE: Final = 5.0
"""Seconds that a guest has to end once it was interrupted, before the process ends: one in a host function does not notice."""


class TimeLimit:
    """Asks for an interrupt, once, if `stop` does not follow `start` in time. Its thread starts with the first `start`.

    Args:
        seconds: How long it may take.
        interrupt: The eventfd that asks for an interrupt (see `watching`).
    """

    def __init__(self, seconds: float, interrupt: int) -> None:
        self.seconds = seconds
        self._interrupt = interrupt
        self._timer = Timer(seconds, GRACE)
        self._lock = _thread.allocate_lock()
        self._due: float | None = None
        self.is_over = False
        """Whether the time is over, and an interrupt was asked for."""
        self._started = False

    def start(self) -> None:
        """Count from now."""
        if not self._started:
            self._started = True
            _thread.start_new_thread(self._watch, ())
        self.is_over = False
        self._due = time.monotonic() + self.seconds
        self._timer.start()

    def stop(self) -> bool:
        """Count no more; return whether an interrupt was asked for, and so is due."""
        with self._lock:
            self._due = None
        self._timer.stop()
        return self.is_over

    def _watch(self) -> None:
        while True:
            self._timer.wait()
            with self._lock:  # what has expired may have been stopped since, and even started again
                if self._due is None or time.monotonic() < self._due:
                    continue
                if self.is_over:
                    sys.stderr.write(f"shmwasm worker: a guest was not made {GRACE} s after its time limit\n")
                    leave(os.EX_TEMPFAIL)
                self.is_over = True
                self._due += GRACE
                os.eventfd_write(self._interrupt, 1)
