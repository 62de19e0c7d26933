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
    """The functions that a guest is given (see `engine.host_table.Futexes`).

    Args:
        deadline: Gives the time (`time.monotonic`) at which the call that runs is overdue; None if it never is.
        overdue: Makes the error of a call that is.
    """

    def __init__(self, *, deadline: Callable[[], float | None], overdue: Callable[[], Exception]) -> None:
        self._deadline = deadline
        self._overdue = overdue

    def wait32(self, address: NativeAddress, expected: int, timeout_ns: int) -> int:
        """Wait at most `timeout_ns`, or without end if that is negative; return how it ended, as a `Wait`."""
        return self._wait(futexes.wait32, address, expected, timeout_ns)

    def wait64(self, address: NativeAddress, expected: int, timeout_ns: int) -> int:
        """Wait as `wait32`, for a word of 64 bits."""
        return self._wait(futexes.wait64, address, expected, timeout_ns)

    def notify(self, address: NativeAddress, count: int) -> int:
        """Wake up to `count` waiters; return how many were woken."""
        return futexes.wake(address, count)

    def _wait(
        self, wait: Callable[[NativeAddress, int, int | None], Wait], address: NativeAddress, expected: int, timeout_ns: int
    ) -> Wait:
        own = None if timeout_ns < 0 else time.monotonic_ns() + timeout_ns
        call = self._deadline()
        limit = None if call is None else int(call * _NS)
        if limit is None or (own is not None and own < limit):
            return wait(address, expected, own)
        ended = wait(address, expected, limit)
        if ended is Wait.TIMED_OUT:
            raise self._overdue()
        return ended
