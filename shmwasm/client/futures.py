"""The futures of a runtime: the standard ones, which whoever waits for them in the main thread may be interrupted in.

Theory
------
`concurrent.futures` guards each future with a `threading.Condition`, and waits for several with a `threading.Event`; an interrupt
may leave either locked for ever (see `conditions`), and then hangs the thread that completes futures, which is one for all. So
these futures have a condition of ours, and give whoever waits for several an event of ours.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, TypeVar, cast

from shmwasm.posix.conditions import Condition, Event

T = TypeVar("T")

_CANCELLED: Final = frozenset({"CANCELLED", "CANCELLED_AND_NOTIFIED"})
_DONE: Final = _CANCELLED | {"FINISHED"}


class SafeFuture(Future[T]):
    """A future that an interrupt leaves as it is."""

    def __init__(self) -> None:
        super().__init__()
        self._condition = cast("threading.Condition", Condition())
        self._waiters = _Waiters()

    # One look needs no lock: a finalizer may take none (see `reentry`).

    def cancelled(self) -> bool:
        """Return whether it was cancelled."""
        return self._state in _CANCELLED

    def done(self) -> bool:
        """Return whether it has ended, or was cancelled."""
        return self._state in _DONE


class ReceivedFuture(SafeFuture[T]):
    """A future of a call, which the receiver thread completes, and so cannot wait for.

    Args:
        check_may_block: Raises `UnsupportedError` in that thread.
    """

    def __init__(self, check_may_block: Callable[[], None]) -> None:
        super().__init__()
        self._check_may_block = check_may_block

    def result(self, timeout: float | None = None) -> T:
        """Return the call's result, or raise what it raised; raises `UnsupportedError` where that would wait for ever."""
        if not self.done():
            self._check_may_block()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the call raised, or None; raises `UnsupportedError` where that would wait for ever."""
        if not self.done():
            self._check_may_block()
        return super().exception(timeout)


class _Waiters(list[Any]):
    """Who waits for a future with `concurrent.futures.wait` or `as_completed`. They come before anything is told them."""

    def append(self, waiter: Any) -> None:
        if type(waiter.event) is threading.Event:
            waiter.event = Event()
        super().append(waiter)
