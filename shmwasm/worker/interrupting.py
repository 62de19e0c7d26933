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

import _thread
import ctypes
import os
import queue
import select
from collections.abc import Callable

from shmwasm.addresses import NativeAddress
from shmwasm.errors import ProtocolError
from shmwasm.posix import futexes
from shmwasm.worker.links import give_up, leave


class InterruptedWaitError(Exception):
    """Ends the call of a guest that slept when it was interrupted. It does not leave the process."""


class Interrupter:
    """Makes one tick whenever the client has written the eventfd. Its thread starts with the first call that may need one.

    Args:
        tick: Increments the engine's epoch.
        eventfd: What the client writes.
        client: The descriptor of the channel to the client, whose end ends the process.
    """

    def __init__(self, tick: Callable[[], None], eventfd: int, client: int) -> None:
        self._tick = tick
        self._eventfd = eventfd
        self._client = client
        self._word = ctypes.c_uint32(0)
        self._address = NativeAddress(ctypes.addressof(self._word))
        self._met = 0
        self._made: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._started = False

    @property
    def alarm(self) -> futexes.Alarm | None:
        """What ends a wait of the call that runs; None while no call can be interrupted."""
        return futexes.Alarm(self._address, self._met) if self._started else None

    def start(self) -> None:
        """Start the thread, if it does not run yet. It ends with the process."""
        if not self._started:
            self._started = True
            _thread.start_new_thread(self._watch, ())  # what `threading` adds takes 150 KiB of private memory, and is not needed

    def meet(self) -> None:
        """Wait until the tick that is due was made, and count it as met."""
        self._made.get()
        self._met = (self._met + 1) & 0xFFFF_FFFF

    def _watch(self) -> None:
        """Tick until the client is gone: then nobody wants the calls any more, and a tick that is due may never come."""
        poll = select.poll()
        poll.register(self._eventfd, select.POLLIN)
        poll.register(self._client, 0)  # its end is always told
        while all(number != self._client for number, _ in poll.poll()):
            try:
                os.eventfd_read(self._eventfd)
            except OSError as failure:
                give_up(ProtocolError(f"the client sent no eventfd for interrupts: {failure}"))
            self._tick()
            self._word.value += 1
            futexes.wake(self._address)
            self._made.put(None)
        leave()
