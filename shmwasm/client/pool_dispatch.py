"""Who runs what in a pool.

Theory
------
What is to be done waits in one queue for all instances. An instance is given one call that it runs and one that waits in its
ring, so that it need not wait for this process between two; a call that waits there behind a slow one is taken back and given to
whoever is free, so a slow call holds nobody up. Maps take their turns in the same queue, a lot at a time. An instance whose
worker dies is replaced: the call that ran fails with `WorkerLostError`, what had not begun never notices.

Locking
-------
`_lock` guards all that is known here. Whoever learns something (`_tell`) takes it, notes it down, and then arranges what follows:
who is given what, and which instances are made or let go. What may call back, or takes long, is done after that, without the
lock: futures are completed, instances begun and released.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Final

from shmwasm import errors
from shmwasm.client.connection import Receiver, complete
from shmwasm.client.futures import SafeFuture
from shmwasm.client.instances import Instance
from shmwasm.client.mapping import Lot, Mapping
from shmwasm.client.pool_life import Growth, PoolOptions, idle_too_long
from shmwasm.client.pool_lines import Flight, Job, Landing, Line, Request
from shmwasm.client.pool_statistics import PoolStatistics
from shmwasm.posix.conditions import Condition
from shmwasm.posix.signals import interrupts_put_off

SLOW: Final = 0.002
"""Seconds after which what waits behind a running call goes before what waits in the queue."""

Spawn = Callable[[], Future[Instance]]


@dataclass(slots=True, eq=False)
class Member:
    """An instance of the pool."""

    instance: Instance
    line: Line
    flights: list[Flight] = field(default_factory=list)
    """What it was given and has not ended: the first runs, as far as is known."""
    own: deque[Job] = field(default_factory=deque)
    """Calls that are for it alone."""
    idle_since: float = field(default_factory=time.monotonic)
    taken: int = 0
    """How many calls it was given."""
    ended: int = 0
    """How many of them have ended otherwise than with it."""
    stalled: bool = False
    """Whether something was taken back from behind what it runs: it is given nothing more until that has ended."""
    retiring: bool = False
    """Whether it is let go as soon as it runs nothing, however many calls it was given."""
    worn: bool = False
    """Whether it is let go as soon as there is another one in its place."""


class Dispatcher:
    """Keeps the instances of a pool, and gives them their calls.

    Args:
        name: What the pool is called in errors.
        instances: The first instances.
        spawn: Begins to make one more.
        options: How the pool is to be.
        receiver: The thread that watches the time.
    """

    def __init__(
        self, name: Callable[[], str], instances: list[Instance], spawn: Spawn, options: PoolOptions, receiver: Receiver
    ) -> None:
        self._name = name
        self._spawn = spawn
        self._options = options
        self._receiver = receiver
        self._lock = self._changed = Condition()
        self._holder = 0
        self._told: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._afterwards: deque[Callable[[], None]] = deque()
        self._queue: deque[Job | Lot | Mapping] = deque()
        self._members: dict[Instance, Member] = {}
        self._idle: dict[Instance, Member] = {}
        self._behind: dict[Member, None] = {}
        self._owing: dict[Member, None] = {}
        self._mappings: weakref.WeakSet[Mapping] = weakref.WeakSet()
        self._growth = Growth(options)
        self._starting = 0
        self._start_failure: BaseException | None = None
        self._shut = False
        self._why_shut = "was shut down"
        self._aborted = False
        self._alarm: float | None = None
        self._ending: list[Instance] = []
        self._statistics = PoolStatistics()
        for instance in instances:
            self._adopt(instance)

    @property
    def size(self) -> int:
        """How many instances there are, or will be soon."""
        with self._lock:
            return max(self._options.least, self._present() + self._starting)

    @property
    def instances(self) -> list[Instance]:
        """The instances that are there now."""
        with self._lock:
            return list(self._members)

    @property
    def busy(self) -> list[Instance]:
        """Those of them that have something to do."""
        with self._lock:
            return [member.instance for member in self._members.values() if member.flights]

    @property
    def usable(self) -> int:
        """How many instances take part in a map, at least 1."""
        return max(len(self._members), 1)

    def statistics(self) -> PoolStatistics:
        """Return what was counted so far, and what there is now."""
        with self._lock:
            return replace(
                self._statistics,
                size=len(self._members),
                busy=len(self._members) - len(self._idle),
                starting=self._starting,
                queued=sum(isinstance(work, Job) for work in self._queue) + len(self._behind),
                queue_time=self._statistics.queue_time.copy(),
                run_time=self._statistics.run_time.copy(),
            )

    # ------------------------------------------------------------ what users want

    def submit(self, job: Job) -> None:
        """Take a call.

        Raises:
            ClosedError: The pool was shut down.
        """
        self._tell(self._take, job)

    def submit_to_all(self, make: Callable[[], Job]) -> list[Job]:
        """Take a call for each instance that is there.

        Raises:
            ClosedError: The pool was shut down.
        """
        jobs: list[Job] = []

        def give() -> None:
            self._require_open()
            for member in self._members.values():
                if not self._leaves(member) and member.instance.alive:
                    jobs.append(make())
                    member.own.append(jobs[-1])
                    self._owing[member] = None

        self._tell(give)
        return jobs

    def go_on(self, mapping: Mapping) -> None:
        """Take a map that has something to do, again, or let go of one that nobody wants any more."""
        self._tell(self._take_map, mapping)

    def withdraw(self, job: Job) -> bool:
        """Take a call back that has not begun; return whether it was, which happens once."""
        withdrawn: list[bool] = []
        self._tell(lambda: withdrawn.append(self._take_back_job(job)))
        return withdrawn == [True]

    def interrupt(self, job: Job) -> None:
        """End a call early that has begun."""

        def end() -> None:
            for member in self._members.values():
                for flight in member.flights:
                    if flight.work is job:
                        member.line.interrupt(flight)

        self._tell(end)

    def shut(self, *, cancel: bool) -> None:
        """Take nothing more; with `cancel`, cancel what has not begun."""
        cancelled: list[Job] = []
        self._tell(self._close_doors, cancel, cancelled)
        for job in cancelled:
            job.future.cancel()

    def abort(self) -> None:
        """Cancel what has not begun; the instances end, and nothing is done in their place."""
        self._aborted = True
        self.shut(cancel=True)

    def abandon(self, reason: str) -> None:
        """Leave everything to the parent, in a forked child: calls and instances are the parent's."""
        self._lock = self._changed = Condition()  # another thread may have held it
        self._holder = 0
        self._shut, self._why_shut = True, reason
        for known in (self._told, self._afterwards, self._queue, self._members, self._idle, self._behind, self._owing):
            known.clear()
        self._ending.clear()
        self._mappings = weakref.WeakSet()
        self._starting = 0
        self._alarm = None

    def wait_done(self) -> list[Instance]:
        """Wait until nothing is to be done; return the instances, which are to be closed. The list stays the same."""
        with self._lock:
            self._changed.wait_for(lambda: not self._queue and len(self._idle) == len(self._members) and not self._starting)
            for member in self._members.values():
                member.line.close()
            self._ending += self._members
            self._members.clear()
            self._idle.clear()
            self._alarm = None
        return self._ending

    # ------------------------------------------------------------ time (see `Receiving`)

    def next_deadline(self) -> float | None:
        """Return when there may be something to do although nothing happens."""
        return self._alarm

    def handle_deadline(self) -> None:
        """Arrange what the time makes necessary."""
        self._tell(lambda: None)

    def fileno(self) -> int:
        """There is nothing to read: the receiver only watches the time."""
        return -1

    def handle_readable(self) -> bool:
        """See `fileno`."""
        return False

    def fail(self) -> None:
        """The receiver does not watch the time any more: nothing depends on that but how many instances there are."""

    # ------------------------------------------------------------ what happens; the lock is held

    def _tell(self, note: Callable[..., None], *arguments: Any) -> None:
        """Have something noted down, and arranged what follows; raises what `note` raises."""
        if self._holder == threading.get_ident():
            self._told.append((note, arguments))
            return
        # Ctrl-C in the middle would leave an instance busy for ever with what it was never given, or a future without an end.
        with interrupts_put_off():
            self._tell_at_once(note, arguments)

    def _tell_at_once(self, note: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        actions: deque[Callable[[], None]] = deque()
        try:
            with self._lock:
                self._holder = threading.get_ident()
                try:
                    note(*arguments)
                    self._arrange()
                    while self._told:
                        another, others = self._told.popleft()
                        another(*others)
                        self._arrange()
                finally:
                    self._holder = 0
                    actions, self._afterwards = self._afterwards, actions
                    self._changed.notify_all()
        finally:
            _perform(actions)

    def _take(self, job: Job) -> None:
        self._require_open()
        self._start_failure = None
        self._queue.append(job)

    def _take_map(self, mapping: Mapping) -> None:
        if mapping.closed:
            self._forget_map(mapping)
            return
        if mapping not in self._mappings:
            self._require_open()
            self._start_failure = None
            self._mappings.add(mapping)
        if self._shut and not mapping.in_queue:
            self._end_map(mapping)
        self._enqueue(mapping)

    def _enqueue(self, mapping: Mapping) -> None:
        if not mapping.in_queue and mapping.has_more:
            mapping.in_queue = True
            mapping.queued = time.monotonic()
            self._queue.append(mapping)

    def _forget_map(self, mapping: Mapping) -> None:
        self._mappings.discard(mapping)
        for member in list(self._behind):
            work = member.flights[1].work
            if isinstance(work, Lot) and work.mapping is mapping and self._take_back(member) is not None:
                mapping.wants(work)

    def _close_doors(self, cancel: bool, cancelled: list[Job]) -> None:  # noqa: FBT001  one caller
        self._shut = True
        if cancel:
            cancelled.extend(work for work in self._queue if isinstance(work, Job))
            cancelled.extend(job for member in self._owing for job in member.own)
            for member in self._members.values():
                cancelled.extend(flight.work for flight in member.flights[1:] if isinstance(flight.work, Job))
        for mapping in list(self._mappings):
            if cancel:
                mapping.end_early(CancelledError())
                self._forget_map(mapping)
            elif mapping.open or not mapping.in_queue:
                self._end_map(mapping)

    def _end_map(self, mapping: Mapping) -> None:
        """End a map where it is, unless all of it is under way."""
        if not mapping.is_cut:
            mapping.end_early(self._closed_error())

    def _take_back_job(self, job: Job) -> bool:
        if job.over or job.begun:
            return False
        for member in self._members.values():
            if len(member.flights) == 2 and member.flights[1].work is job:
                job.over = self._take_back(member) is not None
                return job.over
        job.over = True
        return True

    def _landed(self, member: Member, flight: Flight, landing: Landing) -> None:
        """Take note of the end of what an instance was given."""
        if flight not in member.flights:
            return
        now = time.monotonic()
        began = flight.began or flight.given
        # A call that its user was told to be running is not begun again, although it is known not to have begun. But workers of
        # fresh calls may end between two of them.
        if isinstance(flight.work, Job):
            running = flight.work.begun and not self._options.fresh
            landing.begun |= running or flight.work.only_there or self._aborted
        member.flights.remove(flight)
        self._behind.pop(member, None)
        member.stalled = False
        failed = landing.error is not None and landing.begun
        self._count(member, landing, flight, landing.done + failed, now - began)
        if member.flights:
            if member.instance.alive:
                self._begin(member.flights[0], now)
        elif self._leaves(member):
            self._statistics.replaced += 1
            self._dismiss(member)
        elif member.instance in self._members:
            member.idle_since = now
            self._idle[member.instance] = member
        if isinstance(flight.work, Job):
            self._end_job(flight.work, landing)
        else:
            self._end_lot(flight, flight.work, landing, now - began)
        member.line.release(flight)
        flight.call = None  # it refers to the flight: neither need wait for the garbage collector

    def _count(self, member: Member, landing: Landing, flight: Flight, calls: int, seconds: float) -> None:
        member.taken -= flight.calls - calls
        if not calls:
            return
        counted = self._statistics
        counted.calls += calls
        counted.run_time.add(seconds / calls, calls)
        counted.queue_time.add(max(0.0, (flight.began or flight.given) - flight.work.queued), calls)
        lost = isinstance(landing.error, errors.WorkerLostError)
        counted.losses += lost and landing.begun
        if landing.done or not lost:
            member.ended += calls
            self._growth.succeeded()
        counted.traps += isinstance(landing.error, errors.WorkerTrapError)
        counted.timeouts += isinstance(landing.error, errors.CallTimeoutError)
        # One that was interrupted because nobody awaits it any more ends with `CancelledError`.
        stopped = isinstance(landing.error, errors.WorkerTrapError | errors.CallTimeoutError | CancelledError)
        member.retiring |= stopped and self._options.on_trap == "replace"

    def _end_job(self, job: Job, landing: Landing) -> None:
        if landing.begun:
            self._complete(job, landing.value, landing.error)
        else:
            self._queue.appendleft(job)

    def _end_lot(self, flight: Flight, lot: Lot, landing: Landing, seconds: float) -> None:
        mapping = lot.mapping
        if landing.cells is not None:
            mapping.returned(lot, landing.done, landing.cells, flight.calls)
        elif landing.done:
            mapping.returned_value(lot, landing.value)
        mapping.note_pace(landing.done, seconds)
        done = landing.done
        if landing.error is not None and landing.begun:
            mapping.failed(lot.start + done, landing.error)
            done += 1
        self._put_back(lot, done)

    def _put_back(self, lot: Lot, done: int) -> None:
        """Have what is left of a lot run by somebody else, if that is wanted."""
        if done < lot.rows.count:
            rest = lot.rest(done)
            if rest.mapping.wants(rest):
                self._queue.appendleft(rest)
        self._enqueue(lot.mapping)

    def _gone(self, member: Member) -> None:
        """Take note that an instance is gone; what it ran has ended before."""
        if self._members.pop(member.instance, None) is None:
            return
        self._idle.pop(member.instance, None)
        self._behind.pop(member, None)
        self._end_own(member)
        if not member.ended:
            self._growth.failed(time.monotonic())
        self._statistics.replaced += 1
        member.line.close()
        self._afterwards.append(member.instance.discard)

    def _dismiss(self, member: Member) -> None:
        """Let go of an instance that has nothing to do."""
        self._members.pop(member.instance, None)
        self._idle.pop(member.instance, None)
        self._end_own(member)
        member.line.close()
        self._afterwards.append(member.instance.dismiss)

    def _end_own(self, member: Member) -> None:
        self._owing.pop(member, None)
        for job in member.own:
            if not job.over:
                self._complete(job, None, member.instance.loss())
        member.own.clear()

    def _started(self, spawned: Future[Instance]) -> None:
        self._starting -= 1
        error = spawned.exception()
        if error is None:
            self._adopt(spawned.result())
            self._let_go_of_worn()
        else:
            self._growth.failed(time.monotonic())
        # After a failure nothing is started until somebody submits again: a module that cannot start must not spin. But a worker
        # that was killed as it started says nothing of the next.
        tries_again = isinstance(error, errors.WorkerLostError) and self._growth.is_patient
        self._start_failure = None if tries_again else error

    def _adopt(self, instance: Instance) -> None:
        member = Member(instance, Line(instance, lambda flight, landing: self._tell(self._landed, member, flight, landing)))
        self._members[instance] = self._idle[instance] = member
        self._statistics.started += 1
        instance.when_gone = lambda: self._tell(self._gone, member)

    def _leaves(self, member: Member) -> bool:
        """Return whether an instance is let go as soon as it runs nothing; not yet, if something is taken back from it."""
        return member.retiring or (self._options.recycle_after is not None and member.taken >= self._options.recycle_after)

    # ------------------------------------------------------------ what follows; the lock is held

    def _arrange(self) -> None:
        now = time.monotonic()
        for member in [one for one in self._idle.values() if not one.instance.alive]:
            self._gone(member)
        for member in list(self._owing):
            self._give_own(member, now)
        while (free := self._next_member()) is not None and (work := self._next_work(free, now)) is not None:
            self._give(free, work, now)
        self._let_go(now)
        waiting = self._waiting_since()
        self._make(waiting, now)
        self._fail_hopeless()
        self._set_alarm(waiting, now)

    def _next_member(self) -> Member | None:
        """Return who may be given something: one with nothing to do, or one with nothing to do next."""
        if self._idle:
            # The one that was busy last, so that others can be let go.
            return next(reversed(self._idle.values()))
        if not self._queue or self._options.depth == 1:
            return None
        return next((member for member in self._members.values() if self._has_room(member)), None)

    def _has_room(self, member: Member) -> bool:
        return (
            len(member.flights) < self._options.depth
            and not member.stalled
            and not self._leaves(member)
            and member.instance.alive
        )

    def _next_work(self, member: Member, now: float) -> Job | Lot | None:
        """Take what is to be given to that instance."""
        for slow in list(self._behind):
            waited = now - slow.flights[1].given > SLOW
            if slow is member or not (waited or (not self._queue and not member.flights)):
                break
            taken_back = self._take_back(slow)
            if taken_back is not None:
                return taken_back
        limit = None if self._options.recycle_after is None else self._options.recycle_after - member.taken
        while self._queue:
            work = self._queue.popleft()
            if isinstance(work, Job):
                if not work.over:
                    return work
            elif isinstance(work, Lot):
                lot = self._within(work, limit)
                if lot is not None:
                    return lot
            else:
                lot = work.cut(limit)
                work.in_queue = False
                if lot is not None:
                    if work.has_more:
                        work.in_queue = True
                        self._queue.append(work)
                    return lot
        return None

    def _within(self, lot: Lot, limit: int | None) -> Lot | None:
        """Return as much of a lot as may be given to an instance, and keep the rest; None if it is not wanted any more."""
        if not lot.mapping.wants(lot):
            return None
        if limit is None or lot.rows.count <= limit:
            return lot
        self._queue.appendleft(lot.rest(limit))
        return lot.first(limit)

    def _take_back(self, member: Member) -> Job | Lot | None:
        """Take back what waits in an instance's ring; return it unless it has begun."""
        flight = member.flights[1]
        self._behind.pop(member, None)
        if not member.line.take_back(flight):
            self._begin(flight, time.monotonic())
            return None
        member.flights.pop()
        member.taken -= flight.calls
        member.stalled = True
        return flight.work

    def _give_own(self, member: Member, now: float) -> None:
        while member.own and len(member.flights) < self._options.depth and not member.stalled and not self._leaves(member):
            job = member.own.popleft()
            if not job.over:
                self._give(member, job, now)
        if not member.own:
            self._owing.pop(member, None)

    def _give(self, member: Member, work: Job | Lot, now: float) -> None:
        """Give an instance something to do; if that cannot be, it has ended."""
        flight = Flight(work, 1 if isinstance(work, Job) else work.rows.count, now)
        member.flights.append(flight)
        self._idle.pop(member.instance, None)
        started = 0
        try:
            started = self._launch(member, flight, work)
        except Exception as error:  # noqa: BLE001  whatever it is belongs to whoever wanted it
            self._refuse(work, error)
        except BaseException:
            self._queue.appendleft(work)
            raise
        finally:
            if not started and flight in member.flights:
                member.flights.remove(flight)
                if not member.flights:
                    self._idle[member.instance] = member
        if not started:
            return
        member.taken += flight.calls
        if member.flights[0] is flight:
            self._begin(flight, now)
        elif not (isinstance(work, Job) and work.only_there):
            self._behind[member] = None
        member.worn |= self._options.is_worn(member.taken)

    def _launch(self, member: Member, flight: Flight, work: Job | Lot) -> int:
        """Give something to an instance's line; return how many calls that are."""
        if isinstance(work, Job):
            member.line.give_call(flight, work.request)
            return 1
        mapping = work.mapping
        if mapping.wishes.timeout is not None:
            member.line.give_call(flight, Request(mapping.export, work.rows.only(), mapping.wishes.timeout, None))
            return 1
        started, failure = member.line.give_lot(flight, work)
        if failure is not None:
            mapping.failed(work.start + started, failure)
            self._put_back(work, started + 1)
        return started

    def _refuse(self, work: Job | Lot, error: Exception) -> None:
        """End what an instance could not even be given."""
        if isinstance(work, Job):
            self._complete(work, None, error)
        else:
            work.mapping.failed(work.start, error)
            self._put_back(work, 1)

    def _begin(self, flight: Flight, now: float) -> None:
        flight.began = now
        if isinstance(flight.work, Job) and not flight.work.begun:
            flight.work.begun = True
            flight.work.future.set_running_or_notify_cancel()

    def _complete(self, job: Job, value: Any, error: BaseException | None) -> None:
        job.over = True
        self._afterwards.append(lambda: complete(job.future, value, error))

    def _let_go(self, now: float) -> None:
        """Let go of instances that had nothing to do for long."""
        for member in list(self._idle.values()):
            if not idle_too_long(member.idle_since, self._present(), self._options, now):
                break
            self._dismiss(member)

    def _let_go_of_worn(self) -> None:
        """Let go of an instance in whose place another one has come."""
        worn = next((member for member in self._members.values() if member.worn and not self._leaves(member)), None)
        if worn is None:
            return
        worn.retiring = True
        if not worn.flights:
            self._statistics.replaced += 1
            self._dismiss(worn)

    def _make(self, waiting: float | None, now: float) -> None:
        """Begin to make instances that are missing."""
        if self._start_failure is not None or (self._shut and not self._queue):
            return
        missing = self._growth.missing(self._present(), self._starting, waiting, now)
        self._starting += missing
        self._afterwards.extend([self._start] * missing)

    def _fail_hopeless(self) -> None:
        """End what waits where no instance is there, nor will be."""
        if self._start_failure is None or self._members or self._starting:
            return
        while self._queue:
            work = self._queue.popleft()
            if isinstance(work, Job):
                if not work.over:
                    self._complete(work, None, self._start_failure)
            else:
                mapping = work if isinstance(work, Mapping) else work.mapping
                mapping.end_early(self._start_failure)
                mapping.in_queue = False
                if isinstance(work, Lot):
                    mapping.wants(work)

    def _set_alarm(self, waiting: float | None, now: float) -> None:
        before = self._alarm
        times = []
        if self._start_failure is None and not (self._shut and not self._queue):
            times.append(self._growth.next_start(self._present(), self._starting, waiting, now))
        if self._options.idle_timeout is not None and self._present() > self._options.least and self._idle:
            times.append(next(iter(self._idle.values())).idle_since + self._options.idle_timeout)
        self._alarm = min((one for one in times if one is not None), default=None)
        if self._alarm is not None and (before is None or self._alarm < before):
            self._receiver.mind(self, self._alarm)

    def _start(self) -> None:
        """Begin to make an instance that was counted; the lock is not held."""
        starting: Future[Instance] = SafeFuture()
        try:
            starting = self._spawn()
        except Exception as error:  # noqa: BLE001  it belongs to whoever waits for the instance
            starting.set_exception(error)
        except BaseException as error:
            starting.set_exception(error)
            raise
        finally:
            starting.add_done_callback(lambda done: self._tell(self._started, done))

    def _present(self) -> int:
        # One that runs its last call counts until it has ended: else there would soon be one for each call that is slow.
        return sum(not member.worn for member in self._members.values())

    def _waiting_since(self) -> float | None:
        """Return when what has waited for the longest began to wait, about."""
        times = [self._queue[0].queued] if self._queue else []
        times.extend(member.flights[1].given for member in islice(self._behind, 1))
        return min(times, default=None)

    def _require_open(self) -> None:
        if self._shut:
            raise self._closed_error()

    def _closed_error(self) -> errors.ClosedError:
        return errors.ClosedError(self._name(), self._why_shut)


def _perform(actions: deque[Callable[[], None]]) -> None:
    """Do all of it, also if a part raises: a callback of the user's may."""
    try:
        while actions:
            actions.popleft()()
    finally:
        if actions:
            _perform(actions)
