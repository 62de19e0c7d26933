"""The core as Python uses it: one instance of core.wasm a process, and the heaps that it has opened.

Theory
------
The core decides about blocks; it never talks to the coordinator. When it needs slabs it says so, and this module asks the host
(`CoreHooks`) and hands it what it got. For a guest that happens inside the guest's malloc, in an import of the core; for Python
it happens between two calls of the core, as a callback from inside could let another thread enter the same store.

Locking
-------
A single call of the core is atomic (see `calls`). What takes several, or reads the exchange buffer, holds the core's lock. The
lock is never held while a hook runs. What allocates or frees on top of a lock takes none (see `reentry`).
"""

from __future__ import annotations

import ctypes
import operator
import weakref
from _thread import RLock  # the launcher does without `threading` (see there)
from functools import cached_property, partial
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn, Protocol

import wasmtime

from shmwasm.addresses import AppAddress, NativeAddress, address32, round_up, unsigned32
from shmwasm.core import layout
from shmwasm.core.calls import CoreFunction, Lock
from shmwasm.core.dispatching import CORE_IMPORTS
from shmwasm.core.hot import SlotCells, free_function, malloc_function
from shmwasm.errors import ArgumentError, ClosedError, HeapCorruptError, InvalidFreeError, ProtocolError, UnsupportedError, shown
from shmwasm.posix.mappings import map_fixed, unmap_fixed
from shmwasm.posix.reentry import afterwards, on_top_of_lock, refuse_on_top
from shmwasm.posix.signals import interrupts_put_off
from shmwasm.protocol.messages import SlabRange

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

RUN: Final = 0
"""The size class that a host is asked for when what is needed is one run of exactly so many slabs."""

GUEST_FUNCTIONS: Final = ("shared_heap_malloc", "shared_heap_free", "shared_heap_self")
"""What the core provides to guests."""

GUEST_FUNCTIONS_64: Final = ("shared_heap_malloc", "shared_heap_free")
"""Those of them that take or return addresses, and so have a second form for 64-bit guests."""

LEASE_ATTEMPTS: Final = 4
"""How often one allocation asks; bounded, as a heap under pressure from other processes can give hope for ever."""

REASONS: Final = {
    layout.STATUS_WILD: "it lies in no part of the heap that is in use",
    layout.STATUS_NOT_A_BLOCK: "no block starts there",
    layout.STATUS_NOT_LIVE: "the block is not live: it was freed already",
    layout.STATUS_NOT_OWNER: "the block belongs to another process, and this heap lets only the owner free it",
}
"""Why a free is refused, by status."""

INVARIANTS: Final = {
    layout.BROKEN_HEADER: "the header describes this heap",
    layout.BROKEN_FREE_SLAB: "a free slab has no class",
    layout.BROKEN_CLASS: "a slab's class exists",
    layout.BROKEN_STATE_VALUE: "a block's state exists",
    layout.BROKEN_STATE_PLACE: "only where a block starts there is a state",
    layout.BROKEN_UNUSED_SLAB: "an unused slab holds no block",
    layout.BROKEN_RUN_LENGTH: "a run has slabs, all of the heap",
    layout.BROKEN_RUN_BODY: "all slabs of a run have its owner",
    layout.BROKEN_RING: "the links of a ring agree, and lead to slabs of its owner and class",
    layout.BROKEN_RING_COUNT: "a ring has as many slabs as were counted",
    layout.BROKEN_STACK_PLACE: "a cached block is a block of its class and owner",
    layout.BROKEN_STACK_STATE: "a cached block is free",
    layout.BROKEN_STACK_TWICE: "a block is cached once",
    layout.BROKEN_RUN_CACHE: "a cached run is a free run of its owner",
}
"""What should hold, by what `verify` found broken."""


class AllocatorStatistics(NamedTuple):
    """What a heap's metadata says. Slabs have 64 KiB; "own" means this process's.

    Exact while nobody allocates or frees; otherwise each number is one that held a moment ago.
    """

    capacity_slabs: int
    free_slabs: int
    largest_free_slabs: int
    """The longest run of free slabs."""
    adopted_slabs: int
    """Slabs with live blocks whose owner died."""
    own_slabs: int
    own_unused_slabs: int
    live_blocks: int
    live_bytes: int
    """Usable bytes of the live blocks."""
    remote_freed_blocks: int
    """Blocks freed by another process, which their owner has not collected yet."""
    large_blocks: int
    """Live blocks that are runs of slabs."""
    own_live_blocks: int
    own_live_bytes: int


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


