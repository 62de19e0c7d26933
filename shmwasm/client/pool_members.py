"""The instances of a pool: which there are, and when some are made or let go.

Theory
------
A *member* is an instance with what the pool knows of it. It stays until its worker dies, or until it runs nothing and has done
its calls, has trapped in a pool that replaces those, had nothing to do for long, or is worn and another one has come. How many
there are to be is decided by `Growth`; here they are made, let go, and looked after when the time has come.

Locking
-------
All of it is called with the lock of `Notes` held, but for what the receiver calls (see `Receiving`), `len`, and `instances`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

from shmwasm import errors
from shmwasm.client.futures import SafeFuture
from shmwasm.client.instances import Instance
from shmwasm.client.pool_life import Growth, PoolOptions, idle_too_long
from shmwasm.client.pool_lines import Flight, Job, Landing, Line
from shmwasm.client.pool_notes import Notes
from shmwasm.client.receiving import Receiver

Spawn = Callable[[], Future[Instance]]


@dataclass(slots=True, eq=False)
class Member:
    """An instance of the pool."""

    instance: Instance
    line: Line
    options: PoolOptions
    memories: int
    """How many its module has."""
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

    @property
    def calls_left(self) -> int | None:
        """How many more calls it may be given; None for as many as there are."""
        return None if self.options.recycle_after is None else self.options.recycle_after - self.taken

    @property
    def leaves(self) -> bool:
        """Whether it is let go as soon as it runs nothing; not yet, if something is taken back from it."""
        return self.retiring or (self.options.recycle_after is not None and self.taken >= self.options.recycle_after)

    @property
    def has_room(self) -> bool:
        """Whether it may be given something beside what it has."""
        return len(self.flights) < self.options.depth and not self.stalled and not self.leaves

    def take(self, calls: int) -> None:
        """Take note that it was given so many calls."""
        self.taken += calls
        self.worn |= self.options.is_worn(self.taken, self.memories)


class Members:
    """Keeps the instances of a pool. An iterator over it gives the members that are there.

    Args:
        growth: Decides how many there are to be.
        spawn: Begins to make one more instance.
        receiver: The thread that watches the time.
        notes: Where what happens to instances is noted down.
        landed: Takes note of the end of what a member was given.
        left: Takes note that a member is not there any more; what it was given has ended.

    Attributes:
        starting: How many instances are being made.
        started: How many were made.
        replaced: How many of them took the place of another.
    """

    def __init__(
        self,
        growth: Growth,
        spawn: Spawn,
        receiver: Receiver,
        notes: Notes,
        *,
        landed: Callable[[Member, Flight, Landing], None],
        left: Callable[[Member], None],
    ) -> None:
        self._growth = growth
        self._options = growth.options
        self._spawn = spawn
        self._receiver = receiver
        self._notes = notes
        self._landed = landed
        self._left = left
        self._members: dict[Instance, Member] = {}
        self._idle: dict[Instance, Member] = {}
        self._start_failure: BaseException | None = None
        self._alarm: float | None = None
        self._ending: list[Instance] = []
        self.starting = 0
        self.started = 0
        self.replaced = 0

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    def __len__(self) -> int:
        return len(self._members)

    @property
    def instances(self) -> list[Instance]:
        """The instances that are there now; taken in one step, for which no lock is needed."""
        return list(self._members)

    @property
    def size(self) -> int:
        """How many instances there are, or will be soon."""
        return max(self._options.least, self._present() + self.starting)

    @property
    def busy(self) -> int:
        """How many have something to do."""
        return len(self._members) - len(self._idle)

    @property
    def are_idle(self) -> bool:
        """Whether none has anything to do, nor will another one come."""
        return not self.busy and not self.starting

    @property
    def last_idle(self) -> Member | None:
        """Of those that have nothing to do, the one that was busy last, so that others can be let go."""
        return next(reversed(self._idle.values()), None)

    @property
    def failure(self) -> BaseException | None:
        """Why no instance is there, nor will be; None if one is, or may be."""
        return None if self._members or self.starting else self._start_failure

    # ------------------------------------------------------------ what happens to them

    def adopt(self, instance: Instance) -> None:
        """Take an instance that was made."""
        line = Line(instance, lambda flight, landing: self._notes.tell(self._landed, member, flight, landing))
        member = Member(instance, line, self._options, len(instance.module.compiled.report.memories))
        self._members[instance] = self._idle[instance] = member
        self.started += 1
        instance.when_gone = lambda: self._notes.tell(self._gone, member)

    def note_busy(self, member: Member) -> None:
        """Take note that a member has something to do."""
        self._idle.pop(member.instance, None)

    def note_idle(self, member: Member) -> None:
        """Take note that a member has nothing to do, if it is still there."""
        if member.instance in self._members:
            self._idle[member.instance] = member

    def replace(self, member: Member) -> None:
        """Let go of a member that has nothing to do, for another one."""
        self.replaced += 1
        self._dismiss(member)

    def drop_lost(self) -> None:
        """Take note of those that have died with nothing to do."""
        for member in [one for one in self._idle.values() if not one.instance.alive]:
            self._gone(member)

    def try_again(self) -> None:
        """Make instances again, although the last one could not be made."""
        self._start_failure = None

    def arrange(self, waiting_since: float | None, now: float, *, needed: bool) -> None:
        """Let go of instances, and begin to make others.

        Args:
            waiting_since: When the oldest call that still waits was submitted.
            now: The time.
            needed: Whether there is anything to do, or may be later.
        """
        self._let_go(now)
        next_start = None
        if needed and self._start_failure is None:
            missing = self._growth.missing(self._present(), self.starting, waiting_since, now)
            self.starting += missing
            for _ in range(missing):
                self._notes.later(self._start)
            next_start = self._growth.next_start(self._present(), self.starting, waiting_since, now)
        self._set_alarm(next_start)

    def close(self) -> list[Instance]:
        """Let go of all, which have nothing to do; return them, who are to be closed. The list stays the same."""
        for member in self._members.values():
            member.line.close()
        self._ending += self._members
        self._members.clear()
        self._idle.clear()
        self._alarm = None
        return self._ending

    def abandon(self) -> None:
        """Forget all, in a forked child: they are the parent's."""
        self._members.clear()
        self._idle.clear()
        self._ending.clear()
        self.starting = 0
        self._alarm = None

    # ------------------------------------------------------------ time (see `Receiving`)

    def next_deadline(self) -> float | None:
        """Return when there may be something to do although nothing happens."""
        return self._alarm

    def handle_deadline(self) -> None:
        """Arrange what the time makes necessary."""
        self._notes.tell(lambda: None)

    def fileno(self) -> int:
        """There is nothing to read: the receiver only watches the time."""
        return -1

    def handle_readable(self) -> bool:
        """See `fileno`."""
        return False

    def fail(self) -> None:
        """The receiver does not watch the time any more: nothing depends on that but how many instances there are."""

    # ------------------------------------------------------------

    def _present(self) -> int:
        # One that runs its last call counts until it has ended: else there would soon be one for each call that is slow.
        return sum(not member.worn for member in self._members.values())

    def _gone(self, member: Member) -> None:
        """Take note that an instance is gone; what it ran has ended before."""
        if self._members.pop(member.instance, None) is None:
            return
        self._idle.pop(member.instance, None)
        self._left(member)
        if not member.ended:
            self._growth.failed(time.monotonic())
        self.replaced += 1
        member.line.close()
        self._notes.later(member.instance.discard)

    def _dismiss(self, member: Member) -> None:
        """Let go of an instance that has nothing to do."""
        self._members.pop(member.instance, None)
        self._idle.pop(member.instance, None)
        self._left(member)
        member.line.close()
        self._notes.later(member.instance.dismiss)

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
            starting.add_done_callback(lambda done: self._notes.tell(self._started, done))

    def _started(self, spawned: Future[Instance]) -> None:
        self.starting -= 1
        error = spawned.exception()
        if error is None:
            self.adopt(spawned.result())
            self._let_go_of_worn()
        else:
            self._growth.failed(time.monotonic())
        # After a failure nothing is started until somebody submits again: a module that cannot start must not spin. But a worker
        # that was killed as it started says nothing of the next.
        tries_again = isinstance(error, errors.WorkerLostError) and self._growth.is_patient
        self._start_failure = None if tries_again else error

    def _let_go(self, now: float) -> None:
        """Let go of instances that had nothing to do for long."""
        for member in list(self._idle.values()):
            if not idle_too_long(member.idle_since, self._present(), self._options, now):
                break
            self._dismiss(member)

    def _let_go_of_worn(self) -> None:
        """Let go of an instance in whose place another one has come."""
        worn = next((member for member in self._members.values() if member.worn and not member.leaves), None)
        if worn is None:
            return
        worn.retiring = True
        if not worn.flights:
            self.replace(worn)

    def _set_alarm(self, next_start: float | None) -> None:
        before = self._alarm
        times = [next_start]
        if self._options.idle_timeout is not None and self._present() > self._options.least and self._idle:
            times.append(next(iter(self._idle.values())).idle_since + self._options.idle_timeout)
        self._alarm = min((one for one in times if one is not None), default=None)
        if self._alarm is not None and (before is None or self._alarm < before):
            self._receiver.mind(self, self._alarm)
