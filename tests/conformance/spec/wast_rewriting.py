"""Worlds whose modules went through the rewriter, with what the engine does for those around their instantiation.

A worker has one guest in a store; a script has many, which import from each other. What that takes beyond the engine's own
classes is here: a 64-bit memory that several modules share has one window, and its size has to be told to all of them; and what
it can be linked to is decided by the type that the script gave it, as the rewriter declares every such memory over the whole
range.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Final, NamedTuple

import wasmtime
from wast_moving import Choose, Place, move
from wast_runner import Instance, RefusedError, World

from shmwasm.addresses import WASM_PAGE, WINDOW_END, WINDOW_END_64, AppAddress
from shmwasm.engine.aliases import Alias
from shmwasm.engine.callbacks import new_host_function
from shmwasm.engine.heap_memory import heap_memory, is_wide
from shmwasm.engine.host_table import HostTable
from shmwasm.engine.modules import FunctionType, MemoryType, ModuleDescription, describe
from shmwasm.engine.windows import Grant, Window, reserve
from shmwasm.errors import ShmwasmError
from shmwasm.posix.segments import Segment
from shmwasm.rewrite import rewrite, seam
from shmwasm.worker.waiting import Waiting

_GROW: Final = FunctionType(("i64",), ("i64",))
_POISON: Final = 0xA5


class _WideMemory:
    """A 64-bit memory as the guests see it: its window, its maximum, and the globals that hold its size."""

    def __init__(self, window: Window, maximum: int | None, pages: wasmtime.Global) -> None:
        self.window = window
        self.maximum = maximum
        self._pages = [pages]

    def fits(self, wanted: MemoryType) -> bool:
        """Return whether a module that imports a memory of this type may be given this one."""
        large_enough = self.window.memory_size >= wanted.minimum * WASM_PAGE
        return large_enough and (wanted.maximum is None or (self.maximum is not None and self.maximum <= wanted.maximum))

    def join(self, store: wasmtime.Store, pages: wasmtime.Global) -> None:
        """Let the instance whose size this is know the memory's."""
        pages.set_value(store, self.window.memory_size // WASM_PAGE)
        self._pages.append(pages)

    def grow(self, store: wasmtime.Store, delta: int) -> int:
        """Grow it for all instances."""
        grown = self.window.grow(delta)
        for pages in self._pages:
            pages.set_value(store, self.window.memory_size // WASM_PAGE)
        return grown


class Prepared(NamedTuple):
    """An instance of a rewritten module, and the window of its heap memory, if it has one."""

    instance: wasmtime.Instance
    window: Window | None


class RewrittenWorld(World):
    """A store in which a script's modules live once they are rewritten."""

    def __init__(self, engine: wasmtime.Engine, modules: dict[bytes, wasmtime.Module]) -> None:
        self._wide: dict[int, _WideMemory] = {}
        self._host_tables: list[HostTable] = []
        self._closing = ExitStack()
        self._waiting = Waiting(lambda: None)
        super().__init__(engine, modules)

    def close(self) -> None:
        """Give back the memory of everything in it."""
        self._closing.close()
        super().close()

    def check(self, content: bytes) -> None:
        """Raise `RefusedError` unless this is a valid module, which the rewriter takes and makes another valid one of."""
        super().check(content)
        super().check(_rewritten(content))

    def instantiate(self, content: bytes) -> wasmtime.Instance:
        """Return a new instance of a binary module."""
        return self.prepare(content).instance

    def prepare(self, content: bytes) -> Prepared:
        """Return a new instance of a binary module, and its window."""
        original = describe(self.compile(content))  # it is for the engine to refuse what is invalid, before rewriting
        module = self.compile(_rewritten(content))
        description = describe(module)
        self._check_links(original)
        reserve(self.store, WINDOW_END_64 if is_wide(description) else WINDOW_END)
        try:
            instance = self._link(module)
        finally:
            reserve(self.store)
        window = self._open(instance.exports(self.store), description, original)
        if seam.BEGIN in description.exports:
            self._call(self._export(Instance(instance, {}), seam.BEGIN.encode()), [])
        return Prepared(instance, window)

    def _check_links(self, original: ModuleDescription) -> None:
        for entry in original.imports:
            if isinstance(entry.type, MemoryType) and entry.type.is_64:
                wide = self._wide.get(self._base(self.linker.get(self.store, entry.module, entry.name)))
                if wide is not None and not wide.fits(entry.type):
                    raise wasmtime.WasmtimeError("incompatible import type")

    def _open(self, exports: Mapping[str, Any], description: ModuleDescription, original: ModuleDescription) -> Window | None:
        chosen = heap_memory(description)
        if chosen is None or (chosen.type.is_64 and not is_wide(description)):
            return None
        own = isinstance(chosen.name, str)
        memory = exports[chosen.name] if own else self.linker.get(self.store, *chosen.name)
        pages = exports.get(seam.PAGES)
        wide = self._wide.get(self._base(memory))
        if wide is not None:
            wide.join(self.store, pages)
            self._set_grow(exports, wide)
            return wide.window
        alias = Alias(self.store, exports) if seam.ALIAS in exports else None
        window = Window(self.store, memory, chosen.type, pages=pages, alias=alias)
        self._closing.callback(window.close)
        if seam.HOST in exports:
            table = HostTable(self.store)
            table.fill(exports[seam.HOST], window, self._waiting)
            self._host_tables.append(table)
        if pages is not None:
            declared = heap_memory(original)
            wide = _WideMemory(window, declared.type.maximum if declared else None, pages)
            self._wide[self._base(memory)] = wide
            self._set_grow(exports, wide)
        return window

    def _set_grow(self, exports: Mapping[str, Any], wide: _WideMemory) -> None:
        if seam.HOST in exports:
            grow = new_host_function(self.store, "grow", _GROW, lambda delta: wide.grow(self.store, delta))
            exports[seam.HOST].set(self.store, seam.HOST_GROW, grow)

    def _base(self, memory: wasmtime.Memory | wasmtime.SharedMemory) -> int:
        pointer = memory.data_ptr() if isinstance(memory, wasmtime.SharedMemory) else memory.data_ptr(self.store)
        return ctypes.cast(pointer, ctypes.c_void_p).value or 0


class MovedWorld(RewrittenWorld):
    """A store in which modules have their memory moved into heaps, where they can, and are rewritten then.

    What is left of the memory itself is filled with a pattern, so that nothing is found there by mistake.
    """

    def __init__(self, engine: wasmtime.Engine, modules: dict[bytes, wasmtime.Module], choose: Choose) -> None:
        self.moved = 0
        self._choose = choose
        super().__init__(engine, modules)

    def prepare(self, content: bytes) -> Prepared:
        """Return a new instance of a binary module, with its memory moved and attached, and its window."""
        self.compile(content)  # see above
        moved = move(content, self._choose)
        if moved is None:
            return super().prepare(content)
        prepared = super().prepare(moved.content)
        window, place = prepared.window, moved.place
        assert window is not None
        window.attach(self._grants(place))
        ctypes.memset(window.base, _POISON, window.memory_size)
        for address, data in moved.data:
            ctypes.memmove(window.base + place.base + address, data, len(data))
        self.moved += 1
        return prepared

    def _grants(self, place: Place) -> list[Grant]:
        grants = []
        start = place.start
        for number, size in enumerate(place.heaps):
            name, writable = f"heap {number}", number >= place.read_only
            segment = self._closing.enter_context(Segment.create(size, name_for_errors=name))
            descriptor = segment.descriptor
            if not writable:
                descriptor = segment.read_only_descriptor()
                self._closing.callback(os.close, descriptor)
            grants.append(Grant(heap=name, start=AppAddress(start), size=size, descriptor=descriptor, writable=writable))
            start += size
        return grants


def _rewritten(content: bytes) -> bytes:
    try:
        return rewrite(content).content
    except ShmwasmError as refusal:
        raise RefusedError from refusal