class HeapSlot:
    """A managed heap as this process's core sees it. Made by `Core.open_heap`.

    Attributes:
        exhausted: Called with the size where there is no room for it; malloc returns what it returns, by default 0.
        number: The slot's number in the core.
        name: The heap's name.
    """

    def __init__(self, core: Core, number: int, *, window: int, start: AppAddress, name: str) -> None:
        self._core = core
        self._closed: str | None = None
        self.number = number
        self.window = window
        self.name = name
        self.start = start
        self._cells = SlotCells(number)
        self.exhausted: Callable[[int], int] = lambda _size: 0

    # These are made when they are asked for: a worker needs none of them.

    @cached_property
    def malloc(self) -> Callable[..., int]:
        """`malloc(size, alignment=16)` returns the app address of a new block, or 0 if `size` is 0 or there is no room.

        It raises `ArgumentError` for a size or an alignment that can never be right.
        """
        return self._malloc_function("heap_malloc")

    @cached_property
    def malloc_place(self) -> Callable[..., int]:
        """As `malloc`, but it returns the heap offset plus `layout.FIRST_PLACE`, which stays right when the heap is moved."""
        return self._malloc_function("heap_malloc_place")

    @cached_property
    def free(self) -> Callable[[int], None]:
        """`free(address)` frees a block, wherever it was allocated; the address may be signed, or a 64-bit guest's.

        It raises `InvalidFreeError` if it is not the address of a live block.
        """
        return free_function(self._core.function("heap_free"), self._cells, self._core.lock, self._free_slowly)

    @cached_property
    def free_place(self) -> Callable[[int], None]:
        """As `free`, for what `malloc_place` returned."""
        return free_function(self._core.function("heap_free_place"), self._cells, self._core.lock, self._free_place_slowly)

    def usable_size(self, offset: int) -> int:
        """Return the bytes that the live block at a heap offset can hold; 0 if no live block starts there."""
        refuse_on_top(f"looking up a block of shared heap {self.name!r}")
        return self._call("heap_usable_size", offset) if 0 <= offset < 1 << 32 else 0

    def statistics(self) -> AllocatorStatistics:
        """Count the heap's slabs and blocks."""
        refuse_on_top(f"counting the blocks of shared heap {self.name!r}")
        with self._core.lock:
            self._call("statistics")
            words = self._core.exchange[: 2 * layout.STATISTICS_WORDS].tolist()
        return AllocatorStatistics(*(low | high << 32 for low, high in zip(words[::2], words[1::2], strict=True)))

    def verify(self) -> None:
        """Check every invariant of the heap's metadata and of what this process caches of it.

        Slabs of other processes are judged fairly while those do not allocate.

        Raises:
            HeapCorruptError: One does not hold.
        """
        refuse_on_top(f"checking shared heap {self.name!r}")
        with self._core.lock:
            broken = self._call("verify")
            offset = self._core.exchange[1]
        if broken:
            raise HeapCorruptError(self.name, f"it does not hold that {INVARIANTS[broken]}", offset)

    def trim(self) -> list[SlabRange]:
        """Give up every slab in which nothing lives, and return them: the caller must release them at the coordinator."""
        with self._core.lock:
            self._call("trim")
            return self._unused(keep=0)

    def move(self, start: AppAddress) -> None:
        """Take note that the heap's first byte has the app address `start` from now on."""
        self._call("heap_move", start)
        self.start = start

    def reset(self) -> None:
        """Forget every block and slab: the coordinator has formatted the heap again."""
        self._call("heap_reset")

    def close(self) -> None:
        """Drop the heap, which must be in no chain that guests allocate from; its blocks stay as they are. Twice is fine.

        Raises:
            ArgumentError: Guests of this core allocate from it.
        """
        if self._closed is not None:
            return
        with interrupts_put_off(), self._core.lock:
            if self._call("heap_close") != layout.STATUS_OK:
                raise ArgumentError(f"shared heap {self.name!r} cannot be closed while guests allocate from it")
            self.disown("is closed")
            self._core.forget(self)

    def disown(self, reason: str) -> None:
        """Make every use raise `ClosedError`, also of `malloc` and `free` where somebody has kept them."""
        self._closed = reason
        self._cells.retire()
        # The functions refer to this: were it the other way round too, all would stay until the garbage collector comes.
        self.malloc = self.malloc_place = self.free = self.free_place = partial(_refuse, self.name, reason)
        self.exhausted = partial(_refuse, self.name, reason)

    def install(self, size_class: int, ranges: Sequence[SlabRange]) -> None:
        """Take slabs into use that the coordinator assigned to this process.

        Raises:
            ProtocolError: It did not.
        """
        for granted in ranges:
            status = self._call("install", size_class or layout.CLASS_LARGE, granted.first, granted.count, int(granted.adopted))
            if status != layout.STATUS_OK:
                raise ProtocolError(
                    f"the coordinator granted {granted} of shared heap {self.name!r}, which is not this process's"
                )

    def _call(self, name: str, *arguments: int) -> int:
        with self._core.lock:  # between the check and the call the slot must not become another heap's
            self._check_open()
            return self._core.call(name, self.number, *arguments)

    def _malloc_function(self, function: str) -> Callable[..., int]:
        return malloc_function(
            self._core.function(function), self._cells, self._core.lock, partial(self._malloc_slowly, function)
        )

    def _check_open(self) -> None:
        if self._closed is not None:
            raise ClosedError(f"shared heap {self.name!r}", self._closed)

    def _malloc_slowly(self, function: str, size: int, alignment: int) -> int:
        """Allocate with that function of the core what the hot path did not: something large or aligned, or after a lease."""
        self._check_open()
        size, alignment = _index(size, "a size"), _index(alignment, "an alignment")
        if not 0 <= size < 1 << 63:
            raise ArgumentError(f"a block of {shown(size)} bytes cannot be allocated")
        if not 0 < alignment <= layout.MAXIMUM_ALIGNMENT or alignment & (alignment - 1):
            raise ArgumentError(f"alignment {shown(alignment)} is not a power of two up to {layout.MAXIMUM_ALIGNMENT}")
        if size >= 1 << 32:
            return self.exhausted(size)
        refuse_on_top(f"allocating what shared heap {self.name!r} does not have at hand")
        for _ in range(LEASE_ATTEMPTS):
            with self._core.lock:  # see `_call`
                self._check_open()
                answer = self._core.call(function, size, self.number, alignment)
                has_too_much = answer > layout.MAXIMUM_SMALL and self._core.call("release_is_due", self.number)
            if answer > layout.MAXIMUM_SMALL:
                if has_too_much:
                    self._release(keep=layout.KEPT_UNUSED)
                return answer
            if answer % (1 << layout.ANSWER_CLASS_SHIFT) != layout.STATUS_NEEDS_LEASE:
                break
            self._lease(answer >> layout.ANSWER_CLASS_SHIFT, size)
        return self.exhausted(size)

    def _lease(self, size_class: int, size: int) -> None:
        is_run = size_class == layout.CLASS_LARGE
        slabs = round_up(size, layout.SLAB_SIZE) // layout.SLAB_SIZE if is_run else 1
        with interrupts_put_off():  # what was granted must not be forgotten
            granted = self._core.hooks.lease(self, RUN if is_run else size_class, slabs)
            if granted:
                self.install(RUN if is_run else size_class, granted)
            elif self._call("lease_refused", size_class, slabs) == layout.STATUS_RELEASE_DUE:
                self._release(keep=0 if is_run else layout.KEPT_UNUSED)

    def _release(self, *, keep: int) -> None:
        with interrupts_put_off():
            with self._core.lock:
                ranges = self._unused(keep=keep)
            if ranges:
                self._core.hooks.release(self, ranges)

    def _unused(self, *, keep: int) -> list[SlabRange]:
        ranges: list[SlabRange] = []
        while pairs := self._call("take_released", keep):
            ranges += pairs_of(self._core.exchange, pairs)
        return merged(ranges)

    def _free_slowly(self, address: int, status: int) -> None:
        """Deal with what the hot path answered: `status`, or anything else if it could not even ask."""
        self._check_open()
        address = _index(address, "an address")
        narrow = address32(address)
        if not 0 <= narrow < 1 << 32:
            raise ArgumentError(f"{shown(address)} is no app address: it lies neither in a 32-bit nor in a 64-bit window")
        self._finish_free("heap_free", narrow, status, narrow)

    def _free_place_slowly(self, place: int, status: int) -> None:
        """Do the same for a place."""
        self._check_open()
        self._finish_free("heap_free_place", place, status, self.start + place - layout.FIRST_PLACE)

    def _finish_free(self, function: str, argument: int, status: int, address: int) -> None:
        """Free with that function of the core, unless it answered already; `address` is what an error names."""
        if status not in REASONS and on_top_of_lock():
            afterwards(partial(self._finish_free, function, argument, status, address))
            return
        if status not in REASONS and status != layout.STATUS_RELEASE_DUE:
            with self._core.lock:  # see `_call`
                self._check_open()
                status = self._core.call(function, argument, self.number)
        if status == layout.STATUS_RELEASE_DUE:
            self._release(keep=layout.KEPT_UNUSED)
        elif status != layout.STATUS_OK:
            raise InvalidFreeError(self.name, address, REASONS[status])


def pairs_of(exchange: memoryview, count: int) -> list[SlabRange]:
    """Read `count` pairs (first, count) from the exchange buffer."""
    words = exchange[: 2 * count].tolist()
    return [SlabRange(first, length) for first, length in zip(words[::2], words[1::2], strict=True)]


def merged(ranges: list[SlabRange]) -> list[SlabRange]:
    """Return the same slabs as the fewest ranges, in order."""
    found: list[SlabRange] = []
    for given in sorted(ranges, key=lambda given: given.first):
        if found and found[-1].first + found[-1].count == given.first:
            found[-1] = SlabRange(found[-1].first, found[-1].count + given.count)
        else:
            found.append(given)
    return found


def _refuse(name: str, reason: str, *_arguments: object, **_options: object) -> NoReturn:
    """Use a heap no more."""
    raise ClosedError(f"shared heap {name!r}", reason)


def _index(value: object, what: str) -> int:
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except Exception as failure:  # the value's own code ran
        raise ArgumentError(f"{shown(value)} is not {what}") from failure


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
