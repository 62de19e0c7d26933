"""What can be told of a module from its bytes, as plain values."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from shmwasm.client.modules import NATIVE_IMPORTS
from shmwasm.rewrite import Report
from shmwasm.rewrite.rewriting import WASI_MODULE
from shmwasm.wasm.binary import Binary, Memory
from shmwasm.wasm.features import FEATURES

FROM_US, FROM_WASI, FROM_USER, MADE, NOBODY = "shmwasm", "WASI", "you", "made for it", "nobody"
"""Who provides an import."""


@dataclass(frozen=True)
class ImportLine:
    """An import, and who provides it."""

    module: str
    name: str
    kind: str
    type: str
    provided_by: str


@dataclass(frozen=True)
class ExportLine:
    """An export."""

    name: str
    kind: str
    type: str


@dataclass(frozen=True)
class MemoryLine:
    """A memory; chains are mapped into the one that is the heap memory. Sizes are in pages of `page_size` bytes."""

    minimum: int
    maximum: int | None
    page_size: int
    is_64: bool
    shared: bool
    imported: bool
    exported_as: list[str]
    is_heap_memory: bool


@dataclass(frozen=True)
class Inspection:
    """A module: its parts, the proposals it uses, and what is rewritten of it."""

    module: str
    size: int
    code_size: int
    functions: int
    imports: list[ImportLine]
    exports: list[ExportLine]
    memories: list[MemoryLine]
    features: dict[str, str]
    changes: list[dict[str, Any]]
    is_rewritten: bool
    needs_shared_heap: bool
    needs_wasi: bool

    def facts(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return asdict(self)


def inspection_of(name: str, binary: Binary, report: Report) -> Inspection:
    """Return what there is to tell of a module that was decoded and rewritten."""
    heap = report.heap_memory
    return Inspection(
        module=name,
        size=len(binary.content),
        code_size=report.code_size,
        functions=len(binary.bodies),
        imports=[
            ImportLine(
                one.module, one.name, one.kind, _type(binary, one.kind, one.number), _provider(one.module, one.name, one.kind)
            )
            for one in binary.imports
        ],
        exports=[ExportLine(one.name, one.kind, _type(binary, one.kind, one.number)) for one in binary.exports],
        memories=[
            _memory_line(binary, number, is_heap=heap is not None and heap.index == number)
            for number in range(len(binary.memories))
        ],
        features={feature: FEATURES[feature] for feature in report.features},
        changes=[{"what": change.what, "count": change.count, "why": change.why} for change in report.changes],
        is_rewritten=report.changed,
        needs_shared_heap=report.needs_shared_heap,
        needs_wasi=any(one.module == WASI_MODULE for one in binary.imports),
    )


def _provider(module: str, name: str, kind: str) -> str:
    match kind:
        case "function" if (module, name) in NATIVE_IMPORTS:
            return FROM_US
        case "function" if module == WASI_MODULE:
            return FROM_WASI
        case "function" | "global":
            return FROM_USER
        case "memory" | "table":
            return MADE
        case _:
            return NOBODY


def _type(binary: Binary, kind: str, number: int) -> str:
    """Return a type as text."""
    match kind:
        case "function":
            return _function_type(binary, binary.functions[number])
        case "tag":
            return _function_type(binary, binary.tags[number])
        case "memory":
            return memory_type(binary.memories[number])
        case "table":
            table = binary.tables[number]
            return f"{_limits(table.minimum, table.maximum)} {table.element}"
        case _:
            holds = binary.globals[number]
            return f"mutable {holds.type}" if holds.mutable else holds.type


def _function_type(binary: Binary, index: int) -> str:
    kind = binary.types[index] if index < len(binary.types) else None
    if kind is None:
        return "unknown"
    results = kind.results[0] if len(kind.results) == 1 else f"({', '.join(kind.results)})"
    return f"({', '.join(kind.parameters)}) -> {results}"


def memory_type(memory: Memory | MemoryLine) -> str:
    """Return a memory's type as text."""
    words = [f"{_limits(memory.minimum, memory.maximum)} pages"]
    words += ["64-bit"] * memory.is_64 + ["shared"] * memory.shared
    return ", ".join(words)


def _limits(minimum: int, maximum: int | None) -> str:
    return f"{minimum} or more" if maximum is None else f"{minimum} to {maximum}"


def _memory_line(binary: Binary, number: int, *, is_heap: bool) -> MemoryLine:
    memory = binary.memories[number]
    return MemoryLine(
        minimum=memory.minimum,
        maximum=memory.maximum,
        page_size=memory.page_size,
        is_64=memory.is_64,
        shared=memory.shared,
        imported=number < binary.imported("memory"),
        exported_as=[export.name for export in binary.exports if export.kind == "memory" and export.number == number],
        is_heap_memory=is_heap,
    )
