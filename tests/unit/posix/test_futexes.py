"""Futexes across processes: the waiters are forked children, which map the same segment elsewhere."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from processes import state_of
from shmwasm.addresses import OS_PAGE, NativeAddress
from shmwasm.errors import UnsupportedError
from shmwasm.posix import futexes
from shmwasm.posix.futexes import Alarm, Wait, wait32, wait64, wake
from shmwasm.posix.mappings import Mapping, map_anywhere
from shmwasm.posix.segments import Segment
from waiting import PATIENCE, eventually

HIGH = 1 << 32


def wait64_in_steps(address: NativeAddress, expected: int, deadline: int | None = None, alarm: Alarm | None = None) -> Wait:
    return futexes._wait_in_steps(futexes._load64, address, expected & ((1 << 64) - 1), deadline, alarm)


def wait32_in_steps(address: NativeAddress, expected: int, deadline: int | None = None, alarm: Alarm | None = None) -> Wait:
    return futexes._wait_in_steps(futexes._load32, address, expected & 0xFFFF_FFFF, deadline, alarm)


WAITS64 = pytest.mark.parametrize("wait", [wait64, wait64_in_steps], ids=["waitv", "steps"])


class Shared:
    """A page of shared memory, with words to read and write."""

    def __init__(self) -> None:
        self.segment = Segment.create(OS_PAGE, name_for_errors="words")
        self.mapping = self.map()
        self.address = self.mapping.address

    def map(self, *, writable: bool = True) -> Mapping:
        return map_anywhere(self.segment.descriptor, OS_PAGE, writable=writable)

    def store(self, offset: int, value: int, code: str = "<I") -> None:
        struct.pack_into(code, self.mapping.view, offset, value)

    def at(self, offset: int) -> NativeAddress:
        return NativeAddress(self.address + offset)


@pytest.fixture
def shared() -> Iterator[Shared]:
    one = Shared()
    yield one
    one.mapping.close()
    one.segment.close()


def in_child(run: Callable[[], int]) -> int:
    """Run it in a forked child whose exit code is what it returns; return the child's process id."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = int(run())
        finally:
            os._exit(code)
    return pid


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def is_asleep(pid: int) -> bool:
    return state_of(pid) == "S"


def wake_one(address: NativeAddress) -> None:
    eventually(lambda: wake(address, 1))


def test_a_process_that_maps_the_word_elsewhere_is_woken(shared):
    def child() -> int:
        with shared.map() as own:
            assert own.address != shared.address
            return wait32(NativeAddress(own.address + 8), 7, None)

    shared.store(8, 7)
    pid = in_child(child)
    wake_one(shared.at(8))
    assert ended(pid) == Wait.WOKEN


def test_a_word_that_is_mapped_for_reading_only_can_be_waited_at(shared):
    def child() -> int:
        with shared.map(writable=False) as own:
            return wait32(own.address, 0, None)

    pid = in_child(child)
    wake_one(shared.address)
    assert ended(pid) == Wait.WOKEN


@pytest.mark.parametrize("expected", [1, -1, 0x8000_0000])
def test_nobody_waits_for_a_word_that_holds_something_else(shared, expected):
    assert wait32(shared.address, expected) is Wait.NOT_EQUAL


def test_a_value_may_be_given_signed_or_unsigned(shared):
    shared.store(0, 0xFFFF_FFFE)
    past = time.monotonic_ns()
    assert wait32(shared.address, -2, past) is Wait.TIMED_OUT
    assert wait32(shared.address, 0xFFFF_FFFE, past) is Wait.TIMED_OUT
    shared.store(8, (1 << 64) - 2, "<Q")
    assert wait64(shared.at(8), -2, past) is Wait.TIMED_OUT


@pytest.mark.parametrize("wait", [wait32, wait64, wait64_in_steps], ids=["32", "waitv", "steps"])
def test_a_wait_ends_at_its_deadline_and_not_before(shared, wait):
    deadline = time.monotonic_ns() + 30_000_000
    assert wait(shared.address, 0, deadline) is Wait.TIMED_OUT
    assert time.monotonic_ns() >= deadline


@pytest.mark.parametrize("wait", [wait32, wait64, wait64_in_steps], ids=["32", "waitv", "steps"])
@pytest.mark.parametrize("deadline", [-5, 0, 1])
def test_a_deadline_that_has_passed_ends_the_wait_at_once(shared, wait, deadline):
    assert wait(shared.address, 0, deadline) is Wait.TIMED_OUT


def test_a_deadline_may_lie_centuries_ahead(shared):
    pid = in_child(lambda: wait32(shared.address, 0, time.monotonic_ns() + (1 << 63) - 1))
    wake_one(shared.address)
    assert ended(pid) == Wait.WOKEN


def test_as_many_are_woken_as_asked_for(shared):
    children = [in_child(lambda: wait32(shared.address, 0)) for _ in range(3)]
    eventually(lambda: all(map(is_asleep, children)))
    assert wake(shared.address, 0) == 0
    assert wake(shared.address, 2) == 2
    assert wake(shared.address, (1 << 32) - 1) == 1
    assert wake(shared.address) == 0
    assert [ended(pid) for pid in children] == [Wait.WOKEN] * 3


