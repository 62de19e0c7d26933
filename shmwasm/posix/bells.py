"""Bells: where one thread sleeps until another, in whichever process, rings.

Theory
------
A bell is a semaphore of the C library in shared memory: `ring` adds one to its count, `wait` takes one away, or sleeps until
there is one. So no ring is missed, whoever comes first, and one that nobody waited for ends the next wait at once.

What it has over an eventfd is that ringing and waiting are C functions of one argument: compiled wasm calls them without entering
Python (see `engine.natives`), which takes longer than sleep and wake-up together where nothing is in the processor's caches.
"""

from __future__ import annotations

import ctypes
import functools
import os
import time
from typing import Final

from shmwasm.addresses import NativeAddress
from shmwasm.errors import UnsupportedError
from shmwasm.posix.timespecs import NS, Timespec, timespec

SIZE: Final = 64
"""Bytes that a bell may take."""

_SHARED: Final = 1


# Handles of our own, with the arguments that each call needs. Those that never sleep keep the interpreter's lock.
_quick = ctypes.PyDLL(None, use_errno=True)
_make = _quick["sem_init"]
_make.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint]
_ring = _quick["sem_post"]
_ring.argtypes = [ctypes.c_void_p]
_slow = ctypes.CDLL(None, use_errno=True)
_timed_wait = _slow["sem_timedwait"]
_timed_wait.argtypes = [ctypes.c_void_p, ctypes.POINTER(Timespec)]
_clock_wait = _slow["sem_clockwait"] if hasattr(_slow, "sem_clockwait") else None
if _clock_wait is not None:
    _clock_wait.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(Timespec)]


@functools.cache  # asked for before a fork, it costs the child nothing
def native(name: str) -> int:
    """Return where a function of the C library is: `sem_wait` or `sem_post`, say."""
    address = ctypes.cast(_slow[name], ctypes.c_void_p).value
    assert address is not None, "it is loaded"
    return address


def check() -> None:
    """Check that what compiled wasm is told by `sem_wait` and `sem_post` is a null pointer (see `engine.natives`).

    Raises:
        UnsupportedError: It is not.
    """
    memory = (ctypes.c_uint64 * (SIZE // 8))()
    bell = NativeAddress(ctypes.addressof(memory))
    make(bell)
    for name in ("sem_post", "sem_wait"):
        function = _quick[name]
        function.restype = ctypes.c_uint64  # all of the register
        function.argtypes = [ctypes.c_void_p]
        answer = function(bell)
        if answer != 0:
            raise UnsupportedError("this C library", f"its {name} leaves {answer:#x} where wasm expects a null pointer")


def make(address: NativeAddress) -> None:
    """Make a bell at an address, a multiple of 8 in shared memory, that nobody uses yet."""
    if _make(address, _SHARED, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def ring(address: NativeAddress) -> None:
    """Wake one who waits, or let the next one not sleep."""
    _ring(address)  # it fails only where 2**31 rings were not heard: then nobody sleeps


def wait(address: NativeAddress, seconds: float) -> bool:
    """Wait until the bell is rung, at most so long; return whether it was.

    A signal ends it early. Its Python handler runs then, and may raise.
    """
    if _clock_wait is None:
        return wait_by_wall_clock(address, seconds)
    rung: bool = _clock_wait(address, time.CLOCK_MONOTONIC, _after(seconds, time.CLOCK_MONOTONIC)) == 0
    return rung


def wait_by_wall_clock(address: NativeAddress, seconds: float) -> bool:
    """Wait as `wait`, with what every C library has. If the system's clock is set back meanwhile, it takes so much longer."""
    rung: bool = _timed_wait(address, _after(seconds, time.CLOCK_REALTIME)) == 0
    return rung


def _after(seconds: float, clock: int) -> Timespec:
    return timespec(time.clock_gettime_ns(clock) + int(seconds * NS))
