"""What goes on beside the calls: a thread that interrupts the one that runs, and notices messages while the worker sleeps.

Theory of interrupts
--------------------
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

Theory of messages
------------------
The worker's main thread runs calls, or sleeps at its bell, in wasm both times, and sees no channel. So this thread looks at them.
Once something can be read from one, it looks there no more, and has the main thread called: that reads all there is, and then
asks for another look (`look_again`). While the main thread itself waits for an answer on a channel, this one keeps off it.
"""

from __future__ import annotations

import _thread
import ctypes
import os
import select
from _queue import SimpleQueue  # the launcher does without `queue`, which imports `threading` (see there)
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from shmwasm.addresses import NativeAddress
from shmwasm.errors import ProtocolError
from shmwasm.posix import futexes
from shmwasm.posix.masks import keep_signals_out, let_signals_in
from shmwasm.worker.leaving import give_up, leave


class InterruptedWaitError(Exception):
    """Ends the call of a guest that slept when it was interrupted. It does not leave the process."""


class Watcher:
    """The thread. It ends with the process, which it ends where the client is gone: nobody wants the calls any more.

    Args:
        tick: Increments the engine's epoch.
        eventfd: What the client writes, once for each tick.
        client: The descriptor of the channel to the client.
        call: Has the main thread come out of wasm, before the next call, to read messages; any thread may call it.
    """

    def __init__(self, tick: Callable[[], None], eventfd: int, client: int, call: Callable[[], None]) -> None:
        self._tick = tick
        self._eventfd = eventfd
        self._client = client
        self.call = call
        self._word = ctypes.c_uint32(0)
        self._address = NativeAddress(ctypes.addressof(self._word))
        self._met = 0
        self._made: SimpleQueue[None] = SimpleQueue()
        self._poll: select.epoll | None = None

    @property
    def alarm(self) -> futexes.Alarm:
        """What ends a wait of the call that runs."""
        return futexes.Alarm(self._address, self._met)

    def start(self, channels: Sequence[int]) -> None:
        """Start the thread, which looks at these channels, the client's among them, and is who signals interrupt from now on."""
        keep_signals_out()  # of the main thread: see `engine.natives`
        self._poll = select.epoll(len(channels) + 1)
        self._poll.register(self._eventfd, select.EPOLLIN)
        for channel in channels:
            self._poll.register(channel, self._look(channel))
        _thread.start_new_thread(self._watch, ())  # what `threading` adds takes 150 KiB of private memory, and is not needed

    def look_again(self, channels: Sequence[int]) -> None:
        """Look at channels again for something to be read."""
        if self._poll is not None:
            for channel in channels:
                self._poll.modify(channel, self._look(channel))

    @contextmanager
    def keeps_off(self, channel: int) -> Iterator[None]:
        """Keep the thread off a channel: what arrives there is waited for here."""
        if self._poll is None:
            yield
            return
        self._poll.modify(channel, self._look(channel) & ~select.EPOLLIN)
        try:
            yield
        finally:
            self.look_again([channel])

    def meet(self) -> None:
        """Wait until the tick that is due was made, and count it as met."""
        self._made.get()
        self._met = (self._met + 1) & 0xFFFF_FFFF

    def _watch(self) -> None:
        let_signals_in()
        assert self._poll is not None
        while True:
            for number, what in self._poll.poll():
                if number == self._eventfd:
                    self._interrupt()
                elif what & ~select.EPOLLIN and number == self._client:
                    leave()
                else:
                    if number == self._client:
                        self._poll.modify(number, 0)
                    self.call()

    def _look(self, channel: int) -> int:
        """Return what to look for in a channel: something to be read, and its end: the client's always, any other's once."""
        return select.EPOLLIN if channel == self._client else select.EPOLLIN | select.EPOLLONESHOT

    def _interrupt(self) -> None:
        try:
            os.eventfd_read(self._eventfd)
        except OSError as failure:
            give_up(ProtocolError(f"the client sent no eventfd for interrupts: {failure}"))
        self._tick()
        self._word.value += 1
        futexes.wake(self._address)
        self._made.put(None)
