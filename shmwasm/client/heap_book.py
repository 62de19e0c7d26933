"""The heaps that a runtime has open, and how they are chained.

How chains lie is noted in the order in which the coordinator says it, which is why the receiver thread does it (`lay_out`): the
thread that asked may look at its answer only after the next change. A heap that is being opened finds its place noted already.

Locking: `_lock` guards the tables, which the receiver thread changes too; who reads how chains lie needs none, as that table is
replaced as a whole. `_opening` is held over a whole request, so that a heap that is opened twice at once is one object.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from shmwasm import errors
from shmwasm.addresses import MAXIMUM_CHAIN_SIZE, OS_PAGE, SLAB_SIZE, AppAddress, round_up
from shmwasm.client import checks
from shmwasm.client.connection import Connection, close_descriptors
from shmwasm.client.heaps import OnDeath, SharedHeap
from shmwasm.posix.conditions import Lock, Turn
from shmwasm.posix.mappings import map_anywhere
from shmwasm.posix.segments import Segment, Source
from shmwasm.posix.signals import interrupts_put_off
from shmwasm.protocol import messages

if TYPE_CHECKING:
    from shmwasm.client.allocator import ClientAllocator

LONGEST_NAME = 255
"""The most characters of a name."""


class HeapBook:
    """Opens, chains and forgets the heaps of one runtime; its methods raise what the runtime's raise.

    Args:
        address: Where other processes can connect to the coordinator.
        connection: To the coordinator.
        allocator: This process's core.
    """

    def __init__(self, address: str, connection: Connection, allocator: ClientAllocator) -> None:
        self._address = address
        self._connection = connection
        self._allocator = allocator
        self._lock = Lock()
        self._opening = Turn()
        self._heaps: dict[int, SharedHeap] = {}
        self._chains: dict[int, list[int]] = {}
        self._starts: dict[int, AppAddress] = {}

    def create(
        self,
        size: int | None,
        pre_allocated: Source | None,
        *,
        name: str | None,
        read_only: bool,
        on_death: OnDeath,
        scrub: bool,
        remote_free: bool,
        reserve: bool,
        prefault: bool,
    ) -> SharedHeap:
        """Create a heap (see `Runtime.create_shared_heap`)."""
        size = _checked_size(size, pre_allocated, read_only=checks.flag(read_only, "read_only"))
        free_on_death = checks.choice(on_death, "on_death", "keep", "free") == "free"
        for option, value in {"scrub": scrub, "remote_free": remote_free, "reserve": reserve, "prefault": prefault}.items():
            checks.flag(value, option)
        if name is None:
            label = f"heap-{os.getpid()}-{os.urandom(3).hex()}"
        else:
            label = checks.text(name, "a heap's name", longest=LONGEST_NAME)

        def make() -> SharedHeap:
            if pre_allocated is None:
                bytes_wanted = round_up(size or 0, SLAB_SIZE)
                segment = Segment.create(bytes_wanted, name_for_errors=label, reserve=reserve)
            else:
                segment = Segment.open(pre_allocated, read_only=read_only, name_for_errors=label)
                bytes_wanted = size or round_up(segment.size, OS_PAGE)
            with segment:
                _check_segment(segment, bytes_wanted, pre_allocated)
                opened, descriptors = self._connection.request(
                    messages.HeapOpened,
                    lambda number: messages.CreateHeap(
                        request=number,
                        name=label,
                        size=bytes_wanted,
                        managed=pre_allocated is None,
                        read_only=read_only,
                        scrub=scrub,
                        owner_frees_only=not remote_free,
                        free_on_death=free_on_death,
                        prefault=prefault,
                    ),
                    [segment.descriptor],
                )
                return self._add(opened, segment.descriptor, descriptors, prefault=prefault)

        return _made_or_closed(make)

    def open(self, *, token: str = "", name: str = "") -> SharedHeap:
        """Open a heap by its token or its name; the same heap object every time."""
        self._connection.check_may_block()
        with self._opening:
            known = self._find(token, name)
            if known is not None:
                return known
            with interrupts_put_off():
                opened, descriptors = self._connection.request(
                    messages.HeapOpened, lambda number: messages.OpenHeap(request=number, token=token, name=name)
                )
                try:
                    # If an interrupt comes after this, the next `open` finds it.
                    return self._add(opened, descriptors[0], descriptors[1:], prefault=False)
                finally:
                    os.close(descriptors[0])

    def chain(self, head: SharedHeap, body: SharedHeap) -> SharedHeap:
        """Put `head` directly below `body` (see `Runtime.chain_shared_heaps`)."""
        below, above = self.number_of(head), self.number_of(body)
        laid_out = self._connection.request(
            messages.ChainLaidOut, lambda number: messages.ChainHeaps(request=number, head=below, body=above)
        )[0]
        return self._heaps[laid_out.result]

    def unchain(self, head: SharedHeap, *, entire_chain: bool) -> SharedHeap:
        """Take a chain apart (see `Runtime.unchain_shared_heaps`)."""
        first = self.number_of(head)
        following = self._chains.get(first, [first])[-1 if entire_chain else 1 :][:1]
        if following and following[0] not in self._heaps:
            raise errors.ChainError(head.name, "the heap to be returned was closed in this process: open it again first")
        laid_out = self._connection.request(
            messages.ChainLaidOut,
            lambda number: messages.UnchainHeaps(request=number, head=first, entire_chain=entire_chain),
        )[0]
        return self._heaps[laid_out.result]

    def reset(self, head: SharedHeap) -> None:
        """Free everything in a chain (see `Runtime.reset_shared_heap_chain`)."""
        first = self.number_of(head)
        self._connection.request(messages.Done, lambda number: messages.ResetChain(request=number, head=first))
        for heap in self.chain_of(head):
            heap.start_anew()

    def number_of(self, heap: SharedHeap) -> int:
        """Return the number of a heap that is about to be named to the coordinator.

        Raises:
            ArgumentError: It is no heap of this runtime.
            ClosedError: It was closed.
        """
        if not isinstance(heap, SharedHeap):
            raise errors.ArgumentError(f"{errors.shown(heap)} is not a shared heap")
        heap.view  # noqa: B018  raises if it was closed
        if self._heaps.get(heap.number) is not heap:
            raise errors.ArgumentError(f"{heap!r} belongs to another runtime")
        return heap.number

    def chain_of(self, head: SharedHeap) -> Sequence[SharedHeap]:
        """Return the heaps of the chain that `head` heads, from the head to the last body."""
        heaps = [self._heaps.get(number) for number in self._chains.get(head.number, [head.number])]
        return [heap for heap in heaps if heap is not None]

    def lay_out(self, chains: Sequence[Sequence[messages.ChainLink]]) -> None:
        """Take note of how chains lie from now on; in the receiver thread."""
        with self._lock:
            lying = self._chains.copy()
            for chain in chains:
                for link in chain:
                    lying.pop(link.heap, None)
                    self._starts[link.heap] = AppAddress(link.start)
                    heap = self._heaps.get(link.heap)
                    if heap is not None:
                        heap.move(AppAddress(link.start))
                lying[chain[0].heap] = [link.heap for link in chain]
            self._chains = lying

    def give_back(self, number: int) -> None:
        """Return to the coordinator what nothing lives in, of a heap that may be closed already."""
        heap = self._heaps.get(number)
        if heap is not None:
            heap.give_back()

    def release(self) -> None:
        """Drop what this process holds of all heaps; the coordinator is told nothing."""
        for heap in list(self._heaps.values()):
            heap.release()
        self._heaps.clear()

    def abandon(self) -> None:
        """Take all heaps away from a forked child."""
        for heap in self._heaps.values():
            heap.abandon()

    def _find(self, token: str, name: str) -> SharedHeap | None:
        with self._lock:
            return next(
                (heap for heap in self._heaps.values() if (heap.capability()[1] == token if token else heap.name == name)), None
            )

    def _add(self, opened: messages.HeapOpened, segment: int, metadata: Sequence[int], *, prefault: bool) -> SharedHeap:
        """Map a heap into this process, or give it up. The descriptors of `metadata` are closed; `segment` stays the caller's."""
        description = opened.heap
        try:
            return self._mapped(opened, segment, metadata, prefault=prefault)
        except BaseException:
            self._connection.begin(lambda number: messages.CloseHeap(request=number, heap=description.heap))
            raise
        finally:
            close_descriptors(metadata)

    def _mapped(self, opened: messages.HeapOpened, segment: int, metadata: Sequence[int], *, prefault: bool) -> SharedHeap:
        description = opened.heap
        mapping = map_anywhere(segment, description.size, writable=not description.read_only, prefault=prefault)
        slot = None
        if description.managed:
            slot = self._allocator.open_heap(description, metadata[0], opened.metadata_size)
        heap = SharedHeap(
            description,
            address=self._address,
            mapping=mapping,
            slot=slot,
            connection=self._connection,
            refusal=self._allocator.refusal,
            reset=self.reset,
            forget=self._forget,
        )
        with self._lock:
            self._heaps[heap.number] = heap
            heap.move(self._starts[heap.number])
        return heap

    def _forget(self, heap: SharedHeap) -> None:
        """Drop a heap that was closed, and how its chain lies if that was the chain's last heap here."""
        with self._opening, self._lock:
            if self._heaps.pop(heap.number, None) is None:
                return  # another thread closes the runtime, which forgets all
            head, chain = next((head, chain) for head, chain in self._chains.items() if heap.number in chain)
            if not any(number in self._heaps for number in chain):
                del self._chains[head]
                for number in chain:
                    del self._starts[number]


