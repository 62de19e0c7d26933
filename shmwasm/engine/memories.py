"""A guest's memories as parts of this process's address space."""

from __future__ import annotations

import ctypes

import wasmtime

from shmwasm.addresses import NativeAddress

AnyMemory = wasmtime.Memory | wasmtime.SharedMemory


def memory_of(item: object) -> AnyMemory:
    """Return what was imported or exported as a memory."""
    assert isinstance(item, AnyMemory)
    return item


def base_of(store: wasmtime.Store, memory: AnyMemory) -> NativeAddress:
    """Return where a memory's address 0 is in this process."""
    pointer = memory.data_ptr() if isinstance(memory, wasmtime.SharedMemory) else memory.data_ptr(store)
    return NativeAddress(ctypes.cast(pointer, ctypes.c_void_p).value or 0)


def size_of(store: wasmtime.Store, memory: AnyMemory) -> int:
    """Return how many bytes a memory has, as the engine sees it."""
    return memory.data_len() if isinstance(memory, wasmtime.SharedMemory) else memory.data_len(store)
