"""Signals that are put off."""

from __future__ import annotations

import signal
import threading

import pytest

from shmwasm.posix.signals import interrupts_put_off


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
