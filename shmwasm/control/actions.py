"""What the coordinator's mind may want done, one frozen class each.

The shell performs a list in its order. An action that is answered by an event is answered at once: the shell hands the event in,
and performs all that follows from it, before it performs the next action of the list. So no other event comes between an action
and its answer. Descriptors are symbolic: the mind says which, the shell knows their numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from shmwasm.control.deadlines import Deadline
    from shmwasm.protocol import messages
    from shmwasm.protocol.messages import Grant, SlabRange, SpawnPlan

# ---------------------------------------------------------------- descriptors


class SegmentDescriptor(Struct, frozen=True):
    """A heap's segment; with `read_only`, opened so that the kernel refuses to map it writable."""

    heap: int
    read_only: bool


class MetadataDescriptor(Struct, frozen=True):
    """A managed heap's metadata segment."""

    heap: int


class CallChannel(Struct, frozen=True):
    """The client's end of a worker's call channel; it is the client's alone once sent."""

    worker: int


HeapDescriptor = SegmentDescriptor | MetadataDescriptor
Descriptor = HeapDescriptor | CallChannel

# ---------------------------------------------------------------- peers


class Admit(Struct, frozen=True):
    """The connection reported by `ClientConnected` is from now on this peer."""

    connection: int
    peer: int


class Send(Struct, frozen=True):
    """Send the message, with these descriptors beside it."""

    peer: int
    message: messages.CoordinatorToClient | messages.CoordinatorToWorker
    descriptors: tuple[Descriptor, ...] = ()


class Disconnect(Struct, frozen=True):
    """Close the connection; a `problem` is worth a line in the log. The process is still watched."""

    peer: int
    problem: str = ""


class Forget(Struct, frozen=True):
    """The peer is gone for good: close and drop all that is kept for it."""

    peer: int


class KillWorker(Struct, frozen=True):
    """SIGKILL to the worker's process; a `problem` is worth a line in the log."""

    worker: int
    problem: str = ""


class ForkWorker(Struct, frozen=True):
    """Have the launcher fork a worker, which gets a new control channel and a new call channel.

    The compiled module and its dispatcher are the descriptors that came with the message now handled; `descriptors` are those of
    the grants.
    A failure is reported as the launcher's `ForkFailed`.
    """

    worker: int
    plan: SpawnPlan
    grants: tuple[Grant, ...]
    descriptors: tuple[HeapDescriptor, ...]


# ---------------------------------------------------------------- heaps


class StoreHeap(Struct, frozen=True):
    """Keep the first descriptor that came with the message now handled as the heap's segment; make metadata if `managed`.

    Answered by `HeapStored` or `HeapNotStored`.
    """

    heap: int
    name: str
    size: int
    managed: bool
    read_only: bool
    scrub: bool
    owner_frees_only: bool


class DropHeap(Struct, frozen=True):
    """Nobody can reach the heap any more: close what is kept for it."""

    heap: int


class FindAdopted(Struct, frozen=True):
    """Look for an adopted slab of the class with a free block. Answered by `AdoptedFound`."""

    lease: int
    heap: int
    size_class: int


class WriteOwners(Struct, frozen=True):
    """Reserve memory for the states of these slabs, then write their owner. Answered by `OwnersWritten`."""

    lease: int
    heap: int
    ranges: tuple[SlabRange, ...]
    owner: int


class LetAskAgain(Struct, frozen=True):
    """Have processes ask again that were refused slabs of the heap: none became free, but something else stood in the way."""

    heap: int


class ReleaseSlabs(Struct, frozen=True):
    """Make these slabs, which their owner gave back, nobody's; adopt those in which something lives after all.

    Answered by `SlabsReclaimed` of `NOBODY`.
    """

    heap: int
    ranges: tuple[SlabRange, ...]


class Reclaim(Struct, frozen=True):
    """Take these slabs from `owner`, who cannot touch them any more: free the empty ones, adopt the others.

    With `free_live` the blocks that live are freed first. Answered by `SlabsReclaimed`.
    """

    heap: int
    owner: int
    ranges: tuple[SlabRange, ...]
    free_live: bool


class ResetMetadata(Struct, frozen=True):
    """Format the heap's metadata anew; `used` are the slabs that may hold data, to be zeroed if the heap is scrubbed."""

    heap: int
    used: tuple[SlabRange, ...]


class HeapOwners(Struct, frozen=True):
    """A managed heap and the owner of each of its slabs (native u32s), as the mind knows them."""

    heap: int
    name: str
    owners: bytes


class VerifyHeaps(Struct, frozen=True):
    """Check every invariant of these heaps' metadata. Answered by `HeapsVerified`."""

    verification: int
    heaps: tuple[HeapOwners, ...]


# ---------------------------------------------------------------- the program


class StartDeadline(Struct, frozen=True):
    """Report `DeadlinePassed` after so many seconds."""

    deadline: Deadline
    seconds: float


class Exit(Struct, frozen=True):
    """Nobody needs this coordinator any more."""


HeapAction = StoreHeap | DropHeap | FindAdopted | WriteOwners | LetAskAgain | ReleaseSlabs | Reclaim | ResetMetadata | VerifyHeaps
Action = Admit | Send | Disconnect | Forget | KillWorker | ForkWorker | StartDeadline | Exit | HeapAction
