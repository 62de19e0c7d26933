"""How a pool reaches one instance: it gives it calls and lots, and takes back what has not begun."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import Any, Final

from shmwasm import errors
from shmwasm.client import checks
from shmwasm.client.arguments import results_of
from shmwasm.client.asynchronous import BatchCall, Call
from shmwasm.client.calls import new_clock
from shmwasm.client.columns import pack
from shmwasm.client.futures import SafeFuture
from shmwasm.client.instances import Instance
from shmwasm.client.mapping import Lot
from shmwasm.client.pool_exports import Request
from shmwasm.client.pool_life import PoolOptions
from shmwasm.core import layout

_BUFFERS: Final = list(range(layout.RING_BATCH_BUFFERS))
_ENDED_BUFFER: Final = -1
_LOSSES: Final = (errors.WorkerLostError, errors.ClosedError, errors.CoordinatorLostError)
"""What ends whatever an instance has, whether it has begun or not."""


@dataclass(slots=True, eq=False, weakref_slot=True)
class Job:
    """One submitted call."""

    request: Request
    future: Future[Any]
    queued: float = field(default_factory=time.monotonic)
    only_there: bool = False
    """Whether it is for one instance alone."""
    begun: bool = False
    """Whether it cannot be cancelled any more."""
    over: bool = False
    """Whether it has ended, or was taken back for good."""


@dataclass(slots=True, eq=False)
class Flight:
    """A call or a lot that was given to an instance, and has not ended.

    Attributes:
        work: What it is.
        calls: How many calls it has.
        given: When it was given.
        began: When it began, as far as is known: nothing was before it any more.
        taken_back: Whether it will not begin.
        interrupted: Whether its user has ended it.
    """

    work: Job | Lot
    calls: int
    given: float
    began: float | None = None
    taken_back: bool = False
    interrupted: bool = False
    call: Call | None = None
    buffer: int = _ENDED_BUFFER


@dataclass(slots=True)
class Landing:
    """How a flight ended.

    Attributes:
        done: How many of its calls returned.
        value: What a single one returned.
        error: What the next one ended with; None if all returned.
        begun: Whether that one had begun. If not, it can be given to another instance.
        cells: The results of a lot's calls, until the flight is released.
    """

    done: int
    value: Any = None
    error: BaseException | None = None
    begun: bool = True
    cells: memoryview | None = None


class Line:
    """The way to one instance.

    Args:
        instance: The instance.
        landed: Called once for each flight, unless it was taken back: in the receiver thread, or before it was given.
    """

    def __init__(self, instance: Instance, landed: Callable[[Flight, Landing], None]) -> None:
        self._instance = instance
        self._path = instance.path
        self._landed = landed
        self._buffers = list(_BUFFERS)

    def give_call(self, flight: Flight, request: Request) -> None:
        """Start a call.

        Raises:
            ArgumentError: The instance does not see a block that is passed.
            ClosedError: The instance was closed.
        """
        bound = self._instance.exports[request.export]
        numbers = request.numbers
        if numbers is None or self._instance.module.metered:
            numbers = bound.numbers(request.arguments, request.fuel)

        def ended(results: list[int | float] | None, error: BaseException | None) -> None:
            if not flight.taken_back:
                landing = Landing(1, results_of(results or [])) if error is None else self._failure(flight, error)
                self._landed(flight, landing)

        flight.call = Call(bound.target, numbers, new_clock(request.timeout or None), ended)
        self._instance.require_open()
        self._path.start(flight.call)

    def give_lot(self, flight: Flight, lot: Lot) -> tuple[int, Exception | None]:
        """Start a lot, as far as its arguments are as they should be.

        Returns:
            How many calls were started, and, if not all, the error of the next one.
        """
        bound = self._instance.exports[lot.mapping.export]
        buffer = self._buffers.pop()

        wishes = lot.mapping.wishes

        def convert(arguments: Sequence[Any]) -> list[int | float]:
            return bound.numbers(arguments, wishes.fuel)

        kinds, address_of = bound.target.kind.parameters, self._instance.address_of
        fuel = self._instance.fuel if wishes.fuel is None else wishes.fuel
        more = [checks.amount_of_fuel(fuel)] if self._instance.module.metered else []
        try:
            cells = self._path.batch_buffer(buffer)
            good, failure = pack(lot.rows, kinds, cells, convert=convert, address_of=address_of, more=more)
            self._instance.require_open()
            flight.calls, flight.work = good, lot.first(good)
            if good < lot.rows.count:
                # The columns are as long as there are calls.
                pack(flight.work.rows, kinds, cells, convert=convert, address_of=address_of, more=more)
        except BaseException:
            self._buffers.append(buffer)
            raise
        flight.buffer = buffer
        if not good:
            self.release(flight)
            return good, failure

        def ended(progress: int | None, error: BaseException | None) -> None:
            if not flight.taken_back:
                # A guest that leaves by exiting has returned, and ended its lot.
                landing = Landing(progress or 0) if error is None else self._failure(flight, error, progress)
                landing.cells = cells
                self._landed(flight, landing)

        place = buffer * layout.RING_BATCH_SIZE
        flight.call = BatchCall(bound.target, good, place, place, new_clock(wishes.timeout), ended)
        self._path.start(flight.call)
        return good, failure

    def take_back(self, flight: Flight) -> bool:
        """Take back what has not begun; return whether it will not begin. Then it does not land."""
        if flight.call is None or flight.taken_back or not self._path.cancel(flight.call):
            return False
        flight.taken_back = True
        self.release(flight)
        return True

    def interrupt(self, flight: Flight) -> None:
        """End what has begun early."""
        if flight.call is not None:
            flight.interrupted = True
            self._path.withdraw(flight.call)

    def release(self, flight: Flight) -> None:
        """Use the cells of a flight that has landed for others."""
        if flight.buffer != _ENDED_BUFFER:
            self._buffers.append(flight.buffer)
            flight.buffer = _ENDED_BUFFER

    def close(self) -> None:
        """Let nothing land any more: who is told refers to this, and neither need wait for the garbage collector."""
        self._landed = _nobody_is_told

    def _failure(self, flight: Flight, error: BaseException, progress: int | None = None) -> Landing:
        """Return how a flight landed that did not return."""
        assert flight.call is not None
        if progress is not None:
            # One that was interrupted when all had returned has no call to which that happened.
            return Landing(progress, error=error if progress < flight.calls else None)
        if isinstance(error, CancelledError):
            return Landing(0, error=error, begun=flight.interrupted)
        reached = self._path.reached(flight.call)
        if not isinstance(error, _LOSSES):
            return Landing(reached or 0, error=error)  # of a lot, if the worker did not come back from one of its calls
        if reached == flight.calls:
            return Landing(reached)  # all of a lot had returned, but its end had not been said
        return Landing(reached or 0, error=error, begun=reached is not None)


def _nobody_is_told(_flight: Flight, _landing: Landing) -> None:
    """Let a flight land that is nobody's."""


def prepared(spawned: Future[Instance], options: PoolOptions) -> Future[Instance]:
    """Return the future of an instance on which `init` has been called."""
    if options.init is None:
        return spawned
    name, arguments = options.init
    ready: Future[Instance] = SafeFuture()

    def prepare(done: Future[Instance]) -> None:
        if (failure := done.exception()) is not None:
            ready.set_exception(failure)
            return
        instance = done.result()
        try:
            running = instance.submit(name, *arguments, timeout=options.preparation_timeout)
        except Exception as error:  # noqa: BLE001  it belongs to whoever waits for the instance
            instance.dismiss()
            ready.set_exception(error)
        else:
            running.add_done_callback(lambda ended: finish(instance, ended.exception()))

    def finish(instance: Instance, failure: BaseException | None) -> None:
        if failure is None:
            ready.set_result(instance)
        else:
            instance.dismiss()
            ready.set_exception(failure)

    spawned.add_done_callback(prepare)
    return ready
