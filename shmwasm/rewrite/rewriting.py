"""`rewrite`: which memory chains are mapped into, what has to change for that, and the rewritten module.

Theory
------
A rewritten module is the original with edits. What no edit touches stays as it is to the byte: custom sections, names, numbers
that are not written in their shortest form. Nothing that has an index moves, since all that is new is appended. A module that
needs no change comes back as it is.

An invalid module does not always stay invalid: an index that was one too high may be that of something appended. So it is the
original that the engine has to validate.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator
from types import MappingProxyType
from typing import Final, NamedTuple

from shmwasm.addresses import WASM_PAGE
from shmwasm.errors import UnsupportedError, shown
from shmwasm.rewrite import copying, filling, seam, sizes, waiting
from shmwasm.rewrite.additions import Additions
from shmwasm.rewrite.assembler import END, i64
from shmwasm.rewrite.expansion import Expansion
from shmwasm.rewrite.heap_memory import HeapMemory
from shmwasm.rewrite.offsets import Edit, edited, replacement
from shmwasm.rewrite.report import Change, MemorySize, Report
from shmwasm.rewrite.report import HeapMemory as ReportedMemory
from shmwasm.rewrite.sites import CodeEditor
from shmwasm.wasm.binary import CODE, DATA, EXPORT, IMPORT, MEMORY, START, Binary, Data, Memory
from shmwasm.wasm.decoding import decode
from shmwasm.wasm.features import features_of
from shmwasm.wasm.scanning import BULK, COPY, FILL, GROW, INIT, NOTIFY, SIZE, WAIT32, WAIT64, WAITING, Operation, Scan

WASI_MODULE: Final = "wasi_snapshot_preview1"
"""The name that WASI preview 1's functions are imported from."""

_SHARED_HEAP_IMPORTS: Final = frozenset({("env", "shared_heap_malloc"), ("env", "shared_heap_free")})

_EXPORT: Final = "export of the heap memory"
_DECLARED_SIZE: Final = "size of the heap memory"
_DATA: Final = "data segment beyond the heap memory"
_START: Final = "start function"

WHY: Final = MappingProxyType(
    {
        **dict.fromkeys((COPY, FILL, INIT), "its addresses may lie in a shared heap, where the native instruction traps"),
        **dict.fromkeys((WAIT32, WAIT64, NOTIFY), "its address may lie in a shared heap, where processes wait for each other"),
        **dict.fromkeys((SIZE, GROW), "the 64-bit memory is declared larger than the guest sees it"),
        _EXPORT: "it is neither exported nor imported, and the heaps are mapped into it",
        _DECLARED_SIZE: "the heaps lie at the end of a 64-bit memory's declared range",
        _DATA: "it must still fail where the guest has no memory",
        _START: "the engine calls it when the instance is complete",
    }
)
"""What can be changed, and the reason."""


class Rewritten(NamedTuple):
    """A module after rewriting, and what was found and done."""

    content: bytes
    report: Report


def rewrite(content: bytes) -> Rewritten:
    """Return a module whose instructions reach shared heaps, given one that any compiler made.

    Raises:
        ModuleError: The bytes are no module. (The engine must validate the original nevertheless.)
        UnsupportedError: It uses what is not known here, or a name that is reserved for `seam`.
    """
    binary = decode(content)
    _refuse_reserved_names(binary)
    return _Rewriting(binary).run()


