"""Ctrl-C, put off while it must not come.

Theory
------
Python runs a signal's handler between any two steps of its main thread, and what the handler raises ends whatever was being done.
Where several steps belong together, that would leave half of them done.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interrupts_put_off() -> Iterator[None]:
    """Run SIGINT's handler after what is done here, if the signal arrives meanwhile; what takes long is not to be done here.

    Other signals' handlers run as ever, as most of them raise nothing. So they do where it is not Python that handles SIGINT.
    """
    if threading.get_ident() != threading.main_thread().ident:
        yield
        return
    usual = signal.getsignal(signal.SIGINT)
    if not callable(usual):
        yield
        return
    put_off = _PutOff(usual)
    try:
        signal.signal(signal.SIGINT, put_off)
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
        put_off.handle()


class _PutOff:
    """A handler that takes note of signals, for another one."""

    def __init__(self, usual: Callable[[int, FrameType | None], object]) -> None:
        self._usual = usual
        self._arrived: tuple[int, FrameType | None] | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._arrived = number, frame

    def handle(self) -> None:
        """Do what the other would have done."""
        if self._arrived is not None:
            self._usual(*self._arrived)
