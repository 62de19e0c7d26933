"""The second mapping of a chain, through which a rewritten module uses native bulk instructions (see `rewrite.seam`).

Theory
------
A native `memory.copy` compares addresses with its memory's size, which never reaches the window. In the alias memory the chain
lies *within* the size: the memory is grown by what the chain needs, and the same segments are mapped over the new pages. Nothing
shrinks a memory, so what a longer chain has left behind is inaccessible, and reached by nothing: the globals say what is there.
They change last when a chain comes, and first when it goes.
"""

from __future__ import annotations

import ctypes
import itertools
import struct
from typing import TYPE_CHECKING, Final

import wasmtime

from shmwasm.addresses import WASM_PAGE, NativeAddress, round_up
from shmwasm.engine.cells import IntegerCell
from shmwasm.engine.memories import base_of
from shmwasm.errors import ArgumentError, AttachError, UnsupportedError
from shmwasm.posix.mappings import map_fixed, unmap_fixed
from shmwasm.rewrite import seam

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from shmwasm.engine.windows import Chain, Grant

_MOST_HEAPS: Final = (seam.TABLE_END - seam.TABLE_ENTRIES) // seam.TABLE_ENTRY
_ENTRY: Final = struct.Struct("<QQI4x")


class Alias:
    """The alias memory of one instance, and the globals that tell its code where the chain is.

    Args:
        store: The store. Its limit on memory sizes must admit what `make_room` grows.
        exports: The instance's exports, with those that come with `shmwasm:alias`.
    """

    def __init__(self, store: wasmtime.Store, exports: Mapping[str, object]) -> None:
        memory = exports[seam.ALIAS]
        assert isinstance(memory, wasmtime.Memory)
        self._store = store
        self.memory = memory
        self._start, self._end = (IntegerCell(store, exports[name]) for name in (seam.START, seam.END))
        self._mixed = IntegerCell(store, exports[seam.MIXED], narrow=True)
        self.base = base_of(store, memory)
        """Where the alias memory is in this process."""
        self._mapped = 0  # bytes from ALIAS_CHAIN on

    def check(self, grants: Sequence[Grant]) -> None:
        """Check that a chain of these heaps, in ascending order, can be attached to.

        Raises:
            AttachError: It is too long for the alias memory, or has too many heaps for its table.
            ArgumentError: There is a gap in it, which bulk instructions would fall into.
        """
        head = grants[0]
        size = grants[-1].start + grants[-1].size - head.start
        if size > seam.MAXIMUM_ALIASED_CHAIN:
            raise AttachError(
                head.heap,
                f"its chain of {size} bytes is longer than the {seam.MAXIMUM_ALIASED_CHAIN} bytes "
                "that the module's bulk instructions can reach",
            )
        if len(grants) > _MOST_HEAPS:
            raise AttachError(head.heap, f"its chain has {len(grants)} heaps, and the module can take {_MOST_HEAPS}")
        for lower, upper in itertools.pairwise(grants):
            if lower.start + lower.size != upper.start:
                raise ArgumentError(f"heap {upper.heap!r} cannot lie at {upper.start:#x}: there is a gap below it")

    def make_room(self, size: int) -> None:
        """Grow the memory to hold a chain of `size` bytes.

        Raises:
            UnsupportedError: The kernel has no room.
        """
        missing = round_up(seam.ALIAS_CHAIN + size, WASM_PAGE) // WASM_PAGE - self.memory.size(self._store)
        if missing > 0:
            try:
                self.memory.grow(self._store, missing)
            except wasmtime.WasmtimeError as failure:
                reason = str(failure).splitlines()[0]
                raise UnsupportedError(f"a second mapping of {size} bytes", f"its memory cannot grow: {reason}") from None

    def attach(self, chain: Chain) -> None:
        """Map the chain, and tell the instance. There must be room for it, and nothing be attached.

        Raises:
            ArgumentError: A descriptor cannot be mapped. Nothing is mapped.
            UnsupportedError: The kernel has no room for the mappings. Nothing is mapped.
        """
        origin = self.base + seam.ALIAS_CHAIN - chain.start
        self._mapped = chain.end - chain.start
        try:
            for start, grant in chain.heaps:
                address = NativeAddress(origin + start)
                map_fixed(address, grant.size, grant.descriptor, writable=grant.writable, prefault=grant.prefault)
            self._write_table(chain)
            self._announce(chain.start, chain.end, mixed=not all(grant.writable for _, grant in chain.heaps))
        except BaseException:
            self.detach()
            raise

    def detach(self) -> None:
        """Tell the instance that no chain is there any more, and unmap it. May be called twice."""
        if self._mapped:
            self._announce(seam.NOTHING, 0, mixed=False)
            unmap_fixed(NativeAddress(self.base + seam.ALIAS_CHAIN), self._mapped)
            self._mapped = 0

    def _write_table(self, chain: Chain) -> None:
        entries = b"".join(_ENTRY.pack(start, start + grant.size, grant.writable) for start, grant in chain.heaps)
        table = len(chain.heaps).to_bytes(seam.TABLE_ENTRIES, "little") + entries
        ctypes.memmove(self.base, table, len(table))

    def _announce(self, start: int, end: int, *, mixed: bool) -> None:
        self._start.set(start)
        self._end.set(end)
        self._mixed.set(mixed)