class _Rewriting:
    """One module on its way through the passes."""

    def __init__(self, binary: Binary) -> None:
        self._binary = binary
        self._additions = Additions(binary)
        self._changes: Counter[str] = Counter()
        self._reported = _heap_memory(binary)
        self._heap = self._writable_heap()

    def run(self) -> Rewritten:
        binary, scan = self._binary, Scan(self._binary)
        self._additions.edit(CODE, list(self._code_edits(scan)))
        if self._heap is not None and not self._changes.keys().isdisjoint(BULK | WAITING):
            self._heap.require_seam()
        self._declare_memory64()
        self._export_memory()
        self._take_start()
        content, offsets = edited(binary.content, self._additions.edits())
        code = binary.section(CODE)
        report = Report(
            changed=bool(self._changes),
            heap_memory=self._reported,
            memories=list(map(_size_of, binary.memories)),
            changes=[Change(what, self._changes[what], why) for what, why in WHY.items() if what in self._changes],
            functions=len(binary.functions),
            features=features_of(binary, scan),
            code_size=0 if code is None else code.payload.end - code.payload.start,
            needs_shared_heap=any((entry.module, entry.name) in _SHARED_HEAP_IMPORTS for entry in binary.imports),
            offsets=offsets,
        )
        return Rewritten(content, report)

    def _writable_heap(self) -> HeapMemory | None:
        """Return the heap memory for the passes; None if there is none, or none that a chain can ever be mapped into."""
        memory = self._reported
        if memory is None or self._binary.memories[memory.index].page_size != WASM_PAGE:
            return None
        if memory.is_64:
            # An address that is computed cannot be checked here, and the engine would not find it to be out of bounds.
            computed = any(segment.address is None for segment in self._data_of(memory.index))
            if computed or memory.shared or memory.minimum > sizes.DECLARED_PAGES:
                return None
        return HeapMemory(memory.index, memory.is_64, memory.minimum, self._additions)

    def _code_edits(self, scan: Scan) -> Iterator[Edit]:
        """Yield the edits of the code."""
        editor, expansion_of = CodeEditor(self._binary), functools.cache(self._expansion)
        for sites in scan.functions():
            replaced = [(site, expansion) for site in sites if (expansion := expansion_of(site.operation)) is not None]
            if replaced:
                self._changes.update([site.operation.instruction for site, _ in replaced])
                yield from editor.edits(replaced)

    def _expansion(self, operation: Operation) -> Expansion | None:
        heap, memories = self._heap, self._binary.memories
        used = {operation.memory, operation.source if operation.instruction == COPY else operation.memory}
        if heap is None or heap.index not in used or max(used) >= len(memories):
            return None
        match operation.instruction:
            case name if name == COPY:
                return copying.expand(heap, self._binary.memories, operation)
            case name if name == FILL:
                return filling.expand_fill(heap, operation)
            case name if name == INIT:
                return filling.expand_init(heap, operation)
            case name if name in WAITING:
                return waiting.expand(heap, operation)
            case name if name == SIZE and heap.is_64:
                return sizes.expand_size(heap)
            case name if name == GROW and heap.is_64:
                return sizes.expand_grow(heap, self._binary.memories[heap.index].maximum)
            case _:
                return None

    def _declare_memory64(self) -> None:
        """Declare a 64-bit heap memory over its whole range, and keep data out of what the guest does not have."""
        heap = self._heap
        if heap is None or not heap.is_64:
            return
        _ = heap.pages  # the engine keeps the size there, whether or not the guest asks
        span = self._binary.memories[heap.index].span
        section = IMPORT if heap.index < self._binary.imported("memory") else MEMORY
        self._additions.edit(section, [replacement(span.start, span.end, sizes.declared_type())])
        self._changes[_DECLARED_SIZE] += 1
        for segment in self._data_of(heap.index):
            assert segment.address is not None
            end = segment.address + segment.content.end - segment.content.start
            if end > heap.minimum * WASM_PAGE:
                assert segment.offset is not None
                self._additions.edit(DATA, [replacement(*segment.offset, i64(-1) + END)])
                self._changes[_DATA] += 1

    def _data_of(self, memory: int) -> Iterator[Data]:
        return (segment for segment in self._binary.data if segment.mode == "active" and segment.memory == memory)

    def _export_memory(self) -> None:
        memory = self._reported
        if memory is not None and memory.export == seam.MEMORY:
            self._additions.export(seam.MEMORY, "memory", memory.index)
            self._changes[_EXPORT] += 1

    def _take_start(self) -> None:
        """Turn the start function into an export, where the engine has to link or map more before it runs."""
        binary = self._binary
        memory64 = self._heap is not None and self._heap.is_64
        if binary.start is not None and (memory64 or any(entry.module == WASI_MODULE for entry in binary.imports)):
            self._additions.remove(START)
            self._additions.export(seam.BEGIN, "function", binary.start)
            self._changes[_START] += 1


def _refuse_reserved_names(binary: Binary) -> None:
    section = binary.section(EXPORT)
    if section is None or binary.content.find(seam.PREFIX.encode(), *section.payload) < 0:
        return
    reserved = next((export.name for export in binary.exports if export.name.startswith(seam.PREFIX)), None)
    if reserved is not None:
        raise UnsupportedError(f"an export named {shown(reserved)}", f"names that start with {seam.PREFIX!r} are reserved")


def _size_of(memory: Memory) -> MemorySize:
    maximum = None if memory.maximum is None else memory.maximum * memory.page_size
    return MemorySize(memory.minimum * memory.page_size, maximum, memory.shared)


def _heap_memory(binary: Binary) -> ReportedMemory | None:
    """Return the memory for chains: the one exported as "memory", else the first that is exported, else the first."""
    if not binary.memories:
        return None
    exported = {export.name: export.number for export in binary.exports_of("memory")}
    name = "memory" if "memory" in exported else next(iter(exported), None)
    index = 0 if name is None else exported[name]
    if index >= len(binary.memories):
        return None
    memory = binary.memories[index]
    imported = index < binary.imported("memory")
    return ReportedMemory(
        index=index,
        export=seam.MEMORY if name is None and not imported else name,
        imported=imported,
        is_64=memory.is_64,
        shared=memory.shared,
        minimum=memory.minimum,
        maximum=memory.maximum,
    )
