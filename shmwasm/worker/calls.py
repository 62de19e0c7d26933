"""The calls of a ring, as the worker runs them: the dispatcher, and what it needs Python for.

Theory
------
The dispatcher (`core.dispatching`) takes calls and ends them without leaving wasm. It comes back when it has nothing to do, or
something that it cannot do, or when the guest stopped. In the last case its frames are gone, and with them the call that it ran:
that is ended here, and what there is to tell of it is sent before, so that whoever finds the call ended finds out why. (Fresh
calls have no dispatcher: see `fresh`.)

What a call may expect of the store's deadline is said in `watching`. While a call that stopped is being ended, the deadline
lies far ahead: its tick may be on its way, and must not trap in the core's own code, which is entered for that.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from shmwasm.core import layout
from shmwasm.core.dispatching import RUN, dispatched
from shmwasm.engine.natives import native_function
from shmwasm.engine.traps import FUEL, UNREACHABLE, GuestTrapError
from shmwasm.errors import (
    FuelExhaustedError,
    HostFunctionError,
    InvalidFreeError,
    ProtocolError,
    ShmwasmError,
    WorkerTrapError,
    to_wire,
)
from shmwasm.posix import bells, futexes
from shmwasm.protocol import messages
from shmwasm.worker.watching import InterruptedWaitError, Watcher

if TYPE_CHECKING:
    from shmwasm.engine.guests import Guest
    from shmwasm.worker.instance import Ground
    from shmwasm.worker.links import ClientLink

DESCRIPTORS: Final = 3
"""How many come with `messages.OpenRing`: the ring, the completion, the interrupt."""

INITIALIZE: Final = "_initialize"
"""What a WASI reactor wants to be called before all else."""

INVALID_FREE: Final = "invalid_free"
"""The code of a trap because the guest freed what is no live block."""


class RingCalls(ABC):
    """Runs what a client calls through its ring. It is what the core rings its bells with, too (see `Attachment.open_ring`).

    Args:
        number: The instance's number, for errors.
        guest: Whose functions are called.
        ground: The core.
        client: Who is told of traps.
        descriptors: Those of `messages.OpenRing`, which are taken over.

    Raises:
        ProtocolError: They are not what they should be.
    """

    def __init__(
        self,
        number: int,
        guest: Guest,
        ground: Ground,
        client: ClientLink,
        descriptors: Sequence[int],
    ) -> None:
        if len(descriptors) != DESCRIPTORS:
            raise ProtocolError(f"OpenRing with {len(descriptors)} descriptors")
        segment, self._completion, interrupt = descriptors
        self._number = number
        self._guest = guest
        self._client = client
        self._ring = ground.attachment.open_ring(segment, self)
        os.close(segment)
        self._names = dispatched(guest.types)
        self._interrupt = interrupt
        self.watcher = Watcher(guest.tick, interrupt, client.fileno(), self._call_attention)

    @property
    def running(self) -> int:
        """The number of the call that runs."""
        return self._ring.sequence

    @abstractmethod
    def run(self, *, may_sleep: bool) -> int:
        """Run calls until something else is to be done; return what.

        Args:
            may_sleep: Whether to sleep while there is nothing to do. Otherwise `layout.RING_PARK` is returned then.
        """

    def attend(self) -> None:
        """Answer `layout.RING_ATTENTION`; messages are read after this."""
        self._ring.attend()

    def close(self) -> None:
        """Let go of the ring, whose calls can not have been interrupted. A worker's exit does the same."""
        self._ring.close()
        for descriptor in (self._completion, self._interrupt):
            os.close(descriptor)

    # ------------------------------------------------------------ the core's bells

    def wake(self, slot: int) -> None:
        """Wake who sleeps at a slot's state, or the client's receiver (see `CoreHooks`)."""
        if slot:
            sleeper = self._ring.sleeper(slot)
            if sleeper is None:
                bells.ring(self._ring.end_bell)
            else:
                futexes.wake(sleeper)
        else:
            with suppress(BlockingIOError):  # it is as readable as it can be
                os.eventfd_write(self._completion, 1)

    def absorb(self) -> None:
        """Meet the tick of a call that has ended by itself (see `CoreHooks`)."""
        self.watcher.meet()
        self._guest.resume_from_interruption()

    def _call_attention(self) -> None:
        """Have the main thread read messages before the next call: see `Watcher`."""
        self._ring.call_attention()
        bells.ring(self._ring.bell)

    # ------------------------------------------------------------ calls that stopped

    def _end_stopped(self, stopped: GuestTrapError) -> None:
        """End the call whose guest stopped."""
        self._guest.ignore_interruptions()
        interrupted = stopped.description.interrupted or isinstance(stopped.__cause__, InterruptedWaitError)
        if interrupted:
            self.watcher.meet()
        slot = self._ring.slot()
        call = self._ring.call_of(slot)
        if interrupted:
            status = layout.CALL_OVERDUE
        elif self._left(self._name(call.export), stopped):
            status = layout.CALL_RETURNED
            if call.calls:
                self._ring.advance(slot)
        else:
            status = layout.CALL_TRAPPED
            code, facts = to_wire(error_of(self._number, self._name(call.export), stopped, fuel=self._guest.exhausted_fuel()))
            self._client.send(messages.Raised(request=call.sequence, code=code, facts=facts))
        self._end(slot, status, interrupted=interrupted)

    def _end(self, slot: int, status: int, *, interrupted: bool = False) -> None:
        """End the call in a slot. The deadline of the store lies far ahead, and is set anew."""
        if self._ring.end(slot, status, interrupted=interrupted):
            bells.ring(self._ring.end_bell)
        self._guest.resume_from_interruption()

    def _left(self, export: str, stopped: GuestTrapError) -> bool:
        """Return whether the guest left its function by WASI's `proc_exit`, as a program leaves `main`."""
        return stopped.description.exit_code == 0 and not self._guest.types[export].results

    def _name(self, export: int) -> str:
        if export >= len(self._names):
            raise ProtocolError(f"the client called function {export} of {len(self._names)}")
        return self._names[export]


