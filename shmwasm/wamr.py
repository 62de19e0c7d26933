"""WAMR's own names for shared heaps, so that its documentation can be followed word by word.

Theory
------
Every function here is one of WebAssembly Micro Runtime's C functions, over `shmwasm.Runtime` and what that makes.
`wasm_runtime_init` starts the one runtime of this process; all other functions need it. What differs from C:

- Where WAMR returns NULL or false and gives no reason, an error says why. A function whose result is a success returns True, so
  that `if not wasm_runtime_...` reads as in C.
- Questions keep WAMR's answers: a failed allocation is 0, an address that is no address is False or None.
- A native pointer is a `memoryview`: it knows where it ends. Only the views that this library hands out have an app address;
  another mapping of the same segment is another native address.
- An app offset is what a guest's load or store sees, with 64 bits in an instance whose memory is a 64-bit one. It may be given
  signed, as a guest's results are, and is returned unsigned.

Locking: `wasm_runtime_init` and `wasm_runtime_destroy` may be called from any thread; the rest is as safe as what it calls.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shmwasm.addresses import WINDOW_END, AppAddress
from shmwasm.client.runtime import Runtime
from shmwasm.errors import ArgumentError, ClosedError, HeapExhaustedError, InvalidFreeError, UnknownExportError
from shmwasm.posix.mappings import address_of

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from shmwasm.client.arguments import Value
    from shmwasm.client.exports import BoundExport
    from shmwasm.client.heaps import SharedHeap
    from shmwasm.client.instances import Instance
    from shmwasm.client.modules import Imports, Module
    from shmwasm.posix.segments import Source

__all__ = [
    "SharedHeapInitArgs",
    "wasm_runtime_addr_app_to_native",
    "wasm_runtime_addr_native_to_app",
    "wasm_runtime_attach_shared_heap",
    "wasm_runtime_attach_shared_heaps",
    "wasm_runtime_call_wasm",
    "wasm_runtime_chain_shared_heaps",
    "wasm_runtime_create_shared_heap",
    "wasm_runtime_deinstantiate",
    "wasm_runtime_destroy",
    "wasm_runtime_detach_shared_heap",
    "wasm_runtime_detach_shared_heaps",
    "wasm_runtime_get_app_addr_range",
    "wasm_runtime_init",
    "wasm_runtime_instantiate",
    "wasm_runtime_load",
    "wasm_runtime_lookup_function",
    "wasm_runtime_reset_shared_heap_chain",
    "wasm_runtime_shared_heap_free",
    "wasm_runtime_shared_heap_malloc",
    "wasm_runtime_unchain_shared_heaps",
    "wasm_runtime_unload",
    "wasm_runtime_validate_app_addr",
    "wasm_runtime_validate_native_addr",
]


@dataclass(frozen=True)
class SharedHeapInitArgs:
    """What `wasm_runtime_create_shared_heap` makes a heap of.

    Attributes:
        size: Bytes. Without `pre_allocated_addr` they are rounded up to 64 KiB; with it they must be a multiple of the OS page.
        pre_allocated_addr: Memory to use as it is, without an allocator: a shared memory object, a descriptor, a file or a path.
    """

    size: int = 0
    pre_allocated_addr: Source | None = None


class _Process:
    """The runtime of this process, and how many `wasm_runtime_init` it still serves."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runtime: Runtime | None = None
        self._uses = 0

    def begin(self) -> None:
        with self._lock:
            if self._runtime is not None and not self._runtime.usable:
                # Its coordinator is gone, or this is a forked child of the process that started it.
                self._runtime.close()
                self._runtime = None
            if self._runtime is None:
                self._runtime, self._uses = Runtime(), 0
            self._uses += 1

    def end(self) -> None:
        with self._lock:
            runtime = self._open()
            self._uses -= 1
            if self._uses == 0:
                self._runtime = None
                runtime.close()

    @property
    def runtime(self) -> Runtime:
        with self._lock:
            return self._open()

    def require(self) -> None:
        """Raise unless there is a runtime."""
        with self._lock:
            self._open()

    def _open(self) -> Runtime:
        if self._runtime is None:
            raise ClosedError("the WAMR runtime", "is not there: wasm_runtime_init comes first")
        return self._runtime


_process = _Process()


