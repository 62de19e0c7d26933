"""What can be called, and the calls that nobody waits for in a thread: what to submit, and what to do with the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from shmwasm.client.clocks import Clock
from shmwasm.client.side_channel import Number
from shmwasm.core import layout
from shmwasm.core.dispatching import Signature
from shmwasm.core.requests import EndedCall, Request
from shmwasm.core.rings import ClientRing

Ended = Callable[[Any, BaseException | None], None]


class Target(NamedTuple):
    """A function of the worker that can be called. Made by `RingCallPath.target`."""

    name: str
    number: int
    kind: Signature
    unpack: Callable[[bytes], tuple[Number, ...]]


class Call:
    """An asynchronous call.

    Args:
        target: What is called.
        arguments: Numbers in the ranges of their types, integers all unsigned or all signed.
        clock: Its time limit, if it has one.
        ended: Called once, with a list of results, or with None and an error.
    """

    __slots__ = ("_arguments", "clock", "done", "ended", "sequence", "target")

    def __init__(self, target: Target, arguments: Sequence[Number], clock: Clock | None, ended: Ended) -> None:
        self.target = target
        self._arguments = arguments
        self.clock = clock
        self.ended = ended
        self.sequence: int | None = None
        """Its number in the ring; None while it waits for room there."""
        self.done = False
        """Whether it is not under way any more."""

    def request(self, ring: ClientRing) -> Request:
        """Return what to submit."""
        request = ring.request(self.target.number, self.target.kind)
        packed = request.pack(self._arguments)
        assert packed, "numbers were converted wrongly"
        return request

    @property
    def flags(self) -> int:
        """What sort of call it is (see `ring.h`)."""
        return layout.CALL_ASYNCHRONOUS

    def results(self, one: EndedCall) -> Any:
        """Return what `ended` is told."""
        return list(self.target.unpack(one.cells)) if one.status == layout.CALL_RETURNED else None


class BatchCall(Call):
    """Many calls of one function, whose arguments and results are columns in the ring's batch buffers.

    `ended` is called with how many of them returned, and the error that ended the rest, if any.

    Args:
        target: What is called.
        count: How many calls.
        arguments: Where the columns of arguments start in the batch buffers.
        results: Where those of the results start.
        clock: The time limit of each of them, if there is one.
        ended: See above.
    """

    __slots__ = ("_place",)

    def __init__(self, target: Target, count: int, arguments: int, results: int, clock: Clock | None, ended: Ended) -> None:  # noqa: PLR0917
        super().__init__(target, (), clock, ended)
        self._place = count, arguments, results
        if clock is not None:
            clock.progress = 0

    @property
    def flags(self) -> int:
        """What sort of call it is (see `ring.h`)."""
        return super().flags if self.clock is None else super().flags | layout.CALL_STOPPABLE

    def request(self, ring: ClientRing) -> Request:
        """Return what to submit."""
        return ring.batch_request(self.target.number, *self._place)

    def results(self, one: EndedCall) -> Any:
        """Return what `ended` is told."""
        return one.progress
