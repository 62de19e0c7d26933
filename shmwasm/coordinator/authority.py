"""The metadata of one managed heap, and the core that the coordinator changes it through."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING, NoReturn

import wasmtime

from shmwasm.addresses import SLAB_SIZE, round_up
from shmwasm.core import CORE_MODULE, Core, HeapAuthority, layout, metadata_size, states_offset, states_range
from shmwasm.engine.cache import Cache
from shmwasm.engine.compiling import CompiledModule, compile_module
from shmwasm.engine.config import new_engine
from shmwasm.engine.modules import deserialize
from shmwasm.errors import HeapNoSpaceError, UnsupportedError
from shmwasm.posix.mappings import map_anywhere
from shmwasm.posix.segments import Segment
from shmwasm.protocol.messages import COORDINATOR

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shmwasm.control.actions import StoreHeap
    from shmwasm.protocol.messages import SlabRange

_log = logging.getLogger(__name__)

_FOR_EVER = 1 << 62
"""An epoch deadline that never comes."""

_WORDS_PER_DESCRIPTOR = layout.DESCRIPTOR_SIZE // 4
_RESERVED_TOGETHER = layout.SECTION_ALIGNMENT // layout.GRANULES_PER_SLAB
"""Slabs whose states are reserved at once: they fill a kernel page, however large, and few leases have to wait for it."""

_OWNER_WORD = 0
_CLASS_WORD = 1


class _NoHooks:
    """The coordinator allocates nothing, so its core asks for nothing."""

    def _unexpected(self, *_facts: object) -> NoReturn:
        raise AssertionError("the coordinator's core asked its host for something")

    lease = release = refuse = scrub = wake = absorb = _unexpected


def compile_core() -> CompiledModule:
    """Return the compiled core; the cache has it but for the first time. The caller closes it."""
    try:
        return compile_module(CORE_MODULE, Cache.default(), own=True)
    except UnsupportedError as refusal:
        _log.warning("the core is compiled without the cache: %s", refusal)
        return compile_module(CORE_MODULE, own=True)


def new_core(compiled: CompiledModule) -> Core:
    """Return an instance of the core for the coordinator."""
    engine = new_engine(parallel_compilation=False)
    store = wasmtime.Store(engine)
    store.set_epoch_deadline(_FOR_EVER)
    return Core(store, deserialize(engine, compiled.descriptor), owner=COORDINATOR, hooks=_NoHooks())


class ManagedHeap:
    """A heap's metadata segment, formatted and open."""

    def __init__(self, core: Core, wanted: StoreHeap) -> None:
        """Make the segment.

        Raises:
            HeapNoSpaceError: There is no room for it.
        """
        self._slabs = wanted.size // SLAB_SIZE
        always_used = states_offset(self._slabs)
        with ExitStack() as undo:
            self.metadata = Segment.create(metadata_size(self._slabs), name_for_errors=wanted.name, reserve=False)
            undo.callback(self.metadata.close)
            self.metadata.reserve(0, always_used)
            self.authority = HeapAuthority.create(
                core,
                self.metadata.descriptor,
                slabs=self._slabs,
                identity=wanted.heap,
                name=wanted.name,
                scrub=wanted.scrub,
                owner_frees_only=wanted.owner_frees_only,
            )
            undo.callback(self.authority.close)
            self._mapping = map_anywhere(self.metadata.descriptor, always_used, writable=False)
            undo.pop_all()
        end = layout.DESCRIPTORS_OFFSET + self._slabs * layout.DESCRIPTOR_SIZE
        self._reserved = bytearray(round_up(self._slabs, _RESERVED_TOGETHER) // _RESERVED_TOGETHER)
        self._descriptors = self._mapping.view[layout.DESCRIPTORS_OFFSET : end].cast("I")

    def reserve(self, part: SlabRange) -> None:
        """Reserve the memory of these slabs' states, and of their neighbours' where there is enough.

        Raises:
            HeapNoSpaceError: There is too little.
        """
        first, end = part.first // _RESERVED_TOGETHER, -(-(part.first + part.count) // _RESERVED_TOGETHER)
        if self._reserved.find(0, first, end) < 0:
            return
        try:
            self.metadata.reserve(*states_range(self._slabs, first * _RESERVED_TOGETHER, (end - first) * _RESERVED_TOGETHER))
        except HeapNoSpaceError:
            self.metadata.reserve(*states_range(self._slabs, part.first, part.count))
        else:
            self._reserved[first:end] = b"\1" * (end - first)

    def owners(self) -> memoryview:
        """Return the owner of each slab as the metadata says."""
        return self._descriptors[_OWNER_WORD::_WORDS_PER_DESCRIPTOR]

    def classes(self, slabs: Iterable[int]) -> frozenset[int]:
        """Return the size classes of these slabs as the metadata says."""
        found = {self._descriptors[slab * _WORDS_PER_DESCRIPTOR + _CLASS_WORD] for slab in slabs}
        return frozenset(size_class for size_class in found if 0 < size_class <= layout.SIZE_CLASSES)

    def close(self) -> None:
        """Close all of it."""
        self._descriptors.release()
        self._mapping.close()
        self.authority.close()
        self.metadata.close()
