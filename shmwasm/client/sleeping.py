"""How a thread waits for its call: it looks, as long as that may be quicker than to sleep, and then sleeps on the call's slot.

Locking
-------
A thread notes itself down before it looks whether waiting is over, and whoever ends it says so before looking who waits. So
none sleeps that was not seen, and the ring stays where it is while somebody does.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from shmwasm.addresses import NativeAddress
from shmwasm.core import layout
from shmwasm.core.requests import Request
from shmwasm.core.rings import ClientRing
from shmwasm.posix import futexes

LOOKS = 500
"""How often a waiting thread looks in one go, in two microseconds; other threads may run in between."""

MOST_ROUNDS = 50
"""How often it does so at most before it sleeps: about twice as long as it takes to wake a worker."""

MISSES = layout.RING_MISSES
PROBE = layout.RING_PROBE
"""After so many calls in a row that took longer, it looks once only, but for one call in so many: as the core does."""

LONGEST_SLEEP = 0.1
"""Seconds that it sleeps in one go: a worker that died between a look and the sleep wakes nobody."""

_NS = 1_000_000_000


class Sleepers:
    """The threads that wait for calls of one ring."""

    def __init__(self, ring: ClientRing) -> None:
        self._ring = ring
        self._places: dict[object, NativeAddress | None] = {}
        self._misses = 0
        self._may_poll = False
        self._over = False

    def __bool__(self) -> bool:
        """Return whether anybody waits who may sleep."""
        return bool(self._places)

    def may_poll(self, allowed: bool) -> None:  # noqa: FBT001  there is nothing else to say
        """Let threads look for a while before they sleep, or not."""
        self._may_poll = allowed

    def wait(self, request: Request, next_look: Callable[[], float | None]) -> int:
        """Wait until a call has ended, or no call ends any more; return what the core answers then.

        Args:
            request: The call.
            next_look: Called before each sleep; returns when to call it again at the latest (`time.monotonic`), or None.
        """
        patient = self._misses < MISSES or self._misses % PROBE == 0
        # Without yielding the processor: on a busy machine that would give it away for longer than a worker polls.
        for _ in range(0 if not self._may_poll else MOST_ROUNDS if patient else 1):
            answer = self._ring.wait(request, LOOKS)
            if answer != layout.RING_PENDING:
                self._misses = 0
                return answer
        self._misses += 1
        return self._sleep_through(request, next_look)

    def end(self) -> None:
        """Let nobody wait any more: what has not ended now does not end."""
        self._over = True
        self.wake()

    def wake(self) -> None:
        """Wake all that sleep."""
        for place in list(self._places.values()):
            if place is not None:
                futexes.wake(place)

    def _sleep_through(self, request: Request, next_look: Callable[[], float | None]) -> int:
        token = object()
        try:
            self._places[token] = None
            while True:
                over = self._over
                answer = self._ring.wait(request)
                if answer != layout.RING_PENDING or over:
                    return answer
                self._sleep(request, next_look(), token)
        finally:
            self._places.pop(token, None)

    def _sleep(self, request: Request, until: float | None, token: object) -> None:
        longest = time.monotonic() + LONGEST_SLEEP
        place = self._ring.doze(request)
        if place is not None:
            self._places[token] = place[0]
            if not self._over:
                futexes.wait32(*place, int(min(longest, until or longest) * _NS))
