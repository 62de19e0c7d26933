"""Instances of random modules, original or rewritten, and all that can be seen of one."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import wasmtime
from editing import NUMBERS

from shmwasm.addresses import WASM_PAGE, WINDOW_END, WINDOW_END_64, AppAddress
from shmwasm.engine.aliases import Alias
from shmwasm.engine.calls import ExportedFunction
from shmwasm.engine.config import SETTINGS
from shmwasm.engine.heap_memory import heap_memory, is_wide
from shmwasm.engine.host_table import HostTable
from shmwasm.engine.modules import FunctionType, MemoryType, ModuleDescription, describe
from shmwasm.engine.nests import new_store
from shmwasm.engine.windows import Grant, Window, reserve
from shmwasm.errors import AttachError, UnsupportedError
from shmwasm.rewrite import seam
from shmwasm.worker.waiting import Waiting

HEAPS: Final = 2
HEAP_SIZE: Final = 1 << 16
CHAIN_START: Final = WINDOW_END - HEAPS * HEAP_SIZE

HANG_LIMIT: Final = 40
"""How many calls and loops a module may begin in one call from here."""

OUT_OF_BOUNDS: Final = "memory_out_of_bounds"
STACK: Final = "stack_overflow"
"""How deep calls may go depends on how large frames are, so this one says nothing."""

Outcome = tuple[bytes, ...] | str
"""The results of a call, bit for bit; or what stopped it."""


class TrapError(Exception):
    """A guest stopped; the message is the trap's code."""


class Function(ExportedFunction):
    """An exported function that reports a trap's code only: describing its backtrace takes longer than the call."""

    def _failure(self, error):
        if error:
            return super()._failure(error)
        trap = wasmtime.Trap._from_ptr(ctypes.cast(self._trap, ctypes.POINTER(wasmtime._bindings.wasm_trap_t)))
        self._trap.value = None
        return TrapError(_outcome_of(trap))


class Code(NamedTuple):
    """A compiled module and its description."""

    module: wasmtime.Module
    description: ModuleDescription


class Exports(dict[str, Any]):
    """Exports of one instance, each looked up when it is first asked for: most never are."""

    def __init__(self, linker: wasmtime.Linker, store: wasmtime.Store, instance: wasmtime.Instance, name: str) -> None:
        super().__init__()
        linker.define_instance(store, name, instance)
        self._place = linker, store, name

    def __missing__(self, export: str) -> Any:
        linker, store, name = self._place
        found = self[export] = linker.get(store, name, export)
        return found


class Engine:
    """An engine for all of a process's instances."""

    def __init__(self) -> None:
        config = wasmtime.Config()
        for name, value in SETTINGS.items():
            setattr(config, name, value)
        config.cranelift_opt_level = "none"
        config.cranelift_nan_canonicalization = True  # which NaN an instruction returns is open
        config.parallel_compilation = False
        self.native = wasmtime.Engine(config)
        text = Path(__file__).with_name("support.wat").read_text()
        self.support = wasmtime.Module(self.native, wasmtime.wat2wasm(text))

    def compile(self, content: bytes) -> Code:
        module = wasmtime.Module(self.native, content)
        return Code(module, describe(module))