def wasm_runtime_init() -> bool:
    """Start the runtime of this process. Each further call counts, and needs its own `wasm_runtime_destroy`.

    A runtime whose coordinator is gone is replaced by a new one.

    Raises:
        UnsupportedError: This machine or the installed engine cannot do it.
    """
    _process.begin()
    return True


def wasm_runtime_destroy() -> None:
    """End the runtime, and every instance and heap of it, once it was called as often as `wasm_runtime_init`.

    Raises:
        ClosedError: It was called more often.
    """
    _process.end()


def wasm_runtime_load(source: str | bytes | os.PathLike[str], *, imports: Imports | None = None) -> Module:
    """Load a module: a path, bytes, or WAT text; `imports` are its host functions (WAMR registers those as natives).

    Raises:
        ModuleError: It is no module, or imports what was not given.
    """
    return _process.runtime.load(source, imports=imports)


def wasm_runtime_unload(module: Module) -> None:
    """Let go of a module's code; instances that are there go on. Twice is fine."""
    _process.require()
    module.close()


def wasm_runtime_instantiate(module: Module) -> Instance:
    """Make an instance, in a worker process of its own.

    Raises:
        InstantiationError: It could not be made.
    """
    return _process.runtime.spawn(module)


def wasm_runtime_deinstantiate(instance: Instance) -> None:
    """End an instance; what it is attached to is detached. Twice is fine."""
    _process.require()
    instance.close()


def wasm_runtime_lookup_function(instance: Instance, name: str) -> BoundExport | None:
    """Return the exported function of that name; None if there is none."""
    _process.require()
    try:
        return instance.exports[name]
    except UnknownExportError:
        return None


def wasm_runtime_call_wasm(function: BoundExport, *arguments: Value) -> Any:
    """Call a function that was looked up, and return its result: None, a number, or a list of several.

    Raises:
        ArgumentError: The arguments do not fit.
        WorkerTrapError: The guest trapped.
        WorkerLostError: The instance's worker is gone.
    """
    _process.require()
    return function(*arguments)


def wasm_runtime_create_shared_heap(init_args: SharedHeapInitArgs) -> SharedHeap:
    """Create a shared heap.

    Raises:
        ArgumentError: The size is 0 or too large, or, of preallocated memory, no multiple of the OS page or more than there is.
        HeapNoSpaceError: /dev/shm has too little room.
    """
    return _process.runtime.create_shared_heap(init_args.size, pre_allocated=init_args.pre_allocated_addr)


def wasm_runtime_chain_shared_heaps(head: SharedHeap, body: SharedHeap) -> SharedHeap:
    """Put `head` directly below `body` and the chain that it heads; return the head of the new chain.

    Raises:
        ChainError: It is refused; nothing changed.
    """
    return _process.runtime.chain_shared_heaps(head, body)


def wasm_runtime_unchain_shared_heaps(head: SharedHeap, entire_chain: bool) -> SharedHeap:  # noqa: FBT001  it is WAMR's signature
    """Take the first heap off a chain and return the head of the rest; or all apart, and return the last heap.

    Raises:
        ChainError: It is refused; nothing changed.
    """
    return _process.runtime.unchain_shared_heaps(head, entire_chain=entire_chain)


def wasm_runtime_reset_shared_heap_chain(shared_heap: SharedHeap) -> bool:
    """Free everything in a chain: managed heaps become empty, preallocated ones zero.

    Raises:
        ChainError: A heap of the chain is attached, or `shared_heap` is not its head; nothing changed.
    """
    _process.runtime.reset_shared_heap_chain(shared_heap)
    return True


def wasm_runtime_attach_shared_heap(instance: Instance, shared_heap: SharedHeap) -> bool:
    """Attach the chain that `shared_heap` heads to an instance.

    Raises:
        AttachError: Something is attached already, linear memory reaches the chain, or `shared_heap` is not a head.
    """
    _process.require()
    instance.attach_shared_heap(shared_heap)
    return True


def wasm_runtime_attach_shared_heaps(instance: Instance, shared_heaps: SharedHeap) -> bool:
    """The other spelling of `wasm_runtime_attach_shared_heap`."""
    return wasm_runtime_attach_shared_heap(instance, shared_heaps)


def wasm_runtime_detach_shared_heap(instance: Instance) -> None:
    """Take the chain out of an instance; its very next access traps.

    Raises:
        AttachError: Nothing is attached.
    """
    _process.require()
    instance.detach_shared_heap()


