"""Addresses, page sizes, and where a chain lies in a guest's address space.

Theory
------
A 32-bit guest addresses 4 GiB, half open: [0, `WINDOW_END`). Its linear memory grows from 0 upwards; the *window*, the part
given to a chain of shared heaps, ends at `WINDOW_END`. The chain of heaps h1 -> h2 -> ... -> hn occupies
[`WINDOW_END` - sum of sizes, `WINDOW_END`), head lowest, each heap directly below its body. Every instance attached to the chain
therefore sees a block at the same app address, and pointers stored in shared data are valid in all of them.

A 64-bit guest's memory (memory64) is declared as [0, `WINDOW_END_64`), and its window ends there: a block lies `ORIGIN_64` higher
than in 32-bit guests, again in every such instance alike. Where nothing else is said, an app address is the 32-bit one; only
64-bit guest code, and who hands addresses to it, counts otherwise.

Why `WINDOW_END_64` is neither 2^64 nor 2^32: the engine reserves every memory whole, out of the 47 bits of address space that a
process has (2^64 bytes cannot be declared, let alone reserved), and where the kernel commits memory strictly, or address space is
limited, all of it counts at instantiation. On the other side, 64-bit guests exist to use more than 4 GiB. 64 GiB leave them at
least 60 of their own. (docs/decisions/0007 has the measurements.)

A native address (one process's own) never crosses a process, so it has a type of its own.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import NewType

AppAddress = NewType("AppAddress", int)
"""What a guest's load or store sees."""

HeapOffset = NewType("HeapOffset", int)
"""Bytes from a heap's first byte."""

NativeAddress = NewType("NativeAddress", int)
"""An address in this process's own memory."""

WASM_PAGE = 1 << 16
"""The WebAssembly page, and the size of a slab, in bytes."""

SLAB_SIZE = WASM_PAGE
"""A managed heap's unit of leasing, in bytes."""

OS_PAGE = mmap.PAGESIZE
"""The kernel's page, in bytes."""

WINDOW_END = 1 << 32
"""Where every 32-bit window ends (half open)."""

WINDOW_END_64 = 1 << 36
"""Where every 64-bit window ends (half open)."""

ORIGIN_64 = WINDOW_END_64 - WINDOW_END
"""How much higher a chain lies in a 64-bit window than in a 32-bit one."""

MAXIMUM_CHAIN_SIZE = WINDOW_END - WASM_PAGE
"""A chain leaves the guest at least one page of linear memory, so that address 0 is never a heap's."""


def round_up(size: int, unit: int) -> int:
    """Return the smallest multiple of `unit` that is not below `size`."""
    return -(-size // unit) * unit


def window_start(sizes: Sequence[int]) -> AppAddress:
    """Return where the window of a chain of heaps of these sizes starts."""
    return AppAddress(WINDOW_END - sum(sizes))


def chain_starts(sizes: Sequence[int]) -> list[AppAddress]:
    """Return the app address of each heap of a chain, given their sizes from head to last body."""
    starts: list[AppAddress] = []
    start = window_start(sizes)
    for size in sizes:
        starts.append(start)
        start = AppAddress(start + size)
    return starts


def address64(address: AppAddress) -> AppAddress:
    """Return where a 64-bit guest sees what a 32-bit guest sees at `address`, in a chain."""
    return AppAddress(address + ORIGIN_64)


def address32(address: int) -> int:
    """Return the 32-bit app address of what a guest calls `address`, signed or unsigned, in 32 bits or in its 64-bit window.

    Any other number is returned as it is, and is no 32-bit number.
    """
    if ORIGIN_64 <= address < WINDOW_END_64:
        return address - ORIGIN_64
    return address & 0xFFFF_FFFF if -(1 << 31) <= address < 0 else address


def signed32(address: int) -> int:
    """Return a 32-bit pattern as the signed integer that WebAssembly's i32 results use."""
    return address - (1 << 32) if address >= 1 << 31 else address


def unsigned32(address: int) -> int:
    """Return a signed or unsigned 32-bit value as an unsigned one."""
    return address & 0xFFFF_FFFF
