"""The pass for `memory.size` and `memory.grow` of a 64-bit memory, which is declared over all that an address may reach."""

from __future__ import annotations

from shmwasm.addresses import WASM_PAGE, WINDOW_END_64
from shmwasm.rewrite import seam
from shmwasm.rewrite.assembler import body, get, i32, i64, if_, op
from shmwasm.rewrite.expansion import Expansion, call
from shmwasm.rewrite.heap_memory import HeapMemory
from shmwasm.rewrite.template import Template
from shmwasm.wasm.leb128 import encode_unsigned

DECLARED_PAGES = WINDOW_END_64 // WASM_PAGE
"""What every memory64 is declared to have, and at most has."""

_IS_64, _HAS_MAXIMUM = 4, 1


def declared_type() -> bytes:
    """Return the type that a memory64 gets: no less and no more than the whole range."""
    return bytes([_IS_64 | _HAS_MAXIMUM]) + 2 * encode_unsigned(DECLARED_PAGES)


def expand_size(heap: HeapMemory) -> Expansion:
    """Return what is put in the place of `memory.size`."""
    pages = heap.pages
    return Expansion(Template(0, lambda _: pages))


def expand_grow(heap: HeapMemory, maximum: int | None) -> Expansion:
    """Return what is put in the place of `memory.grow`; `maximum` is what the module declares."""
    most = DECLARED_PAGES if maximum is None else min(maximum, DECLARED_PAGES)
    function = heap.additions.function("grow", ["i64"], ["i64"], lambda _: _grow_body(heap, most))
    return call(function)


def _grow_body(heap: HeapMemory, most: int) -> bytes:
    delta = 0
    room = op("i64.sub", i64(most), heap.pages)
    host_type = heap.additions.type(["i64"], ["i64"])
    table = heap.additions.table(seam.HOST, seam.HOST_FUNCTIONS)
    return body(
        [],
        if_(op("i64.eqz", get(delta)), op("return", heap.pages)),
        if_(
            op("i64.gt_u", get(delta), room),
            i64(-1),
            op("call_indirect", get(delta), i32(seam.HOST_GROW), at=[host_type, table]),
            result="i64",
        ),
    )
