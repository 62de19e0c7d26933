"""The seam between a rewritten module and the engine: what the module exports for it, and how memory is laid out between them.

Layout
------
Each export is there only where the module needs it. `START`, `END`, `MIXED` and `ALIAS` come together.

====================  ==========================  ====================================================================
export                kind                        meaning
====================  ==========================  ====================================================================
``shmwasm:memory``    memory                      the heap memory, where the module neither exports nor imports it
``shmwasm:start``     global, mutable i64         the attached chain's first app address; `NOTHING` while there is none
``shmwasm:end``       global, mutable i64         one past the chain's last app address; 0 while there is none
``shmwasm:mixed``     global, mutable i32         1 if the table must be asked: heaps are read-only, or apart
``shmwasm:alias``     memory, i32, 0 pages        a second mapping of the chain, with the chain's table (below)
``shmwasm:pages``     global, mutable i64         of a 64-bit heap memory: its size as the guest sees it, in pages of 64 KiB
``shmwasm:host``      table of `HOST_FUNCTIONS`   functions of the engine, which fills the table after instantiation
``shmwasm:begin``     function, () -> ()          the module's start function, which the engine calls when all else is linked and
                                                  mapped: of modules that import WASI, or have a 64-bit heap memory
``shmwasm:fuel``      global, mutable i64         of a metered module: what the call may still use; below 0, it was not enough
``shmwasm:given``     global, mutable i64         of a metered module: what the call was given
====================  ==========================  ====================================================================

The alias memory::

    [0, TABLE_END)              u32 count; from `TABLE_ENTRIES` on, ascending, one entry of `TABLE_ENTRY` bytes for each heap:
                                u64 start (app address), u64 end, u32 writable, u32 0
    [TABLE_END, ALIAS_CHAIN)    scratch, for WASI
    [ALIAS_CHAIN, ...)          the chain: app address a lies at a - start + ALIAS_CHAIN

The native bulk instructions on the alias memory run in code of the engine, where a fault ends the process. Whoever uses one has
checked before that the whole range lies in the chain and, where it writes, that every heap it touches is writable.

The functions of the host's table, by index:

==================  ==================================================  ======================================================
index               type                                                meaning
==================  ==================================================  ======================================================
`HOST_WAIT32`       (addr i64, expected i32, timeout_ns i64) -> i32     `memory.atomic.wait32`: 0 woken, 1 other value, 2 too late
`HOST_WAIT64`       (addr i64, expected i64, timeout_ns i64) -> i32     `memory.atomic.wait64`
`HOST_NOTIFY`       (addr i64, count i32) -> i32                        `memory.atomic.notify`: how many were woken
`HOST_GROW`         (delta_pages i64) -> i64                            grows a 64-bit heap memory, and `shmwasm:pages`; -1: no
==================  ==================================================  ======================================================

They get app addresses that are aligned and whose bytes lie in the chain, and a growth by at least one page that stays within the
maximum that the module declares; where the chain is, the engine knows. An entry is null where the module needs no such function.
"""

from __future__ import annotations

from typing import Final

from shmwasm.addresses import WASM_PAGE

PREFIX: Final = "shmwasm:"
"""Names that start like this are the seam's; a module that exports one itself is refused."""

MEMORY: Final = PREFIX + "memory"
START: Final = PREFIX + "start"
END: Final = PREFIX + "end"
MIXED: Final = PREFIX + "mixed"
ALIAS: Final = PREFIX + "alias"
PAGES: Final = PREFIX + "pages"
HOST: Final = PREFIX + "host"
BEGIN: Final = PREFIX + "begin"
FUEL: Final = PREFIX + "fuel"
FUEL_GIVEN: Final = PREFIX + "given"

NOTHING: Final = 1 << 62
"""What `START` holds while nothing is attached: above every address, and far enough below 2^63 to be compared signed."""

FUEL_WITHOUT_END: Final = (1 << 63) - 1
"""What `FUEL` holds where a call is given no amount: more than can be used up in a hundred years."""

HOST_WAIT32: Final = 0
HOST_WAIT64: Final = 1
HOST_NOTIFY: Final = 2
HOST_GROW: Final = 3
HOST_FUNCTIONS: Final = 4
"""How many entries the host's table has."""

TABLE_ENTRIES: Final = 16
TABLE_ENTRY: Final = 24
TABLE_END: Final = WASM_PAGE
ALIAS_CHAIN: Final = 16 << 20
"""Where the chain starts in the alias memory."""

MAXIMUM_ALIASED_CHAIN: Final = (1 << 32) - ALIAS_CHAIN
"""The longest chain, in bytes, that an alias memory can hold."""
