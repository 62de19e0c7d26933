"""The chain that is mapped into the worker's instance, and the core's way to ask for slabs of it."""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn, Protocol

from shmwasm.addresses import WINDOW_END, AppAddress, unsigned32
from shmwasm.core.allocator import Core
from shmwasm.core.worker_ring import WorkerRing
from shmwasm.engine.callbacks import new_host_function
from shmwasm.engine.callers import Region
from shmwasm.engine.heap_memory import check_memories
from shmwasm.engine.modules import FunctionType
from shmwasm.engine.windows import Grant
from shmwasm.errors import AttachError, InvalidFreeError
from shmwasm.posix.mappings import Mapping, map_anywhere
from shmwasm.protocol import messages

if TYPE_CHECKING:
    import wasmtime

    from shmwasm.core.heap_slots import HeapSlot
    from shmwasm.engine.modules import ImportName, ModuleDescription
    from shmwasm.engine.windows import Window
    from shmwasm.worker.links import ControlLink


@dataclass
class _MappedHeap:
    """A granted heap. `segment` is a descriptor of its own; `slot` is the core's view of it, if it is managed."""

    grant: messages.Grant
    segment: int
    slot: HeapSlot | None = None
    mapping: Mapping | None = field(default=None)

    def region(self) -> Region:
        """Return the heap for host functions, where a 32-bit guest sees it.

        It is a mapping apart from the window, so that a view outlives a detach without harm.
        """
        if self.mapping is None:
            self.mapping = map_anywhere(self.segment, self.grant.size, writable=self.grant.writable)
        return Region(AppAddress(self.grant.start), self.mapping.view)


class Bells(Protocol):
    """What the core rings when a call ends (see `CoreHooks`)."""

    def wake(self, slot: int) -> None:
        """Wake who waits for the call in a slot, or for any."""

    def absorb(self) -> None:
        """Wait for a tick that is due, and make it harmless."""


