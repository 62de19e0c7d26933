"""The core as Python uses it: one instance of core.wasm a process, and the heaps that it has opened.

Theory
------
The core decides about blocks; it never talks to the coordinator. When it needs slabs it says so, and the host is asked
(`CoreHooks`), and the core is handed what it gave. For a guest that happens inside the guest's malloc, in an import of the core;
for Python it happens between two calls of the core (see `heap_slots`), as a callback from inside could let another thread enter
the same store.

Locking
-------
A single call of the core is atomic (see `calls`). What takes several, or reads the exchange buffer, holds the core's lock. The
lock is never held while a hook runs. What allocates or frees on top of a lock takes none (see `reentry`).
"""

from __future__ import annotations

import ctypes
import weakref
from _thread import RLock  # the launcher does without `threading` (see there)
from typing import TYPE_CHECKING, Final, Protocol

import wasmtime

from shmwasm.addresses import AppAddress, NativeAddress, round_up, unsigned32
from shmwasm.core import layout
from shmwasm.core.calls import CoreFunction, Lock
from shmwasm.core.dispatching import CORE_IMPORTS
from shmwasm.core.heap_slots import REASONS, RUN, HeapSlot, merged, pairs_of
from shmwasm.errors import ArgumentError, ClosedError, UnsupportedError
from shmwasm.posix.mappings import map_fixed, unmap_fixed
from shmwasm.posix.signals import interrupts_put_off

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shmwasm.protocol.messages import SlabRange

GUEST_FUNCTIONS: Final = ("shared_heap_malloc", "shared_heap_free", "shared_heap_self")
"""What the core provides to guests."""

GUEST_FUNCTIONS_64: Final = ("shared_heap_malloc", "shared_heap_free")
"""Those of them that take or return addresses, and so have a second form for 64-bit guests."""


class CoreHooks(Protocol):
    """What the core asks its process for. A hook must not call the core, but for `HeapSlot.number` and `name`."""

    def lease(self, slot: HeapSlot, size_class: int, slabs: int) -> Sequence[SlabRange]:
        """Lease at least `slabs` slabs for a size class, or one run of exactly `slabs` slabs for `RUN`; nothing if refused."""

    def release(self, slot: HeapSlot, ranges: list[SlabRange]) -> None:
        """Give slabs in which nothing lives back to the coordinator."""

    def refuse(self, address: AppAddress, reason: str) -> None:
        """Raise: a guest freed what is no live block, at an address as the guest has it: of 64 bits if it is a 64-bit guest.

        What is raised ends the guest's call.
        """

    def scrub(self, address: AppAddress, size: int) -> None:
        """Clear a guest's block that is about to be freed."""

    def wake(self, slot: int) -> None:
        """Wake whoever sleeps on the state of the call slot at that address of the core's memory, or, for 0, the receiver."""

    def absorb(self) -> None:
        """Wait for the tick that was meant for the call that has just ended, and make it harmless.

        A client that died may have sent none: then the process is to end.
        """