class Run:
    """An instance. With descriptors of heaps, it is attached to their chain, if it can be.

    Args:
        engine: Where to make it.
        code: Its module.
        limit: The exported global to set before each call, so that every call ends.
        descriptors: Of `HEAPS` heaps of `HEAP_SIZE` bytes each.
        writable: Whether the second heap may be written.
    """

    def __init__(
        self,
        engine: Engine,
        code: Code,
        limit: str | None,
        descriptors: Sequence[int] = (),
        *,
        writable: bool = True,
    ) -> None:
        self.description = code.description
        self.store = store = new_store(engine.native)
        self._limit = limit
        wide = any(memory.is_64 for memory in self.description.memories)
        start = CHAIN_START if descriptors else WINDOW_END
        reserve(store, WINDOW_END_64 if wide else start)
        linker = wasmtime.Linker(engine.native)
        self._support = Exports(linker, store, linker.instantiate(store, engine.support), "fuzzing-support")
        for entry in self.description.imports:
            if entry.module == "__fuzz_import":
                linker.define(store, entry.module, entry.name, self._support["object"])
        self.window: Window | None = None
        self.attached = False
        self.failure: str | None = None
        try:
            self._exports = Exports(linker, store, linker.instantiate(store, code.module), "random")
            self._open_window(start)
            if seam.BEGIN in self.description.exports:
                self._exports[seam.BEGIN](store)
        except (wasmtime.Trap, wasmtime.WasmtimeError) as failure:
            self.failure = _outcome_of(failure)
        else:
            if descriptors and self.window is not None:
                self._attach(descriptors, writable=writable)

    def call(self, name: str, arguments: Sequence[float]) -> Outcome:
        if self.failure is not None:
            return self.failure
        if self._limit is not None:
            self._exports[self._limit].set_value(self.store, HANG_LIMIT)
        kind = self.description.exports[name]
        assert isinstance(kind, FunctionType)
        try:
            results = Function(self.store, self._exports[name], name, kind).call(arguments)
        except TrapError as trap:
            return str(trap)
        return tuple(map(bits, kind.results, results))

    @property
    def memories(self) -> list[str]:
        """The names of its exported memories; where only the heap memory is exported, that is the one."""
        exports = self.description.exports.items()
        return [name for name, kind in exports if isinstance(kind, MemoryType) and name != seam.ALIAS]

    def memory(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        """Return what a range of an exported memory holds, by default all that its guest sees as its own."""
        if size is None:
            ours = self.window is not None and name == heap_memory(self.description).name
            memory = self._exports[name]
            size = self.window.memory_size if ours else memory.data_len(*self._context(memory))
        return ctypes.string_at(self._base(name) + start, size)

    def number(self, name: str, kind: str) -> bytes:
        """Return what an exported global of type `kind` holds, bit for bit."""
        return bits(kind, self._exports[name].value(self.store))

    def trace(self) -> tuple[bytes, int]:
        """Return what was logged, and where the log ends."""
        return bytes(self._support["trace"].read(self.store, 0, WASM_PAGE)), self._support["end"].value(self.store)

    def _base(self, name: str) -> int:
        memory = self._exports[name]
        return ctypes.cast(memory.data_ptr(*self._context(memory)), ctypes.c_void_p).value

    def _context(self, memory: wasmtime.Memory | wasmtime.SharedMemory) -> tuple[wasmtime.Store, ...]:
        return () if isinstance(memory, wasmtime.SharedMemory) else (self.store,)

    def _open_window(self, start: int) -> None:
        chosen, wide = heap_memory(self.description), is_wide(self.description)
        if chosen is None or (chosen.type.is_64 and not wide):
            return
        pages = self._exports[seam.PAGES] if wide else None
        alias = Alias(self.store, self._exports) if seam.ALIAS in self.description.exports else None
        self.window = Window(self.store, self._exports[chosen.name], chosen.type, pages=pages, alias=alias, start=start)
        if seam.HOST in self.description.exports:
            self._host_table = HostTable(self.store)  # kept, as the guest calls it
            self._host_table.fill(self._exports[seam.HOST], self.window, Waiting(lambda: None))

    def _attach(self, descriptors: Sequence[int], *, writable: bool) -> None:
        starts = range(CHAIN_START, WINDOW_END, HEAP_SIZE)
        grants = [
            Grant(
                heap="heap",
                start=AppAddress(start),
                size=HEAP_SIZE,
                descriptor=descriptor,
                writable=writable or start == starts[0],
            )
            for start, descriptor in zip(starts, descriptors, strict=True)
        ]
        try:
            self.window.attach(grants)
        except (AttachError, UnsupportedError):
            return  # a shared memory that may grow into the window, for instance
        self.attached = True


@contextmanager
def heaps() -> Iterator[list[int]]:
    """Make the segments of two heaps; give their descriptors."""
    made = [os.memfd_create("heap") for _ in range(HEAPS)]
    for one in made:
        os.ftruncate(one, HEAP_SIZE)
    yield made
    for one in made:
        os.close(one)


def bits(kind: str, value: float) -> bytes:
    """Return a number of type `kind`, bit for bit."""
    return struct.pack(NUMBERS[kind], value)


def _outcome_of(failure: wasmtime.Trap | wasmtime.WasmtimeError) -> str:
    code = failure.trap_code if isinstance(failure, wasmtime.Trap) else None
    return code.name.lower() if code is not None else str(failure).splitlines()[0]