class DispatchedCalls(RingCalls):
    """Calls of one guest, which the module's dispatcher in `ground` runs. Takes and raises what `RingCalls` does."""

    def __init__(self, number: int, guest: Guest, ground: Ground, client: ClientLink, descriptors: Sequence[int]) -> None:
        super().__init__(number, guest, ground, client, descriptors)
        store, ring = ground.nest.store, self._ring
        given = (
            *ring.imports().values(),
            native_function(store, bells.native("sem_wait"), ring.bell),
            native_function(store, bells.native("sem_post"), ring.end_bell),
        )
        self._run = guest.dispatch(ground.dispatcher, given, self._names, RUN)

    def run(self, *, may_sleep: bool) -> int:
        """See `RingCalls`."""
        arguments = self._ring.address, may_sleep
        while True:
            try:
                return int(self._run.call(arguments)[0])
            except GuestTrapError as error:
                stopped = error
            self._end_stopped(stopped)


def error_of(instance: int, export: str, stopped: GuestTrapError, *, fuel: int | None = None) -> ShmwasmError:
    """Return what the caller of `export` is told of a guest that stopped; `fuel` is what it was given, if it has used that up."""
    trap = stopped.description
    match stopped.__cause__:
        case HostFunctionError() as raised:
            return replace(raised, instance=instance, export=export, backtrace=trap.backtrace)
        case InvalidFreeError() as refused:
            return WorkerTrapError(instance, export, str(refused), INVALID_FREE, trap.backtrace)
        case ShmwasmError() as failure:
            return failure
        case _ if fuel is not None and trap.code == UNREACHABLE:
            return FuelExhaustedError(instance, export, f"its {fuel} units of fuel are used up", FUEL, trap.backtrace, fuel)
        case _:
            return trap.to_error(instance, export)
