"""Signals that are put off."""

from __future__ import annotations

import os
import signal
import threading
import weakref
from collections.abc import Callable

import pytest

import steps
from shmwasm.posix import conditions  # noqa: F401  which says who the main thread is
from shmwasm.posix.signals import interrupts_let_through, interrupts_put_off


@pytest.fixture
def handle():
    """Have signals handled until the test ends."""
    before: dict[int, object] = {}

    def handle(number: int, handler: Callable[[int, object], object]) -> None:
        previous = signal.signal(number, handler)
        before.setdefault(number, previous)

    yield handle
    for number, handler in before.items():
        signal.signal(number, handler)


def raising(error: BaseException) -> Callable[[int, object], object]:
    """Return a handler that raises."""

    def handler(*_: object) -> None:
        raise error

    return handler


def test_ctrl_c_comes_after_what_it_must_not_end() -> None:
    seen = []

    def interrupted() -> None:
        with interrupts_put_off():
            signal.raise_signal(signal.SIGINT)
            seen.append("after the signal")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert seen == ["after the signal"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_that_is_put_off_twice_comes_once_at_the_end_of_the_outer_part() -> None:
    seen = []

    def interrupted() -> None:
        with interrupts_put_off():
            with interrupts_put_off():
                signal.raise_signal(signal.SIGINT)
            seen.append("between")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert seen == ["between"]


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
    seen = []

    def interrupted() -> None:
        with interrupts_put_off(), interrupts_put_off():
            try:
                with interrupts_let_through():
                    signal.raise_signal(signal.SIGINT)
                    seen.append("not reached")
            except KeyboardInterrupt:
                seen.append("let through")
            signal.raise_signal(signal.SIGINT)
            seen.append("put off again")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert seen == ["let through", "put off again"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_that_was_put_off_comes_where_it_is_let_through() -> None:
    seen = []

    def interrupted() -> None:
        with interrupts_put_off():
            signal.raise_signal(signal.SIGINT)
            seen.append("put off")
            with interrupts_let_through():
                seen.append("not reached")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert seen == ["put off"]


def test_ctrl_c_that_is_put_off_for_more_reasons_than_asked_is_not_let_through() -> None:
    seen = []

    def interrupted() -> None:
        with interrupts_put_off(), interrupts_put_off():
            with interrupts_let_through(most=1):
                signal.raise_signal(signal.SIGINT)
                seen.append("put off")
            seen.append("still")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert seen == ["put off", "still"]


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


def test_ctrl_c_at_any_step_leaves_the_usual_handler() -> None:
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


# ---------------------------------------------------------------- other signals


INTERRUPTING = [signal.SIGALRM, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGPROF]


@pytest.mark.parametrize("number", INTERRUPTING, ids=lambda number: number.name)
def test_a_signal_whose_handler_raises_comes_after_what_it_must_not_end(handle, number) -> None:
    """Time limits of tests raise from SIGALRM, supervisors' requests from SIGTERM, those of task queues from SIGUSR1."""
    seen = []
    handle(number, raising(TimeoutError(number)))

    def interrupted() -> None:
        with interrupts_put_off():
            signal.raise_signal(number)
            seen.append("after the signal")

    with pytest.raises(TimeoutError):
        interrupted()
    assert seen == ["after the signal"]
    with pytest.raises(TimeoutError):
        signal.raise_signal(number)


def test_signals_that_were_put_off_together_are_all_handled_once_even_if_one_raises(handle) -> None:
    handled = []

    def note(number: int, _frame: object) -> None:
        handled.append(number)
        raise InterruptedError(number)

    for number in INTERRUPTING:
        handle(number, note)

    def interrupted() -> None:
        with interrupts_put_off():
            for number in INTERRUPTING * 2:
                signal.raise_signal(number)
            assert not handled

    with pytest.raises(InterruptedError):
        interrupted()
    assert sorted(handled) == sorted(INTERRUPTING)


def test_a_signal_that_does_not_interrupt_is_handled_at_once(handle) -> None:
    handled = []
    handle(signal.SIGCHLD, lambda number, _: handled.append(number))
    with interrupts_put_off():
        signal.raise_signal(signal.SIGCHLD)
        assert handled == [signal.SIGCHLD]


def test_a_handler_may_put_signals_off_itself(handle) -> None:
    handled = []

    def nested(number: int, _frame: object) -> None:
        with interrupts_put_off():
            signal.raise_signal(signal.SIGALRM)
            handled.append(number)

    handle(signal.SIGTERM, nested)
    handle(signal.SIGALRM, lambda number, _: handled.append(number))
    with interrupts_put_off():
        signal.raise_signal(signal.SIGTERM)
    assert handled == [signal.SIGTERM, signal.SIGALRM]
    assert signal.getsignal(signal.SIGTERM) is nested


def test_ctrl_c_at_any_step_leaves_the_handlers_of_all_signals(handle) -> None:
    handled: list[int] = []

    def note(number: int, _frame: object) -> None:
        with interrupts_put_off():
            handled.append(number)

    for number in INTERRUPTING:
        handle(number, note)

    def work() -> None:
        with interrupts_put_off(), interrupts_put_off():
            signal.raise_signal(signal.SIGTERM)
            with interrupts_let_through():
                signal.raise_signal(signal.SIGALRM)
            signal.raise_signal(signal.SIGUSR1)

    for step in steps.chosen(work, 1 << 30):
        with interrupts_put_off():
            pass  # what Ctrl-C kept from being handled now is handled the next time
        handled.clear()
        for number in INTERRUPTING:
            signal.raise_signal(number)
        assert handled == INTERRUPTING, step
        assert [signal.getsignal(number) for number in INTERRUPTING] == [note] * len(INTERRUPTING), step
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, step


TOGETHER = INTERRUPTING[:3]
"""Not more: five overrun the stack that `faulthandler`, which pytest uses, has signals arrive on, 3 kB each with AVX-512."""


def arrive_together() -> None:
    """Have several arrive at once, as when a terminal closes: each is handled at the next step at which one can be."""
    signal.pthread_sigmask(signal.SIG_BLOCK, TOGETHER)
    for number in TOGETHER:
        signal.pthread_kill(threading.get_ident(), number)  # nobody else gets it, though it waits here
    signal.pthread_sigmask(signal.SIG_UNBLOCK, TOGETHER)


def test_signals_that_come_together_where_they_are_let_through_are_put_off_again_behind_that(handle) -> None:
    handled: list[int | str] = []

    def note(number: int, _frame: object) -> None:
        handled.append(number)
        raise InterruptedError(number)

    for number in TOGETHER:
        handle(number, note)

    def interrupted() -> None:
        with interrupts_put_off():
            try:
                with interrupts_let_through():
                    arrive_together()
            finally:
                handled.append("put off")
                signal.raise_signal(signal.SIGTERM)
                handled.append("still")

    with pytest.raises(InterruptedError):
        interrupted()
    first, *rest = handled
    assert rest[:2] == ["put off", "still"]
    assert {first, *rest[2:]} == {*TOGETHER}
    assert [signal.getsignal(number) for number in TOGETHER] == [note] * len(TOGETHER)


def test_ctrl_c_at_any_step_where_signals_are_let_through_puts_them_off_again(handle) -> None:
    """Also at the very last, where they are just to be put off."""
    handled, handled_within = [], []
    handle(signal.SIGTERM, lambda number, _: handled.append(number))

    def work() -> None:
        handled.clear()
        with interrupts_put_off():
            try:
                with interrupts_let_through():
                    pass
            finally:
                signal.raise_signal(signal.SIGTERM)
                handled_within.extend(handled)

    for step in steps.chosen(work, 1 << 30):
        assert not handled_within, step
