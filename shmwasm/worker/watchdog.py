"""Interrupting a call at its deadline.

Theory
------
The guest's compiled code compares the engine's epoch with its store's deadline at function entries and loop back-edges; the
deadline is always one tick away. So one tick interrupts whatever call runs, and a tick at the wrong moment would interrupt a
call that is not late.

Locking
-------
`_lock` guards `_deadline` and `_fired`, and the tick is made under it. A tick therefore belongs to the call that was armed, and
once `disarm` has returned there is none to come. Whoever learns from `disarm` that there was one moves the store's deadline.

A guest that sleeps in the kernel meets no tick: whoever puts it to sleep looks at `deadline`.

The thread sleeps until the deadline that it last saw, and not until the latest one: arming again for every call wakes nobody.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Watchdog:
    """Calls `interrupt` when an armed call is not disarmed in time. Its thread starts with the first call that has a timeout."""

    def __init__(self, interrupt: Callable[[], None]) -> None:
        self._interrupt = interrupt
        self._lock = threading.Lock()
        self._armed = threading.Condition(self._lock)
        self._deadline: float | None = None
        self._wakes_at: float | None = None
        self._fired = False
        self._closed = False
        self._thread: threading.Thread | None = None

    @property
    def deadline(self) -> float | None:
        """When (`time.monotonic`) the armed call is overdue, also if it is by now; None if none is armed."""
        return self._deadline

    def arm(self, timeout: float) -> None:
        """Interrupt the call that is about to run unless `disarm` comes within `timeout` seconds."""
        with self._lock:
            self._fired = False
            self._deadline = time.monotonic() + timeout
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="shmwasm-watchdog", daemon=True)
                self._thread.start()
            elif self._wakes_at is None or self._deadline < self._wakes_at:
                self._armed.notify()

    def disarm(self) -> bool:
        """Leave the call alone from now on; return whether it was interrupted."""
        with self._lock:
            self._deadline = None
            return self._fired

    def close(self) -> None:
        """End the thread, if there is one. May be called twice."""
        with self._lock:
            self._closed = True
            self._armed.notify()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        with self._lock:
            while not self._closed:
                due = None if self._fired else self._deadline
                if due is not None and time.monotonic() >= due:
                    due = None
                    self._fired = True
                    self._interrupt()
                self._wakes_at = due
                patience = None if due is None else due - time.monotonic()
                self._armed.wait(None if patience is None else min(max(patience, 0.0), threading.TIMEOUT_MAX))
