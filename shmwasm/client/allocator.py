"""The client's own engine: it compiles modules, and runs this process's instance of the allocator's core.

Both are made at their first use: the core knows the managed heaps and the call rings of instances.

The coordinator's answer to a refused lease says why; it is kept for each heap, as the error that follows must tell the user.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, WeakValueDictionary

import wasmtime

from shmwasm import errors
from shmwasm.addresses import AppAddress
from shmwasm.core import CORE_MODULE, Core, HeapSlot, dispatching
from shmwasm.engine.cache import Cache
from shmwasm.engine.compiling import CompiledModule, compile_companion, compile_module
from shmwasm.engine.config import new_engine
from shmwasm.engine.modules import Source, deserialize
from shmwasm.engine.nests import new_store
from shmwasm.posix.conditions import Lock
from shmwasm.protocol import messages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shmwasm.client.connection import Connection
    from shmwasm.client.heaps import SharedHeap


@dataclass(slots=True, weakref_slot=True)
class _Heap:
    """An open heap's number, and why its last lease was refused."""

    number: int
    largest_free: int = 0
    quota: int = 0


class ClientAllocator:
    """The engine and the core of one runtime.

    Args:
        peer: The client's number, which is the owner number of its slabs.
        connection: Where leases come from.
    """

    def __init__(self, peer: int, connection: Connection) -> None:
        self._peer = peer
        self._connection = connection
        self._lock = Lock()
        self._engine: wasmtime.Engine | None = None
        self._cache = Cache.default()
        self._core: Core | None = None
        self._heaps: WeakKeyDictionary[HeapSlot, _Heap] = WeakKeyDictionary()
        self._numbers: WeakValueDictionary[int, _Heap] = WeakValueDictionary()

    def compile(self, source: Source, *, metered: bool = False) -> CompiledModule:
        """Compile a module, or take it from the cache; raises what `compile_module` raises."""
        return compile_module(source, self._cache, engine=self._require_engine(), metered=metered)

    def compile_dispatcher(self, module: CompiledModule) -> CompiledModule:
        """Compile what runs the calls of a module's instances, or take it from the cache."""
        return compile_companion(
            module,
            dispatching.purpose(),
            lambda: dispatching.dispatcher_text(module.functions, metered=module.metered),
            self._cache,
            engine=self._require_engine(),
        )

    def open_heap(self, description: messages.HeapDescription, metadata: int, metadata_size: int) -> HeapSlot:
        """Open a managed heap in this process's core; the descriptor stays the caller's."""
        slot = self.core().open_heap(metadata, metadata_size, start=AppAddress(description.start), name=description.name)
        self._heaps[slot] = self._numbers.setdefault(description.heap, _Heap(description.heap))
        return slot

    def refusal(self, heap: SharedHeap, requested: int) -> errors.HeapError:
        """Return the error that says why `requested` bytes could not be had."""
        last = self._numbers.get(heap.number, _Heap(heap.number))
        if last.quota:
            return errors.QuotaExceededError(heap.name, requested, last.largest_free, last.quota)
        return errors.HeapExhaustedError(heap.name, requested, last.largest_free)

    def abandon(self, reason: str) -> None:
        """Make every slot of the core raise, in a forked child: it holds a copy of the parent's private state."""
        if self._core is not None:
            self._core.disown(reason)

    def close(self) -> None:
        """Let go of the core, once all heaps are closed."""
        with self._lock:
            self._core = self._engine = None

    def lease(self, slot: HeapSlot, size_class: int, slabs: int) -> Sequence[messages.SlabRange]:
        """Ask the coordinator for slabs; none means refused."""
        heap = self._heaps[slot]
        leased = self._connection.request(
            messages.Leased, lambda request: messages.Lease(request=request, heap=heap.number, size_class=size_class, slabs=slabs)
        )[0]
        heap.largest_free, heap.quota = leased.largest_free, leased.quota
        return leased.ranges

    def release(self, slot: HeapSlot, ranges: Sequence[messages.SlabRange]) -> None:
        """Give slabs back."""
        self._connection.send(messages.Release(heap=self._heaps[slot].number, ranges=list(ranges)))

    def refuse(self, address: int, reason: str) -> None:
        """Never called: only a guest's free is refused in the core."""
        raise AssertionError(f"the client's core has no guest, yet refused {address:#x}: {reason}")

    def scrub(self, address: int, size: int) -> None:
        """Never called: `SharedHeap.free` scrubs before it frees."""
        raise AssertionError(f"the client's core has no guest, yet scrubs {size} bytes at {address:#x}")

    def wake(self, slot: int) -> None:
        """Never called: calls end in the worker's core."""
        raise AssertionError(f"the client's core ends no call, yet wakes who waits at {slot:#x}")

    def absorb(self) -> None:
        """Never called, likewise."""
        raise AssertionError("the client's core ends no call, yet waits for a tick")

    def _require_engine(self) -> wasmtime.Engine:
        with self._lock:
            if self._engine is None:
                self._engine = new_engine(parallel_compilation=True)
            return self._engine

    def core(self) -> Core:
        """Return this process's core."""
        engine = self._require_engine()
        with self._lock:
            if self._core is None:
                with compile_module(CORE_MODULE, self._cache, engine=engine, own=True) as compiled:
                    module = deserialize(engine, compiled.descriptor)
                self._core = Core(new_store(engine), module, owner=self._peer, hooks=self, new_lock=Lock)
            return self._core
