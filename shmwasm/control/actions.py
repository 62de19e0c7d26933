"""What the coordinator's mind may want done, one frozen class each.

The shell performs a list in its order. An action that is answered by an event is answered at once: the shell hands the event in,
and performs all that follows from it, before it performs the next action of the list. So no other event comes between an action
and its answer. Descriptors are symbolic: the mind says which, the shell knows their numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shmwasm.control.deadlines import Deadline
    from shmwasm.protocol import messages
    from shmwasm.protocol.messages import Grant, SlabRange, SpawnPlan

# ---------------------------------------------------------------- descriptors


@dataclass(frozen=True, slots=True)
class SegmentDescriptor:
    """A heap's segment; with `read_only`, opened so that the kernel refuses to map it writable."""

    heap: int
    read_only: bool


@dataclass(frozen=True, slots=True)
class MetadataDescriptor:
    """A managed heap's metadata segment."""

    heap: int


@dataclass(frozen=True, slots=True)
class CallChannel:
    """The client's end of a worker's call channel; it is the client's alone once sent."""

    worker: int


HeapDescriptor = SegmentDescriptor | MetadataDescriptor
Descriptor = HeapDescriptor | CallChannel

# ---------------------------------------------------------------- peers


@dataclass(frozen=True, slots=True)
class Admit:
    """The connection reported by `ClientConnected` is from now on this peer."""

    connection: int
    peer: int


@dataclass(frozen=True, slots=True)
class Send:
    """Send the message, with these descriptors beside it."""

    peer: int
    message: messages.CoordinatorToClient | messages.CoordinatorToWorker
    descriptors: tuple[Descriptor, ...] = ()


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Close the connection; a `problem` is worth a line in the log. The process is still watched."""

    peer: int
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Forget:
    """The peer is gone for good: close and drop all that is kept for it."""

    peer: int


@dataclass(frozen=True, slots=True)
class KillWorker:
    """SIGKILL to the worker's process; a `problem` is worth a line in the log."""

    worker: int
    problem: str = ""


@dataclass(frozen=True, slots=True)
class ForkWorker:
    """Have the launcher fork a worker, which gets a new control channel and a new call channel.

    The compiled module is the first descriptor that came with the message now handled; `descriptors` are those of the grants.
    A failure is reported as the launcher's `ForkFailed`.
    """

    worker: int
    plan: SpawnPlan
    grants: tuple[Grant, ...]
    descriptors: tuple[HeapDescriptor, ...]


# ---------------------------------------------------------------- heaps


@dataclass(frozen=True, slots=True)
class StoreHeap:
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


@dataclass(frozen=True, slots=True)
class DropHeap:
    """Nobody can reach the heap any more: close what is kept for it."""

    heap: int


@dataclass(frozen=True, slots=True)
class FindAdopted:
    """Look for an adopted slab of the class with a free block. Answered by `AdoptedFound`."""

    lease: int
    heap: int
    size_class: int


@dataclass(frozen=True, slots=True)
class WriteOwners:
    """Reserve memory for the states of these slabs, then write their owner. Answered by `OwnersWritten`."""

    lease: int
    heap: int
    ranges: tuple[SlabRange, ...]
    owner: int


@dataclass(frozen=True, slots=True)
class LetAskAgain:
    """Have processes ask again that were refused slabs of the heap: none became free, but something else stood in the way."""

    heap: int


@dataclass(frozen=True, slots=True)
class ReleaseSlabs:
    """Make these slabs, which their owner gave back, nobody's; adopt those in which something lives after all.

    Answered by `SlabsReclaimed` of `NOBODY`.
    """

    heap: int
    ranges: tuple[SlabRange, ...]


@dataclass(frozen=True, slots=True)
class Reclaim:
    """Take these slabs from `owner`, who cannot touch them any more: free the empty ones, adopt the others.

    With `free_live` the blocks that live are freed first. Answered by `SlabsReclaimed`.
    """

    heap: int
    owner: int
    ranges: tuple[SlabRange, ...]
    free_live: bool


@dataclass(frozen=True, slots=True)
class ResetMetadata:
    """Format the heap's metadata anew; `used` are the slabs that may hold data, to be zeroed if the heap is scrubbed."""

    heap: int
    used: tuple[SlabRange, ...]


@dataclass(frozen=True, slots=True)
class HeapOwners:
    """A managed heap and the owner of each of its slabs (native u32s), as the mind knows them."""

    heap: int
    name: str
    owners: bytes


@dataclass(frozen=True, slots=True)
class VerifyHeaps:
    """Check every invariant of these heaps' metadata. Answered by `HeapsVerified`."""

    verification: int
    heaps: tuple[HeapOwners, ...]


# ---------------------------------------------------------------- the program


@dataclass(frozen=True, slots=True)
class StartDeadline:
    """Report `DeadlinePassed` after so many seconds."""

    deadline: Deadline
    seconds: float


@dataclass(frozen=True, slots=True)
class Exit:
    """Nobody needs this coordinator any more."""


HeapAction = StoreHeap | DropHeap | FindAdopted | WriteOwners | LetAskAgain | ReleaseSlabs | Reclaim | ResetMetadata | VerifyHeaps
Action = Admit | Send | Disconnect | Forget | KillWorker | ForkWorker | StartDeadline | Exit | HeapAction
