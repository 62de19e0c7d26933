"""Ctrl-C at any one step of some work, as if the signal had arrived just before it; or something else that is done there.

Theory
------
A tracing function counts the steps of the main thread's Python code. From the chosen step on, what traces is a C function that
does what the arrival of SIGINT does, and takes no step of its own: the handler runs where the interpreter looks for signals next,
in the work itself.
"""

from __future__ import annotations

import ctypes
import random
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

_arrive = ctypes.PYFUNCTYPE(None, *[ctypes.py_object] * 3)(("PyErr_SetInterrupt", ctypes.pythonapi))
"""What a tracing function is called with is ignored."""


class _Steps:
    def __init__(self, chosen: float, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.chosen = chosen
        self.error = error
        self.passed = False
        self.taken = 0
        self.interrupted = False
        self._arrives = False
        self._over = False

    def enter(self, frame: FrameType, _event: str, _argument: object) -> Any:
        """Trace a function that is called."""
        if self.taken < self.chosen:
            frame.f_trace_opcodes = True
            return self.count
        if self._arrives:
            return None
        self._arrives = True  # in this function, as the step was its call
        return _arrive

    def count(self, _frame: FrameType, event: str, _argument: object) -> Any:
        """Trace a step."""
        self.taken += event == "opcode"
        return self.count if self.taken < self.chosen else _arrive

    def handle(self, *_: object) -> None:
        """Handle SIGINT as Python does, or by another error, but once."""
        sys.settrace(None)
        if not self.interrupted and not self._over:
            self.interrupted = True
            raise self.error

    def trace(self, work: Callable[[], object]) -> None:
        """Do some work."""
        tracing = sys.gettrace()
        handling = signal.signal(signal.SIGINT, self.handle)
        try:
            sys.settrace(self.enter)
            work()
        except self.error:
            self.passed = True
        finally:
            self._over = True  # what arrived at the last step has nobody to interrupt
            sys.settrace(tracing)
            signal.signal(signal.SIGINT, handling)


def count(work: Callable[[], object]) -> int:
    """Return how many steps some work takes."""
    steps = _Steps(float("inf"))
    steps.trace(work)
    return steps.taken


def interrupt(work: Callable[[], object], step: int) -> bool:
    """Do some work, interrupted just before that step; return whether it has as many, and was."""
    steps = _Steps(step)
    steps.trace(work)
    return steps.interrupted


def passes(work: Callable[[], object], step: int, error: type[BaseException]) -> bool:
    """Do some work, where a handler raises an error just before that step, if it has as many; return whether that comes out."""
    steps = _Steps(step, error)
    steps.trace(work)
    return steps.passed or not steps.interrupted


def do_on_top(work: Callable[[], object], step: int, something: Callable[[], object]) -> None:
    """Do some work, and something else on top of it just before that step, if it has as many: so does a finalizer."""
    taken = 0

    def enter(frame: FrameType, _event: str, _argument: object) -> Any:
        frame.f_trace_opcodes = True
        return take

    def take(_frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal taken
        taken += event == "opcode"
        if taken == step and event == "opcode":
            sys.settrace(None)
            something()
        return take

    tracing = sys.gettrace()
    try:
        sys.settrace(enter)
        work()
    finally:
        sys.settrace(tracing)


def chosen(
    work: Callable[[], object], most: int, something: Callable[[Callable[[], object], int], object] = interrupt
) -> Iterator[int]:
    """Do some work again and again, interrupted at one step each time: at all of them, or so many at random. Give the steps.

    Args:
        work: The work.
        most: How many steps at most.
        something: Does the work, up to the step where it is interrupted, or otherwise disturbed.
    """
    work()  # what is done the first time only is not done again
    steps = range(1, count(work) + 1)
    for step in steps if len(steps) <= most else random.sample(steps, most):
        something(work, step)
        yield step