def wasm_runtime_detach_shared_heaps(instance: Instance) -> None:
    """The other spelling of `wasm_runtime_detach_shared_heap`."""
    wasm_runtime_detach_shared_heap(instance)


def wasm_runtime_shared_heap_malloc(instance: Instance, size: int) -> tuple[int, memoryview | None]:
    """Allocate in the first managed heap of the instance's chain that has room.

    Returns:
        The block's app offset, and its bytes. (0, None) where there is no room, no managed heap, or nothing attached.

    Raises:
        ArgumentError: `size` is no size.
    """
    for heap in _chain(instance):
        if heap.managed:
            try:
                block = heap.malloc(size)
            except HeapExhaustedError:
                continue
            return block.address_in(instance), block.view
    return 0, None


def wasm_runtime_shared_heap_free(instance: Instance, app_offset: int) -> None:
    """Free a block of the instance's chain, whoever allocated it.

    Raises:
        InvalidFreeError: It is no live block there; nothing changed.
    """
    chain = _chain(instance)
    address = _unsigned(instance, app_offset)
    for heap in chain:
        if 0 <= address - instance.guest_address(heap.start) < heap.size:
            heap.free(address)
            return
    name = chain[0].name if chain else "none"
    raise InvalidFreeError(name, address, "it is in no heap that is attached to the instance")


def wasm_runtime_validate_app_addr(instance: Instance, app_offset: int, size: int) -> bool:
    """Tell whether these bytes lie all in an instance's linear memory, or all in its chain, where they may cross heaps."""
    found = wasm_runtime_get_app_addr_range(instance, app_offset)
    return found is not None and 0 <= size <= found[1] - _unsigned(instance, app_offset)


def wasm_runtime_get_app_addr_range(instance: Instance, app_offset: int) -> tuple[int, int] | None:
    """Return the half open range of app offsets, linear memory or the chain's window, that holds this one; None if none does."""
    chain = _chain(instance)
    address = _unsigned(instance, app_offset)
    if chain:
        start, end = instance.guest_address(chain[0].start), instance.guest_address(AppAddress(WINDOW_END))
        if start <= address < end:
            return start, end
    size = len(instance.memory)
    return (0, size) if 0 <= address < size else None


def wasm_runtime_addr_app_to_native(instance: Instance, app_offset: int) -> memoryview | None:
    """Return the bytes from an app offset to the end of its linear memory or heap, without a copy; None if it is in neither."""
    _process.require()
    address = _unsigned(instance, app_offset)
    for start, region in _regions(instance):
        if start <= address < start + len(region):
            return region[address - start :]
    return None


def wasm_runtime_addr_native_to_app(instance: Instance, native: memoryview) -> int | None:
    """Return the app offset at which an instance sees the first of these bytes; None if it does not see them."""
    found = _find_native(instance, native)
    return found[0] if found is not None else None


def wasm_runtime_validate_native_addr(instance: Instance, native: memoryview, size: int) -> bool:
    """Tell whether an instance sees the `size` bytes at the start of `native` in its linear memory or in one heap."""
    found = _find_native(instance, native)
    return found is not None and 0 <= size <= found[1]


def _chain(instance: Instance) -> list[SharedHeap]:
    runtime = _process.runtime
    return [] if instance.shared_heap is None else list(runtime.chain_of(instance.shared_heap))


def _regions(instance: Instance) -> Iterator[tuple[int, memoryview]]:
    """Yield what the instance can access: first the heaps, as linear memory has to be asked for."""
    for heap in _chain(instance):
        yield instance.guest_address(heap.start), heap.view
    yield 0, instance.memory


def _find_native(instance: Instance, native: memoryview) -> tuple[int, int] | None:
    """Return the app offset of `native`'s first byte, and how many bytes of its region start there."""
    try:
        address = address_of(native)
    except (BufferError, TypeError):
        raise ArgumentError(f"a native address is a view of bytes that lie side by side, not {native!r}") from None
    for start, region in _regions(instance):
        offset = address - address_of(region)
        if 0 <= offset < len(region):
            return start + offset, len(region) - offset
    return None


def _unsigned(instance: Instance, app_offset: int) -> int:
    """Return an app offset that may be a guest's signed result as an unsigned one; others stay as they are, and lie nowhere."""
    bits = 64 if instance.module.is_64 else 32
    return app_offset + (1 << bits) if -(1 << (bits - 1)) <= app_offset < 0 else app_offset
