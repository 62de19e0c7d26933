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
import struct
import time
from collections.abc import Callable
from typing import Final

from shmwasm.addresses import NativeAddress
from shmwasm.errors import UnsupportedError
from shmwasm.posix.timespecs import NS, Timespec

SIZE: Final = 64
"""Bytes that a bell may take."""

_SHARED: Final = 1


# Handles of our own. Those functions that never sleep keep the interpreter's lock.
_quick = ctypes.PyDLL(None, use_errno=True)
_make = _quick["sem_init"]
_make.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint]
_ring = _quick["sem_post"]
_ring.argtypes = [ctypes.c_void_p]
_slow = ctypes.CDLL(None)

# Likewise, but for callers who have prepared what it takes.
_ring_prepared = ctypes.PyDLL(None)["sem_post"]

_CLOCK: Final = time.CLOCK_MONOTONIC if hasattr(_slow, "sem_clockwait") else time.CLOCK_REALTIME
"""The clock that a wait ends by. An older C library has only the system's: if that is set back, the wait takes so much longer."""

_pack: Final = struct.Struct("qq").pack_into
"""Puts a time into a `Timespec`."""


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
    """Wait until a bell is rung, at most so long; return whether it was (see `Bell.wait`)."""
    return Bell(address).wait(time.monotonic() + seconds)


class Bell:
    """A bell as one process reaches it, again and again. What the C functions take is prepared here, once.

    One thread at a time may wait.

    Args:
        address: Where it was made.
        clock: CLOCK_MONOTONIC, where the C library can wait by that, or CLOCK_REALTIME.

    Attributes:
        ring: Wakes one who waits, or lets the next one not sleep.
    """

    __slots__ = ("_by_wall_clock", "_until", "_wait", "ring")

    def __init__(self, address: NativeAddress, clock: int = _CLOCK) -> None:
        # What `byref` makes is passed as it is, where any other type is converted each time.
        place = ctypes.byref(ctypes.c_char.from_address(address))
        until = Timespec()
        self._until = memoryview(until).cast("B")
        self._by_wall_clock = clock == time.CLOCK_REALTIME
        function, *which = ("sem_timedwait",) if self._by_wall_clock else ("sem_clockwait", clock)
        self._wait = functools.partial(_slow[function], place, *which, ctypes.byref(until))
        self.ring: Callable[[], object] = functools.partial(_ring_prepared, place)

    def wait(self, until: float) -> bool:
        """Wait until it is rung, or until then (`time.monotonic`); return whether it was.

        A signal ends it early. Its Python handler runs then, and may raise.
        """
        if self._by_wall_clock:
            until += time.time() - time.monotonic()
        seconds = int(until)
        _pack(self._until, 0, seconds, int((until - seconds) * NS))
        return bool(self._wait() == 0)
