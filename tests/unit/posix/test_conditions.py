"""Locks, conditions and events, and Ctrl-C at any step of what is done with them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

import steps
from shmwasm.errors import UnsupportedError
from shmwasm.posix.conditions import Condition, Event, Lock, Turn
from shmwasm.posix.reentry import afterwards, on_top_of_lock, refuse_on_top
from shmwasm.posix.signals import interrupts_put_off
from waiting import PATIENCE, eventually

ALL = 1 << 30


def is_free(lock: Lock | Turn) -> bool:
    """Return whether another thread gets the lock."""

    def take() -> bool:
        with lock:
            return True

    with ThreadPoolExecutor(1) as other:
        return other.submit(take).result(PATIENCE)


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def send_ctrl_c() -> None:
    """Send SIGINT to the main thread."""
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)


def press_ctrl_c_when(ready: Callable[[], object], press_it: Callable[[], object] = send_ctrl_c) -> threading.Thread:
    """Have Ctrl-C pressed once something is so."""

    def press() -> None:
        until = time.monotonic() + PATIENCE
        while not ready() and time.monotonic() < until:
            time.sleep(0.001)
        press_it()

    return in_thread(press)


@pytest.mark.parametrize("timeout", [None, PATIENCE])
@pytest.mark.parametrize("waited_for", [Event, Condition])
def test_a_signal_that_came_just_before_the_sleep_ends_it_too(waited_for, timeout) -> None:
    """Then Python knows of the signal, and the system call that sleeps does not."""
    what = waited_for()
    pressing = press_ctrl_c_when(lambda: what._waiters, ctypes.pythonapi.PyErr_SetInterrupt)
    before = time.monotonic()
    with pytest.raises(KeyboardInterrupt), what if waited_for is Condition else contextlib.nullcontext():
        what.wait(timeout)
    assert time.monotonic() - before < PATIENCE
    pressing.join()
    assert not what._waiters


def test_a_lock_lets_one_thread_in_at_a_time() -> None:
    lock, inside, most = Lock(), [], []

    def enter() -> None:
        for _ in range(200):
            with lock:
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [in_thread(enter) for _ in range(4)]
    for thread in threads:
        thread.join(PATIENCE)
    assert set(most) == {1}


def test_whoever_holds_a_lock_may_take_it_again() -> None:
    lock = Lock()
    with lock, lock:
        pass
    assert is_free(lock)


def test_ctrl_c_at_any_step_leaves_a_lock_free() -> None:
    lock = Lock()

    def work() -> None:
        with lock:
            pass
        lock.acquire()
        lock.release()

    for step in steps.chosen(work, ALL):
        assert is_free(lock), step


def test_what_is_done_with_a_lock_held_is_done_as_a_whole() -> None:
    lock, first, second = Lock(), [], []

    def work() -> None:
        with lock:
            first.append(1)
            second.append(1)

    for step in steps.chosen(work, ALL):
        assert first == second, step


def test_ctrl_c_that_arrives_while_a_lock_is_held_comes_when_it_is_released() -> None:
    lock, done = Lock(), []

    def work() -> None:
        with lock:
            signal.raise_signal(signal.SIGINT)
            done.append(1)
        done.append(2)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == [1]
    assert is_free(lock)


def test_a_condition_wakes_all_that_wait() -> None:
    condition, woken, waiting = Condition(), [], []

    def wait() -> None:
        with condition:
            waiting.append(1)
            woken.append(condition.wait(PATIENCE))

    threads = [in_thread(wait) for _ in range(3)]
    eventually(lambda: len(waiting) == 3)
    with condition:
        condition.notify_all()
    for thread in threads:
        thread.join(PATIENCE)
    assert woken == [True] * 3


def test_a_condition_that_nobody_notifies_is_waited_for_no_longer_than_asked() -> None:
    condition = Condition()
    with condition:
        assert not condition.wait(0.001)
        assert not condition.wait(-1)
        assert not condition.wait_for(lambda: False, 0.001)
        assert condition.wait_for(lambda: True, 0.0)
    assert is_free(condition)


def test_ctrl_c_at_any_step_of_a_wait_leaves_a_condition_free() -> None:
    condition = Condition()

    def work() -> None:
        with condition:
            condition.wait(0.0)
            condition.notify_all()

    for step in steps.chosen(work, ALL):
        assert is_free(condition), step


def test_ctrl_c_ends_a_wait_for_a_condition() -> None:
    condition = Condition()
    ready: list[int] = []

    def work() -> None:
        with condition:
            ready.append(1)
            condition.wait(PATIENCE)

    pressing = press_ctrl_c_when(lambda: ready and is_free(condition))
    with pytest.raises(KeyboardInterrupt):
        work()
    pressing.join()
    assert is_free(condition)


def test_ctrl_c_that_is_put_off_beyond_the_lock_comes_after_the_wait() -> None:
    condition = Condition()
    ready, done = [], []

    def work() -> None:
        with interrupts_put_off():
            with condition:
                ready.append(1)
                condition.wait_for(lambda: ready == [1, 2], PATIENCE)
            done.append(1)

    def notify() -> None:
        pressing.join()
        with condition:
            ready.append(2)
            condition.notify_all()

    pressing = press_ctrl_c_when(lambda: ready and is_free(condition))
    notifying = in_thread(notify)
    with pytest.raises(KeyboardInterrupt):
        work()
    notifying.join()
    assert done == [1]


def test_an_event_ends_the_waits_of_all_threads_and_later_ones_at_once() -> None:
    event = Event()
    with ThreadPoolExecutor(3) as threads:
        waits = [threads.submit(event.wait, PATIENCE) for _ in range(3)]
        event.set()
        assert all(one.result(PATIENCE) for one in waits)
    assert event.is_set()
    assert event.wait(0.0)


def test_an_event_that_does_not_happen_is_waited_for_no_longer_than_asked() -> None:
    event = Event()
    assert not event.wait(0.001)
    event.set()
    event.clear()
    assert not event.is_set()
    assert not event.wait(-1)


def test_ctrl_c_at_any_step_of_a_wait_leaves_an_event_that_can_happen() -> None:
    event = Event()

    def work() -> None:
        event.wait(0.0)
        event.set()
        event.wait(0.0)
        event.clear()

    for step in steps.chosen(work, ALL):
        with ThreadPoolExecutor(1) as other:
            other.submit(event.set).result(PATIENCE)
        assert event.wait(PATIENCE), step
        event.clear()


def test_ctrl_c_ends_a_wait_for_an_event() -> None:
    event, ready = Event(), []

    def work() -> None:
        ready.append(1)
        event.wait(PATIENCE)

    pressing = press_ctrl_c_when(lambda: ready)
    with pytest.raises(KeyboardInterrupt):
        work()
    pressing.join()


# ---------------------------------------------------------------- on top of a lock (see `reentry`)


def test_a_thread_that_holds_a_lock_is_refused_what_would_wait_and_others_are_not() -> None:
    lock, refusals = Lock(), []

    def ask() -> None:
        try:
            refuse_on_top("waiting")
        except UnsupportedError as refusal:
            refusals.append(refusal)

    with lock, lock:
        ask()
        in_thread(ask).join()
        assert on_top_of_lock()
    ask()
    assert not on_top_of_lock()
    assert len(refusals) == 1


def test_what_is_put_off_is_done_once_the_last_lock_is_let_go_of_and_in_order() -> None:
    one, another, done = Lock(), Lock(), []
    with one:
        with another:
            for number in range(2):
                afterwards(lambda number=number: done.append((number, is_free(one), on_top_of_lock())))
        assert not done
    assert done == [(0, True, False), (1, True, False)]


def test_what_is_put_off_is_done_where_the_lock_is_let_go_of_in_a_wait() -> None:
    condition = Condition()
    with condition:
        done: list[int] = []
        afterwards(lambda: done.append(1))
        condition.wait(0.01)
        assert done == [1]
        assert on_top_of_lock()
    assert not on_top_of_lock()


def test_what_is_put_off_and_fails_is_logged_and_the_rest_is_done(caplog: pytest.LogCaptureFixture) -> None:
    lock, done = Lock(), []
    with lock:
        afterwards(lambda: 1 // 0)
        afterwards(lambda: done.append(1))
    assert done == [1]
    assert "ZeroDivisionError" in caplog.text


def test_a_turn_may_be_held_over_a_wait() -> None:
    turn = Turn()
    with turn, turn:
        refuse_on_top("waiting")
    assert is_free(turn)


def test_a_forked_child_knows_nothing_of_its_parents_locks() -> None:
    lock = Lock()
    with lock:
        child = os.fork()
        if not child:
            os._exit(1 if on_top_of_lock() else 0)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("work", ["lock", "wait"])
def test_no_step_leaves_a_thread_a_holder_of_what_it_has_let_go_of(work: str) -> None:
    what = Condition()

    def hold() -> None:
        with what:
            if work == "wait":
                what.wait(0.001)

    for _ in steps.chosen(hold, 400):
        assert not on_top_of_lock()
        assert is_free(what)
