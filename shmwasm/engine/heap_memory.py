"""Which of a module's memories a chain is mapped into, and whether it can be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from shmwasm.addresses import WASM_PAGE
from shmwasm.engine.modules import MemoryType
from shmwasm.errors import AttachError, UnsupportedError
from shmwasm.rewrite import seam

if TYPE_CHECKING:
    from shmwasm.engine.modules import ModuleDescription

_USUAL_NAME: Final = "memory"


class HeapMemory(NamedTuple):
    """The memory that a chain is mapped into: the name of its export, or else module and name of its import; and its type."""

    name: str | tuple[str, str]
    type: MemoryType


def heap_memory(description: ModuleDescription) -> HeapMemory | None:
    """Return a module's heap memory: the one exported as "memory", else the first exported one, else its first one.

    None means that it has no memory, or (if it was not rewritten) none that can be reached from outside.
    """
    exported = {name: kind for name, kind in description.exports.items() if isinstance(kind, MemoryType)}
    own = {name: kind for name, kind in exported.items() if not name.startswith(seam.PREFIX)}
    if own:
        name = _USUAL_NAME if _USUAL_NAME in own else next(iter(own))
        return HeapMemory(name, own[name])
    for entry in description.imports:
        if isinstance(entry.type, MemoryType):
            return HeapMemory((entry.module, entry.name), entry.type)
    kind = exported.get(seam.MEMORY)
    return None if kind is None else HeapMemory(seam.MEMORY, kind)


def is_wide(description: ModuleDescription) -> bool:
    """Return whether the heap memory is a 64-bit one that was rewritten for a chain."""
    return seam.PAGES in description.exports


def check_memories(description: ModuleDescription, start: int, *, heap: str) -> None:
    """Check that a module can be attached to a chain whose window starts at the 32-bit app address `start`.

    Raises:
        AttachError: A memory reaches the window from the beginning, or is shared and may.
        UnsupportedError: The heap memory is a 64-bit one that was not rewritten.
    """
    if is_wide(description):
        return  # how far it reaches is known once it is made; no other memory can get near
    chosen = heap_memory(description)
    if chosen is not None and chosen.type.is_64:
        raise UnsupportedError("a 64-bit memory", "a chain can be attached to it only if it is not shared, and was rewritten")
    for memory in description.memories:
        if memory.minimum * WASM_PAGE > start:
            raise AttachError(heap, f"the module's memory of {memory.minimum * WASM_PAGE} bytes reaches the window at {start:#x}")
        # The store's limit does not bind shared memories; only their own maximum does.
        if memory.shared and (memory.maximum is None or memory.maximum * WASM_PAGE > start):
            raise AttachError(heap, f"the module's shared memory may grow into the window at {start:#x}; lower its maximum")