def _made_or_closed(make: Callable[[], SharedHeap]) -> SharedHeap:
    """Return the heap that `make` makes. An interrupt leaves none that nobody holds."""
    heap = None
    try:
        with interrupts_put_off():
            heap = make()
    except BaseException:
        if heap is not None:
            heap.close()
        raise
    return heap


def _checked_size(size: int | None, pre_allocated: Source | None, *, read_only: bool) -> int | None:
    if pre_allocated is None and read_only:
        raise errors.ArgumentError(
            "a managed heap cannot be read_only: its allocator's users write to it; attach it read-only instead"
        )
    if size is None:
        if pre_allocated is None:
            raise errors.ArgumentError("a managed heap needs a size")
        return None
    number = checks.whole_number(size, "a heap's size in bytes", low=1, high=MAXIMUM_CHAIN_SIZE)
    if pre_allocated is not None and number % OS_PAGE:
        raise errors.ArgumentError(
            f"a preallocated heap of {number} bytes: its size must be a multiple of the OS page, {OS_PAGE} bytes"
        )
    return number


def _check_segment(segment: Segment, wanted: int, pre_allocated: Source | None) -> None:
    available = round_up(segment.size, OS_PAGE)
    if wanted > available:
        raise errors.ArgumentError(
            f"a preallocated heap of {wanted} bytes in {pre_allocated!r}, which has only {segment.size} bytes"
        )
    if wanted > MAXIMUM_CHAIN_SIZE:
        raise errors.ArgumentError(
            f"{pre_allocated!r} has {segment.size} bytes; a heap has at most {MAXIMUM_CHAIN_SIZE}: pass a size"
        )
