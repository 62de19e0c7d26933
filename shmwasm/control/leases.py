"""Leases: who gets which slabs, and how slabs come back.

Theory
------
A lease of a size class first brings an adopted slab that has a free block, else free slabs: a batch that doubles with each lease
of the same peer, heap and class, and never exceeds an eighth of what is free. A lease of a run brings exactly that run.

Where no slab is free, one *round* a heap makes room: the coordinator looks through the slabs that it adopted, and asks the other
holders to give back what they do not need. All leases that meet an exhausted heap wait for the same round. It ends when everybody
has answered or its deadline passed; then each of its leases is tried once more, and refused if there is still no room.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shmwasm import errors
from shmwasm.addresses import SLAB_SIZE
from shmwasm.control.actions import FindAdopted, LetAskAgain, Reclaim, ReleaseSlabs, ResetMetadata, StartDeadline, WriteOwners
from shmwasm.control.deadlines import RECALL_SECONDS, RecallDeadline
from shmwasm.control.slabs import ranges_of
from shmwasm.protocol import messages
from shmwasm.protocol.messages import COORDINATOR, SlabRange

if TYPE_CHECKING:
    from shmwasm.control.events import AdoptedFound, OwnersWritten, SlabsReclaimed
    from shmwasm.control.heaps import Heap
    from shmwasm.control.peers import Peer
    from shmwasm.control.state import State

MAXIMUM_BATCH = 64
"""The most slabs that a lease of a size class grows to."""

FREE_SHARE = 8
"""A batch takes at most this fraction of the free slabs."""

MAXIMUM_SIZE_CLASS = 255
"""No size class has a higher number; the core has fewer."""


@dataclass(eq=False, slots=True)
class PendingLease:
    """A lease that is not answered yet. `ranges` were taken and are being written; `retried` after its round."""

    number: int
    peer: Peer
    request: int
    heap: Heap
    size_class: int
    slabs: int
    ranges: tuple[SlabRange, ...] = ()
    retried: bool = False


@dataclass(eq=False, slots=True)
class Round:
    """The attempt to make room in a heap: whose answers are missing, and which leases wait."""

    number: int
    waiting_for: set[int]
    leases: list[PendingLease] = field(default_factory=list)


class LeaseDesk:
    """Grants, recalls and takes back leases."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._written: dict[int, PendingLease] = {}
        self._rounds: dict[int, Round] = {}
        self._next = 1

    # ------------------------------------------------------------ asking

    def ask(self, peer: Peer, heap: Heap, message: messages.Lease) -> None:
        """Answer a request for slabs, at once or after a round.

        Raises:
            ArgumentError: The heap has no slabs, or the class or number of slabs can never be right.
        """
        if not heap.managed:
            raise errors.ArgumentError(f"shared heap {heap.name!r} is preallocated: it has no slabs to lease")
        if not 0 <= message.size_class <= MAXIMUM_SIZE_CLASS:
            raise errors.ArgumentError(f"size class {message.size_class} does not exist")
        if message.slabs < 1:
            raise errors.ArgumentError(f"a lease of {message.slabs} slabs")
        lease = PendingLease(self._next, peer, message.request, heap, message.size_class, message.slabs)
        self._next += 1
        self._try(lease)

    def _try(self, lease: PendingLease) -> None:
        if self._allowance(lease) < (1 if lease.size_class else lease.slabs):
            self._refuse(lease, quota=lease.peer.quota)
        elif lease.size_class in lease.heap.adopted_classes:
            self._written[lease.number] = lease
            self._state.emit(FindAdopted(lease.number, lease.heap.number, lease.size_class))
        else:
            self._take_free(lease)

    def adopted_found(self, event: AdoptedFound) -> None:
        """Grant the adopted slab, or else a free one."""
        lease = self._written.pop(event.lease)
        if event.slab is None:
            lease.heap.adopted_classes.discard(lease.size_class)
            self._take_free(lease)
        else:
            self._take(lease, (SlabRange(event.slab, 1, adopted=True),), COORDINATOR)

    def _take_free(self, lease: PendingLease) -> None:
        ranges = self._choose(lease)
        if ranges:
            self._take(lease, ranges, messages.NOBODY)
        elif lease.retried or lease.slabs > lease.heap.slabs.count:
            self._refuse(lease)
        else:
            self._make_room(lease)

    def _choose(self, lease: PendingLease) -> tuple[SlabRange, ...]:
        slabs = lease.heap.slabs
        if not lease.size_class:
            run = slabs.find_run(lease.slabs)
            return () if run is None else (run,)
        batch = max(lease.slabs, lease.heap.batches.get(lease.peer.number, {}).get(lease.size_class, 1))
        return slabs.gather(min(batch, MAXIMUM_BATCH, max(1, slabs.free_count // FREE_SHARE), self._allowance(lease)))

    @staticmethod
    def _allowance(lease: PendingLease) -> int:
        """Return how many slabs the quota leaves to the peer."""
        if not lease.peer.quota:
            return lease.heap.slabs.count
        return max(0, lease.peer.quota - lease.peer.leased) // SLAB_SIZE

    def _take(self, lease: PendingLease, ranges: tuple[SlabRange, ...], owner: int) -> None:
        lease.heap.slabs.move(ranges, owner, lease.peer.number)
        lease.peer.leased += _bytes(ranges)
        lease.ranges = ranges
        self._written[lease.number] = lease
        self._state.emit(WriteOwners(lease.number, lease.heap.number, ranges, lease.peer.number))

    def owners_written(self, event: OwnersWritten) -> None:
        """Answer the lease; without memory for the slabs' states nothing changed."""
        lease = self._written.pop(event.lease)
        if event.reserved:
            if lease.size_class:
                granted = sum(part.count for part in lease.ranges)
                lease.heap.batches.setdefault(lease.peer.number, {})[lease.size_class] = min(2 * granted, MAXIMUM_BATCH)
            self._answer(lease, messages.Leased(request=lease.request, ranges=list(lease.ranges)))
            return
        adopted = lease.ranges[0].adopted
        lease.heap.slabs.move(lease.ranges, lease.peer.number, COORDINATOR if adopted else messages.NOBODY)
        lease.peer.leased -= _bytes(lease.ranges)
        self._refuse(lease)

    def _refuse(self, lease: PendingLease, quota: int = 0) -> None:
        if quota:
            lease.peer.denied.add(lease.heap.number)
        largest = lease.heap.slabs.largest_run() * SLAB_SIZE
        self._answer(lease, messages.Leased(request=lease.request, ranges=[], largest_free=largest, quota=quota))

    def _answer(self, lease: PendingLease, message: messages.Leased) -> None:
        self._state.send(lease.peer.number, message)

    # ------------------------------------------------------------ making room

    def _make_room(self, lease: PendingLease) -> None:
        heap = lease.heap
        current = self._rounds.get(heap.number)
        if current is None:
            current = self._begin_round(heap, lease)
        current.leases.append(lease)
        self._heard_from(heap, lease.peer.number)  # it waits here, and gives up what it does not need once it is refused
        adopted = heap.slabs.held_by(COORDINATOR)
        if COORDINATOR in current.waiting_for and len(current.leases) == 1:
            self._state.emit(Reclaim(heap.number, COORDINATOR, ranges_of(adopted), free_live=False))

    def _begin_round(self, heap: Heap, lease: PendingLease) -> Round:
        holders = {number for number in heap.slabs.holders() if number == COORDINATOR or self._listens(number)}
        current = Round(lease.number, holders | {lease.peer.number})
        self._rounds[heap.number] = current
        heap.batches.clear()
        for number in sorted(holders - {COORDINATOR, lease.peer.number}):
            self._state.send(number, messages.Recall(heap=heap.number))
        self._state.emit(StartDeadline(RecallDeadline(heap.number, current.number), RECALL_SECONDS))
        return current

    def _listens(self, number: int) -> bool:
        peer = self._state.peer(number)
        return peer is not None and peer.connected

    def recalled(self, peer: Peer, heap: int) -> None:
        """The peer gave back what it could."""
        known = self._state.heaps.heaps.get(heap)
        if known is not None:
            self._heard_from(known, peer.number)

    def deadline_passed(self, deadline: RecallDeadline) -> None:
        """End the round, if it is still the same."""
        current = self._rounds.get(deadline.heap)
        if current is not None and current.number == deadline.round:
            self._end_round(deadline.heap)

    def _heard_from(self, heap: Heap, peer: int) -> None:
        current = self._rounds.get(heap.number)
        if current is None or peer not in current.waiting_for:
            return
        current.waiting_for.discard(peer)
        if not current.waiting_for:
            self._end_round(heap.number)

    def _end_round(self, heap: int) -> None:
        for lease in self._rounds.pop(heap).leases:
            lease.retried = True
            self._try(lease)

    # ------------------------------------------------------------ giving back

    def release(self, peer: Peer, heap: Heap, ranges: list[SlabRange]) -> None:
        """Take back slabs in which nothing lives.

        Raises:
            ProtocolError: They are not all the peer's, or a slab is named twice.
        """
        given = [SlabRange(part.first, part.count) for part in ranges]
        if not all(heap.slabs.holds_all(peer.number, part) for part in given):
            raise errors.ProtocolError(f"a release of slabs of shared heap {heap.name!r} that the peer does not hold")
        ordered = sorted(given, key=lambda part: part.first)
        if any(left.first + left.count > right.first for left, right in itertools.pairwise(ordered)):
            raise errors.ProtocolError(f"a release that names a slab of shared heap {heap.name!r} twice")
        heap.slabs.move(given, peer.number, COORDINATOR)
        self._gave_back(peer, sum(part.count for part in given))
        self._state.emit(ReleaseSlabs(heap.number, tuple(given)))

    def surrender(self, peer: Peer, heap: Heap, *, free_live: bool) -> None:
        """Take back all that the peer holds in the heap, which it cannot touch any more."""
        self.cancel(peer, heap)
        heap.batches.pop(peer.number, None)
        held = heap.slabs.held_by(peer.number)
        if not held:
            self._heard_from(heap, peer.number)
            return
        ranges = ranges_of(held)
        self._gave_back(peer, len(held))
        heap.slabs.move(ranges, peer.number, COORDINATOR)
        self._state.emit(Reclaim(heap.number, peer.number, ranges, free_live))

    def _gave_back(self, peer: Peer, slabs: int) -> None:
        """The peer's quota has room for so many slabs more, in every heap."""
        peer.leased -= slabs * SLAB_SIZE
        denied, peer.denied = peer.denied & self._state.heaps.heaps.keys(), set()
        for heap in sorted(denied):
            self._state.emit(LetAskAgain(heap))

    def reclaimed(self, event: SlabsReclaimed) -> None:
        """Count the freed slabs as free, and remember what is adopted."""
        heap = self._state.heaps.heaps.get(event.heap)
        if heap is None:
            return
        heap.slabs.give(event.freed, COORDINATOR)
        heap.adopted_classes |= event.adopted_classes - {0}
        self._heard_from(heap, event.owner)

    def silence(self, peer: Peer) -> None:
        """The peer cannot be heard any more: expect no answer of it, and answer it nothing."""
        for number in list(self._rounds):
            heap = self._state.heaps.heaps[number]
            self.cancel(peer, heap)
            if not heap.slabs.held_by(peer.number):
                self._heard_from(heap, peer.number)

    def cancel(self, peer: Peer, heap: Heap) -> None:
        """Refuse the peer's leases that wait for room in the heap."""
        current = self._rounds.get(heap.number)
        if current is None:
            return
        cancelled = [lease for lease in current.leases if lease.peer is peer]
        current.leases = [lease for lease in current.leases if lease.peer is not peer]
        for lease in cancelled:
            self._refuse(lease)
        if not current.leases:
            del self._rounds[heap.number]

    def reset(self, heap: Heap) -> None:
        """Make every slab of the heap free, whoever holds it, and refuse the leases that wait for room in it."""
        waiting = self._rounds.pop(heap.number, None)
        for lease in waiting.leases if waiting is not None else ():
            self._refuse(lease)
        for owner in heap.slabs.holders():
            peer = self._state.peer(owner)
            if peer is not None:
                self._gave_back(peer, len(heap.slabs.held_by(owner)))
        used = heap.slabs.used()
        heap.slabs.reset()
        heap.batches.clear()
        heap.adopted_classes.clear()
        self._state.emit(ResetMetadata(heap.number, used))

    # ------------------------------------------------------------ consistency

    def verify(self) -> None:
        """Check that quotas count what is held, and that every round has leases and somebody to wait for.

        Raises:
            HeapCorruptError: They do not.
        """
        held: dict[int, int] = {}
        for heap in self._state.heaps:
            for owner in heap.slabs.holders() - {COORDINATOR}:
                peer = self._state.peer(owner)
                if peer is None:
                    raise errors.HeapCorruptError(heap.name, f"owner {owner} exists", 0)
                held[owner] = held.get(owner, 0) + len(heap.slabs.held_by(owner)) * SLAB_SIZE
            for number in heap.batches:
                if self._state.peer(number) is None:
                    raise errors.HeapCorruptError(heap.name, f"peer {number}, whose next lease is known, exists", 0)
        for peer in (*self._state.clients.values(), *self._state.workers.values()):
            if peer.leased != held.get(peer.number, 0) or (peer.quota and peer.leased > peer.quota):
                raise errors.HeapCorruptError("", f"peer {peer.number} holds what is counted, within its quota", 0)
        for number, current in self._rounds.items():
            if number not in self._state.heaps.heaps or not current.leases or not current.waiting_for:
                raise errors.HeapCorruptError("", f"the round of heap {number} waits for somebody, and somebody for it", 0)
        if self._written:
            raise errors.HeapCorruptError("", "every lease that was being written is answered", 0)


def _bytes(ranges: tuple[SlabRange, ...] | list[SlabRange]) -> int:
    return sum(part.count for part in ranges) * SLAB_SIZE
