"""Waiting for a word of shared memory to change, and waking whoever waits: futex(2) across processes.

Theory
------
A futex is any aligned 32-bit word of memory. The kernel compares the word and puts the caller to sleep in one step, so that a
wake that follows a change of the word is never missed. A *shared* futex is known by its file and offset: processes that map the
same segment at different addresses meet at it. The interpreter's lock is released while a thread sleeps; where a signal
interrupts the sleep, its Python handler runs, and may raise.

Deadlines are absolute, in nanoseconds of `time.monotonic_ns`, so that an interrupted wait goes on with what is left.

A 64-bit word has no futex of its own. Its waiters sleep at its low half, where `wake` at the word's address finds them; but the
kernel's comparison of that half alone would overlook a change of the high half that falls between our own comparison and the
sleep, and with it the wake that announced the change. futex_waitv(2) closes the gap. It first queues the caller at the low half,
having compared that, and then compares the high half:

* The value is the expected one at the moment of the first comparison: then the caller sleeps rightly, and every wake from then on
  finds it.
* It is another, which only shares the low half: then the second comparison ends the wait, unless the high half has become the
  expected one meanwhile. But then the word changed after the caller was queued, and the wake that announces that finds it.

The high half is given as a *private* futex, which has another key than the shared one at the same address: nobody wakes it, so
that a wake meant for a 32-bit waiter at the high half is not spent on a 64-bit one. A kernel without futex_waitv (before 5.16, or
a sandbox that hides it) is asked for short sleeps instead, with a comparison of all 64 bits between them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import time
from enum import IntEnum
from typing import Final

from shmwasm.addresses import NativeAddress
from shmwasm.errors import UnsupportedError

MOST_WAKES: Final = (1 << 31) - 1
"""The kernel counts the woken in an `int`."""

STEP_NS: Final = 10_000_000
"""How long a 64-bit wait sleeps before it compares again, where the kernel has no futex_waitv."""

_SYS_FUTEX: Final = {"x86_64": 202, "aarch64": 98}.get(platform.machine(), -1)
_SYS_FUTEX_WAITV: Final = 449
_FUTEX_WAKE: Final = 1
_FUTEX_WAIT_BITSET: Final = 9
_ANY_BIT: Final = 0xFFFF_FFFF
_FUTEX2_SIZE_U32: Final = 2
_FUTEX2_PRIVATE: Final = 128
_CLOCK_MONOTONIC: Final = 1
_NS: Final = 1_000_000_000


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_int64), ("nanoseconds", ctypes.c_int64))


class _Waiter(ctypes.Structure):
    """The kernel's `struct futex_waitv`."""

    _fields_ = (
        ("value", ctypes.c_uint64),
        ("address", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    )


# Handles of our own, which release the interpreter's lock, with the arguments that each call needs.
_libc = ctypes.CDLL(None, use_errno=True)
_futex_wake = _libc["syscall"]
_futex_wake.restype = ctypes.c_long
_futex_wake.argtypes = [ctypes.c_long, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32]
_futex_wait = _libc["syscall"]
_futex_wait.restype = ctypes.c_long
_futex_wait.argtypes = [
    ctypes.c_long,
    ctypes.c_void_p,
    ctypes.c_int,
    ctypes.c_uint32,
    ctypes.POINTER(_Timespec),
    ctypes.c_void_p,
    ctypes.c_uint32,
]
_futex_waitv = _libc["syscall"]
_futex_waitv.restype = ctypes.c_long
_futex_waitv.argtypes = [
    ctypes.c_long,
    ctypes.c_void_p,
    ctypes.c_uint,
    ctypes.c_uint,
    ctypes.POINTER(_Timespec),
    ctypes.c_int,
]


class Wait(IntEnum):
    """How a wait ended; the numbers are those of WebAssembly's `memory.atomic.wait32`."""

    WOKEN = 0
    NOT_EQUAL = 1
    """The word did not hold what was expected: nothing was waited for."""
    TIMED_OUT = 2


def wait32(address: NativeAddress, expected: int, deadline: int | None = None) -> Wait:
    """Sleep until woken, unless the 32-bit word at `address` does not hold `expected`.

    Args:
        address: A multiple of 4, in shared memory that may be mapped for reading only.
        expected: The word's value, signed or unsigned.
        deadline: When to give up (see the module's docstring); None for never.

    Raises:
        UnsupportedError: The kernel refuses to wait there.
    """
    limit = _timespec(deadline)
    while True:
        if _futex_wait(_SYS_FUTEX, address, _FUTEX_WAIT_BITSET, expected & 0xFFFF_FFFF, limit, None, _ANY_BIT) == 0:
            return Wait.WOKEN
        ended = _ended(ctypes.get_errno())
        if ended is not None:
            return ended


def wait64(address: NativeAddress, expected: int, deadline: int | None = None) -> Wait:
    """Sleep until woken, unless the 64-bit word at `address`, a multiple of 8, does not hold `expected`; else as `wait32`."""
    expected &= (1 << 64) - 1
    waiters = (_Waiter * 2)(
        _Waiter(expected & 0xFFFF_FFFF, address, _FUTEX2_SIZE_U32, 0),
        _Waiter(expected >> 32, address + 4, _FUTEX2_SIZE_U32 | _FUTEX2_PRIVATE, 0),
    )
    limit = _timespec(deadline)
    while True:
        if _load64(address) != expected:
            return Wait.NOT_EQUAL
        if _futex_waitv(_SYS_FUTEX_WAITV, waiters, len(waiters), 0, limit, _CLOCK_MONOTONIC) >= 0:
            return Wait.WOKEN
        failure = ctypes.get_errno()
        if failure in {errno.ENOSYS, errno.EPERM}:
            return _wait64_in_steps(address, expected, deadline)
        ended = _ended(failure)
        if ended is not None:
            return ended


def wake(address: NativeAddress, count: int = MOST_WAKES) -> int:
    """Wake up to `count` of those who wait at `address`, in whichever process; return how many were woken.

    Raises:
        UnsupportedError: The kernel refuses.
    """
    if count == 0:  # the kernel would wake one
        return 0
    woken: int = _futex_wake(_SYS_FUTEX, address, _FUTEX_WAKE, min(count, MOST_WAKES))
    if woken < 0:
        raise _refused(ctypes.get_errno())
    return woken


def _wait64_in_steps(address: NativeAddress, expected: int, deadline: int | None) -> Wait:
    """Do what `wait64` does, on a kernel without futex_waitv: a change that no wake announced in time ends a step later."""
    ended = Wait.NOT_EQUAL
    while _load64(address) == expected:
        step = time.monotonic_ns() + STEP_NS
        found = wait32(address, expected, step if deadline is None else min(step, deadline))
        if found is Wait.WOKEN or (found is Wait.TIMED_OUT and deadline is not None and step > deadline):
            return found
        if found is Wait.TIMED_OUT:
            ended = Wait.WOKEN
    return ended


def _load64(address: NativeAddress) -> int:
    return ctypes.c_uint64.from_address(address).value  # one aligned load: never half of a store


def _timespec(deadline: int | None) -> _Timespec | None:
    return None if deadline is None else _Timespec(*divmod(max(deadline, 0), _NS))


def _ended(failure: int) -> Wait | None:
    """Return how a wait that failed ended; None if it was interrupted and goes on."""
    match failure:
        case errno.EAGAIN:
            return Wait.NOT_EQUAL
        case errno.ETIMEDOUT:
            return Wait.TIMED_OUT
        case errno.EINTR:
            return None
        case _:
            raise _refused(failure)


def _refused(failure: int) -> UnsupportedError:
    return UnsupportedError("waiting for a word of shared memory", f"futex(2) failed: {os.strerror(failure)}")
