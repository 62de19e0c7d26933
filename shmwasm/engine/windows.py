"""Windows: the part of a guest's address space where a chain of shared heaps is mapped.

Theory
------
wasmtime reserves 4 GiB for a memory and uses [0, size) of it. A chain is mapped at the reservation's top, [start, 4 GiB), behind
wasmtime's back; everything between is inaccessible, so an access there is a trap. Three things could break this:

* *The memory grows into the window.* wasmtime would make the pages accessible, a read-only heap writable. The store's limit on
  memory sizes is therefore lowered to the window's start before anything is mapped, and a memory that already reaches it is
  refused. The limit holds for every memory of the store (each by itself), so others in the same store must fit below it too;
  it is lifted while those that are ours grow. It is also what a user's limit on the guest's memories becomes, if that is lower.
* *A read-only heap is made writable by whoever can.* Read-only grants come with descriptors that are open for reading only, whose
  mappings no `mprotect` can make writable.
* *A range is unmapped for a moment* and something else of the process comes to lie there. Ranges are only ever replaced.

A 64-bit memory is declared over the whole range up to `WINDOW_END_64` by the rewriter, as the engine compares 64-bit addresses
with a memory's size. What the guest takes for its size is a global; between that and the window nothing is accessible, and
growing is ours (`Window.grow`), so the store's limit is not needed once the memory exists.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import wasmtime

from shmwasm.addresses import ORIGIN_64, OS_PAGE, WASM_PAGE, WINDOW_END, WINDOW_END_64, AppAddress, NativeAddress
from shmwasm.engine.cells import IntegerCell
from shmwasm.engine.memories import AnyMemory, base_of, size_of
from shmwasm.engine.modules import MemoryType, memory_type
from shmwasm.errors import ArgumentError, AttachError, UnsupportedError
from shmwasm.posix.mappings import clear_fixed, map_fixed, open_fixed, reserve_fixed, unmap_fixed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shmwasm.engine.aliases import Alias

MAXIMUM_TABLE_ELEMENTS: Final = 10_000_000
"""How many elements a guest's table may have, as in browsers: a table costs 8 bytes an element, and no window bounds it."""

_WITHOUT_LIMIT: Final = (1 << 31) - 1
"""How many instances, tables and memories a store admits: by default 10,000 of each, which some guests use up long before memory
and address space."""

_COPY_STEP: Final = 1 << 20
_SIZE_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


@dataclass(frozen=True, kw_only=True)
class Grant:
    """One heap to be mapped: `size` bytes of `descriptor` at 32-bit app address `start`; `heap` is its name, for errors."""

    heap: str
    start: AppAddress
    size: int
    descriptor: int
    writable: bool
    prefault: bool = False


class Chain(NamedTuple):
    """What is attached, in addresses as the guest has them: the first, one past the last, and each heap's first, ascending."""

    start: int
    end: int
    heaps: tuple[tuple[int, Grant], ...]


class Follower(Protocol):
    """Who must know what is attached."""

    def attach(self, chain: Chain) -> None:
        """Know that the chain is mapped. What this raises unmaps it."""

    def detach(self) -> None:
        """Know that the chain, if there is one, is about to be unmapped."""


class SharedLinearMemory(NamedTuple):
    """A guest's linear memory as a file: its descriptor, its size in bytes now, and the most it can grow to."""

    descriptor: int
    size: int
    capacity: int


def reserve(store: wasmtime.Store, start: int = WINDOW_END) -> None:
    """Keep the memories of `store` below `start`, and its tables within bounds. Call it before instantiating.

    `Window` moves the limit later. Instantiating a module with a larger memory or table then fails, and `memory.grow` or
    `table.grow` beyond it returns -1.
    """
    store.set_limits(
        memory_size=start,
        table_elements=MAXIMUM_TABLE_ELEMENTS,
        instances=_WITHOUT_LIMIT,
        tables=_WITHOUT_LIMIT,
        memories=_WITHOUT_LIMIT,
    )


