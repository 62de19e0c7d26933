"""Linking a guest to WASI through the adapters (see `text`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import wasmtime

from shmwasm.engine.imports import define
from shmwasm.engine.wasi.functions import WASI_MODULE
from shmwasm.engine.wasi.text import GUEST, MEMORY, SHIM, TABLE
from shmwasm.rewrite import seam

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from shmwasm.engine.wasi.code import AdapterCode


class WasiLinks:
    """WASI for one guest: all of it that can be there before the guest is.

    Args:
        store: The guest's store.
        code: The adapters.
    """

    def __init__(self, store: wasmtime.Store, code: AdapterCode) -> None:
        self._store = store
        self._code = code
        self._linker = wasmtime.Linker(store.engine)
        self._linker.define_wasi()
        self._shim = self._linker.instantiate(store, code.shim).exports(store)
        self._linker.define(store, SHIM, TABLE, self._shim[TABLE])

    def define(self, linker: wasmtime.Linker, names: Iterable[str]) -> None:
        """Define those of WASI's functions that have one of `names`. Until `serve`, calling one is a trap."""
        for name in names:
            function = self._shim.get(name)
            if isinstance(function, wasmtime.Func):
                linker.define(self._store, WASI_MODULE, name, function)

    def serve(self, memory: wasmtime.Memory | wasmtime.SharedMemory, exports: Mapping[str, object]) -> None:
        """Let the guest whose heap memory is `memory`, a 32-bit one, call WASI.

        Args:
            memory: The memory.
            exports: By the seam's names, `ALIAS`, `START`, `END` and `MIXED`: the guest's, or what `new_alias` made.
        """
        linker, store = self._linker, self._store
        define(linker, store, GUEST, MEMORY, memory)
        for name in (seam.ALIAS, seam.START, seam.END, seam.MIXED):
            item = exports[name]
            assert isinstance(item, wasmtime.Memory | wasmtime.Global)
            linker.define(store, GUEST, name, item)
        shared = isinstance(memory, wasmtime.SharedMemory)
        linker.instantiate(store, self._code.private_shared if shared else self._code.private)
        linker.instantiate(store, self._code.window_shared if shared else self._code.window)


def new_alias(store: wasmtime.Store) -> dict[str, wasmtime.Memory | wasmtime.Global]:
    """Return what a rewritten module exports for an alias memory, for a guest that has none of its own."""
    number, flag = (wasmtime.GlobalType(kind, mutable=True) for kind in (wasmtime.ValType.i64(), wasmtime.ValType.i32()))
    return {
        seam.ALIAS: wasmtime.Memory(store, wasmtime.MemoryType(wasmtime.Limits(0, None))),
        seam.START: wasmtime.Global(store, number, wasmtime.Val.i64(seam.NOTHING)),
        seam.END: wasmtime.Global(store, number, wasmtime.Val.i64(0)),
        seam.MIXED: wasmtime.Global(store, flag, wasmtime.Val.i32(0)),
    }
