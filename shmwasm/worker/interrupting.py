"""Interrupting the call that runs: a thread that makes the engine's epoch tick when the client asks for it.

Theory
------
The guest's compiled code compares the engine's epoch with its store's deadline at function entries and loop back-edges; the
deadline is always one tick away. So one tick interrupts whatever call runs, and one at the wrong moment would interrupt a call
that nobody wants to end. The ring sees to that: the client first marks the call in its slot, which it can only while the call
runs, and then writes the eventfd, once. From then on exactly one tick is due, and the call does not end before it has come:

* The guest meets it and traps. Then `meet` finds the tick made, or about to be recorded.
* The call ends by itself. Then the core finds the mark and calls `absorb`, which waits for the tick.

Either moves the store's deadline one tick ahead again, and then the call ends. Between calls no tick is due.

A guest that sleeps in the kernel meets no tick. So it sleeps at `alarm` too, a word that counts the ticks: it is woken there, and
does not fall asleep where the word has changed since the last tick that was met. A host function in Python is not disturbed; the
guest meets the tick when it returns.
"""

from __future__ import annotations

import ctypes
import os
import select
import threading
from collections.abc import Callable

from shmwasm.addresses import NativeAddress
from shmwasm.posix import futexes


class InterruptedWaitError(Exception):
    """Ends the call of a guest that slept when it was interrupted. It does not leave the process."""


class Interrupter:
    """Makes one tick whenever the client has written the eventfd. Its thread starts with the first call that may need one.

    Args:
        tick: Increments the engine's epoch.
        eventfd: What the client writes.
    """

    def __init__(self, tick: Callable[[], None], eventfd: int) -> None:
        self._tick = tick
        self._eventfd = eventfd
        self._word = ctypes.c_uint32(0)
        self._address = NativeAddress(ctypes.addressof(self._word))
        self._met = 0
        self._made = threading.Semaphore(0)
        self._thread: threading.Thread | None = None

    @property
    def alarm(self) -> futexes.Alarm | None:
        """What ends a wait of the call that runs; None while no call can be interrupted."""
        return None if self._thread is None else futexes.Alarm(self._address, self._met)

    def start(self) -> None:
        """Start the thread, if it does not run yet. It ends with the process."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="shmwasm-interrupter", daemon=True)
            self._thread.start()

    def meet(self) -> None:
        """Wait until the tick that is due was made, and count it as met."""
        self._made.acquire()
        self._met = (self._met + 1) & 0xFFFF_FFFF

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._eventfd, select.POLLIN)
        while True:
            poll.poll()  # the client may have made the descriptor one that does not block
            os.eventfd_read(self._eventfd)
            self._tick()
            self._word.value += 1
            futexes.wake(self._address)
            self._made.release()
