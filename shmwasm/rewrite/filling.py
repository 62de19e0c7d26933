"""The pass for `memory.fill` and `memory.init`: the range written may lie in private memory, in the chain, or over the seam.

`memory.fill` is checked where it stands, as `memory.copy` is (see `copying`); `memory.init`, which modules do once, is a call.
"""

from __future__ import annotations

from collections.abc import Sequence

from shmwasm.rewrite.assembler import body, get, i64, if_, op, put
from shmwasm.rewrite.expansion import Expansion, Length, call, inline, may_leave_private, narrowed, widened
from shmwasm.rewrite.heap_memory import HeapMemory, Range
from shmwasm.wasm.leb128 import encode_unsigned
from shmwasm.wasm.scanning import INIT, Operation

_ADDRESS, _VALUE, _LENGTH = range(3)
_PART = Range(3, 4)


def expand_fill(heap: HeapMemory, operation: Operation) -> Expansion:
    """Return what is put in the place of a `memory.fill` of the heap memory."""
    kind = heap.address_type
    return inline(heap, operation, (kind, "i32", kind), lambda *known: _fill_site(heap, *known))


def expand_init(heap: HeapMemory, operation: Operation) -> Expansion:
    """Return what is put in the place of a `memory.init` of the heap memory."""
    # A module may have thousands of segments, and each needs a function.
    template = heap.template(INIT, 1, lambda segments: _init_body(heap, *segments))
    parameters = [heap.address_type, "i32", "i32"]
    return call(
        heap.additions.function(
            (INIT, operation.source), parameters, [], lambda _: template.fill([encode_unsigned(operation.source)])
        )
    )


def _fill_site(heap: HeapMemory, operands: Sequence[int], length: Length, scratch: Sequence[int]) -> bytes:
    address, value = operands
    kind = heap.address_type
    function = heap.additions.function("fill", [kind, "i32", kind], [], lambda _: _fill_body(heap))
    all_operands = get(address), get(value), length.code
    return if_(
        may_leave_private(heap, [address], length, scratch),
        op("call", *all_operands, at=[function]),
        op("memory.fill", *all_operands, at=[heap.index]),
    )


def _fill_body(heap: HeapMemory) -> bytes:
    below = narrowed(heap.address_type, op("i64.sub", heap.start, get(_PART.address)))
    return _store_body(
        heap,
        heap.address_type,
        native=op("memory.fill", get(_ADDRESS), get(_VALUE), get(_LENGTH), at=[heap.index]),
        in_chain=op(
            "memory.fill",
            heap.alias_address(get(_PART.address)),
            get(_VALUE),
            narrowed("i32", get(_PART.length)),
            at=[heap.alias],
        ),
        across=op("memory.fill", heap.alias_address(heap.start), get(_VALUE), narrowed("i32", _in_chain(heap)), at=[heap.alias])
        + op("memory.fill", get(_ADDRESS), get(_VALUE), below, at=[heap.index]),
    )


def _init_body(heap: HeapMemory, segment: int) -> bytes:
    source = op("i64.extend_i32_u", get(_VALUE))
    below = op("i64.sub", heap.start, get(_PART.address))
    beyond_segments = op("i64.gt_u", op("i64.add", source, get(_PART.length)), i64((1 << 32) - 1))
    return _store_body(
        heap,
        "i32",
        native=op("memory.init", get(_ADDRESS), get(_VALUE), get(_LENGTH), at=[segment, heap.index]),
        in_chain=op("memory.init", heap.alias_address(get(_PART.address)), get(_VALUE), get(_LENGTH), at=[segment, heap.alias]),
        # The part in the chain ends where the segment is used up, so its instruction checks the segment for both.
        across=heap.trap_if(beyond_segments)
        + op(
            "memory.init",
            heap.alias_address(heap.start),
            op("i32.wrap_i64", op("i64.add", source, below)),
            op("i32.wrap_i64", _in_chain(heap)),
            at=[segment, heap.alias],
        )
        + op("memory.init", get(_ADDRESS), get(_VALUE), op("i32.wrap_i64", below), at=[segment, heap.index]),
    )


def _in_chain(heap: HeapMemory) -> bytes:
    """Return the code of how many bytes of a range that begins below the chain lie in it."""
    return op("i64.sub", _PART.end, heap.start)


def _store_body(heap: HeapMemory, length_type: str, *, native: bytes, in_chain: bytes, across: bytes) -> bytes:
    """Return the function (address, value, length) -> () that runs one of three pieces of code, by where the range lies."""
    return body(
        ["i64", "i64"],
        put(_PART.address, widened(heap.address_type, get(_ADDRESS))),
        put(_PART.length, widened(length_type, get(_LENGTH))),
        heap.trap_unless_fits(_PART.address, _PART.length) if heap.is_64 else b"",
        heap.trap_if_refused(_PART, write=True),
        if_(
            op("i64.ge_u", get(_PART.address), heap.start),
            heap.trap_if(op("i64.gt_u", _PART.end, heap.end)) + in_chain,
            if_(
                op("i64.gt_u", _PART.end, heap.start),
                heap.trap_if(op("i32.eqz", heap.reachable(_PART))) + across,
                heap.trap_if_not_private(_PART) + native,
            ),
        ),
    )
