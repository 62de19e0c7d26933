"""Linking a guest to WASI through the adapters (see `text`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import wasmtime

from shmwasm.engine.aliases import Alias
from shmwasm.engine.imports import define
from shmwasm.engine.wasi.text import GUEST, MEMORY, SHIM
from shmwasm.errors import AttachError
from shmwasm.rewrite import seam
from shmwasm.rewrite.rewriting import WASI_MODULE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from shmwasm.engine.wasi.code import AdapterCode
    from shmwasm.engine.windows import Chain, Grant


class WasiLinks:
    """WASI for guests of one module, one after another: all of it that can be there before a guest is.

    Args:
        store: The guests' store.
        code: The adapters.
        linker: What a guest will be linked with. It gets WASI's functions; until `serve`, calling one is a trap.
    """

    def __init__(self, store: wasmtime.Store, code: AdapterCode, linker: wasmtime.Linker) -> None:
        self._store = store
        self._code = code
        shim = wasmtime.Instance(store, code.shim, [])
        linker.define_instance(store, WASI_MODULE, shim)
        self._linker = wasmtime.Linker(store.engine)
        self._linker.allow_shadowing = True  # each guest's own memory takes the place of that of the one before
        self._linker.define_wasi()
        self._linker.define_instance(store, SHIM, shim)
        self._spare: dict[str, wasmtime.Memory | wasmtime.Global] | None = _new_alias(store)

    def serve(self, memory: wasmtime.Memory | wasmtime.SharedMemory, exports: Mapping[str, object]) -> Alias | None:
        """Let the guest, and none before it, call WASI. Return its alias memory: its own, or one for WASI's sake, if needed.

        Args:
            memory: Its heap memory: a 32-bit one, or a rewritten 64-bit one.
            exports: What it exports.
        """
        code = self._code
        own = seam.ALIAS in exports
        if seam.PAGES in exports:
            self._instantiate(memory, {seam.PAGES: exports[seam.PAGES]}, code.private_wide, code.window_wide)
            return Alias(self._store, exports) if own else None
        mapped = exports if own else self._take_spare()
        needed = {name: mapped[name] for name in (seam.ALIAS, seam.START, seam.END, seam.MIXED)}
        if isinstance(memory, wasmtime.SharedMemory):
            self._instantiate(memory, needed, code.private_shared, code.window_shared)
        else:
            self._instantiate(memory, needed, code.private, code.window)
        return Alias(self._store, mapped) if own else _SpareAlias(self._store, mapped)

    def _take_spare(self) -> dict[str, wasmtime.Memory | wasmtime.Global]:
        """Return an alias memory that no guest has had: what WASI gave to one lies in its scratch area."""
        spare, self._spare = self._spare, None
        return _new_alias(self._store) if spare is None else spare

    def _instantiate(
        self, memory: wasmtime.Memory | wasmtime.SharedMemory, items: Mapping[str, object], *adapters: wasmtime.Module
    ) -> None:
        define(self._linker, self._store, GUEST, MEMORY, memory)
        for name, item in items.items():
            assert isinstance(item, wasmtime.Memory | wasmtime.Global)
            self._linker.define(self._store, GUEST, name, item)
        for adapter in adapters:
            self._linker.instantiate(self._store, adapter)


class _SpareAlias(Alias):
    """An alias memory for WASI's sake: a chain that is too long for it can be attached all the same, and WASI refuses it."""

    _fits = True

    def check(self, grants: Sequence[Grant]) -> None:
        try:
            super().check(grants)
        except AttachError:
            self._fits = False
        else:
            self._fits = True

    def make_room(self, size: int) -> None:
        if self._fits:
            super().make_room(size)

    def attach(self, chain: Chain) -> None:
        if self._fits:
            super().attach(chain)


def _new_alias(store: wasmtime.Store) -> dict[str, wasmtime.Memory | wasmtime.Global]:
    """Return what a rewritten module exports for an alias memory."""
    number, flag = (wasmtime.GlobalType(kind, mutable=True) for kind in (wasmtime.ValType.i64(), wasmtime.ValType.i32()))
    return {
        seam.ALIAS: wasmtime.Memory(store, wasmtime.MemoryType(wasmtime.Limits(0, None))),
        seam.START: wasmtime.Global(store, number, wasmtime.Val.i64(seam.NOTHING)),
        seam.END: wasmtime.Global(store, number, wasmtime.Val.i64(0)),
        seam.MIXED: wasmtime.Global(store, flag, wasmtime.Val.i32(0)),
    }
