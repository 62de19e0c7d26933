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

A wait with an `Alarm` is the same with one more word: the waiter is queued there too, or finds that it has changed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import time
from collections.abc import Callable
from enum import IntEnum
from typing import Any, Final, NamedTuple

from shmwasm.addresses import NativeAddress
from shmwasm.errors import UnsupportedError
from shmwasm.posix.timespecs import Timespec, timespec

MOST_WAKES: Final = (1 << 31) - 1
"""The kernel counts the woken in an `int`."""

STEP_NS: Final = 10_000_000
"""How long a wait for more than one word sleeps before it compares again, where the kernel has no futex_waitv."""

_SYS_FUTEX: Final = {"x86_64": 202, "aarch64": 98}.get(platform.machine(), -1)
_SYS_FUTEX_WAITV: Final = 449
_FUTEX_WAKE: Final = 1
_FUTEX_WAIT_BITSET: Final = 9
_ANY_BIT: Final = 0xFFFF_FFFF
_FUTEX2_SIZE_U32: Final = 2
_FUTEX2_PRIVATE: Final = 128
_CLOCK_MONOTONIC: Final = 1


class _Waiter(ctypes.Structure):
    """The kernel's `struct futex_waitv`."""

    _fields_ = (
        ("value", ctypes.c_uint64),
        ("address", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    )


_libc = ctypes.CDLL(None, use_errno=True)


def _system_call(*arguments: Any) -> Callable[..., int]:
    """Return a handle of our own, which releases the interpreter's lock, for a system call with arguments of these types."""
    handle = _libc["syscall"]
    handle.restype = ctypes.c_long
    handle.argtypes = [ctypes.c_long, *arguments]
    return handle


_futex_wake = _system_call(ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32)
_futex_wait = _system_call(
    ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32, ctypes.POINTER(Timespec), ctypes.c_void_p, ctypes.c_uint32
)
_futex_waitv = _system_call(ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint, ctypes.POINTER(Timespec), ctypes.c_int)


class Wait(IntEnum):
    """How a wait ended; the numbers are those of WebAssembly's `memory.atomic.wait32`."""

    WOKEN = 0
    NOT_EQUAL = 1
    """The word did not hold what was expected: nothing was waited for."""
    TIMED_OUT = 2
    ALARMED = 3
    """The alarm rang. Nothing is known of the word that was waited for."""


class Alarm(NamedTuple):
    """A second 32-bit word that ends a wait once it holds something else and `wake` was called for it."""

    address: NativeAddress
    expected: int


def wait32(address: NativeAddress, expected: int, deadline: int | None = None, alarm: Alarm | None = None) -> Wait:
    """Sleep until woken, unless the 32-bit word at `address` does not hold `expected`.

    Args:
        address: A multiple of 4, in shared memory that may be mapped for reading only.
        expected: The word's value, signed or unsigned.
        deadline: When to give up (see the module's docstring); None for never.
        alarm: What else ends the wait.

    Raises:
        UnsupportedError: The kernel refuses to wait there.
    """
    if alarm is not None:
        return _wait_for_any(32, address, expected, deadline, alarm)
    limit = _timespec(deadline)
    while True:
        if _futex_wait(_SYS_FUTEX, address, _FUTEX_WAIT_BITSET, expected & 0xFFFF_FFFF, limit, None, _ANY_BIT) == 0:
            return Wait.WOKEN
        ended = _ended(ctypes.get_errno())
        if ended is not None:
            return ended


def wait64(address: NativeAddress, expected: int, deadline: int | None = None, alarm: Alarm | None = None) -> Wait:
    """Sleep until woken, unless the 64-bit word at `address`, a multiple of 8, does not hold `expected`; else as `wait32`."""
    return _wait_for_any(64, address, expected, deadline, alarm)


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


def _wait_for_any(bits: int, address: NativeAddress, expected: int, deadline: int | None, alarm: Alarm | None) -> Wait:
    """Sleep at the word of so many bits at `address`, and at the alarm's if there is one."""
    load = _load32 if bits == 32 else _load64
    expected &= (1 << bits) - 1
    waiters = [_Waiter(expected & 0xFFFF_FFFF, address, _FUTEX2_SIZE_U32, 0)]
    if bits == 64:
        waiters.append(_Waiter(expected >> 32, address + 4, _FUTEX2_SIZE_U32 | _FUTEX2_PRIVATE, 0))
    words = len(waiters)
    if alarm is not None:
        waiters.append(_Waiter(alarm.expected, alarm.address, _FUTEX2_SIZE_U32, 0))
    queued = (_Waiter * len(waiters))(*waiters)
    limit = _timespec(deadline)
    while True:
        if _rang(alarm):
            return Wait.ALARMED
        if load(address) != expected:
            return Wait.NOT_EQUAL
        woken = _futex_waitv(_SYS_FUTEX_WAITV, queued, len(queued), 0, limit, _CLOCK_MONOTONIC)
        if woken >= 0:
            return Wait.WOKEN if woken < words else Wait.ALARMED
        failure = ctypes.get_errno()
        if failure in {errno.ENOSYS, errno.EPERM}:
            return _wait_in_steps(load, address, expected, deadline, alarm)
        if failure == errno.EAGAIN and _rang(alarm):
            return Wait.ALARMED
        ended = _ended(failure)
        if ended is not None:
            return ended


def _wait_in_steps(
    load: Callable[[NativeAddress], int],
    address: NativeAddress,
    expected: int,
    deadline: int | None = None,
    alarm: Alarm | None = None,
) -> Wait:
    """Do what `_wait_for_any` does, on a kernel without futex_waitv: what no wake announced in time ends it a step later."""
    ended = Wait.NOT_EQUAL
    while load(address) == expected:
        if _rang(alarm):
            return Wait.ALARMED
        step = time.monotonic_ns() + STEP_NS
        found = wait32(address, expected, step if deadline is None else min(step, deadline))
        if found is Wait.WOKEN or (found is Wait.TIMED_OUT and deadline is not None and step > deadline):
            return found
        if found is Wait.TIMED_OUT:
            ended = Wait.WOKEN
    return ended


def _rang(alarm: Alarm | None) -> bool:
    return alarm is not None and _load32(alarm.address) != alarm.expected


def _load32(address: NativeAddress) -> int:
    return ctypes.c_uint32.from_address(address).value


def _load64(address: NativeAddress) -> int:
    return ctypes.c_uint64.from_address(address).value  # one aligned load: never half of a store


def _timespec(deadline: int | None) -> Timespec | None:
    return None if deadline is None else timespec(max(deadline, 0))


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
