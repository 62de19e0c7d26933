"""The shared-memory core: a slab allocator in C that every process runs on shared metadata, and its Python side.

Layout: `core.h` is the specification of the metadata segment, `layout` and `metadata` are it in Python. `src/` is the core, which
`core.wasm` is built from. `allocator` is what a process allocates with, `authority` what the coordinator does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from shmwasm.core.allocator import Core, CoreHooks
from shmwasm.core.authority import HeapAuthority
from shmwasm.core.heap_slots import RUN, AllocatorStatistics, HeapSlot
from shmwasm.core.metadata import metadata_size, states_offset, states_range

CORE_MODULE: Final = Path(__file__).with_name("core.wasm")
"""The compiled core."""

__all__ = [
    "CORE_MODULE",
    "RUN",
    "AllocatorStatistics",
    "Core",
    "CoreHooks",
    "HeapAuthority",
    "HeapSlot",
    "metadata_size",
    "states_offset",
    "states_range",
]
