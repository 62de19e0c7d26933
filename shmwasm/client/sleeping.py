"""How a thread waits for its call: it looks, as long as that may be quicker than to sleep, and then it sleeps.

Theory
------
One thread at a time sleeps at the ring's bell, which the worker rings without entering Python; usually there is but one. Others
sleep on the states of their calls' slots. The core says who sleeps where.

A call of a worker that sleeps most often comes after a rest, when nothing of all this is in the processor's caches: each function
and each step of it takes several times as long as in a loop. So the usual case has a way of its own, `wake_worker_and_sleep`,
and what can be prepared was prepared before: by the core when it took the call, and by `bells.Bell`.

Where thread and worker share a processor, the one who looks keeps the other from running. So a thread whose looks were in vain
a few times finds out where the worker runs, and goes elsewhere.

Locking
-------
A thread notes itself down before it looks whether waiting is over, and whoever ends it says so before looking who waits. So
none sleeps that was not seen, and the ring stays where it is while somebody does. It also stays while somebody is being woken,
by a thread that need not be the one that lets go of it: hence `_waking`.

Nobody may wait for its own thread: a signal's handler, or a finalizer, may let go of the ring on top of a call that waits. Then
who wakes last unmaps it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from threading import get_ident
from typing import Final

from shmwasm.client.spinning import pollers
from shmwasm.core import layout
from shmwasm.core.requests import Request
from shmwasm.core.rings import ClientRing
from shmwasm.posix import bells, futexes
from shmwasm.posix.conditions import Lock
from shmwasm.posix.processors import change_processor, shares_processor

LOOKS = 500
"""How often a waiting thread looks in one go, in two microseconds; other threads may run in between."""

MOST_ROUNDS = 50
"""How often it does so at most before it sleeps: about twice as long as it takes to wake a worker."""

MISSES = layout.RING_MISSES
PROBE = layout.RING_PROBE
"""After so many calls in a row that took longer, it looks once only, but for one call in so many: as the core does."""

LONGEST_SLEEP = 0.1
"""Seconds that it sleeps in one go: a worker that died between a look and the sleep wakes nobody."""

CLOSELY = 1e-4
"""Seconds between a call and the next that make both sides poll: about as long as a worker that polls goes on looking."""

_NS: Final = 1_000_000_000


_Token = tuple[int, object]
"""One wait, and the thread that it is of: there may be several, one in a signal's handler on top of the other."""


