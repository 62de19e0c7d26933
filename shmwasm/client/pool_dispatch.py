"""Who runs what in a pool.

Theory
------
What is to be done waits in one queue for all instances. An instance is given one call that it runs and one that waits in its
ring, so that it need not wait for this process between two; a call that waits there behind a slow one is taken back and given to
whoever is free, so a slow call holds nobody up. Maps take their turns in the same queue, a lot at a time. An instance whose
worker dies is replaced: the call that ran fails with `WorkerLostError`, what had not begun never notices.

What waits is in `PoolQueue`; which instances there are is known by `Members`; who is given what of it, and what follows from how
that ends, is decided here.

Locking
-------
The lock of `Notes` guards all that is known here and in those two. Whatever is noted down is followed by `_arrange`; after that,
futures are completed, and instances begun and released, without the lock.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, Final

from shmwasm import errors
from shmwasm.client.blocks import Block
from shmwasm.client.instances import Instance
from shmwasm.client.mapping import Lot, Mapping
from shmwasm.client.pool_life import Growth, PoolOptions
from shmwasm.client.pool_lines import Flight, Job, Landing
from shmwasm.client.pool_members import Member, Members, Spawn
from shmwasm.client.pool_notes import Notes
from shmwasm.client.pool_queue import PoolQueue
from shmwasm.client.pool_statistics import PoolStatistics
from shmwasm.client.receiving import Receiver, complete
from shmwasm.posix.reentry import afterwards, on_top_of_lock, refuse_on_top

COMPLETION: Final = 5.0
"""Seconds that a broadcast waits for instances that are being replaced."""

SLOW: Final = 0.002
"""Seconds after which what waits behind a running call goes before what waits in the queue."""


class Dispatcher:
    """Gives the instances of a pool their calls.

    Args:
        name: What the pool is called in errors.
        instances: The first instances.
        spawn: Begins to make one more.
        options: How the pool is to be.
        receiver: The thread that watches the time.
    """

    def __init__(self, name: str, instances: list[Instance], spawn: Spawn, options: PoolOptions, receiver: Receiver) -> None:
        self._name = name
        self._options = options
        self._notes = Notes(self._arrange)
        self._queue = PoolQueue()
        self._growth = Growth(options)
        self._members = Members(self._growth, spawn, receiver, self._notes, landed=self._landed, left=self._left)
        self._behind: dict[Member, None] = {}
        self._owing: dict[Member, None] = {}
        self._mappings: weakref.WeakSet[Mapping] = weakref.WeakSet()
        self._shut = False
        self._why_shut = "was shut down"
        self._aborted = False
        self._statistics = PoolStatistics()
        for instance in instances:
            self._members.adopt(instance)

    @property
    def is_shut(self) -> bool:
        """Whether it takes nothing more, as of this moment; known without the lock."""
        return self._shut

    @property
    def size(self) -> int:
        """How many instances there are, or will be soon."""
        refuse_on_top("asking a pool for its size")
        with self._notes.lock:
            return self._members.size

    @property
    def instances(self) -> list[Instance]:
        """The instances that are there now."""
        return self._members.instances

    @property
    def busy(self) -> list[Instance]:
        """Those of them that have something to do."""
        with self._notes.lock:
            return [member.instance for member in self._members if member.flights]

    @property
    def usable(self) -> int:
        """How many instances take part in a map, at least 1."""
        return max(len(self._members), 1)

    def address_of(self, block: Block) -> int:
        """Return where an instance sees a block; where there is none, where a 32-bit one would.

        Raises:
            ArgumentError: The block was freed, or no instance sees it.
        """
        refused: errors.ArgumentError | None = None
        for instance in self.instances:
            try:
                return instance.address_of(block)
            except errors.ArgumentError as error:
                refused = error
            except errors.ClosedError:
                continue  # it is about to be let go
        if refused is not None:
            raise refused
        if block.freed:
            raise errors.ArgumentError(f"{block!r} cannot be passed to {self._name}: it was freed")
        return block.address

    def statistics(self) -> PoolStatistics:
        """Return what was counted so far, and what there is now."""
        refuse_on_top("asking a pool for its statistics")
        with self._notes.lock:
            return replace(
                self._statistics,
                started=self._members.started,
                replaced=self._members.replaced,
                size=len(self._members),
                busy=self._members.busy,
                starting=self._members.starting,
                queued=len(self._queue.jobs) + len(self._behind),
                queue_time=self._statistics.queue_time.copy(),
                run_time=self._statistics.run_time.copy(),
            )

    # ------------------------------------------------------------ what users want

    def submit(self, job: Job) -> None:
        """Take a call.

        Raises:
            ClosedError: The pool was shut down.
        """
        if on_top_of_lock():
            afterwards(partial(self._submit_afterwards, job))
        else:
            self._notes.tell(self._take, job)

    def submit_to_all(self, make: Callable[[], Job]) -> list[Job]:
        """Take a call for each instance that is there.

        Raises:
            ClosedError: The pool was shut down.
        """
        refuse_on_top("calling all instances of a pool")
        jobs: list[Job] = []

        def give() -> None:
            self._require_open()
            for member in self._members:
                if not member.leaves and member.instance.alive:
                    jobs.append(make())
                    member.own.append(jobs[-1])
                    self._owing[member] = None

        self._notes.tell(give)
        return jobs

    def go_on(self, mapping: Mapping) -> None:
        """Take a map that has something to do, again, or let go of one that nobody wants any more."""
        self._notes.tell(self._take_map, mapping)

    def withdraw(self, job: Job) -> bool:
        """Take a call back that has not begun; return whether it was, which happens once."""
        withdrawn: list[bool] = []
        self._notes.tell(lambda: withdrawn.append(self._take_back_job(job)))
        return withdrawn == [True]

    def interrupt(self, job: Job) -> None:
        """End a call early that has begun."""
        self._notes.tell(self._interrupt, lambda work: work is job)

    def interrupt_all(self) -> None:
        """End early whatever runs."""
        self._notes.tell(self._interrupt, lambda _: True)

    def wait_complete(self) -> None:
        """Wait, for some seconds at most, until there are as many instances as there are to be at least, or will not be."""

        def is_complete() -> bool:
            there = sum(member.instance.alive and not member.leaves for member in self._members)
            return self._shut or self._members.failure is not None or there >= self._options.least

        with self._notes.lock:
            self._notes.lock.wait_for(is_complete, COMPLETION)

    def shut(self, *, cancel: bool) -> None:
        """Take nothing more; with `cancel`, cancel what has not begun."""
        cancelled: list[Job] = []
        self._notes.tell(self._close_doors, cancel, cancelled)
        for job in cancelled:
            job.future.cancel()

    def abort(self) -> None:
        """Cancel what has not begun; the instances end, and nothing is done in their place."""
        self._aborted = True
        self.shut(cancel=True)

    def abandon(self, reason: str) -> None:
        """Leave everything to the parent, in a forked child: calls and instances are the parent's."""
        self._notes.abandon()
        self._shut, self._why_shut = True, reason
        self._queue.clear()
        self._members.abandon()
        self._behind.clear()
        self._owing.clear()
        self._mappings = weakref.WeakSet()

    def wait_done(self) -> list[Instance]:
        """Wait until nothing is to be done; return the instances, which are to be closed. The list stays the same."""
        with self._notes.lock:
            self._notes.lock.wait_for(lambda: not self._queue and self._members.are_idle)
            return self._members.close()

    def _submit_afterwards(self, job: Job) -> None:
        try:
            self._notes.tell(self._take, job)
        except errors.ClosedError as error:
            if not job.over:
                complete(job.future, None, error)

    # ------------------------------------------------------------ what happens; the lock is held

    def _take(self, job: Job) -> None:
        self._require_open()
        self._members.try_again()
        self._queue.append(job)

    def _take_map(self, mapping: Mapping) -> None:
        if mapping.closed:
            self._forget_map(mapping)
            return
        if mapping not in self._mappings:
            self._require_open()
            self._members.try_again()
            self._mappings.add(mapping)
        if self._shut and not mapping.in_queue:
            self._end_map(mapping)
        self._queue.append_map(mapping)

    def _forget_map(self, mapping: Mapping) -> None:
        self._mappings.discard(mapping)
        for member in list(self._behind):
            work = member.flights[1].work
            if isinstance(work, Lot) and work.mapping is mapping and self._take_back(member) is not None:
                mapping.wants(work)
        if mapping.interrupted:
            self._interrupt(lambda work: isinstance(work, Lot) and work.mapping is mapping)

    def _interrupt(self, is_unwanted: Callable[[Job | Lot], bool]) -> None:
        """End early what runs of that kind."""
        for member in self._members:
            for flight in member.flights:
                if is_unwanted(flight.work):
                    member.line.interrupt(flight)

    def _close_doors(self, cancel: bool, cancelled: list[Job]) -> None:  # noqa: FBT001  one caller
        self._shut = True
        if cancel:
            cancelled.extend(self._queue.jobs)
            cancelled.extend(job for member in self._owing for job in member.own)
            for member in self._members:
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
        for member in self._members:
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
        elif member.leaves:
            self._members.replace(member)
        else:
            member.idle_since = now
            self._members.note_idle(member)
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
            self._queue.give_back(job)

    def _end_lot(self, flight: Flight, lot: Lot, landing: Landing, seconds: float) -> None:
        mapping = lot.mapping
        if landing.cells is not None:
            mapping.returned(lot, landing.done, landing.cells, flight.calls)
        mapping.note_pace(landing.done, seconds)
        done = landing.done
        if landing.error is not None and landing.begun:
            mapping.failed(lot.start + done, landing.error)
            done += 1
        self._queue.give_back_rest(lot, done)

    def _left(self, member: Member) -> None:
        """Take note that an instance is not there any more: its own calls have nobody else."""
        self._behind.pop(member, None)
        self._owing.pop(member, None)
        for job in member.own:
            if not job.over:
                self._complete(job, None, member.instance.loss())
        member.own.clear()

    # ------------------------------------------------------------ what follows; the lock is held

    def _arrange(self) -> None:
        now = time.monotonic()
        self._members.drop_lost()
        for member in list(self._owing):
            self._give_own(member, now)
        while (free := self._next_member()) is not None and (work := self._next_work(free, now)) is not None:
            self._give(free, work, now)
        self._members.arrange(self._waiting_since(), now, needed=bool(self._queue) or not self._shut)
        if (failure := self._members.failure) is not None:
            for job in self._queue.end_all(failure):
                self._complete(job, None, failure)

    def _next_member(self) -> Member | None:
        """Return who may be given something: one with nothing to do, or one with nothing to do next."""
        idle = self._members.last_idle
        if idle is not None or not self._queue or self._options.depth == 1:
            return idle
        return next((member for member in self._members if member.has_room and member.instance.alive), None)

    def _next_work(self, member: Member, now: float) -> Job | Lot | None:
        """Take what is to be given to that instance."""
        for slow in list(self._behind):
            waited = now - slow.flights[1].given > SLOW
            if slow is member or not (waited or (not self._queue and not member.flights)):
                break
            taken_back = self._take_back(slow)
            if taken_back is not None:
                return taken_back
        return self._queue.next(member.calls_left)

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
        while member.own and member.has_room:
            job = member.own.popleft()
            if not job.over:
                self._give(member, job, now)
        if not member.own:
            self._owing.pop(member, None)

    def _give(self, member: Member, work: Job | Lot, now: float) -> None:
        """Give an instance something to do; if that cannot be, it has ended."""
        flight = Flight(work, 1 if isinstance(work, Job) else work.rows.count, now)
        member.flights.append(flight)
        self._members.note_busy(member)
        started = 0
        try:
            started = self._launch(member, flight, work)
        except Exception as error:  # noqa: BLE001  whatever it is belongs to whoever wanted it
            self._refuse(work, error)
        except BaseException:
            self._queue.give_back(work)
            raise
        finally:
            if not started and flight in member.flights:
                member.flights.remove(flight)
                if not member.flights:
                    self._members.note_idle(member)
        if not started:
            return
        member.take(flight.calls)
        if member.flights[0] is flight:
            self._begin(flight, now)
        elif not (isinstance(work, Job) and work.only_there):
            self._behind[member] = None

    def _launch(self, member: Member, flight: Flight, work: Job | Lot) -> int:
        """Give something to an instance's line; return how many calls that are."""
        if isinstance(work, Job):
            member.line.give_call(flight, work.request)
            return 1
        started, failure = member.line.give_lot(flight, work)
        if failure is not None:
            work.mapping.failed(work.start + started, failure)
            self._queue.give_back_rest(work, started + 1)
        return started

    def _refuse(self, work: Job | Lot, error: Exception) -> None:
        """End what an instance could not even be given."""
        if isinstance(work, Job):
            self._complete(work, None, error)
        else:
            work.mapping.failed(work.start, error)
            self._queue.give_back_rest(work, 1)

    def _begin(self, flight: Flight, now: float) -> None:
        flight.began = now
        if isinstance(flight.work, Job) and not flight.work.begun:
            flight.work.begun = True
            flight.work.future.set_running_or_notify_cancel()

    def _complete(self, job: Job, value: Any, error: BaseException | None) -> None:
        job.over = True
        self._notes.later(lambda: complete(job.future, value, error))

    def _waiting_since(self) -> float | None:
        """Return when what has waited for the longest began to wait, about."""
        times = [self._queue.waiting_since, *(member.flights[1].given for member in islice(self._behind, 1))]
        return min((one for one in times if one is not None), default=None)

    def _require_open(self) -> None:
        if self._shut:
            raise self._closed_error()

    def _closed_error(self) -> errors.ClosedError:
        return errors.ClosedError(self._name, self._why_shut)
