"""What the tests of WAMR's behaviours share: one runtime for a module, and a guest that does what their guests do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from multiprocessing.shared_memory import SharedMemory

import pytest

from shmwasm import Instance, Module, Runtime, SharedHeap, wamr
from shmwasm.addresses import OS_PAGE
from shmwasm.client.modules import Imports

GUEST = """
(module
  (import "env" "shared_heap_malloc" (func $malloc (param i32) (result i32)))
  (import "env" "shared_heap_free" (func $free (param i32)))
  (memory (export "memory") 1 4)
  (func (export "malloc") (param i32) (result i32) (call $malloc (local.get 0)))
  (func (export "free") (param i32) (call $free (local.get 0)))
  (func (export "malloc_store_load_free") (result i32) (local $block i32) (local $value i32)
    (local.set $block (call $malloc (i32.const 4)))
    (i32.store (local.get $block) (i32.const 10))
    (local.set $value (i32.load (local.get $block)))
    (call $free (local.get $block))
    (local.get $value))
  (func (export "load8") (param i32) (result i32) (i32.load8_u (local.get 0)))
  (func (export "store8") (param i32 i32) (i32.store8 (local.get 0) (local.get 1)))
  (func (export "exchange8") (param i32 i32) (result i32)
    (i32.load8_u (local.get 0))
    (i32.store8 (local.get 0) (local.get 1)))
  (func (export "exchange16") (param i32 i32) (result i32)
    (i32.load16_u (local.get 0))
    (i32.store16 (local.get 0) (local.get 1)))
  (func (export "load32") (param i32) (result i32) (i32.load align=1 (local.get 0)))
  (func (export "store32") (param i32 i32) (i32.store align=1 (local.get 0) (local.get 1)))
  (func (export "exchange64") (param i32 i64) (result i64)
    (i64.load align=1 (local.get 0))
    (i64.store align=1 (local.get 0) (local.get 1)))
  (func (export "fill") (param $at i32) (param $value i32) (param $count i32)
    (block $done
      (loop $next
        (br_if $done (i32.eqz (local.get $count)))
        (i32.store8 (local.get $at) (local.get $value))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (local.set $count (i32.sub (local.get $count) (i32.const 1)))
        (br $next))))
  (func (export "malloc_free_forever")
    (loop $next
      (call $free (call $malloc (i32.const 40)))
      (br $next)))
  (func (export "store_forever") (param i32)
    (loop $next
      (i32.store8 (local.get 0) (i32.const 1))
      (br $next)))
  (func (export "size") (result i32) (memory.size))
  (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
  (func (export "divide") (param i32 i32) (result i32) (i32.div_s (local.get 0) (local.get 1))))
"""

GUEST_64 = """
(module
  (import "env" "shared_heap_malloc" (func $malloc (param i64) (result i64)))
  (import "env" "shared_heap_free" (func $free (param i64)))
  (memory (export "memory") i64 1 4)
  (func (export "malloc") (param i64) (result i64) (call $malloc (local.get 0)))
  (func (export "free") (param i64) (call $free (local.get 0)))
  (func (export "exchange8") (param i64 i32) (result i32)
    (i32.load8_u (local.get 0))
    (i32.store8 (local.get 0) (local.get 1)))
  (func (export "exchange16") (param i64 i32) (result i32)
    (i32.load16_u (local.get 0))
    (i32.store16 (local.get 0) (local.get 1))))
"""

Memory = Callable[[int], SharedMemory]
Heap = Callable[..., SharedHeap]
Spawn = Callable[..., Instance]
Load = Callable[..., Module]


@pytest.fixture(scope="module", autouse=True)
def process() -> Iterator[Runtime]:
    """The runtime that `wasm_runtime_init` starts, for all tests of a module."""
    wamr.wasm_runtime_init()
    # The runtime makes its own core with the first managed heap, and keeps that.
    wamr.wasm_runtime_create_shared_heap(wamr.SharedHeapInitArgs(size=1)).close()
    yield wamr._process.runtime
    wamr.wasm_runtime_destroy()


@pytest.fixture(scope="module")
def guest() -> Module:
    return wamr.wasm_runtime_load(GUEST)


@pytest.fixture(scope="module")
def guest_64() -> Module:
    """A guest with 64-bit addresses."""
    return wamr.wasm_runtime_load(GUEST_64)


@pytest.fixture
def load() -> Iterator[Load]:
    """Load modules; they end with the test."""
    made: list[Module] = []

    def make(source: str | bytes, imports: Imports | None = None) -> Module:
        made.append(wamr.wasm_runtime_load(source, imports=imports))
        return made[-1]

    yield make
    for module in made:
        wamr.wasm_runtime_unload(module)


@pytest.fixture
def spawn(guest: Module) -> Iterator[Spawn]:
    """Make instances of the guest, attached to a heap if one is given; they end with the test."""
    made: list[Instance] = []

    def make(heap: SharedHeap | None = None, module: Module = guest) -> Instance:
        made.append(wamr.wasm_runtime_instantiate(module))
        if heap is not None:
            wamr.wasm_runtime_attach_shared_heap(made[-1], heap)
        return made[-1]

    yield make
    for instance in made:
        wamr.wasm_runtime_deinstantiate(instance)


@pytest.fixture
def memory() -> Iterator[Memory]:
    """Make memory of the user's own, of that many bytes; it ends with the test."""
    made: list[SharedMemory] = []

    def make(size: int = OS_PAGE) -> SharedMemory:
        made.append(SharedMemory(create=True, size=size))
        return made[-1]

    yield make
    for one in made:
        one.close()
        one.unlink()


@pytest.fixture
def managed() -> Iterator[Heap]:
    """Make managed heaps, of 64 KiB unless told otherwise; they end with the test."""
    made: list[SharedHeap] = []

    def make(size: int = 1 << 16) -> SharedHeap:
        made.append(wamr.wasm_runtime_create_shared_heap(wamr.SharedHeapInitArgs(size=size)))
        return made[-1]

    yield make
    for heap in made:
        heap.close()


@pytest.fixture
def preallocated(memory: Memory) -> Iterator[Heap]:
    """Make preallocated heaps, of memory that is given, or of a page of their own; they end with the test."""
    made: list[SharedHeap] = []

    def make(source: SharedMemory | None = None) -> SharedHeap:
        source = memory(OS_PAGE) if source is None else source
        arguments = wamr.SharedHeapInitArgs(size=source.size, pre_allocated_addr=source)
        made.append(wamr.wasm_runtime_create_shared_heap(arguments))
        return made[-1]

    yield make
    for heap in made:
        heap.close()