class Core:
    """One instance of the core in a store, for the process that has the number `owner`.

    Args:
        store: Where it lives. A limit on the store's memories, if any, must let it have 4 MiB, which do for 20 open heaps, and
            192 KiB for each more. The deadline of its epoch must lie ahead whenever the core is used.
        module: The compiled core.wasm.
        owner: This process's number, at least `layout.OWNER_COORDINATOR`.
        hooks: Where leases come from.
        new_lock: Makes a lock that its holder may take again.
    """

    def __init__(
        self,
        store: wasmtime.Store,
        module: wasmtime.Module,
        *,
        owner: int,
        hooks: CoreHooks,
        new_lock: Callable[[], Lock] = RLock,
    ) -> None:
        self.hooks = hooks
        self._new_lock = new_lock
        self.lock = new_lock()
        self._store = store
        self.requests: dict[int, list[int]] = {}
        """Call requests that no ring uses at present, by how many cells they have; see `rings`."""
        self._slots: dict[int, HeapSlot] = {}
        self._windows: dict[int, int] = {}
        self._closed: str | None = None
        exports = wasmtime.Instance(store, module, _imports(store, module, weakref.ref(self))).exports(store)
        functions = {name: item for name, item in exports.items() if isinstance(item, wasmtime.Func) and name is not None}
        self._functions = {name: CoreFunction(store, item, self.lock) for name, item in functions.items()}
        self.guest_functions: dict[str, wasmtime.Func] = {name: functions[name] for name in GUEST_FUNCTIONS}
        """To be linked as imports of guests in the same store, by name."""
        self.guest_functions_64: dict[str, wasmtime.Func] = {name: functions[f"{name}_64"] for name in GUEST_FUNCTIONS_64}
        """What 64-bit guests get instead under the same names."""
        memory = exports["memory"]
        assert isinstance(memory, wasmtime.Memory)
        self.ring_exports: dict[str, wasmtime.Func | wasmtime.Memory] = {
            name: memory if name == "memory" else functions[name] for name in CORE_IMPORTS
        }
        """What a dispatcher in the same store imports, by name and in its order."""
        self._base = ctypes.cast(memory.data_ptr(store), ctypes.c_void_p).value or 0
        # One view of all that there ever can be: ctypes makes a new type for each length, which only the garbage collector takes.
        self._memory = memoryview((ctypes.c_char * layout.WINDOW_END).from_address(self._base)).cast("B")
        self.call("initialize")
        self.own(owner)
        words = ctypes.c_uint32 * (layout.EXCHANGE_SIZE // 4)
        self.exchange = memoryview(words.from_address(self._base + self.call("exchange_address"))).cast("B").cast("I")

    @property
    def owner(self) -> int:
        """This process's number, under which heaps are opened, and which guests are told."""
        return self._owner

    def own(self, owner: int) -> None:
        """Be the process of that number from now on; no heap may be open."""
        self._owner = owner
        self.call("set_self", owner)

    def call(self, name: str, *arguments: int) -> int:
        """Call an export of the core.

        Raises:
            ClosedError: This process may not use the core: see `disown`.
            HeapCorruptError: The core trapped.
        """
        if self._closed is not None:
            raise ClosedError("the allocator", self._closed)
        return self._functions[name](*arguments)

    def function(self, name: str) -> CoreFunction:
        """Return an export of the core, for callers that prepare their arguments."""
        return self._functions[name]

    def open_heap(self, metadata: int, metadata_size: int, *, start: AppAddress, name: str = "") -> HeapSlot:
        """Open a managed heap by its metadata segment's descriptor, which may be closed afterwards.

        Args:
            metadata: Descriptor of the segment, open for writing.
            metadata_size: Its size in bytes.
            start: App address of the heap's first byte.
            name: The heap's name, for errors.

        Raises:
            UnsupportedError: More heaps are open than the core has room for, or the segment has another layout.
            ArgumentError: The descriptor cannot be mapped.
        """
        with interrupts_put_off(), self.lock:
            window = self.map_segment(metadata, metadata_size)
            number = next((slot for slot in range(layout.MAXIMUM_SLOTS) if slot not in self._slots), layout.MAXIMUM_SLOTS)
            status = self.call("heap_open", number, window, start, self.owner)
            if status != layout.STATUS_OK:
                self.unmap_segment(window)
                raise UnsupportedError(f"opening shared heap {name!r}", _opening_failed(status))
            slot = self._slots[number] = HeapSlot(self, number, window=window, start=start, name=name)
            return slot

    def set_chain(self, slots: Sequence[HeapSlot]) -> None:
        """Make guests allocate from these heaps, tried in this order."""
        with self.lock:
            for index, slot in enumerate(slots):
                self.exchange[index] = slot.number
            status = self.call("chain_set", len(slots))
        if status != layout.STATUS_OK:
            raise ArgumentError(f"a chain of {len(slots)} heaps, one of them closed, cannot be allocated from")

    def disown(self, reason: str = "was inherited by a forked child, which may not use it") -> None:
        """Make every use of this core and its heaps raise `ClosedError`; for a forked child, whose parent still uses them."""
        self._closed = reason
        self.lock = self._new_lock()  # another thread may have held it at the fork
        for slot in self._slots.values():
            slot.disown(reason)

    def slot(self, number: int) -> HeapSlot:
        """Return the open heap with that slot number."""
        return self._slots[number]

    def forget(self, slot: HeapSlot) -> None:
        """Drop a heap that was closed."""
        del self._slots[slot.number]
        self.unmap_segment(slot.window)

    def map_segment(self, descriptor: int, size: int) -> int:
        """Map a segment (metadata, or a call ring) into the core's memory; return its address there. Safe from any thread."""
        length = round_up(size, layout.SECTION_ALIGNMENT)
        with interrupts_put_off(), self.lock:
            start = layout.WINDOW_START
            for taken, end in sorted(self._windows.items()):
                if taken - start >= length:
                    break
                start = end
            if start + length > layout.WINDOW_END:
                raise UnsupportedError("one more heap or instance", f"the allocator has no room to map its {size} bytes")
            map_fixed(NativeAddress(self._base + start), length, descriptor, writable=True)
            self._windows[start] = start + length
        return start

    def unmap_segment(self, window: int) -> None:
        """Undo `map_segment`. Until it is done, nothing else is mapped there."""
        with interrupts_put_off(), self.lock:
            end = self._windows[window]
            unmap_fixed(NativeAddress(self._base + window), end - window)
            del self._windows[window]

    def native_address(self, place: int) -> NativeAddress:
        """Return where this process has what lies at `place` in the core's memory."""
        return NativeAddress(self._base + place)

    def view(self, place: int, size: int) -> memoryview:
        """Return `size` bytes of the core's memory; they must not be touched once they were unmapped, or the store is gone."""
        return self._memory[place : place + size]


def _opening_failed(status: int) -> str:
    if status == layout.STATUS_BAD_HEADER:
        return f"its metadata has another layout than version {layout.LAYOUT_VERSION}"
    if status == layout.STATUS_NO_MEMORY:
        return "the allocator's own memory cannot grow"
    return f"{layout.MAXIMUM_SLOTS} heaps are open already"


def _imports(store: wasmtime.Store, module: wasmtime.Module, reference: weakref.ref[Core]) -> list[wasmtime.Func]:
    """Return what the core imports. The store keeps these functions, so they must not keep the core, which keeps the store."""

    def core() -> Core:
        found = reference()
        assert found is not None, "a guest runs in a store whose core is gone"
        return found

    def lease(number: int, size_class: int, slabs: int) -> int:
        here = core()
        wanted = RUN if size_class == layout.CLASS_LARGE else size_class
        granted = here.hooks.lease(here.slot(number), wanted, slabs)
        for index, grant in enumerate(granted):
            here.exchange[3 * index] = grant.first
            here.exchange[3 * index + 1] = grant.count
            here.exchange[3 * index + 2] = int(grant.adopted)
        return len(granted)

    def release(number: int, pairs: int) -> None:
        here = core()
        here.hooks.release(here.slot(number), merged(pairs_of(here.exchange, pairs)))

    def refuse(address: int, reason: int) -> None:
        core().hooks.refuse(AppAddress(address & 0xFFFF_FFFF_FFFF_FFFF), REASONS[reason])

    def scrub(address: int, size: int) -> None:
        core().hooks.scrub(AppAddress(unsigned32(address)), unsigned32(size))

    def wake(slot: int) -> None:
        core().hooks.wake(unsigned32(slot))

    def absorb() -> None:
        core().hooks.absorb()

    functions: dict[str, Callable[..., int | None]] = {
        "lease": lease,
        "release": release,
        "refuse": refuse,
        "scrub": scrub,
        "ring_wake": wake,
        "ring_absorb": absorb,
    }
    found: list[wasmtime.Func] = []
    for wanted in module.imports:
        assert isinstance(wanted.type, wasmtime.FuncType)
        assert wanted.name is not None
        found.append(wasmtime.Func(store, wanted.type, functions[wanted.name]))
    return found
