"""`memory.atomic.wait32`, `wait64` and `notify` in a shared heap: what a rewritten guest calls instead of the instructions.

A guest waits for another process, which need not come. So a wait ends, whatever the guest asked for, when its call is
interrupted: no tick of the engine's epoch reaches a guest that sleeps in the kernel.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from shmwasm.addresses import NativeAddress
from shmwasm.posix import futexes
from shmwasm.posix.futexes import Alarm, Wait
from shmwasm.worker.watching import InterruptedWaitError


class Waiting:
    """The functions that a guest is given (see `engine.host_table.Futexes`).

    Args:
        alarm: Gives what rings when the call that runs is interrupted; None while it cannot be.
    """

    def __init__(self, alarm: Callable[[], Alarm | None]) -> None:
        self._alarm = alarm

    def wait32(self, address: NativeAddress, expected: int, timeout_ns: int) -> int:
        """Wait at most `timeout_ns`, or without end if that is negative; return how it ended, as a `Wait`."""
        return _unless_interrupted(futexes.wait32(address, expected, _deadline(timeout_ns), self._alarm()))

    def wait64(self, address: NativeAddress, expected: int, timeout_ns: int) -> int:
        """Wait as `wait32`, for a word of 64 bits."""
        return _unless_interrupted(futexes.wait64(address, expected, _deadline(timeout_ns), self._alarm()))

    def notify(self, address: NativeAddress, count: int) -> int:
        """Wake up to `count` waiters; return how many were woken."""
        return futexes.wake(address, count)


def _deadline(timeout_ns: int) -> int | None:
    return None if timeout_ns < 0 else time.monotonic_ns() + timeout_ns


def _unless_interrupted(ended: Wait) -> Wait:
    if ended is Wait.ALARMED:
        raise InterruptedWaitError
    return ended
