"""Signals that are put off."""

from __future__ import annotations

import os
import signal
import threading
import weakref

import pytest

from shmwasm.posix import conditions  # noqa: F401  which says who the main thread is
from shmwasm.posix.signals import interrupts_let_through, interrupts_put_off


def test_ctrl_c_comes_after_what_it_must_not_end() -> None:
    steps = []

    def interrupted() -> None:
        with interrupts_put_off():
            signal.raise_signal(signal.SIGINT)
            steps.append("after the signal")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert steps == ["after the signal"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_that_is_put_off_twice_comes_once_at_the_end_of_the_outer_part() -> None:
    steps = []

    def interrupted() -> None:
        with interrupts_put_off():
            with interrupts_put_off():
                signal.raise_signal(signal.SIGINT)
            steps.append("between")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert steps == ["between"]


def test_an_error_passes_and_leaves_the_usual_handler() -> None:
    with pytest.raises(ValueError, match="mine"), interrupts_put_off():
        raise ValueError("mine")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_where_python_does_not_handle_ctrl_c_nothing_changes() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts_put_off():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_threads_that_get_no_signals_put_off_none() -> None:
    seen = []

    def look() -> None:
        with interrupts_put_off():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


def test_ctrl_c_is_let_through_where_it_is_waited_for_and_put_off_again_behind_that() -> None:
    steps = []

    def interrupted() -> None:
        with interrupts_put_off(), interrupts_put_off():
            try:
                with interrupts_let_through():
                    signal.raise_signal(signal.SIGINT)
                    steps.append("not reached")
            except KeyboardInterrupt:
                steps.append("let through")
            signal.raise_signal(signal.SIGINT)
            steps.append("put off again")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert steps == ["let through", "put off again"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_that_was_put_off_comes_where_it_is_let_through() -> None:
    steps = []

    def interrupted() -> None:
        with interrupts_put_off():
            signal.raise_signal(signal.SIGINT)
            steps.append("put off")
            with interrupts_let_through():
                steps.append("not reached")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert steps == ["put off"]


def test_ctrl_c_that_is_put_off_for_more_reasons_than_asked_is_not_let_through() -> None:
    steps = []

    def interrupted() -> None:
        with interrupts_put_off(), interrupts_put_off():
            with interrupts_let_through(most=1):
                signal.raise_signal(signal.SIGINT)
                steps.append("put off")
            steps.append("still")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert steps == ["put off", "still"]


def test_a_handler_that_is_set_meanwhile_stays() -> None:
    def mine(*_: object) -> None:
        pass

    before = signal.getsignal(signal.SIGINT)
    try:
        with interrupts_put_off():
            signal.signal(signal.SIGINT, mine)
        assert signal.getsignal(signal.SIGINT) is mine
    finally:
        signal.signal(signal.SIGINT, before)


def test_no_handler_is_kept_that_was_put_off() -> None:
    class Handler:
        def __call__(self, *_: object) -> None:
            pass

    handler = Handler()
    kept = weakref.ref(handler)
    before = signal.signal(signal.SIGINT, handler)
    with interrupts_put_off():
        signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)
    del handler
    assert kept() is None


def test_ctrl_c_at_any_step_leaves_the_usual_handler(steps) -> None:
    done = []

    def work() -> None:
        with interrupts_put_off():
            done.append(1)
            with interrupts_let_through():
                pass
            done.append(1)

    for step in steps.chosen(work, 1 << 30):
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, step
        # It is not put off any more either.
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_forked_child_has_its_own_main_thread() -> None:
    def fork() -> None:
        child = os.fork()
        if child == 0:
            with interrupts_put_off():
                put_off = signal.getsignal(signal.SIGINT) is not signal.default_int_handler
            os._exit(not put_off)
        statuses.append(os.waitpid(child, 0)[1])

    statuses: list[int] = []
    thread = threading.Thread(target=fork)
    thread.start()
    thread.join()
    assert statuses == [0]
