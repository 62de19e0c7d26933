"""Windows: the part of a guest's address space where a chain of shared heaps is mapped.

Theory
------
wasmtime reserves 4 GiB for a memory and uses [0, size) of it. A chain is mapped at the reservation's top, [start, 4 GiB), behind
wasmtime's back; everything between is inaccessible, so an access there is a trap. Three things could break this:

* *The memory grows into the window.* wasmtime would make the pages accessible, a read-only heap writable. The store's limit on
  memory sizes is therefore lowered to the window's start before anything is mapped, and a memory that already reaches it is
  refused. The limit holds for every memory of the store (each by itself), so others in the same store must fit below it too.
* *A read-only heap is made writable by whoever can.* Read-only grants come with descriptors that are open for reading only, whose
  mappings no `mprotect` can make writable.
* *A range is unmapped for a moment* and something else of the process comes to lie there. Ranges are only ever replaced.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import wasmtime

from shmwasm.addresses import OS_PAGE, WASM_PAGE, WINDOW_END, AppAddress, NativeAddress
from shmwasm.engine.modules import MemoryType, memory_type
from shmwasm.errors import ArgumentError, AttachError, UnsupportedError
from shmwasm.posix.mappings import map_fixed, reserve_fixed, unmap_fixed

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MAXIMUM_TABLE_ELEMENTS: Final = 10_000_000
"""How many elements a guest's table may have, as in browsers: a table costs 8 bytes an element, and no window bounds it."""

_COPY_STEP: Final = 1 << 20
_SIZE_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


@dataclass(frozen=True, kw_only=True)
class Grant:
    """One heap to be mapped: `size` bytes of `descriptor` at app address `start`; `heap` is its name, for errors."""

    heap: str
    start: AppAddress
    size: int
    descriptor: int
    writable: bool
    prefault: bool = False


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
    store.set_limits(memory_size=start, table_elements=MAXIMUM_TABLE_ELEMENTS)


def check_memories(memories: Iterable[MemoryType], start: int, *, heap: str) -> None:
    """Check that a module with these memories can be attached to a chain whose window starts at `start`.

    Raises:
        AttachError: A memory reaches the window from the beginning, or is shared and may.
        UnsupportedError: A memory is 64-bit.
    """
    for memory in memories:
        if memory.is_64:
            raise UnsupportedError("a 64-bit memory", "a chain can be attached to 32-bit memories only")
        if memory.minimum * WASM_PAGE > start:
            raise AttachError(heap, f"the module's memory of {memory.minimum * WASM_PAGE} bytes reaches the window at {start:#x}")
        # The store's limit does not bind shared memories; only their own maximum does.
        if memory.shared and (memory.maximum is None or memory.maximum * WASM_PAGE > start):
            raise AttachError(heap, f"the module's shared memory may grow into the window at {start:#x}; lower its maximum")


class Window:
    """The window of one memory in one store.

    Args:
        store: The store. Its limit on memory sizes is the window's to set.
        memory: A 32-bit memory of an engine that `new_engine` made.
        kind: Its type, where that is known already.

    Raises:
        UnsupportedError: The memory is 64-bit.
    """

    def __init__(
        self, store: wasmtime.Store, memory: wasmtime.Memory | wasmtime.SharedMemory, kind: MemoryType | None = None
    ) -> None:
        self._store = store
        self._memory = memory
        if kind is None:
            kind = memory_type(memory.type() if isinstance(memory, wasmtime.SharedMemory) else memory.type(store))
        if kind.is_64:
            raise UnsupportedError("a 64-bit memory", "a chain can be attached to 32-bit memories only")
        self._maximum = kind.maximum
        self._grants: tuple[Grant, ...] = ()
        self._file: SharedLinearMemory | None = None
        pointer = memory.data_ptr() if isinstance(memory, wasmtime.SharedMemory) else memory.data_ptr(store)
        self.base = NativeAddress(ctypes.cast(pointer, ctypes.c_void_p).value or 0)
        """Where app address 0 is in this process."""

    @property
    def grants(self) -> tuple[Grant, ...]:
        """What is mapped, by ascending address."""
        return self._grants

    @property
    def memory_size(self) -> int:
        """The linear memory's size now, in bytes."""
        if isinstance(self._memory, wasmtime.SharedMemory):
            return self._memory.data_len()
        return self._memory.data_len(self._store)

    def attach(self, grants: Sequence[Grant]) -> None:
        """Map a chain. The descriptors stay the caller's, and may be closed.

        The store must not be running, or wait in a host function.

        Raises:
            ArgumentError: The grants do not lie whole in the address space one above the other, or a descriptor cannot be mapped
                like that. Nothing is mapped.
            AttachError: Something is attached already, or linear memory reaches the window. Nothing changed.
            UnsupportedError: The kernel has no room for the mappings. Nothing is mapped.
        """
        ordered = tuple(sorted(grants, key=lambda grant: grant.start))
        self._check(ordered)
        start = ordered[0].start
        reserve(self._store, start)
        try:
            for grant in ordered:
                address = NativeAddress(self.base + grant.start)
                map_fixed(address, grant.size, grant.descriptor, writable=grant.writable, prefault=grant.prefault)
        except BaseException:
            self._clear(start)
            raise
        self._grants = ordered

    def detach(self) -> None:
        """Unmap the chain, if there is one: its addresses trap, and memory may grow over them. May be called twice.

        The store must not be running, or wait in a host function.
        """
        if self._grants:
            start = self._grants[0].start
            self._grants = ()
            self._clear(start)

    def share_memory(self) -> SharedLinearMemory:
        """Let other processes map the guest's linear memory; return its file. The descriptor stays the window's.

        The first call copies what is in memory now into a file and maps that in place of wasmtime's pages. Memory grows as
        before, and stays shared: the pages to come are in place already, and wasmtime only makes them accessible.

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
        size = self.memory_size
        if size > head.start:
            raise AttachError(head.heap, f"the instance's memory of {size} bytes reaches the window at {head.start:#x}")
        may_reach = self._maximum is None or self._maximum * WASM_PAGE > head.start
        if isinstance(self._memory, wasmtime.SharedMemory) and may_reach:
            raise AttachError(head.heap, f"the instance's shared memory may grow into the window at {head.start:#x}")

    def _clear(self, start: int) -> None:
        """Make [`start`, 4 GiB) what it was before anything was mapped there, and give it back to linear memory."""
        address = NativeAddress(self.base + start)
        if self._file is None:
            unmap_fixed(address, WINDOW_END - start)
        else:
            reserve_fixed(address, WINDOW_END - start, self._file.descriptor, start)
        reserve(self._store)

    def _move_to_file(self) -> SharedLinearMemory:
        size = self.memory_size
        end = self._grants[0].start if self._grants else WINDOW_END
        try:
            descriptor = os.memfd_create("shmwasm-memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError as failure:
            raise UnsupportedError("sharing linear memory", str(failure)) from None
        try:
            os.ftruncate(descriptor, WINDOW_END)
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
        return SharedLinearMemory(descriptor, size, WINDOW_END)


def _copy_to_file(descriptor: int, address: int, size: int) -> None:
    """Write the memory at `address` to the start of the file; what is all zeros stays a hole."""
    zeros = bytes(_COPY_STEP)
    for offset in range(0, size, _COPY_STEP):
        part = memoryview((ctypes.c_char * min(_COPY_STEP, size - offset)).from_address(address + offset)).cast("B")
        if part != zeros[: len(part)]:
            written = 0
            while written < len(part):
                written += os.pwrite(descriptor, part[written:], offset + written)
