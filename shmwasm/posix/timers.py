"""A timer that a thread waits for, and that others set and stop without waking the thread: timerfd(2)."""

from __future__ import annotations

import ctypes
import os
from typing import Final

from shmwasm.errors import UnsupportedError
from shmwasm.posix.timespecs import NS, Timespec, timespec

_CLOCK_MONOTONIC: Final = 1
_TFD_CLOEXEC: Final = 0o2000000


class _Setting(ctypes.Structure):
    """The kernel's `struct itimerspec`."""

    _fields_ = (("interval", Timespec), ("first", Timespec))


# Handles of our own, with the arguments that each call needs.
_libc = ctypes.CDLL(None, use_errno=True)
_create = _libc.timerfd_create
_create.argtypes = [ctypes.c_int, ctypes.c_int]
_set = _libc.timerfd_settime
_set.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.POINTER(_Setting), ctypes.c_void_p]

_NEVER: Final = _Setting()


class Timer:
    """Expires `first` seconds after each `start`, and every `interval` seconds from then on, unless it is stopped before.

    Args:
        first: More than 0.
        interval: More than 0.

    Raises:
        UnsupportedError: The kernel gave none.
    """

    def __init__(self, first: float, interval: float) -> None:
        self._setting = _Setting(_timespec(interval), _timespec(first))
        self._descriptor: int = _create(_CLOCK_MONOTONIC, _TFD_CLOEXEC)
        if self._descriptor < 0:
            raise UnsupportedError("a timer", f"timerfd_create(2) failed: {os.strerror(ctypes.get_errno())}")

    def start(self) -> None:
        """Set it, whether or not it is set already."""
        _set(self._descriptor, 0, self._setting, None)

    def stop(self) -> None:
        """Let it not expire. Who has seen it expire before this may just be about to find out."""
        _set(self._descriptor, 0, _NEVER, None)

    def wait(self) -> None:
        """Wait until it has expired once more than at the last wait."""
        os.read(self._descriptor, 8)

    def close(self) -> None:
        """Close it; nobody may wait."""
        os.close(self._descriptor)


def _timespec(seconds: float) -> Timespec:
    return timespec(max(int(seconds * NS), 1))
