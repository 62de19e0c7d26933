"""What rewriting a module found and did; kept beside the compiled code."""

from __future__ import annotations

import msgspec

from shmwasm.rewrite.offsets import OffsetMap


class HeapMemory(msgspec.Struct, frozen=True):
    """The memory that a chain is mapped into, as the guest knows it.

    Attributes:
        index: Its index among the module's memories.
        export: The name it is exported by in the rewritten module; None if it is imported and not exported.
        imported: Whether the module imports it.
        is_64: Whether its addresses have 64 bits.
        shared: Whether it is a shared memory.
        minimum: Pages that it starts with.
        maximum: Pages that it may grow to, if the module says so.
    """

    index: int
    export: str | None
    imported: bool
    is_64: bool
    shared: bool
    minimum: int
    maximum: int | None


class MemorySize(msgspec.Struct, frozen=True):
    """How large one of a module's memories is.

    Attributes:
        minimum: Bytes that it starts with.
        maximum: Bytes that it may grow to, if the module says so.
        shared: Whether it is a shared memory.
    """

    minimum: int
    maximum: int | None
    shared: bool


class Change(msgspec.Struct, frozen=True):
    """Something that was changed `count` times: an instruction's name or a part of the module, and why."""

    what: str
    count: int
    why: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a module and of its rewriting.

    Attributes:
        changed: Whether the rewritten module differs from the original.
        heap_memory: The memory for chains; None if the module has none.
        memories: The sizes of all memories, imported ones too, in the order of their indices.
        changes: What was changed.
        functions: How many functions the original has, imports included; those of higher index were appended.
        features: The proposals that the original uses, oldest first.
        code_size: Bytes of the original's function bodies.
        needs_shared_heap: Whether it imports functions that only a shared heap can serve.
        offsets: The map behind `original_offset`.
        metered: Whether it counts its fuel.
        metering: The map from there back to the module that was not metered yet.
    """

    changed: bool
    heap_memory: HeapMemory | None
    memories: list[MemorySize]
    changes: list[Change]
    functions: int
    features: list[str]
    code_size: int
    needs_shared_heap: bool
    offsets: OffsetMap
    metered: bool = False
    metering: OffsetMap = OffsetMap()

    def original_offset(self, offset: int) -> int:
        """Return where in the original file stood what is at `offset` of the rewritten one.

        What was put in place of an instruction is all at that instruction; what was put between is at what follows.
        """
        return self.offsets.original(self.metering.original(offset))
