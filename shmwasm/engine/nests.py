"""Where guests are made: a store, and what is linked to all of its guests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import wasmtime

from shmwasm.engine.callbacks import new_host_function
from shmwasm.engine.heap_memory import heap_memory, is_wide
from shmwasm.engine.host_table import HostTable
from shmwasm.engine.imports import check_provided
from shmwasm.engine.modules import FunctionType, Import, MemoryType
from shmwasm.engine.wasi import AdapterCode, WasiLinks
from shmwasm.rewrite import seam
from shmwasm.rewrite.rewriting import WASI_MODULE

if TYPE_CHECKING:
    from shmwasm.engine.modules import ImportName, ModuleDescription


def new_store(engine: wasmtime.Engine) -> wasmtime.Store:
    """Return a store whose guests run until the engine's epoch grows."""
    store = wasmtime.Store(engine)
    store.set_epoch_deadline(1)
    return store


class Nest:
    """A store for guests of one module, one after another, and what is linked natively to them.

    All of that can be there before the module is known; what its guests have in common is linked with the first.

    Args:
        store: Made by `new_store`.
        natives: Functions of the store that the module may import; called with nothing between.
        natives_64: Other forms of some of them, which a module gets that imports them with 64-bit types.
        adapters: What lets WASI take pointers into a window; without, it refuses them.
    """

    def __init__(
        self,
        store: wasmtime.Store,
        natives: Mapping[ImportName, wasmtime.Func],
        natives_64: Mapping[ImportName, wasmtime.Func] = MappingProxyType({}),
        adapters: AdapterCode | None = None,
    ) -> None:
        self.store = store
        self._natives_64 = natives_64
        self.linker = wasmtime.Linker(store.engine)
        self.linker.allow_shadowing = True  # the user's own functions come before WASI's
        self.provided = frozenset(natives)
        self.host_table = HostTable(store)
        self._wasi = None if adapters is None else WasiLinks(store, adapters, self.linker)
        self._is_linked = False
        self.wasi: WasiLinks | None = None
        """What must be told of each guest's memory before the guest calls WASI."""
        self.types: Mapping[str, FunctionType] = {}
        """The guests' exported functions."""
        self.other_memories: Sequence[str] = ()
        """Exports of the guests that are memories, but neither the heap memory nor the alias memory."""
        for (module, name), native in natives.items():
            self.linker.define(store, module, name, native)

    def link(
        self,
        name: str,
        description: ModuleDescription,
        *,
        functions: Mapping[ImportName, Callable[..., Any]],
        numbers: frozenset[ImportName],
        wasi: bool,
    ) -> None:
        """Link what all guests of a module have in common; the second time, and from then on, nothing happens.

        Takes what `Guest` takes, and raises its `ModuleError` and `UnsupportedError`.
        """
        if self._is_linked:
            return
        check_provided(name, description, functions=self.provided | functions.keys(), numbers=numbers, wasi=wasi)
        missing = {(entry.module, entry.name) for entry in description.imports} - functions.keys()
        if any(module == WASI_MODULE for module, _ in missing):
            self._link_wasi(description)
        self._fit(description.imports)
        for entry in description.imports:
            function = functions.get((entry.module, entry.name))
            if function is not None and isinstance(entry.type, FunctionType):
                label = f"{entry.module}.{entry.name}"
                native = new_host_function(self.store, label, entry.type, function)
                self.linker.define(self.store, entry.module, entry.name, native)
        self.types = {
            export: kind
            for export, kind in description.exports.items()
            if isinstance(kind, FunctionType) and not export.startswith(seam.PREFIX)
        }
        heap = heap_memory(description)
        named = {seam.ALIAS} if heap is None else {seam.ALIAS, heap.name}
        self.other_memories = [
            export for export, kind in description.exports.items() if isinstance(kind, MemoryType) and export not in named
        ]
        self._is_linked = True

    def _link_wasi(self, description: ModuleDescription) -> None:
        memory = heap_memory(description)
        if self._wasi is None or memory is None or (memory.type.is_64 and not is_wide(description)):
            self.linker.define_wasi()
        else:
            self.wasi = self._wasi

    def _fit(self, imports: Iterable[Import]) -> None:
        """Link the form of each native that the module with these imports asks for."""
        for entry in imports:
            wide = self._natives_64.get((entry.module, entry.name))
            kind = entry.type
            if wide is not None and isinstance(kind, FunctionType) and "i64" in kind.parameters + kind.results:
                self.linker.define(self.store, entry.module, entry.name, wide)
