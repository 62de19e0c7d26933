"""Calls that each run in a guest of their own: where they are run, and how one guest follows the other.

Theory
------
A guest that has run a call is done with, and another one is made in the same store, which takes less than 0.1 ms (see decision
12). It is made as soon as whoever waits for the call has been told of its end: the next call finds it, unless it comes at once.
If it cannot be made, that is what the next call is told, and the call after that has one that was tried anew.

What prepares a guest, `_initialize` and the user's *init*, runs on each. Of init the worker knows nothing but that it is the
first call of all: it notes that call down, and repeats it.

A store lets go of no guest before it ends itself. Memory is given back nevertheless (`Guest.vacate`); address space, tables and
what else belongs to a guest is not. So the process ends once too much is left, between two calls: its client knows that what it
has submitted has not begun, and a pool has replaced it long before. Between two calls of a batch the batch ends first, with those
that have returned.

There is no dispatcher, which would be another instance for each guest: calls are taken, and ended, from here. Between calls no
tick is due but one that ends the making of a guest; while that runs no code of the guest, the deadline lies far ahead.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from shmwasm.addresses import OS_PAGE
from shmwasm.core import layout
from shmwasm.core.requests import CELL
from shmwasm.engine.guests import lacks_room
from shmwasm.engine.traps import GuestTrapError
from shmwasm.errors import InstantiationError, ProtocolError, ShmwasmError, UnsupportedError, WorkerTrapError, to_wire
from shmwasm.posix import bells
from shmwasm.protocol import messages
from shmwasm.worker.calls import INITIALIZE, RingCalls, error_of
from shmwasm.worker.leaving import leave
from shmwasm.worker.limits import TimeLimit

if TYPE_CHECKING:
    from shmwasm.engine.guests import Guest
    from shmwasm.worker.instance import Ground, Instance

R = TypeVar("R")

MOST_GUESTS: Final = 1000
"""How many guests a process has."""

MOST_RESERVED: Final = 64 << 40
"""Bytes of address space for guests: half of what x86-64 has for a process. The memories of 1,000 64-bit guests, or 16,000
others; of those that are not given back each takes two of the 65,530 mappings that Linux admits."""

MOST_RESIDENT: Final = 64 << 20
"""Bytes that may be left of guests: of their tables and of what the engine keeps about each, where memory has been given back."""

LONGEST_SLEEP: Final = 3600.0
"""Seconds between two looks at a ring for which nobody rings."""

# A slot's words (see `core/ring.h`).
_STATE, _EXPORT, _COUNT, _PROGRESS, _ARGUMENTS, _RESULTS = 0, 3, 6, 7, 8, 9


class _Preparation(NamedTuple):
    """The call that prepares each guest."""

    export: str
    arguments: Sequence[int]


class FreshCalls(RingCalls):
    """Runs each call in a guest that no call ran in before.

    Args:
        instance: Makes the guests.
        guest: The first one.
        ground: The core.
        descriptors: See `RingCalls`.
        wishes: How guests are prepared.

    Raises:
        ProtocolError: See `RingCalls`.
    """

    def __init__(
        self, instance: Instance, guest: Guest, ground: Ground, descriptors: Sequence[int], wishes: messages.FreshCalls
    ) -> None:
        super().__init__(instance.number, guest, ground, instance.client, descriptors)
        self._instance = instance
        self._attachment = ground.attachment
        memory = self._ring.memory()
        self._words, self._cells = memory.cast("I"), memory.cast("Q")
        self._failure: ShmwasmError | None = None
        self._awaits_init = wishes.init
        self._init: _Preparation | None = None
        self._limit = None if wishes.time_limit is None else TimeLimit(wishes.time_limit, self._interrupt)
        self._remains = _Remains()
        self._changes = self._attachment.changes
        self._last = ""

    def run(self, *, may_sleep: bool) -> int:
        """See `RingCalls`."""
        if self._changes != self._attachment.changes and not self._awaits_init:
            self._replace_guest()  # it was prepared with something else attached
        while True:
            slot = self._ring.next()
            if slot >= layout.RING_FIRST_SLOT:
                self._serve(slot)
            elif slot != layout.RING_PARK or not may_sleep:
                return slot
            elif self._ring.park():
                bells.wait(self._ring.bell, LONGEST_SLEEP)
                self._ring.unpark()

    # ------------------------------------------------------------ a call

    def _serve(self, slot: int) -> None:
        """Run the call in a slot, or the calls of a batch, and end it; then make the next guest."""
        words, at = self._words, (slot - self._ring.address) // 4
        name = self._name(words[at + _EXPORT])
        count = words[at + _COUNT]
        own_cells = (slot - self._ring.address + layout.RING_SLOT_HEADER) // CELL
        first_in, first_out = own_cells, own_cells
        if count:
            first_in, first_out = words[at + _ARGUMENTS] // CELL, words[at + _RESULTS] // CELL
        for index in range(count or 1):
            if index and not self._go_on(slot, at):
                break
            if self._failure is not None:
                self._refuse(slot, self._failure)
                break
            arguments = self._arguments(name, first_in + index, count or 1)
            try:
                self._store(self._call(name, arguments), first_out + index, count or 1)
            except GuestTrapError as stopped:
                if not self._left(name, stopped):
                    self._end_stopped(stopped)
                    break
            if count:  # a single call has not returned until it has ended
                words[at + _PROGRESS] = index + 1
            if self._awaits_init:
                self._awaits_init = False
                self._init = _Preparation(name, arguments)
                self._end(slot, layout.CALL_RETURNED)
                return
        else:
            self._end(slot, layout.CALL_RETURNED)
        self._last = name
        self._replace_guest()

    def _go_on(self, slot: int, at: int) -> bool:
        """Make the guest for the next call of a batch, or end the batch: it was interrupted, or the process must end, too."""
        if not self._make_next_guest():
            self._end(slot, layout.CALL_RETURNED)
            leave()
        if self._words[at + _STATE] == layout.CALL_INTERRUPTING:
            self.watcher.meet()
            self._end(slot, layout.CALL_OVERDUE, interrupted=True)
            return False
        return True

    def _arguments(self, name: str, first: int, step: int) -> Sequence[int]:
        """Return the arguments whose cells start there, so many cells apart; those of a metered guest end with its fuel."""
        count = len(self._guest.types[name].parameters) + self._guest.metered
        arguments = self._cells[first : first + count * step : step].tolist()
        if len(arguments) != count:
            raise ProtocolError(f"the client put arguments of {name!r} outside of the call ring")
        return arguments

    def _store(self, results: Sequence[int], first: int, step: int) -> None:
        if first + len(results) * step > len(self._cells):
            raise ProtocolError("the client wants results outside of the call ring")
        for column, bits in enumerate(results):
            self._cells[first + column * step] = bits

    def _call(self, name: str, arguments: Sequence[int]) -> Sequence[int]:
        if self._guest.metered:
            *arguments, fuel = arguments
            self._guest.give_fuel(fuel)
        return self._guest.function(name).call_bits(arguments)

    def _refuse(self, slot: int, failure: ShmwasmError) -> None:
        """End a call for which there is no guest."""
        code, facts = to_wire(failure)
        self._client.send(messages.Raised(request=self._ring.sequence, code=code, facts=facts))
        self._end(slot, layout.CALL_TRAPPED)

    def _end(self, slot: int, status: int, *, interrupted: bool = False) -> None:
        """See `RingCalls`; the deadline may lie anywhere."""
        self._guest.ignore_interruptions()
        super()._end(slot, status, interrupted=interrupted)

    # ------------------------------------------------------------ the next guest

    def _replace_guest(self) -> None:
        """Make another guest between two calls; if there were too many, the process ends."""
        if not self._make_next_guest():
            leave()

    def _make_next_guest(self) -> bool:
        """Make a guest, as the next call is to find it, or note down why that cannot be; return whether there is room for one."""
        self._guest.ignore_interruptions()
        try:
            self._instance.retire()
        except UnsupportedError:
            return False
        if self._remains.are_too_many():
            return False
        has_room = True
        self._changes = self._attachment.changes
        self._failure = None
        if self._limit is not None:
            self._limit.start()
        try:
            self._prepare_guest()
        except ShmwasmError as failure:
            self._failure = failure
            has_room = not lacks_room(failure)
        if self._limit is not None and self._limit.stop():
            self.watcher.meet()
        self._guest.resume_from_interruption()
        return has_room

    def _prepare_guest(self) -> None:
        guest = self._run("it", self._instance.renew)
        self._attachment.move(guest.window)
        self._guest = guest
        if guest.exports(INITIALIZE):
            self._run(f"its function {INITIALIZE!r}", self._instance.initialize)
        if self._init is not None:
            self._run(f"its init {self._init.export!r}", partial(self._initialize, *self._init))
        if self._last:
            guest.function(self._last)  # which the next call will most likely want

    def _initialize(self, name: str, arguments: Sequence[int]) -> None:
        """Call the user's init."""
        try:
            self._call(name, arguments)
        except GuestTrapError as stopped:
            if self._left(name, stopped):
                return
            error = error_of(self._number, name, stopped, fuel=self._guest.exhausted_fuel())
            reason = error.trap if isinstance(error, WorkerTrapError) else error
            raise InstantiationError(self._number, f"its init {name!r} stopped: {reason}") from None

    def _run(self, what: str, code: Callable[[], R]) -> R:
        """Run what runs code of the guest that is being made, and return its result.

        Raises:
            InstantiationError: The time for making a guest is over, and the code was interrupted, or not begun.
        """
        self._guest.resume_from_interruption()
        try:
            if not self._is_late():  # if it becomes late after this moment, the tick comes after it, too
                return code()
        except Exception:
            if not self._is_late():
                raise
        finally:
            self._guest.ignore_interruptions()
        assert self._limit is not None
        raise InstantiationError(self._number, f"{what} took longer than {self._limit.seconds} s")

    def _is_late(self) -> bool:
        return self._limit is not None and self._limit.is_over


class _Remains:
    """What is left in this process of guests that are done with."""

    def __init__(self) -> None:
        self._guests = 0
        self._file = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        self._size_before, self._private_before = self._measure()

    def are_too_many(self) -> bool:
        """Take note of a guest whose memory was given back, while there is no other; return whether there should be none."""
        self._guests += 1
        size, private = self._measure()
        if self._guests == 1:  # what was measured before had the first guest's memory in it
            self._private_before = min(self._private_before, private)
        return (
            self._guests >= MOST_GUESTS
            or size - self._size_before > MOST_RESERVED
            or private - self._private_before > MOST_RESIDENT
        )

    def _measure(self) -> tuple[int, int]:
        """Return how many bytes of address space this process has, and how many of memory of its own."""
        size, resident, shared = (OS_PAGE * int(pages) for pages in os.pread(self._file, 128, 0).split()[:3])
        return size, resident - shared