class Attachment:
    """What the instance is attached to. It is the hooks of the worker's core, too.

    It is made by the launcher, as making a core takes longer than all the rest of a worker's start; a fork copies it with its
    store.

    Args:
        store: The store of the instance to come, with no limit on its memories yet.
        core: The compiled core.
    """

    def __init__(self, store: wasmtime.Store, core: wasmtime.Module) -> None:
        self._core = Core(store, core, owner=messages.NOBODY, hooks=self)
        self._control: ControlLink | None = None
        self._window: Window | None = None
        self._description: ModuleDescription | None = None
        self._heaps: list[_MappedHeap] = []
        self.changes = 0
        """How often something was attached or detached."""
        self._bells: Bells | None = None
        self.natives: dict[ImportName, wasmtime.Func]
        """What a guest in the same store may import natively."""
        self.natives = {("env", name): function for name, function in self._core.guest_functions.items()}
        self.natives["env", "shared_heap_peer_alive"] = _peer_alive_function(store, weakref.ref(self))
        self.natives_64: dict[ImportName, wasmtime.Func]
        """What a 64-bit guest gets instead under the same names."""
        self.natives_64 = {("env", name): function for name, function in self._core.guest_functions_64.items()}

    def belong_to(self, owner: int, control: ControlLink) -> None:
        """Lease slabs for the worker `owner` through `control` from now on."""
        self._core.own(owner)
        self._control = control

    def use(self, window: Window | None, description: ModuleDescription) -> None:
        """Map chains into `window`, of an instance of the module described; None if it has no memory to map them into."""
        self._window = window
        self._description = description

    @property
    def start(self) -> int:
        """The 32-bit app address where the chain starts, below which linear memory stays; the window's end if there is none."""
        return min((heap.grant.start for heap in self._heaps), default=WINDOW_END)

    def leave(self) -> None:
        """Unmap the chain, if there is one, and let the guest to come allocate nothing before `move`: this one is done with."""
        if self._heaps:
            self._core.set_chain([])
            if self._window is not None:
                self._window.detach()

    def move(self, window: Window | None) -> None:
        """Map the chain, if there is one, into the window of another guest of the same module; `leave` came before.

        Raises:
            AttachError: The guest's memory reaches the chain. Nothing is mapped, and nothing can be allocated.
            UnsupportedError: The kernel has no room. Likewise.
        """
        self._window = window
        if self._heaps:
            assert window is not None
            window.attach([_native(heap.grant, heap.segment) for heap in self._heaps])
            self._use_heaps()

    def open_ring(self, segment: int, bells: Bells) -> WorkerRing:
        """Return the client's call ring whose segment that is; the core rings `bells` for it from now on.

        Raises:
            ProtocolError: It is none.
        """
        self._bells = bells
        return WorkerRing(self._core, segment)

    def attach(self, grants: Sequence[messages.Grant], descriptors: Sequence[int]) -> None:
        """Map a chain and let the guest allocate from its managed heaps. The descriptors are taken over.

        Raises:
            AttachError: The instance cannot be attached to this chain. Nothing changed.
            UnsupportedError: The kernel or the core has no room, or the instance's memory can take no chain. Nothing is attached.
        """
        try:
            self._check(grants)
            assert self._window is not None
            segments, metadata = _sorted_out(grants, descriptors)
            self._window.attach([_native(grant, segment) for grant, segment in zip(grants, segments, strict=True)])
            try:
                with self._window.unlimited():  # the core's memory may have to grow
                    for grant, segment, managed in zip(grants, segments, metadata, strict=True):
                        slot = None if managed is None else self._open(grant, managed)
                        self._heaps.append(_MappedHeap(grant, os.dup(segment), slot))
            except BaseException:
                self.detach()
                raise
            self.changes += 1
            self._use_heaps()
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def detach(self) -> None:
        """Give back the slabs in which nothing lives, and unmap the chain, if there is one."""
        self.changes += 1
        self._core.set_chain([])
        for heap in self._heaps:
            if heap.slot is not None:
                self._trim(heap.slot, heap.grant.heap)
                heap.slot.close()
            if heap.mapping is not None:
                heap.mapping.close()
            os.close(heap.segment)
        self._heaps.clear()
        if self._window is not None:
            self._window.detach()

    def recall(self, number: int) -> None:
        """Give back the slabs of the heap `number` in which nothing lives."""
        for heap in self._heaps:
            if heap.grant.heap == number and heap.slot is not None:
                self._trim(heap.slot, number)

    def regions(self) -> list[Region]:
        """Return the heaps as host functions see them."""
        return [heap.region()._replace(start=self._guest_start(heap)) for heap in self._heaps]

    def is_alive(self, peer: int) -> bool:
        """Return whether a peer, this one or another, may still touch heaps."""
        assert self._control is not None
        return peer == self._core.owner or self._control.is_alive(peer)

    # ------------------------------------------------------------ the core's hooks

    def lease(self, slot: HeapSlot, size_class: int, slabs: int) -> Sequence[messages.SlabRange]:
        """Lease slabs from the coordinator (see `CoreHooks`)."""
        assert self._control is not None
        return self._control.lease(self._number(slot), size_class, slabs)

    def release(self, slot: HeapSlot, ranges: list[messages.SlabRange]) -> None:
        """Give slabs back to the coordinator (see `CoreHooks`)."""
        self._give_back(self._number(slot), ranges)

    def refuse(self, address: AppAddress, reason: str) -> NoReturn:
        """End the guest's call, which freed what is no live block (see `CoreHooks`)."""
        inside = [heap for heap in self._heaps if 0 <= address - self._guest_start(heap) < heap.grant.size]
        name = next((heap.grant.name for heap in inside + self._heaps), "(none)")
        raise InvalidFreeError(name, address, reason)

    def scrub(self, address: AppAddress, size: int) -> None:
        """Clear a block that the guest frees, through the guest's own mapping (see `CoreHooks`)."""
        assert self._window is not None
        ctypes.memset(self._window.native_address(address), 0, size)

    def wake(self, slot: int) -> None:
        """Wake who waits for a call (see `CoreHooks`)."""
        assert self._bells is not None
        self._bells.wake(slot)

    def absorb(self) -> None:
        """Wait for a tick that is due (see `CoreHooks`)."""
        assert self._bells is not None
        self._bells.absorb()

    # ------------------------------------------------------------

    def _check(self, grants: Sequence[messages.Grant]) -> None:
        if self._window is None:
            heap = grants[0].name if grants else ""
            if self._description is not None:
                check_memories(self._description, WINDOW_END, heap=heap)
            raise AttachError(heap, "the instance's module has no memory to map it into")

    def _use_heaps(self) -> None:
        """Let the guest allocate from the managed heaps."""
        self._core.set_chain([heap.slot for heap in self._heaps if heap.slot is not None])

    def _open(self, grant: messages.Grant, metadata: int) -> HeapSlot:
        return self._core.open_heap(metadata, grant.metadata_size, start=AppAddress(grant.start), name=grant.name)

    def _guest_start(self, heap: _MappedHeap) -> AppAddress:
        assert self._window is not None
        return self._window.guest_address(AppAddress(heap.grant.start))

    def _number(self, slot: HeapSlot) -> int:
        return next(heap.grant.heap for heap in self._heaps if heap.slot is slot)

    def _trim(self, slot: HeapSlot, number: int) -> None:
        ranges = slot.trim()
        if ranges:
            self._give_back(number, ranges)

    def _give_back(self, number: int, ranges: list[messages.SlabRange]) -> None:
        assert self._control is not None
        self._control.send(messages.Release(heap=number, ranges=ranges))


def _peer_alive_function(store: wasmtime.Store, reference: weakref.ref[Attachment]) -> wasmtime.Func:
    """Return `env.shared_heap_peer_alive`. The store keeps it, so it must not keep the attachment, which keeps the store."""

    def peer_alive(peer: int) -> int:
        attachment = reference()
        assert attachment is not None, "a guest runs in a store whose attachment is gone"
        return int(attachment.is_alive(unsigned32(peer)))

    return new_host_function(store, "env.shared_heap_peer_alive", FunctionType(("i32",), ("i32",)), peer_alive)


def _sorted_out(grants: Sequence[messages.Grant], descriptors: Sequence[int]) -> tuple[list[int], list[int | None]]:
    """Return each grant's segment, and each grant's metadata segment if it is managed."""
    rest = iter(descriptors)
    segments: list[int] = []
    metadata: list[int | None] = []
    for grant in grants:
        segments.append(next(rest))
        metadata.append(next(rest) if grant.managed else None)
    return segments, metadata


def _native(grant: messages.Grant, segment: int) -> Grant:
    return Grant(
        heap=grant.name,
        start=AppAddress(grant.start),
        size=grant.size,
        descriptor=segment,
        writable=grant.writable,
        prefault=grant.prefault,
    )
