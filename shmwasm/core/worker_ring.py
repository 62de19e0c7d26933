"""The worker's end of a call ring: what the dispatcher's host does between the calls (see `rings` for the other end)."""

from __future__ import annotations

import fcntl
from typing import TYPE_CHECKING, Final, NamedTuple

from shmwasm.core import layout
from shmwasm.errors import ArgumentError, ProtocolError

if TYPE_CHECKING:
    import wasmtime

    from shmwasm.addresses import NativeAddress
    from shmwasm.core.allocator import Core

SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
"""What a ring's segment must be sealed with: its size cannot change under those who have mapped it."""

_TAKEN: Final = 128
"""Where the ring says how many calls were taken."""

_ATTENTION: Final = 320
"""Where it says that messages wait beside it."""

_SLOT_WAITING: Final = 1
"""Which word of a slot says how the client sleeps until it ends."""

_SLOT_PROGRESS: Final = 7
"""Which word of a slot counts the calls of a batch that have returned."""


class RunningCall(NamedTuple):
    """A call, as the worker finds it in its slot."""

    sequence: int
    export: int
    """Its function's place in `dispatching.dispatched`."""
    flags: int
    calls: int
    """How many calls a batch has; 0 for a single call."""
    progress: int = 0
    """How many of a batch have returned."""


def call_in(words: memoryview) -> RunningCall:
    """Return the call in a slot whose header has these words."""
    return RunningCall(words[2], words[3], words[4], words[6], words[7])


class WorkerRing:
    """The worker's end of a ring that a client has made. The dispatcher runs the calls; this is what its host does between them.

    Args:
        core: The worker's core, in the store of the guest.
        descriptor: The segment; it may be closed afterwards.

    Attributes:
        address: Where the ring lies in the core's memory: what the dispatcher is told.
        bell: Where the worker sleeps.
        end_bell: Where a client sleeps whose slot says so.

    Raises:
        ProtocolError: The descriptor is no ring that this version can use.
    """

    def __init__(self, core: Core, descriptor: int) -> None:
        self._core = core
        try:
            seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
            if seals & SEALS != SEALS:
                raise ProtocolError("the client sent a call ring whose size is not sealed")
            self.address = core.map_segment(descriptor, layout.RING_SIZE)
        except (OSError, ArgumentError) as failure:
            raise ProtocolError(f"the client sent a call ring that cannot be mapped: {failure}") from None
        if not core.call("ring_is_sound", self.address):
            core.unmap_segment(self.address)
            raise ProtocolError(f"the client sent a call ring of another layout than version {layout.RING_VERSION}")
        self._taken = core.view(self.address + _TAKEN, 4).cast("I")
        self._attention = core.view(self.address + _ATTENTION, 4).cast("I")
        self.bell = core.native_address(self.address + layout.RING_WORKER_BELL)
        self.end_bell = core.native_address(self.address + layout.RING_END_BELL)

    def imports(self) -> dict[str, wasmtime.Func | wasmtime.Memory]:
        """Return what a dispatcher imports from `dispatching.CORE`, by name and in its order."""
        return self._core.ring_exports

    def memory(self) -> memoryview:
        """Return all of the ring, as bytes, until it is closed."""
        return self._core.view(self.address, layout.RING_SIZE)

    def next(self) -> int:
        """Take a call, as a dispatcher does; return its slot, or, below RING_FIRST_SLOT, why there is none: RING_PARK and so on.

        Raises:
            wasmtime.Trap: See `end`.
        """
        return self._core.call("ring_next", self.address)

    def slot(self) -> int:
        """Return the slot of the call that was taken last."""
        return self._core.call("ring_running", self.address)

    @property
    def sequence(self) -> int:
        """The number of the call that was taken last; known without entering the core."""
        return (self._taken[0] - 1) & 0xFFFF_FFFF

    def advance(self, slot: int) -> None:
        """Count one more call of a batch as returned."""
        self._core.view(slot, layout.RING_SLOT_HEADER).cast("I")[_SLOT_PROGRESS] += 1

    def call_of(self, slot: int) -> RunningCall:
        """Return the call in a slot that was taken and has not ended."""
        words = self._core.view(slot, layout.RING_SLOT_HEADER).cast("I")
        return call_in(words)

    def end(self, slot: int, status: int, *, interrupted: bool = False) -> bool:
        """End the call in a slot, unless it has ended; return whether its client sleeps at `end_bell`, and the caller must ring.

        Args:
            slot: Where it is.
            status: How it ended: `layout.CALL_TRAPPED` and so on.
            interrupted: Whether its interrupt has arrived, which is not waited for then.

        Raises:
            wasmtime.Trap: Its interrupt has arrived now. Set the deadline anew, and call this again with `interrupted`.
        """
        return bool(self._core.call("ring_end", self.address, slot, status, int(interrupted)))

    def park(self) -> bool:
        """Say that the worker is about to sleep; return whether it may, for there is nothing to do. `unpark` follows."""
        return bool(self._core.call("ring_park", self.address))

    def unpark(self) -> None:
        """Say that the worker is awake."""
        self._core.call("ring_unpark", self.address)

    def attend(self) -> None:
        """Answer RING_ATTENTION; the worker reads its messages after this."""
        self._core.call("ring_attend", self.address)

    def call_attention(self) -> None:
        """Have the dispatcher come back with RING_ATTENTION before the next call. Any thread may, also while it runs."""
        self._attention[0] = 1

    def sleeper(self, slot: int) -> NativeAddress | None:
        """Return the futex that a client sleeps on until the call in a slot ends; None if it sleeps at `end_bell`."""
        at_bell = self._core.view(slot, layout.RING_SLOT_HEADER).cast("I")[_SLOT_WAITING] == layout.RING_BELL
        return None if at_bell else self._core.native_address(slot)

    def close(self) -> None:
        """Drop the ring. May be called twice."""
        if self.address:
            self._core.unmap_segment(self.address)
            self.address = 0
