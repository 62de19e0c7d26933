"""What a guest's wait and notify do: what ends a wait, and how."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator

import pytest

from shmwasm.addresses import OS_PAGE, NativeAddress
from shmwasm.posix import futexes
from shmwasm.posix.futexes import Alarm
from shmwasm.posix.mappings import map_anywhere
from shmwasm.posix.segments import Segment
from shmwasm.worker.waiting import Waiting
from shmwasm.worker.watching import InterruptedWaitError
from waiting import eventually

WOKEN, NOT_EQUAL, TIMED_OUT = 0, 1, 2
FOR_EVER = -1
MILLISECOND = 1_000_000
HOUR = 3_600_000 * MILLISECOND
INTERRUPTIBLE = pytest.mark.parametrize("interruptible", [False, True])
WAITS = pytest.mark.parametrize("wait", ["wait32", "wait64"])


class Guest:
    """A page of shared memory, the functions of a guest that sees it, and a word that rings when its call is interrupted."""

    def __init__(self) -> None:
        self._segment = Segment.create(OS_PAGE, name_for_errors="page")
        self.mapping = map_anywhere(self._segment.descriptor, OS_PAGE, writable=True)
        self.start = self.mapping.address
        self.alarm: Alarm | None = None
        self.functions = Waiting(lambda: self.alarm)

    def allow_interrupting(self) -> None:
        self.alarm = Alarm(NativeAddress(self.start + 2048), 0)

    def interrupt(self) -> None:
        struct.pack_into("<I", self.mapping.view, 2048, 1)
        futexes.wake(NativeAddress(self.start + 2048))

    def close(self) -> None:
        self.mapping.close()
        self._segment.close()


@pytest.fixture
def guest() -> Iterator[Guest]:
    one = Guest()
    yield one
    one.close()


@WAITS
def test_a_word_that_holds_something_else_is_not_waited_for(guest, wait):
    assert getattr(guest.functions, wait)(guest.start, 5, FOR_EVER) == NOT_EQUAL
    guest.allow_interrupting()
    assert getattr(guest.functions, wait)(guest.start, 5, FOR_EVER) == NOT_EQUAL


@WAITS
@INTERRUPTIBLE
def test_the_guests_own_limit_ends_a_wait_as_timed_out(guest, wait, interruptible):
    if interruptible:
        guest.allow_interrupting()
    assert getattr(guest.functions, wait)(guest.start, 0, MILLISECOND) == TIMED_OUT
    assert getattr(guest.functions, wait)(guest.start, 0, 0) == TIMED_OUT


@WAITS
@pytest.mark.parametrize("own", [FOR_EVER, HOUR])
def test_a_call_that_was_interrupted_before_does_not_wait(guest, wait, own):
    guest.allow_interrupting()
    guest.interrupt()
    with pytest.raises(InterruptedWaitError):
        getattr(guest.functions, wait)(guest.start, 0, own)


@WAITS
@pytest.mark.parametrize("own", [FOR_EVER, HOUR])
def test_an_interruption_ends_a_wait(guest, wait, own):
    guest.allow_interrupting()
    found = []

    def run() -> None:
        try:
            found.append(getattr(guest.functions, wait)(guest.start, 0, own))
        except InterruptedWaitError as ended:
            found.append(ended)

    thread = threading.Thread(target=run)
    thread.start()
    guest.interrupt()  # before it sleeps, or while it does
    thread.join(20)
    assert isinstance(found[0], InterruptedWaitError)


@WAITS
@INTERRUPTIBLE
@pytest.mark.parametrize("own", [FOR_EVER, HOUR])
def test_notify_wakes_a_waiter_whatever_its_limits(guest, wait, own, interruptible):
    if interruptible:
        guest.allow_interrupting()
    found = []
    thread = threading.Thread(
        target=lambda: found.append(getattr(guest.functions, wait)(NativeAddress(guest.start + 16), 0, own))
    )
    thread.start()
    eventually(lambda: guest.functions.notify(NativeAddress(guest.start + 16), 1))
    thread.join()
    assert found == [WOKEN]


def test_none_may_be_woken(guest):
    assert guest.functions.notify(guest.start, (1 << 32) - 1) == 0
    assert guest.functions.notify(guest.start, 0) == 0


@pytest.mark.parametrize(("wait", "code", "value"), [("wait32", "<i", -7), ("wait64", "<q", -(1 << 40))])
def test_negative_values_are_compared_by_their_bits(guest, wait, code, value):
    struct.pack_into(code, guest.mapping.view, 0, value)
    assert getattr(guest.functions, wait)(guest.start, value, 0) == TIMED_OUT
