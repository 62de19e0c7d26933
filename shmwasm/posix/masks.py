"""Which threads signals may interrupt.

Theory
------
A signal whose handler Python has set interrupts whatever system call its thread is in, and what waits there returns early. Where
nobody could tell why, as in wasm that sleeps (see `engine.natives`), no signal must come. It is another thread's then, which
notes it down; the handler's Python function runs in the main thread all the same, as soon as that runs Python again.
"""

from __future__ import annotations

import signal
from typing import Final

# `signal` makes members of enumerations of what it returns, for several microseconds.
from _signal import SIG_BLOCK, SIG_UNBLOCK, pthread_sigmask, valid_signals  # type: ignore[import-not-found]  # isort: skip

_FAULTS: Final = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS, signal.SIGABRT}
"""What a thread brings about by itself: the engine's traps are among them."""

_OTHERS: Final = frozenset(int(number) for number in valid_signals() if number not in _FAULTS)


def keep_signals_out() -> None:
    """Let no signal interrupt this thread from now on, but for its own faults."""
    pthread_sigmask(SIG_BLOCK, _OTHERS)


def let_signals_in() -> None:
    """Let signals interrupt this thread from now on."""
    pthread_sigmask(SIG_UNBLOCK, _OTHERS)