@WAITS64
def test_a_64_bit_waiter_is_woken_at_the_words_address(shared, wait):
    shared.store(0, 5 * HIGH + 3, "<Q")
    pid = in_child(lambda: wait(shared.address, 5 * HIGH + 3, None))
    wake_one(shared.address)
    assert ended(pid) == Wait.WOKEN


@WAITS64
@pytest.mark.parametrize("held", [5 * HIGH + 4, 6 * HIGH + 3], ids=["low", "high"])
def test_a_64_bit_word_is_compared_whole(shared, wait, held):
    shared.store(0, held, "<Q")
    assert wait(shared.address, 5 * HIGH + 3, None) is Wait.NOT_EQUAL


def test_a_wake_at_the_high_half_is_not_spent_on_a_64_bit_waiter(shared):
    whole = in_child(lambda: wait64(shared.address, 0))
    eventually(lambda: is_asleep(whole))
    half = in_child(lambda: wait32(shared.at(4), 0))
    wake_one(shared.at(4))
    assert ended(half) == Wait.WOKEN
    assert wake(shared.at(4)) == 0
    assert is_asleep(whole)
    wake_one(shared.address)
    assert ended(whole) == Wait.WOKEN


@WAITS64
def test_no_wake_after_a_change_of_the_high_half_is_lost(shared, wait):
    """The waiter sleeps without a deadline: one lost wake would hang it, and with it the test."""
    rounds = 300

    def child() -> int:
        for turn in range(rounds):
            wait(shared.address, turn * HIGH, None)
            shared.store(8, turn + 1)
        return 0

    pid = in_child(child)
    for turn in range(rounds):
        shared.store(0, (turn + 1) * HIGH, "<Q")
        wake(shared.address)
        eventually(lambda done=turn + 1: ctypes.c_uint32.from_address(shared.address + 8).value == done)
    assert ended(pid) == 0


def test_other_threads_run_while_one_waits(shared):
    woken = []
    thread = threading.Thread(target=lambda: woken.append(wait32(shared.address, 0)))
    thread.start()
    wake_one(shared.address)
    thread.join(PATIENCE)
    assert woken == [Wait.WOKEN]


@pytest.mark.parametrize("wait", [wait32, wait64], ids=["32", "64"])
def test_a_signals_handler_runs_and_the_wait_goes_on(shared, wait):
    def child() -> int:
        signal.signal(signal.SIGUSR1, lambda *_: shared.store(16, 1))
        shared.store(20, 1)
        return wait(shared.address, 0, None)

    pid = in_child(child)
    eventually(lambda: ctypes.c_uint32.from_address(shared.address + 20).value and is_asleep(pid))
    os.kill(pid, signal.SIGUSR1)
    eventually(lambda: ctypes.c_uint32.from_address(shared.address + 16).value)
    wake_one(shared.address)
    assert ended(pid) == Wait.WOKEN


def test_an_exception_of_a_signals_handler_ends_the_wait(shared):
    def child() -> int:
        def raise_it(*_: object) -> None:
            raise InterruptedError

        signal.signal(signal.SIGUSR1, raise_it)
        shared.store(20, 1)
        try:
            return wait32(shared.address, 0)
        except InterruptedError:
            return 42

    pid = in_child(child)
    eventually(lambda: ctypes.c_uint32.from_address(shared.address + 20).value and is_asleep(pid))
    os.kill(pid, signal.SIGUSR1)
    assert ended(pid) == 42


def test_an_address_that_no_word_can_have_is_refused():
    with pytest.raises(UnsupportedError, match="futex"):
        wait32(NativeAddress(2), 0, 0)
    with pytest.raises(UnsupportedError, match="futex"):
        wake(NativeAddress(2))


WAITS_WITH_ALARM = pytest.mark.parametrize(
    "wait", [wait32, wait64, wait32_in_steps, wait64_in_steps], ids=["32", "64", "32 in steps", "64 in steps"]
)


@WAITS_WITH_ALARM
def test_an_alarm_that_rang_before_ends_the_wait_at_once(shared, wait):
    shared.store(64, 1)
    assert wait(shared.address, 0, None, Alarm(shared.at(64), 0)) is Wait.ALARMED
    assert wait(shared.address, 0, time.monotonic_ns(), Alarm(shared.at(64), 1)) is Wait.TIMED_OUT


@WAITS_WITH_ALARM
def test_an_alarm_ends_a_wait_that_has_begun(shared, wait):
    pid = in_child(lambda: wait(shared.address, 0, None, Alarm(shared.at(64), 0)))
    eventually(lambda: is_asleep(pid))
    shared.store(64, 1)
    wake(shared.at(64))
    assert ended(pid) == Wait.ALARMED


@WAITS_WITH_ALARM
def test_a_wait_with_an_alarm_is_woken_by_a_wake_and_ends_at_its_deadline(shared, wait):
    pid = in_child(lambda: wait(shared.address, 0, None, Alarm(shared.at(64), 0)))
    eventually(lambda: wake(shared.address, 1))
    assert ended(pid) == Wait.WOKEN
    deadline = time.monotonic_ns() + 30_000_000
    assert wait(shared.address, 0, deadline, Alarm(shared.at(64), 0)) is Wait.TIMED_OUT
    assert time.monotonic_ns() >= deadline
    assert wait(shared.address, 7, None, Alarm(shared.at(64), 0)) is Wait.NOT_EQUAL
