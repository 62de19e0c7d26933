"""Ctrl-C, put off while it must not come.

Theory
------
Python runs a signal's handler between any two steps of its main thread, and what the handler raises ends whatever was being done.
Where several steps belong together, that would leave half of them done, and a lock that was taken just now held for ever: also
`with` runs steps in between, unless the lock's own methods are written in C. So SIGINT's handler is replaced meanwhile by one
that takes note. It is replaced in one step, so there is no moment at which the interrupt is neither put off nor handled.

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

_SIGINT: Final = int(signal.SIGINT)


class _Interrupts:
    """What the main thread does about SIGINT.

    Attributes:
        depth: How often it was put off without being let through again. Only if it was is it noted.
    """

    __slots__ = ("_arrived", "_main", "_note", "_usual", "depth")

    def __init__(self) -> None:
        self.depth = 0
        self._arrived: tuple[int, FrameType | None] | None = None
        self._usual: Callable[[int, FrameType | None], object] = signal.default_int_handler
        self._note = self._take_note  # the same object each time
        self._main: int | None = None

    def know_main_thread(self, identity: int | None) -> None:
        """Take note which thread it is. In a forked child it may be another, which puts nothing off yet."""
        if identity != self._main:
            self._main = identity
            self.depth = 0
            if getsignal(_SIGINT) is self._note:
                set_handler(_SIGINT, self._usual)

    def put_off(self) -> None:
        """Note SIGINT instead of handling it, from now on."""
        if get_ident() != self._main:
            return
        if not self.depth:
            usual = getsignal(_SIGINT)
            # Where it is not Python that handles SIGINT, nothing can be raised.
            if callable(usual) and usual is not self._note:
                self._arrived = None
                self._usual = usual
                set_handler(_SIGINT, self._note)
        self.depth += 1

    def handle(self) -> None:
        """Handle it again, if it is not put off for another reason too; first what has arrived."""
        if get_ident() != self._main or not self.depth:
            return
        self.depth -= 1
        if self.depth:
            return
        usual = self._usual
        if getsignal(_SIGINT) is self._note:
            set_handler(_SIGINT, usual)
        self._usual = signal.default_int_handler  # not to keep what the user's refers to
        arrived, self._arrived = self._arrived, None
        if arrived is not None:
            usual(*arrived)

    def let_through(self, most: int) -> int:
        """Handle it if it is put off for at most `most` reasons; return for how many. If that raises, it is put off as before."""
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
        """Put it off for so many reasons, as before `let_through`."""
        if depth:
            self.put_off()
            self.depth = depth

    def _take_note(self, number: int, frame: FrameType | None) -> None:
        if self.depth:
            self._arrived = number, frame
        else:
            # Another signal's handler raised where this one had just been set, or was just to be replaced.
            set_handler(_SIGINT, self._usual)
            self._usual(number, frame)


_interrupts: Final = _Interrupts()

put_off_interrupts: Final = _interrupts.put_off
"""Run SIGINT's handler no more, until `handle_interrupts` was called as often as this: for what has no block."""

handle_interrupts: Final = _interrupts.handle
"""Run SIGINT's handler again, at once if it was to be run meanwhile."""

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
    """Return a block after which SIGINT's handler runs, if the signal arrives meanwhile; what takes long is not to be done there.

    Other signals' handlers run as ever, as most of them raise nothing. So they do where it is not Python that handles SIGINT.
    """
    return _PUT_OFF


def interrupts_let_through(*, most: int = sys.maxsize) -> _LetThrough:
    """Return a block for what takes long, where interrupts are put off: there the handler runs, and may raise.

    Args:
        most: For how many reasons, which are blocks and locks, they may be put off; for more they stay so.
    """
    return _LetThrough(most)
