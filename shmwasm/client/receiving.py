"""The one thread that reads for a runtime.

Locking
-------
One *receiver* thread reads the coordinator's channel and every instance's call channel. All that arrives is handled there, so
handlers must not block: a request is therefore answered through a future, and whoever waits for one waits in another thread.
`Connection.request` refuses to be called in the receiver thread, where it would wait for itself (a future's callback runs there).

Without the receiver every wait would be for ever, so nothing ends it: what a user's callback raises is logged (`complete`), and
what a handler raises, which only a bug can, is logged and fails all that waits for that handler's source.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import selectors
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol, TypeVar

from shmwasm import errors
from shmwasm.posix.conditions import Lock
from shmwasm.posix.reentry import refuse_on_top
from shmwasm.posix.signals import interrupts_put_off

T = TypeVar("T")

_log = logging.getLogger("shmwasm")

LONGEST_WAIT = 3600.0
"""Seconds that the receiver waits at a time: the kernel takes no wait of any length."""


class Receiving(Protocol):
    """Something that the receiver thread reads for."""

    def fileno(self) -> int:
        """Return the descriptor to wait on."""

    def handle_readable(self) -> bool:
        """Read and handle what has arrived, without blocking; return whether to go on."""

    def next_deadline(self) -> float | None:
        """Return when `handle_deadline` wants to be called (`time.monotonic`), or None; asked only after `Receiver.mind`."""

    def handle_deadline(self) -> None:
        """Handle that the deadline that was told last has passed; it may be another one by now."""

    def fail(self) -> None:
        """Fail all that waits for this source: it is not read any more."""


class Receiver:
    """The thread that reads for a runtime."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._selector.register(self._wake, selectors.EVENT_READ, None)
        self._sources: set[Receiving] = set()
        self._minded: dict[Receiving, int] = {}
        self._mindings = itertools.count()
        self._wakes_at = math.inf
        self._lock = Lock()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="shmwasm-receiver", daemon=True)
        with interrupts_put_off():  # a thread whose start is interrupted may wait for its starter for ever
            self._thread.start()

    @property
    def identity(self) -> int:
        """The thread's identity, as `threading.get_ident` returns it."""
        identity = self._thread.ident
        assert identity is not None, "the thread was started"
        return identity

    def add(self, source: Receiving) -> None:
        """Read for `source` from now on."""
        with self._lock:
            self._sources.add(source)
            self._selector.register(source.fileno(), selectors.EVENT_READ, source)

    def remove(self, source: Receiving) -> None:
        """Read for `source` no more; may be called twice, and after `stop`."""
        with self._lock:
            self._minded.pop(source, None)
            if source in self._sources:
                self._sources.remove(source)
                self._selector.unregister(source.fileno())

    def mind(self, source: Receiving, by: float) -> None:
        """Look at the deadlines of `source` until it has none, for the first time at `by` at the latest (`time.monotonic`)."""
        with self._lock:
            self._minded[source] = next(self._mindings)
            if by < self._wakes_at and self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def wake(self) -> None:
        """Make the thread look whether it is to stop."""
        with self._lock:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def check_may_block(self) -> None:
        """Raise unless the calling thread may wait for something that this thread has to read.

        Raises:
            UnsupportedError: The calling thread is the receiver itself, or holds a lock (see `reentry`), or the interpreter ends.
        """
        refuse_on_top("waiting for another process")
        self.check_is_another()

    def check_is_another(self) -> None:
        """Raise if the calling thread is the receiver itself; it may hold a lock which it lets go of as it waits.

        Raises:
            UnsupportedError: It is; or the interpreter ends, whose other threads run no more.
        """
        if sys.is_finalizing():
            raise errors.UnsupportedError(
                "waiting for another process", "the interpreter ends, and the thread that would hear of the answer runs no more"
            )
        if threading.current_thread() is self._thread:
            raise errors.UnsupportedError(
                "a blocking call in a future's callback", "it would wait for the thread that it runs in"
            )

    def stop(self) -> None:
        """End the thread, wait for it, and release its descriptors."""
        self._stopping = True
        self.wake()
        self._thread.join()
        with self._lock:
            self._release()

    def abandon(self) -> None:
        """Release the descriptors in a forked child, where the thread does not exist."""
        self._lock = Lock()  # another thread may have held it
        if not self._stopping:
            # Otherwise they were released before the fork, and their numbers may be others' by now.
            self._release()

    def _release(self) -> None:
        self._sources.clear()
        self._minded.clear()
        self._selector.close()
        os.close(self._wake)
        self._wake = -1

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._read_once()
        except BaseException:  # noqa: BLE001  whoever waits must hear of it, whatever it is
            _log.critical("the thread that reads for a runtime failed, and the runtime with it", exc_info=True)
            with self._lock:
                sources = list(self._sources)
            for source in sources:
                source.fail()

    def _read_once(self) -> None:
        """Wait until something can be read or a deadline passes, and handle that."""
        due = self._next_deadlines()
        soonest = min(due.values(), default=math.inf)
        self._wakes_at = soonest
        patience = None if soonest == math.inf else min(max(0.0, soonest - time.monotonic()), LONGEST_WAIT)
        for key, _ in self._selector.select(patience):
            if key.fd == self._wake:
                os.eventfd_read(self._wake)
            elif not self._attend(key.data, key.data.handle_readable):
                self.remove(key.data)
        now = time.monotonic()
        for source, deadline in due.items():
            if deadline <= now:
                self._attend(source, source.handle_deadline)

    def _attend(self, source: Receiving, handle: Callable[[], T]) -> T | None:
        """Return what `handle` of that source returns; if it raises, the source is failed, and the others go on."""
        try:
            return handle()
        except BaseException:  # noqa: BLE001  see the module's docstring
            _log.critical("reading for %r failed", source, exc_info=True)
            self.remove(source)
            source.fail()
            return None

    def _next_deadlines(self) -> dict[Receiving, float]:
        """Return the next deadlines; sources that have none are minded no more."""
        with self._lock:
            # Whoever has a deadline from now on wakes this thread, until it is known when it wakes by itself.
            self._wakes_at = math.inf
            minded = dict(self._minded)
        due = {}
        for source, minding in minded.items():
            deadline = source.next_deadline()
            if deadline is not None:
                due[source] = deadline
                continue
            with self._lock:
                if self._minded.get(source) == minding:
                    del self._minded[source]
        return due


def complete(future: Future[T], result: T, error: BaseException | None = None) -> None:
    """End a future that a user holds; whatever its callbacks raise is logged, and nobody else's affair.

    (`concurrent.futures` does so itself, but lets `SystemExit` and its like through, which would end the receiver.)
    """
    try:
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)
    except KeyboardInterrupt:
        raise  # the user's own, in the main thread
    except BaseException:  # noqa: BLE001  see above
        _log.exception("a future's callback raised")
