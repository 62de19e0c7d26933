"""Ctrl-C and other interrupts, put off while they must not come.

Theory
------
Python runs a signal's handler between any two steps of its main thread, and what the handler raises ends whatever was being done.
Where several steps belong together, that would leave half of them done, and a lock that was taken just now held for ever: also
`with` runs steps in between, unless the lock's own methods are written in C. So the handlers of the signals that interrupt are
replaced meanwhile by one that takes note. Each is replaced in one step, so there is no moment at which a signal is neither put
off nor handled.

What is called here may be called in any thread: in all but the main one, where no handlers run, nothing happens.
"""

from __future__ import annotations

import signal
import sys
from _thread import get_ident  # the launcher, which imports this too, does without `threading`
from typing import TYPE_CHECKING, Final

# `signal` makes members of enumerations of what these take and return, for several microseconds.
from _signal import getsignal, signal as set_handler  # type: ignore[import-not-found]  # isort: skip

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, TracebackType

_INTERRUPTING: Final = tuple(
    int(getattr(signal, f"SIG{name}"))
    for name in ("HUP", "INT", "QUIT", "USR1", "USR2", "ALRM", "TERM", "VTALRM", "PROF", "XCPU")
)
"""Whose handlers may raise to end what runs: a terminal's, a user's, a supervisor's, and those of time limits."""


class _Interrupts:
    """What the main thread does about the signals that interrupt.

    Attributes:
        depth: How often they were put off without being let through again. Only if they were are they noted.
    """

    __slots__ = ("_arrived", "_main", "_note", "_usual", "depth")

    def __init__(self) -> None:
        self.depth = 0
        self._arrived: dict[int, FrameType | None] = {}
        self._usual: dict[int, Callable[[int, FrameType | None], object]] = {}  # of each that was replaced, at least
        self._note = self._take_note  # the same object each time
        self._main: int | None = None

    def know_main_thread(self, identity: int | None) -> None:
        """Take note which thread it is. In a forked child it may be another, which puts nothing off yet."""
        if identity != self._main:
            self._main = identity
            self.depth = 0
            self._arrived.clear()
            self._restore()

    def put_off(self) -> None:
        """Note interrupts instead of handling them, from now on."""
        if get_ident() != self._main:
            return
        self.depth += 1
        if self.depth > 1:
            return
        try:
            for number in _INTERRUPTING:
                usual = getsignal(number)
                # Where it is not Python that handles a signal, nothing can be raised.
                if callable(usual) and usual is not self._note:
                    self._usual[number] = usual
                    set_handler(number, self._note)
        except BaseException:
            self.depth -= 1
            raise

    def handle(self) -> None:
        """Handle them again, if they are not put off for another reason too; first what has arrived."""
        if get_ident() != self._main or not self.depth:
            return
        self.depth -= 1
        if self.depth:
            return
        try:
            self._restore()
        finally:
            if self._arrived:
                self._handle_arrived()

    def let_through(self, most: int) -> int:
        """Handle them if they are put off for at most `most` reasons; return for how many.

        If that raises, they are put off as before.
        """
        if get_ident() != self._main or not 0 < self.depth <= most:
            return 0
        depth, self.depth = self.depth, 1
        try:
            self.handle()
        except BaseException:
            self.put_off_again(depth)
            raise
        return depth

    def put_off_again(self, depth: int) -> None:
        """Put them off for so many reasons, as before `let_through`."""
        if depth:
            try:
                self.put_off()
            except BaseException:
                self.put_off_again(depth)
                raise
            self.depth = depth

    # A handler that was just set may run, and come here again, between any two steps of what follows.

    def _restore(self) -> None:
        """Set the usual handlers. If one of them raises before the last is set, the others are set when their signals arrive."""
        for number, usual in list(self._usual.items()):
            if getsignal(number) is self._note:
                set_handler(number, usual)
            self._usual.pop(number, None)  # not to keep what it refers to

    def _handle_arrived(self) -> None:
        """Run the handlers of what has arrived, all of them even if one raises."""
        while self._arrived:
            try:
                number, frame = self._arrived.popitem()
                handler = getsignal(number)
                if callable(handler):
                    handler(number, frame)
            except BaseException:
                self._handle_arrived()
                raise

    def _take_note(self, number: int, frame: FrameType | None) -> None:
        if self.depth:
            self._arrived[number] = frame
        else:
            # Another handler raised where this one had just been set, or was just to be replaced.
            usual = self._usual[number]
            set_handler(number, usual)
            usual(number, frame)


_interrupts: Final = _Interrupts()

put_off_interrupts: Final = _interrupts.put_off
"""Run no interrupt's handler, until `handle_interrupts` was called as often as this: for what has no block."""

handle_interrupts: Final = _interrupts.handle
"""Run interrupts' handlers again, at once if one was to be run meanwhile."""

know_main_thread: Final = _interrupts.know_main_thread
"""Say which thread is the main one. Until then nothing is put off."""


class _PutOff:
    __slots__ = ()

    def __enter__(self) -> None:
        put_off_interrupts()

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        handle_interrupts()


class _LetThrough:
    __slots__ = ("_depth", "_most")

    def __init__(self, most: int) -> None:
        self._most = most
        self._depth = 0

    def __enter__(self) -> None:
        self._depth = _interrupts.let_through(self._most)

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        _interrupts.put_off_again(self._depth)


_PUT_OFF: Final = _PutOff()


def interrupts_put_off() -> _PutOff:
    """Return a block after which an interrupt's handler runs, if it arrives meanwhile; what takes long is not to be done there.

    Handlers of signals that do not interrupt, such as SIGCHLD, run as ever, and so do those that are not Python's.
    """
    return _PUT_OFF


def interrupts_let_through(*, most: int = sys.maxsize) -> _LetThrough:
    """Return a block for what takes long, where interrupts are put off: there the handler runs, and may raise.

    Args:
        most: For how many reasons, which are blocks and locks, they may be put off; for more they stay so.
    """
    return _LetThrough(most)
