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


_NOT_LET_THROUGH: Final = sys.maxsize
"""What `let_through` returns where nothing is to be put off again."""


class _Interrupts:
    """What the main thread does about the signals that interrupt.

    Attributes:
        depth: How often they were put off without being let through again. Only if they were are they noted.
    """

    __slots__ = ("_arrived", "_behind", "_main", "_note", "_usual", "depth")

    def __init__(self) -> None:
        self.depth = 0
        self._behind: list[int] = []  # how often they were put off, for each part inside of that where they are let through
        self._arrived: dict[int, FrameType | None] = {}
        self._usual: dict[int, Callable[[int, FrameType | None], object]] = {}  # of each that was replaced, at least
        self._note = self._take_note  # the same object each time
        self._main: int | None = None

    def know_main_thread(self, identity: int | None) -> None:
        """Take note which thread it is. In a forked child it may be another, which puts nothing off yet."""
        if identity != self._main:
            self._main = identity
            self.depth = 0
            self._behind.clear()
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
            self._replace()
        except BaseException:
            self.depth -= 1
            self._settle()
            raise

    def handle(self) -> None:
        """Handle them again, if they are not put off for another reason too; first what has arrived."""
        if get_ident() != self._main or not self.depth:
            return
        self.depth -= 1
        if self.depth:
            return
        try:
            if not self._behind:
                self._restore()
            if self._arrived:
                self._handle_arrived()
        except BaseException:
            self._settle()
            raise

    def let_through(self, most: int) -> int:
        """Handle them if they are put off for at most `most` reasons; return what `put_off_again` takes.

        If a handler raises, here or later, they are put off as before from that moment on.
        """
        if get_ident() != self._main or not 0 < self.depth <= most:
            return _NOT_LET_THROUGH
        place = len(self._behind)
        self._behind.append(self.depth)
        self.depth = 0
        self._handle_arrived()
        return place

    def put_off_again(self, place: int) -> None:
        """Put them off as before `let_through`, which returned `place`."""
        if len(self._behind) > place:
            self.depth = self._behind[place]
            del self._behind[place:]

    # Where they are not put off, a handler may run, come here again, and raise: where a function begins, after each call of one
    # that is written in C, and where a loop goes back. Nothing comes between other steps. Of signals that came together each is
    # handled at the next such place.

    def _replace(self) -> None:
        """Have signals noted. Where it is not Python that handles one, nothing can be raised."""
        for number in _INTERRUPTING:
            usual = getsignal(number)
            if callable(usual) and usual is not self._note:
                self._usual[number] = usual
                set_handler(number, self._note)

    def _settle(self) -> None:
        """Set the usual handlers if all parts were left where signals are put off, and run those of what has arrived."""
        try:
            if not self.depth and not self._behind:
                self._restore()
            self._handle_arrived()
        except BaseException:
            self._settle()
            raise

    def _restore(self) -> None:
        for number, usual in list(self._usual.items()):
            if getsignal(number) is self._note:
                set_handler(number, usual)
            self._usual.pop(number, None)  # not to keep what it refers to

    def _take_note(self, number: int, frame: FrameType | None) -> None:
        self._arrived[number] = frame
        self._handle_arrived()

    def _handle_arrived(self) -> None:
        """Run the handlers of what has arrived, all of them even if one raises, unless that puts the others off again."""
        try:
            while self._arrived and not self.depth:
                self._run_handler(next(iter(self._arrived), 0))
        except BaseException:
            self._handle_arrived()
            raise

    def _run_handler(self, number: int) -> None:
        """Run the handler of one that has arrived; if it raises where signals are let through, that part has ended."""
        place = len(self._behind) - 1
        usual = getsignal(number)
        if usual is self._note:
            # Who noted down ours, and set it later, has lost his.
            usual = self._usual.get(number, signal.default_int_handler)
            set_handler(number, usual)  # who asks for it is told of none of ours
        is_handled = callable(usual)
        try:
            frame = self._arrived[number]
            del self._arrived[number]
        except KeyError:
            return  # it was handled on top of this
        try:
            if is_handled:
                usual(number, frame)
        except BaseException:
            if place >= 0 and self._behind[place:]:
                self.depth = self._behind[place]
                del self._behind[place:]
            raise
        finally:
            if place >= 0:
                self._replace()


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
    __slots__ = ("_most", "_place")

    def __init__(self, most: int) -> None:
        self._most = most
        self._place = _NOT_LET_THROUGH

    def __enter__(self) -> None:
        self._place = _interrupts.let_through(self._most)

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        _interrupts.put_off_again(self._place)


_PUT_OFF: Final = _PutOff()


def interrupts_put_off() -> _PutOff:
    """Return a block after which an interrupt's handler runs, if it arrives meanwhile; what takes long is not to be done there.

    Handlers of signals that do not interrupt, such as SIGCHLD, run as ever, and so do those that are not Python's.
    """
    return _PUT_OFF


def raises_again(action: Callable[[], object]) -> bool:
    """Return whether an action raises an `Exception` as it did before: a value's own code does, and a signal's handler does not.

    So whoever says in its own words what a value's code raised finds out that it was a time limit's handler, which must pass.
    """
    with interrupts_put_off():
        try:
            action()
        except Exception:  # noqa: BLE001  it is the value's
            return True
    return False


def interrupts_let_through(*, most: int = sys.maxsize) -> _LetThrough:
    """Return a block for what takes long, where interrupts are put off: there the handler runs, and may raise.

    Args:
        most: For how many reasons, which are blocks and locks, they may be put off; for more they stay so.
    """
    return _LetThrough(most)
