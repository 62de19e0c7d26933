"""What may happen to the coordinator, one frozen class each.

The shell (`shmwasm.coordinator`) observes and reports; it decides nothing. Some events answer an action, see `actions`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from shmwasm.control.deadlines import Deadline
    from shmwasm.errors import ShmwasmError
    from shmwasm.protocol import messages
    from shmwasm.protocol.messages import SlabRange


class ClientConnected(Struct, frozen=True):
    """A client of the right user connected; `connection` is the shell's own name for it. Answered by `Admit`."""

    connection: int


class MessageReceived(Struct, frozen=True):
    """A client or a worker sent `message`, with so many descriptors beside it."""

    peer: int
    message: messages.ClientMessage | messages.WorkerMessage
    descriptors: int = 0


class LauncherSpoke(Struct, frozen=True):
    """The launcher reported about one of its workers."""

    message: messages.LauncherMessage


class ConnectionClosed(Struct, frozen=True):
    """The peer's end of the connection is closed, or it broke the protocol's framing; its process may live on."""

    peer: int


class ProcessGone(Struct, frozen=True):
    """The kernel says that the peer's process is no more: it can touch nothing any longer."""

    peer: int


class LauncherGone(Struct, frozen=True):
    """The launcher process ended; the kernel kills its workers, each of which is still reported by `ProcessGone`."""


class HeapStored(Struct, frozen=True):
    """Answers `StoreHeap`: the heap's descriptors are kept, its metadata is formatted (`metadata_size` 0: it has none)."""

    heap: int
    metadata_size: int


class HeapNotStored(Struct, frozen=True):
    """Answers `StoreHeap`: nothing was kept."""

    heap: int
    error: ShmwasmError


class AdoptedFound(Struct, frozen=True):
    """Answers `FindAdopted`: an adopted slab of the class that has a free block, or None."""

    lease: int
    slab: int | None


class OwnersWritten(Struct, frozen=True):
    """Answers `WriteOwners`; with `reserved` false there was no memory for the slabs' states and nothing was written."""

    lease: int
    reserved: bool


class SlabsReclaimed(Struct, frozen=True):
    """Answers `Reclaim` and `ReleaseSlabs`: what became free, and the size classes of what is adopted."""

    heap: int
    owner: int
    freed: tuple[SlabRange, ...]
    adopted_classes: frozenset[int] = frozenset()


class HeapsVerified(Struct, frozen=True):
    """Answers `VerifyHeaps`: the first broken invariant, or None."""

    verification: int
    error: ShmwasmError | None


class DeadlinePassed(Struct, frozen=True):
    """The time of a `StartDeadline` is over."""

    deadline: Deadline


Event = (
    ClientConnected
    | MessageReceived
    | LauncherSpoke
    | ConnectionClosed
    | ProcessGone
    | LauncherGone
    | HeapStored
    | HeapNotStored
    | AdoptedFound
    | OwnersWritten
    | SlabsReclaimed
    | HeapsVerified
    | DeadlinePassed
)
