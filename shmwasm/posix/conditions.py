"""Locks, conditions and events that Ctrl-C leaves as they should be.

Theory
------
Python's own are not meant for a main thread whose signal handler raises: what arrives between the steps of `Condition.__enter__`,
or while `Condition.wait` takes its lock back, leaves a lock held for ever, or lets go of another thread's. Every other thread
that wants it then hangs, and with the thread that reads for the runtime, all that waits for a worker.

Here the interrupt is put off while a lock is held, and comes where nothing is: when a lock was released, or in a wait, which is
one step of a lock that nobody else takes. What is done with a lock held is therefore done as a whole. Nor is it disturbed by
finalizers, and by handlers of other signals, which know that a lock is held (see `reentry`).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from _thread import LockType, allocate_lock
from collections import deque
from typing import TYPE_CHECKING, Final

from shmwasm.posix.reentry import enter, forget_holders, leave
from shmwasm.posix.signals import handle_interrupts, interrupts_let_through, know_main_thread, put_off_interrupts

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_FIRST_SLEEP: Final = 0.01


class Turn:
    """A lock that is held over waits. The thread that holds it may take it again.

    Finalizers and handlers need not mind that it is held; so it is taken before any other lock, and never by the thread that
    others wait for.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> bool:
        put_off_interrupts()
        try:
            return self._lock.acquire()
        except BaseException:
            handle_interrupts()
            raise

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._lock.release()
        handle_interrupts()


class Lock:
    """A lock that is held for a moment. The thread that holds it may take it again."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def acquire(self) -> bool:
        """Take it."""
        put_off_interrupts()
        enter()
        try:
            return self._lock.acquire()
        except BaseException:
            leave()
            handle_interrupts()
            raise

    def release(self) -> None:
        """Let go of it; what was put off meanwhile is done now, and an interrupt that has arrived is handled."""
        self._lock.release()
        leave()
        handle_interrupts()

    __enter__ = acquire

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._lock.release()
        leave()
        handle_interrupts()


class Condition(Lock):
    """A condition variable, and its lock, which is held where the methods that it adds are called."""

    def __init__(self) -> None:
        super().__init__()
        self._waiters: deque[LockType] = deque()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until somebody notifies, or for so many seconds; return whether somebody did.

        An interrupt ends the wait, unless it is put off for another reason than the lock: then it comes later.
        """
        waiter = _new_waiter()
        self._waiters.append(waiter)
        self._lock.release()
        leave()
        try:
            with interrupts_let_through(most=1):
                return _wait(waiter, timeout)
        finally:
            enter()
            self._lock.acquire()
            _take_out(self._waiters, waiter)

    def wait_for(self, predicate: Callable[[], object], timeout: float | None = None) -> bool:
        """Wait until `predicate` holds, or for so many seconds; return whether it does."""
        until = None if timeout is None else time.monotonic() + timeout
        while not predicate():
            remaining = None if until is None else until - time.monotonic()
            if remaining is not None and remaining <= 0:
                return False
            self.wait(remaining)
        return True

    def notify_all(self) -> None:
        """Wake all that wait."""
        while self._waiters:
            self._waiters.popleft().release()


class Event:
    """Something that happens."""

    def __init__(self) -> None:
        self._happened = False
        self._waiters: deque[LockType] = deque()

    def is_set(self) -> bool:
        """Return whether it has happened."""
        return self._happened

    def set(self) -> None:
        """Let it happen."""
        self._happened = True
        with contextlib.suppress(IndexError):  # another thread may take them too
            while True:
                self._waiters.popleft().release()

    def clear(self) -> None:
        """Let it not have happened."""
        self._happened = False

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it happens, or for so many seconds; return whether it has."""
        waiter = _new_waiter()
        try:
            # Noted down before the look: `set` lets it happen first, and then sees who waits.
            self._waiters.append(waiter)
            return self._happened or _wait(waiter, timeout) or self._happened
        finally:
            _take_out(self._waiters, waiter)


def _know_main_thread() -> None:
    know_main_thread(threading.main_thread().ident)


_know_main_thread()
os.register_at_fork(after_in_child=_know_main_thread)
os.register_at_fork(after_in_child=forget_holders)


def _new_waiter() -> LockType:
    """Return a lock that its maker waits for, and that somebody else lets go of once."""
    waiter = allocate_lock()
    waiter.acquire()
    return waiter


def _wait(waiter: LockType, timeout: float | None) -> bool:
    """Take a lock once somebody lets go of it, or give up after so many seconds; return whether it was taken.

    A signal ends no sleep that it came just before, nor one in this thread that another thread was sent it for; Python would then
    run its handler after the sleep. Each sleep therefore takes as long as all before it: no handler comes later than twice.
    """
    until = None if timeout is None else time.monotonic() + timeout
    sleep = _FIRST_SLEEP
    while until is None or time.monotonic() + sleep < until:
        if waiter.acquire(timeout=min(sleep, threading.TIMEOUT_MAX)):
            return True
        sleep *= 2
    return waiter.acquire(timeout=max(0.0, until - time.monotonic()))


def _take_out(waiters: deque[LockType], waiter: LockType) -> None:
    """Forget who waits no more, unless somebody has woken it."""
    with contextlib.suppress(ValueError):
        waiters.remove(waiter)
