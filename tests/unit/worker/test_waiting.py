"""What a guest's wait and notify do: which of two time limits ends a wait, and how."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterator

import pytest

from shmwasm.addresses import OS_PAGE, NativeAddress
from shmwasm.errors import CallTimeoutError
from shmwasm.posix.mappings import map_anywhere
from shmwasm.posix.segments import Segment
from shmwasm.worker.waiting import Waiting

WOKEN, NOT_EQUAL, TIMED_OUT = 0, 1, 2
FOR_EVER = -1
MILLISECOND = 1_000_000
HOUR = 3_600_000 * MILLISECOND
WAITS = pytest.mark.parametrize("wait", ["wait32", "wait64"])


class Guest:
    """A page of shared memory, and the functions of a guest that sees it."""

    def __init__(self) -> None:
        self._segment = Segment.create(OS_PAGE, name_for_errors="page")
        self.mapping = map_anywhere(self._segment.descriptor, OS_PAGE, writable=True)
        self.start = self.mapping.address
        self.deadline: float | None = None
        self.functions = Waiting(deadline=lambda: self.deadline, overdue=lambda: CallTimeoutError(1, "wait", 2.0))

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
    guest.deadline = 0.0
    assert getattr(guest.functions, wait)(guest.start, 5, FOR_EVER) == NOT_EQUAL


@WAITS
def test_the_guests_own_limit_ends_a_wait_as_timed_out(guest, wait):
    guest.deadline = time.monotonic() + 3600
    assert getattr(guest.functions, wait)(guest.start, 0, MILLISECOND) == TIMED_OUT
    assert getattr(guest.functions, wait)(guest.start, 0, 0) == TIMED_OUT
    guest.deadline = None
    assert getattr(guest.functions, wait)(guest.start, 0, MILLISECOND) == TIMED_OUT


@WAITS
@pytest.mark.parametrize("own", [FOR_EVER, HOUR])
@pytest.mark.parametrize("patience", [0.02, -1.0])
def test_a_call_that_is_overdue_ends_a_wait_with_its_error(guest, wait, own, patience):
    guest.deadline = time.monotonic() + patience
    with pytest.raises(CallTimeoutError):
        getattr(guest.functions, wait)(guest.start, 0, own)
    assert time.monotonic() >= guest.deadline


@WAITS
@pytest.mark.parametrize(("own", "patience"), [(FOR_EVER, None), (HOUR, None), (FOR_EVER, 3600.0), (HOUR, 1800.0)])
def test_notify_wakes_a_waiter_whatever_its_limits(guest, wait, own, patience):
    guest.deadline = None if patience is None else time.monotonic() + patience
    found = []
    thread = threading.Thread(
        target=lambda: found.append(getattr(guest.functions, wait)(NativeAddress(guest.start + 16), 0, own))
    )
    thread.start()
    limit = time.monotonic() + 20
    while not guest.functions.notify(NativeAddress(guest.start + 16), 1):
        assert time.monotonic() < limit
    thread.join()
    assert found == [WOKEN]


def test_none_may_be_woken(guest):
    assert guest.functions.notify(guest.start, (1 << 32) - 1) == 0
    assert guest.functions.notify(guest.start, 0) == 0


@pytest.mark.parametrize(("wait", "code", "value"), [("wait32", "<i", -7), ("wait64", "<q", -(1 << 40))])
def test_negative_values_are_compared_by_their_bits(guest, wait, code, value):
    struct.pack_into(code, guest.mapping.view, 0, value)
    assert getattr(guest.functions, wait)(guest.start, value, 0) == TIMED_OUT
