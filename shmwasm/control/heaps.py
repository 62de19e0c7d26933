"""The registry of shared heaps: names, tokens, who has which open, and how they are chained.

Theory
------
A chain is a doubly linked list: `body` leads to the heap directly above, `below` back. A heap alone is a chain of one. The heaps
of one chain live and die together: an instance that is attached to the chain can reach all of them. They live while a client has
one of them open or an instance is attached.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

from shmwasm import errors
from shmwasm.addresses import MAXIMUM_CHAIN_SIZE, OS_PAGE, SLAB_SIZE, chain_starts
from shmwasm.control.actions import HeapDescriptor, MetadataDescriptor, SegmentDescriptor
from shmwasm.control.slabs import SlabMap
from shmwasm.protocol.messages import ChainLink, Grant, HeapDescription

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from shmwasm.protocol.messages import CreateHeap

MAXIMUM_CHAIN_DESCRIPTORS = 248
"""A chain's descriptors travel with one message: a message's most are 252, and `Fork` has four of its own."""


@dataclass(eq=False, slots=True)
class Heap:
    """One shared heap.

    `opened` counts each client's handles. `attached` has the workers that are attached, may be or may still be.
    `adopted_classes` are the size classes of which an adopted slab may have a free block. `batches` has, for each peer by size
    class, how many slabs the next lease brings.
    """

    number: int
    name: str
    token: str
    size: int
    managed: bool
    read_only: bool
    scrub: bool
    owner_frees_only: bool
    free_on_death: bool
    prefault: bool
    slabs: SlabMap
    metadata_size: int = 0
    body: Heap | None = None
    below: Heap | None = None
    opened: dict[int, int] = field(default_factory=dict)
    attached: set[int] = field(default_factory=set)
    adopted_classes: set[int] = field(default_factory=set)
    batches: dict[int, dict[int, int]] = field(default_factory=dict)

    def upwards(self) -> Iterator[Heap]:
        """Yield this heap and its bodies, in order."""
        heap: Heap | None = self
        while heap is not None:
            yield heap
            heap = heap.body

    def chain(self) -> list[Heap]:
        """Return the whole chain that the heap is in, from its head on."""
        head = self
        while head.below is not None:
            head = head.below
        return list(head.upwards())

    def describe(self) -> HeapDescription:
        """Return the heap as its users know it."""
        return HeapDescription(
            heap=self.number,
            name=self.name,
            token=self.token,
            size=self.size,
            start=next(link.start for link in links(self.chain()) if link.heap == self.number),
            managed=self.managed,
            read_only=self.read_only,
            scrub=self.scrub,
        )


def links(chain: list[Heap]) -> list[ChainLink]:
    """Return where each heap of a whole chain lies."""
    return [ChainLink(heap.number, start) for heap, start in zip(chain, chain_starts([heap.size for heap in chain]), strict=True)]


def grants(chain: list[Heap], *, read_only: bool) -> tuple[tuple[Grant, ...], tuple[HeapDescriptor, ...]]:
    """Return the grants of a whole chain, and their descriptors.

    A heap that nobody may write is granted for reading alone, also beside heaps that are granted for writing.
    """
    granted: list[Grant] = []
    descriptors: list[HeapDescriptor] = []
    for heap, link in zip(chain, links(chain), strict=True):
        writable = not (read_only or heap.read_only)
        managed = heap.managed and writable
        descriptors.append(SegmentDescriptor(heap.number, read_only=not writable))
        if managed:
            descriptors.append(MetadataDescriptor(heap.number))
        granted.append(
            Grant(
                heap=heap.number,
                name=heap.name,
                start=link.start,
                size=heap.size,
                writable=writable,
                managed=managed,
                metadata_size=heap.metadata_size if managed else 0,
                scrub=heap.scrub,
                prefault=heap.prefault,
            )
        )
    return tuple(granted), tuple(descriptors)


def _check_size(message: CreateHeap) -> None:
    unit = SLAB_SIZE if message.managed else OS_PAGE
    if message.size <= 0 or message.size % unit:
        raise errors.ArgumentError(f"shared heap {message.name!r}: size {message.size} is not a positive multiple of {unit}")
    if message.size > MAXIMUM_CHAIN_SIZE:
        raise errors.ArgumentError(
            f"shared heap {message.name!r}: size {message.size} exceeds the window's {MAXIMUM_CHAIN_SIZE} bytes"
        )
    if message.managed and message.read_only:
        raise errors.ArgumentError(f"shared heap {message.name!r}: a managed heap cannot be read-only")


class HeapRegistry:
    """All heaps. A refusal raises and changes nothing."""

    def __init__(self) -> None:
        self.heaps: dict[int, Heap] = {}
        self._by_token: dict[str, Heap] = {}
        self._by_name: dict[str, Heap] = {}
        self._next = 1

    def __iter__(self) -> Iterator[Heap]:
        """Yield every heap that is in use."""
        return iter(list(self.heaps.values()))

    def prepare(self, message: CreateHeap, token: str) -> Heap:
        """Return a heap that takes its name, but is not in use until `add`.

        Raises:
            ArgumentError: The size cannot be, or the name is taken.
        """
        _check_size(message)
        name = message.name or next(name for number in count(self._next) if (name := f"heap-{number}") not in self._by_name)
        if name in self._by_name:
            raise errors.ArgumentError(f"a shared heap named {name!r} exists already")
        heap = Heap(
            number=self._next,
            name=name,
            token=token,
            size=message.size,
            managed=message.managed,
            read_only=message.read_only,
            scrub=message.scrub,
            owner_frees_only=message.owner_frees_only,
            free_on_death=message.free_on_death,
            prefault=message.prefault,
            slabs=SlabMap(message.size // SLAB_SIZE if message.managed else 0),
        )
        self._next += 1
        self._by_name[name] = heap
        return heap

    def add(self, heap: Heap) -> None:
        """Put a prepared heap in use."""
        self.heaps[heap.number] = heap
        self._by_token[heap.token] = heap

    def discard(self, heap: Heap) -> None:
        """Forget a heap, in use or only prepared."""
        self.heaps.pop(heap.number, None)
        self._by_token.pop(heap.token, None)
        self._by_name.pop(heap.name, None)

    def find(self, *, token: str, name: str) -> Heap:
        """Return the heap of that token or, if it is empty, of that name.

        Raises:
            UnknownHeapError: There is none.
        """
        heap = self._by_token.get(token) if token else self._by_name.get(name)
        if heap is None or heap.number not in self.heaps:
            raise errors.UnknownHeapError("" if token else name)
        return heap

    def opened(self, number: int, client: int) -> Heap:
        """Return the heap of that number if the client has it open: a number is no capability.

        Raises:
            UnknownHeapError: The client has no such heap.
        """
        heap = self.heaps.get(number)
        if heap is None or client not in heap.opened:
            raise errors.UnknownHeapError(f"number {number}")
        return heap

    def put_below(self, head: Heap, body: Heap) -> list[list[Heap]]:
        """Put `head` directly below the chain that `body` heads; return the chains of which any heap moved.

        Raises:
            ChainError: It is refused.
        """
        if head is body:
            raise errors.ChainError(head.name, "it cannot be chained to itself")
        if head.below is not None:
            raise errors.ChainError(head.name, "it is already a body in a chain")
        if head.body is not None:
            raise errors.ChainError(head.name, "it already heads a chain")
        if body.below is not None:
            raise errors.ChainError(body.name, "it is already a body in a chain")
        self.check_detached([head, *body.upwards()])
        total = head.size + sum(heap.size for heap in body.upwards())
        if total > MAXIMUM_CHAIN_SIZE:
            raise errors.ChainError(head.name, f"the chain would have {total} bytes, more than {MAXIMUM_CHAIN_SIZE}")
        if sum(1 + heap.managed for heap in (head, *body.upwards())) > MAXIMUM_CHAIN_DESCRIPTORS:
            raise errors.ChainError(head.name, "the chain would have too many heaps to be granted by one message")
        head.body, body.below = body, head
        return [head.chain()]

    def take_apart(self, head: Heap, *, entire_chain: bool) -> tuple[Heap, list[list[Heap]]]:
        """Take the first heap off the chain, or all apart; return the rest's head or the last heap, and the resulting chains.

        Raises:
            ChainError: It is refused.
        """
        chain = self.check_head(head)
        if head.body is None:
            raise errors.ChainError(head.name, "it heads no chain")
        self.check_detached(chain)
        for heap in chain if entire_chain else [head]:
            if heap.body is not None:
                heap.body.below = None
                heap.body = None
        if entire_chain:
            return chain[-1], [[heap] for heap in chain]
        return chain[1], [[head], chain[1:]]

    @staticmethod
    def check_head(head: Heap) -> list[Heap]:
        """Return the chain that the heap heads.

        Raises:
            ChainError: It is a body.
        """
        if head.below is not None:
            raise errors.ChainError(head.name, "it is a body, not the head of its chain")
        return list(head.upwards())

    @staticmethod
    def check_detached(heaps: Iterable[Heap]) -> None:
        """Check that no instance is attached to any of the heaps.

        Raises:
            ChainError: One is.
        """
        for heap in heaps:
            if heap.attached:
                raise errors.ChainError(heap.name, f"it is attached to {len(heap.attached)} instances")

    def verify(self) -> None:
        """Check that names, tokens, chains and slab maps are consistent.

        Raises:
            HeapCorruptError: They are not.
        """
        for heap in self:
            heap.slabs.verify(heap.name)
            if self._by_token.get(heap.token) is not heap or self._by_name.get(heap.name) is not heap:
                raise errors.HeapCorruptError(heap.name, "a heap is found by its token and its name", 0)
            if heap.body is not None and heap.body.below is not heap:
                raise errors.HeapCorruptError(heap.name, "a body knows the heap below it", 0)
            chain = heap.chain()
            if sum(member.size for member in chain) > MAXIMUM_CHAIN_SIZE:
                raise errors.HeapCorruptError(heap.name, "a chain fits into the window", 0)
            if not any(member.opened or member.attached for member in chain):
                raise errors.HeapCorruptError(heap.name, "somebody can reach a heap", 0)