class Sleepers:
    """The threads that wait for calls of one ring.

    Args:
        ring: The ring.
        worker: The worker's process id; what other process's it might be is no danger.
    """

    def __init__(self, ring: ClientRing, worker: int) -> None:
        self._ring = ring
        self._worker = worker
        self._bell = bells.Bell(ring.end_bell)
        self._ring_worker = bells.Bell(ring.worker_bell).ring
        self._places: dict[_Token, Callable[[], object] | None] = {}
        self._waking = Lock()
        self._unmap: Callable[[], object] | None = None
        self._is_mapped = True
        self._misses = 0
        self._may_poll = False
        self._last = 0.0
        self._over = False

    def elsewhere(self) -> bool:
        """Return whether another thread waits."""
        me = get_ident()
        return any(thread != me for thread, _ in list(self._places))

    def wake_worker(self) -> None:
        """Wake the worker, and settle whether it, and whoever waits, is to poll. The ring is not taken away meanwhile."""
        self._ring_worker()
        self._settle_polling(time.monotonic())

    def wait(self, request: Request, next_look: Callable[[], float | None]) -> int:
        """Wait until a call has ended, or no call ends any more; return what the core answers then.

        Args:
            request: The call.
            next_look: Called before each sleep; returns when to call it again at the latest (`time.monotonic`), or None.
        """
        return self._wait(request, next_look, self._looked)

    def wake_worker_and_wait(self, request: Request, next_look: Callable[[], float | None]) -> int:
        """Wake the worker, which sleeps, and wait as `wait` does, but without looking first.

        The kernel likes to run who was woken where the waker runs, which looking would keep it from.
        """
        return self._wait(request, next_look, self._rung)

    def wake_worker_and_sleep(self) -> None:
        """Wake the worker, and sleep once at the bell, where the core has answered a call with RING_AT_BELL.

        In as few steps as there can be: the worker may have to wait for the processor until this sleeps.
        """
        token = (get_ident(), object())
        try:
            self._places[token] = self._bell.ring
            if self._is_mapped and not self._over:
                self._ring_worker()
                now = time.monotonic()
                if self._may_poll or now - self._last < CLOSELY:
                    self._settle_polling(now)
                self._bell.wait(now + LONGEST_SLEEP)
                self._last = time.monotonic()
        finally:
            self._places.pop(token, None)
            if self._unmap is not None:
                self._unmap_if_left()

    def end(self) -> None:
        """Let nobody wait any more: what has not ended now does not end."""
        self._over = True
        self.wake()

    def wake(self) -> None:
        """Wake all that sleep."""
        with self._waking:
            for wake in list(self._places.values()) if self._is_mapped else ():
                if wake is not None:
                    wake()

    def release(self, unmap: Callable[[], object]) -> None:
        """Call `unmap`, which takes the ring away, once nobody is left who might still look at its bells; after `end`."""
        self._unmap = unmap
        self._unmap_if_left()

    def _unmap_if_left(self) -> None:
        with self._waking:
            if self._unmap is None:
                return
            self._is_mapped = False  # before the look: who comes after it sees this, and touches nothing
            if self._places:
                self._is_mapped = True
                return
            unmap, self._unmap = self._unmap, None
            unmap()

    def _settle_polling(self, now: float) -> None:
        self._may_poll = pollers.woke(self._ring, closely=now - self._last < CLOSELY)
        self._last = now

    def _wait(self, request: Request, next_look: Callable[[], float | None], look: Callable[[Request], int]) -> int:
        token = (get_ident(), object())
        # What must be done in the end is one step each, which Ctrl-C comes before or after: else it would be left undone.
        try:
            self._places[token] = None
            answer = look(request)
            if answer == layout.RING_PENDING:
                answer = self._sleep_through(request, next_look, token)
                self._last = time.monotonic()
            return answer
        finally:
            self._places.pop(token, None)
            if self._unmap is not None:
                self._unmap_if_left()

    def _rung(self, _request: Request) -> int:
        if self._is_mapped:
            self.wake_worker()
        return layout.RING_PENDING

    def _looked(self, request: Request) -> int:
        """Look whether a call has ended, as long as that may be quicker than to sleep; return what the core answers."""
        patient = self._misses < MISSES or self._misses % PROBE == 0
        # Without yielding the processor: on a busy machine that would give it away for longer than a worker polls.
        for _ in range(0 if not self._may_poll else MOST_ROUNDS if patient else 1):
            answer = self._ring.wait(request, LOOKS)
            if answer != layout.RING_PENDING:
                self._misses = 0
                return answer
        self._misses += 1
        if self._may_poll and self._misses % PROBE == MISSES and shares_processor(self._worker):
            change_processor()
        return layout.RING_PENDING

    def _sleep_through(self, request: Request, next_look: Callable[[], float | None], token: _Token) -> int:
        while not self._over:
            look, now = next_look(), time.monotonic()
            until = now + LONGEST_SLEEP if look is None else max(now, min(look, now + LONGEST_SLEEP))
            place = self._ring.doze(request)
            if place is None:
                break
            if place[0] == self._ring.end_bell:
                self._sleep(token, self._bell.ring, functools.partial(self._bell.wait, until))
            else:
                wait = functools.partial(futexes.wait32, *place, int(until * _NS))
                self._sleep(token, functools.partial(futexes.wake, place[0]), wait)
            answer = self._ring.wait(request)
            if answer != layout.RING_PENDING:
                return answer
        return self._ring.wait(request)

    def _sleep(self, token: _Token, wake: Callable[[], object], sleep: Callable[[], object]) -> None:
        """Sleep, unless nobody waits any more; `wake` is what ends it."""
        self._places[token] = wake
        if not self._over:
            sleep()
