"""The pass for `memory.atomic.wait32`, `memory.atomic.wait64` and `memory.atomic.notify`.

Each becomes a call of an appended function, one for each static offset. An aligned address in the chain goes to a function of the
engine, which waits and wakes across processes. Everything else is left to the native instruction, and so are its traps.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from shmwasm.addresses import WINDOW_END_64
from shmwasm.rewrite import seam
from shmwasm.rewrite.assembler import access, body, get, i32, i64, if_, op, put
from shmwasm.rewrite.expansion import Expansion, call, widened
from shmwasm.rewrite.heap_memory import HeapMemory, Range
from shmwasm.wasm.scanning import Operation


class _Instruction(NamedTuple):
    """What tells the three apart: operands after the address, the size of what is waited for, and the engine's function."""

    operands: tuple[str, ...]
    size: int
    host: int


INSTRUCTIONS: Final = {
    "memory.atomic.wait32": _Instruction(("i32", "i64"), 4, seam.HOST_WAIT32),
    "memory.atomic.wait64": _Instruction(("i64", "i64"), 8, seam.HOST_WAIT64),
    "memory.atomic.notify": _Instruction(("i32",), 4, seam.HOST_NOTIFY),
}


def expand(heap: HeapMemory, operation: Operation) -> Expansion | None:
    """Return what is put in the place of the instruction; None if it cannot reach the chain."""
    if operation.offset >= (WINDOW_END_64 if heap.is_64 else 1 << 32):
        return None
    instruction = INSTRUCTIONS[operation.instruction]
    function = heap.additions.function(
        (operation.instruction, operation.offset),
        [heap.address_type, *instruction.operands],
        ["i32"],
        lambda _: _body(heap, operation, instruction),
    )
    return call(function)


def _body(heap: HeapMemory, operation: Operation, instruction: _Instruction) -> bytes:
    address = 0
    operands = [get(1 + place) for place in range(len(instruction.operands))]
    part = Range(1 + len(operands), 2 + len(operands))
    host_type = heap.additions.type(["i64", *instruction.operands], ["i32"])
    table = heap.additions.table(seam.HOST, seam.HOST_FUNCTIONS)
    ask_host = op("call_indirect", get(part.address), *operands, i32(instruction.host), at=[host_type, table])
    native = access(
        operation.instruction, get(address), *operands, memory=heap.index, offset=operation.offset, align=operation.align
    )
    aligned = op("i64.eqz", op("i64.and", get(part.address), i64(instruction.size - 1)))
    in_chain = op("i32.and", aligned, heap.in_chain(part))
    checks = b""
    if heap.is_64:
        # A sum that wrapped is below what was added to; the native instruction refuses it.
        in_chain = op("i32.and", in_chain, op("i64.ge_u", part.end, get(address)))
        checks = heap.trap_if(op("i32.and", aligned, op("i64.gt_u", part.end, heap.size)))
    return body(
        ["i64", "i64"],
        put(part.address, op("i64.add", widened(heap.address_type, get(address)), i64(operation.offset))),
        put(part.length, i64(instruction.size)),
        if_(in_chain, heap.trap_if_refused(part, write=False) + ask_host, checks + native, result="i32"),
    )