class Window:
    """The window of one memory in one store.

    Making one for a 64-bit memory makes what lies above the guest's own pages inaccessible, so it must be done before any of the
    guest's code runs.

    Args:
        store: The store. Its limit on memory sizes is the window's to set.
        memory: A memory of an engine that `new_engine` made.
        kind: Its type, where that is known already.
        pages: What the guest takes for the memory's size, in pages, if it is a 64-bit one.
        alias: The instance's second mapping of a chain, if it has one.
        start: Where the first chain will start, if one is to be attached at once: memory is kept below from now on.
        limit: Bytes that each memory of the guest may have at most, if there is such a limit.

    Raises:
        UnsupportedError: The memory is a 64-bit one that was not rewritten.
    """

    def __init__(
        self,
        store: wasmtime.Store,
        memory: AnyMemory,
        kind: MemoryType | None = None,
        *,
        pages: wasmtime.Global | None = None,
        alias: Alias | None = None,
        start: int = WINDOW_END,
        limit: int | None = None,
    ) -> None:
        self._store = store
        self._most = WINDOW_END_64 if limit is None else limit
        self._memory = memory
        if kind is None:
            kind = memory_type(memory.type() if isinstance(memory, wasmtime.SharedMemory) else memory.type(store))
        if kind.is_64 and pages is None:
            raise UnsupportedError("a 64-bit memory", "a chain can be attached to it only if it is not shared, and was rewritten")
        self._maximum = kind.maximum
        self._pages = IntegerCell(store, pages) if kind.is_64 else None
        self._alias = alias
        self._followers: list[Follower] = []
        self._grants: tuple[Grant, ...] = ()
        self._file: SharedLinearMemory | None = None
        self._end, self._origin = (WINDOW_END_64, ORIGIN_64) if kind.is_64 else (WINDOW_END, 0)
        self.base = base_of(store, memory)
        """Where the guest's address 0 is in this process."""
        self._limit(start)
        if kind.is_64:
            self._close_gap(kind)

    @property
    def is_64(self) -> bool:
        """Whether the guest's addresses have 64 bits."""
        return self._pages is not None

    @property
    def grants(self) -> tuple[Grant, ...]:
        """What is mapped, by ascending address."""
        return self._grants

    @property
    def memory_size(self) -> int:
        """The linear memory's size now, in bytes, as the guest sees it."""
        if self._pages is not None:
            return self._pages.get() * WASM_PAGE
        return size_of(self._store, self._memory)

    def guest_address(self, address: AppAddress) -> AppAddress:
        """Return where the guest sees the chain's 32-bit app address `address`."""
        return AppAddress(address + self._origin)

    def native_address(self, address: AppAddress) -> NativeAddress:
        """Return where the chain's 32-bit app address `address` is in this process. Nothing is checked."""
        return NativeAddress(self.base + self._origin + address)

    def find(self, address: int, size: int) -> NativeAddress:
        """Return where the guest's `size` bytes at `address`, in the guest's own addresses, are in this process.

        Raises:
            ArgumentError: They do not lie in one heap of the chain.
        """
        for grant in self._grants:
            offset = address - self._origin - grant.start
            if 0 <= offset <= grant.size - size:
                return NativeAddress(self.base + address)
        raise ArgumentError(f"the {size} bytes at {address:#x} do not lie in an attached heap")

    def follow(self, follower: Follower) -> None:
        """Tell `follower` of each attach and detach from now on. Nothing may be attached yet."""
        assert not self._grants
        self._followers.append(follower)

    def attach(self, grants: Sequence[Grant]) -> None:
        """Map a chain. The descriptors stay the caller's, and may be closed.

        The store must not be running, or wait in a host function.

        Raises:
            ArgumentError: The grants do not lie whole in the address space one above the other, or a descriptor cannot be mapped
                like that. Nothing is mapped.
            AttachError: Something is attached already, linear memory reaches the window, or the chain is too long for the
                module's alias memory. Nothing changed.
            UnsupportedError: The kernel has no room for the mappings. Nothing is mapped.
        """
        ordered = tuple(sorted(grants, key=lambda grant: grant.start))
        self._check(ordered)
        start, end = ordered[0].start, ordered[-1].start + ordered[-1].size
        try:
            if self._alias is not None:
                with self.unlimited():
                    self._alias.make_room(end - start)
            self._limit(start)
            for grant in ordered:
                address = self.native_address(grant.start)
                map_fixed(address, grant.size, grant.descriptor, writable=grant.writable, prefault=grant.prefault)
            chain = Chain(
                self.guest_address(start),
                self.guest_address(AppAddress(end)),
                tuple((self.guest_address(grant.start), grant) for grant in ordered),
            )
            for follower in self._all_followers():
                follower.attach(chain)
        except BaseException:
            self._clear(start)
            raise
        self._grants = ordered

    @contextlib.contextmanager
    def unlimited(self) -> Iterator[None]:
        """Let all memories of the store grow: ours, as the guest does not run."""
        reserve(self._store)
        try:
            yield
        finally:
            self._limit(self._start)

    def detach(self) -> None:
        """Unmap the chain, if there is one: its addresses trap, and memory may grow over them. May be called twice.

        The store must not be running, or wait in a host function.
        """
        if self._grants:
            start = self._grants[0].start
            self._grants = ()
            self._clear(start)

    def grow(self, pages: int) -> int:
        """Grow a 64-bit memory by so many pages, as `memory.grow` does; return how many it had, or -1 if it cannot.

        Anything may be asked for. The maximum that the module declares is not known here.
        """
        assert self._pages is not None
        old = self.memory_size
        growth = pages * WASM_PAGE
        if pages < 0 or old + growth > self._top:
            return -1
        if pages:
            try:
                open_fixed(NativeAddress(self.base + old), growth)
            except UnsupportedError:
                return -1
            self._pages.set(old // WASM_PAGE + pages)
        return old // WASM_PAGE

    def share_memory(self) -> SharedLinearMemory:
        """Let other processes map the guest's linear memory; return its file. The descriptor stays the window's.

        The first call copies what is in memory now into a file and maps that in place of the engine's pages. Memory grows as
        before, and stays shared: the pages to come are in place already, and growing only makes them accessible.

        The store must not be running, or wait in a host function.

        Raises:
            UnsupportedError: The kernel has no room. The guest must not run again.
        """
        if self._file is None:
            self._file = self._move_to_file()
        return self._file._replace(size=self.memory_size)

    def close(self) -> None:
        """Unmap the chain and close the file of the linear memory, whose mappings stay. May be called twice."""
        self.detach()
        if self._file is not None and self._file.descriptor >= 0:
            os.close(self._file.descriptor)
            self._file = self._file._replace(descriptor=-1)

    def vacate(self, *, viewed: bool = False) -> None:
        """Close the window, and give the memory back to the kernel: its guest is done with, and must not run again.

        Args:
            viewed: Whether there may be views of the linear memory: they show zeros from now on, and may be written to.

        Raises:
            UnsupportedError: The kernel has no room for that.
        """
        self.close()
        self._file = None
        kept = self.memory_size if viewed else 0
        if kept:
            clear_fixed(self.base, kept)
        if kept < self._end:
            unmap_fixed(NativeAddress(self.base + kept), self._end - kept)
        if self._alias is not None:
            unmap_fixed(self._alias.base, WINDOW_END)

    def _all_followers(self) -> list[Follower]:
        return self._followers if self._alias is None else [self._alias, *self._followers]

    def _limit(self, start: int) -> None:
        """Keep linear memory below the 32-bit app address `start`."""
        self._start = start
        self._top = min(self._origin + start, self._most)
        # A 64-bit memory cannot grow as far as the engine knows, and what else is in the store does not touch the window.
        reserve(self._store, min(WINDOW_END if self.is_64 else start, self._most))

    def _close_gap(self, kind: MemoryType) -> None:
        """Make what lies between the guest's own pages and the end of the range inaccessible."""
        size = self.memory_size
        if kind.minimum * WASM_PAGE != self._end or size > self._end:
            raise UnsupportedError("a 64-bit memory", f"it is declared with {kind.minimum} pages, and not over the whole range")
        if size < self._end:
            unmap_fixed(NativeAddress(self.base + size), self._end - size)

    def _check(self, grants: Sequence[Grant]) -> None:
        if not grants:
            raise ArgumentError("a chain of no heaps was to be attached")
        head = grants[0]
        if self._grants:
            raise AttachError(head.heap, f"the instance is attached to {self._grants[0].heap!r} already; detach it first")
        end = 0
        for grant in grants:
            whole = grant.size > 0 and not (grant.start | grant.size) % OS_PAGE
            if not whole or grant.start < end or grant.start + grant.size > WINDOW_END:
                raise ArgumentError(f"heap {grant.heap!r} cannot lie at {grant.start:#x} with {grant.size} bytes")
            end = grant.start + grant.size
        size, start = self.memory_size, self.guest_address(head.start)
        if size > start:
            raise AttachError(head.heap, f"the instance's memory of {size} bytes reaches the window at {start:#x}")
        may_reach = self._maximum is None or self._maximum * WASM_PAGE > start
        if isinstance(self._memory, wasmtime.SharedMemory) and may_reach:
            raise AttachError(head.heap, f"the instance's shared memory may grow into the window at {start:#x}")
        if self._alias is not None:
            self._alias.check(grants)

    def _clear(self, start: AppAddress) -> None:
        """Make the window from `start` on what it was before anything was mapped there, and give it back to linear memory."""
        for follower in reversed(self._all_followers()):
            follower.detach()
        address, size = self.native_address(start), WINDOW_END - start
        if self._file is None:
            unmap_fixed(address, size)
        else:
            reserve_fixed(address, size, self._file.descriptor, self.guest_address(start))
        self._limit(WINDOW_END)

    def _move_to_file(self) -> SharedLinearMemory:
        size = self.memory_size
        end = self.guest_address(self._grants[0].start) if self._grants else self._end
        try:
            descriptor = os.memfd_create("shmwasm-memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError as failure:
            raise UnsupportedError("sharing linear memory", str(failure)) from None
        try:
            os.ftruncate(descriptor, self._end)
            # Nobody who maps the file can shorten it and so kill the guest.
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SIZE_SEALS)
            _copy_to_file(descriptor, self.base, size)
            if end > size:
                reserve_fixed(NativeAddress(self.base + size), end - size, descriptor, size)
            if size:
                map_fixed(self.base, size, descriptor, writable=True)
        except OSError as failure:
            os.close(descriptor)
            raise UnsupportedError("sharing linear memory", str(failure)) from None
        except BaseException:
            os.close(descriptor)
            raise
        return SharedLinearMemory(descriptor, size, self._end)


def _copy_to_file(descriptor: int, address: int, size: int) -> None:
    """Write the memory at `address` to the start of the file; what is all zeros stays a hole."""
    zeros = bytes(_COPY_STEP)
    for offset in range(0, size, _COPY_STEP):
        part = memoryview((ctypes.c_char * min(_COPY_STEP, size - offset)).from_address(address + offset)).cast("B")
        if part != zeros[: len(part)]:
            written = 0
            while written < len(part):
                written += os.pwrite(descriptor, part[written:], offset + written)
