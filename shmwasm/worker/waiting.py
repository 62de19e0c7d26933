"""`memory.atomic.wait32`, `wait64` and `notify` in a shared heap: what a rewritten guest calls instead of the instructions.

A guest waits for another process, which need not come. So a wait ends, whatever the guest asked for, when its call is overdue: no
tick of the engine's epoch reaches a guest that sleeps in the kernel.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from shmwasm.addresses import NativeAddress
from shmwasm.posix import futexes
from shmwasm.posix.futexes import Wait

_NS = 1_000_000_000


class Waiting:
    """The functions that a guest is given. Addresses are its own, and aligned.

    Args:
        find: Returns where so many bytes of the guest's chain at an address of its own are in this process, or raises.
        deadline: Gives the time (`time.monotonic`) at which the call that runs is overdue; None if it never is.
        overdue: Makes the error of a call that is.
    """

    def __init__(
        self,
        find: Callable[[int, int], NativeAddress],
        *,
        deadline: Callable[[], float | None],
        overdue: Callable[[], Exception],
    ) -> None:
        self._find = find
        self._deadline = deadline
        self._overdue = overdue

    def wait32(self, address: int, expected: int, timeout: int) -> int:
        """Wait at most `timeout` nanoseconds, or without end if that is negative; return how it ended, as a `Wait`."""
        return self._wait(futexes.wait32, self._find(address, 4), expected, timeout)

    def wait64(self, address: int, expected: int, timeout: int) -> int:
        """Wait as `wait32`, for a word of 64 bits."""
        return self._wait(futexes.wait64, self._find(address, 8), expected, timeout)

    def notify(self, address: int, count: int) -> int:
        """Wake up to `count` (unsigned) waiters; return how many were woken."""
        return futexes.wake(self._find(address, 4), count & 0xFFFF_FFFF)

    def _wait(
        self, wait: Callable[[NativeAddress, int, int | None], Wait], place: NativeAddress, expected: int, timeout: int
    ) -> Wait:
        own = None if timeout < 0 else time.monotonic_ns() + timeout
        call = self._deadline()
        limit = None if call is None else int(call * _NS)
        if limit is None or (own is not None and own < limit):
            return wait(place, expected, own)
        ended = wait(place, expected, limit)
        if ended is Wait.TIMED_OUT:
            raise self._overdue()
        return ended
