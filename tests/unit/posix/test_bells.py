"""Bells: no ring is missed, and a wait ends by itself."""

import ctypes
import mmap
import os
import signal
import threading
import time

import pytest

from shmwasm.addresses import NativeAddress
from shmwasm.posix import bells
from waiting import PATIENCE


@pytest.fixture
def bell():
    with mmap.mmap(-1, mmap.PAGESIZE) as memory:
        place = ctypes.c_char.from_buffer(memory)
        address = NativeAddress(ctypes.addressof(place))
        bells.make(address)
        yield address
        del place


def test_what_wasm_calls_leaves_null_where_it_looks():
    bells.check()


def test_rings_are_counted_until_somebody_waits(bell):
    for _ in range(3):
        bells.ring(bell)
    assert [bells.wait(bell, PATIENCE) for _ in range(3)] == [True] * 3
    assert bells.wait(bell, 0.0) is False


def test_a_wait_ends_when_its_time_is_over(bell):
    began = time.monotonic()
    assert bells.wait(bell, 0.02) is False
    assert time.monotonic() - began >= 0.02


def test_one_that_waits_is_woken_from_another_process(bell):
    child = os.fork()
    if child == 0:
        os._exit(not bells.wait(bell, PATIENCE))
    bells.ring(bell)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_each_ring_wakes_one(bell):
    woken = []
    threads = [threading.Thread(target=lambda: woken.append(bells.wait(bell, PATIENCE))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in threads:
        bells.ring(bell)
    for thread in threads:
        thread.join(PATIENCE)
    assert woken == [True] * 4
    assert bells.wait(bell, 0.0) is False


def test_a_signal_ends_a_wait_and_its_handler_may_raise(bell):
    def handler(*_):
        raise InterruptedError

    usual = signal.signal(signal.SIGUSR1, handler)
    try:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        with pytest.raises(InterruptedError):
            bells.wait(bell, PATIENCE)
    finally:
        signal.signal(signal.SIGUSR1, usual)


@pytest.mark.parametrize("clock", [time.CLOCK_MONOTONIC, time.CLOCK_REALTIME])
def test_a_bell_is_waited_for_until_some_time_by_either_clock(bell, clock):
    prepared = bells.Bell(bell, clock)
    prepared.ring()
    assert prepared.wait(time.monotonic() + PATIENCE) is True
    until = time.monotonic() + 0.02
    assert prepared.wait(until) is False
    assert time.monotonic() >= until
    assert prepared.wait(until) is False
