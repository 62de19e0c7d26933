"""What is put in the place of one instruction, and the check that inlined instructions begin with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from shmwasm.rewrite.assembler import as_signed, get, i32, i64, keep, op, put
from shmwasm.rewrite.heap_memory import TOO_LARGE, HeapMemory
from shmwasm.rewrite.template import Template
from shmwasm.wasm.leb128 import encode_signed, encode_unsigned
from shmwasm.wasm.scanning import Operation


@dataclass(frozen=True, slots=True, eq=False)
class Expansion:
    """Code in the place of an instruction; the same for all instructions that are alike.

    Attributes:
        template: The code; its immediates are the locals that it uses, and then the constants.
        locals: The types of those locals.
        constants: Encoded; the code takes the place of the constant before the instruction too, if there are any.
    """

    template: Template
    locals: tuple[str, ...] = ()
    constants: tuple[bytes, ...] = ()

    def code(self, places: Sequence[int]) -> bytes:
        """Return the code that uses these locals."""
        return self.template.fill([*map(encode_unsigned, places), *self.constants])


def call(function: int) -> Expansion:
    """Return the expansion that takes the same operands to a function."""
    return Expansion(Template(0, lambda _: op("call", at=[function])))


class Length(NamedTuple):
    """A length in generated code: in the instruction's own type, and in 64 bits."""

    code: bytes
    wide: bytes


InlineCode = Callable[[Sequence[int], Length, Sequence[int]], bytes]
"""Makes the code of an instruction that was (first, second, length) -> ().

It is given the locals of the two operands, the length, and the locals that `may_leave_private` needs.
"""


def inline(heap: HeapMemory, operation: Operation, operands: tuple[str, str, str], code: InlineCode) -> Expansion:
    """Return the expansion that has its operands in locals; a length that is a constant stays one.

    Args:
        heap: The heap memory.
        operation: What the instruction does. For all whose memories are the same, `code` makes the same.
        operands: Their types.
        code: Makes the code.
    """
    scratch = ("i64",) if heap.is_64 else ()
    key = operation.instruction, operation.memory, operation.source, operation.length is None
    kind = operands[2]
    if operation.length is None:

        def computed(places: Sequence[int]) -> bytes:
            length = Length(get(places[2]), widened(kind, get(places[2])))
            return _take(places[:3]) + code(places[:2], length, places[3:])

        return Expansion(heap.template(key, len(operands) + len(scratch), computed), operands + scratch)

    def constant(places: Sequence[int]) -> bytes:
        *known, native, wide = places
        length = Length(i64(native) if kind == "i64" else i32(native), i64(wide))
        return _take(known[:2]) + code(known[:2], length, known[2:])

    used = operands[:2] + scratch
    value = operation.length % (1 << 64 if kind == "i64" else 1 << 32)
    constants = encode_signed(as_signed(value, 64 if kind == "i64" else 32)), encode_signed(as_signed(value, 64))
    return Expansion(heap.template(key, len(used) + len(constants), constant), used, constants)


def _take(places: Sequence[int]) -> bytes:
    """Return the code that takes operands off the stack."""
    return b"".join(map(put, reversed(places)))


def widened(kind: str, value: bytes) -> bytes:
    """Return the code of an unsigned value of type `kind` in 64 bits."""
    return value if kind == "i64" else op("i64.extend_i32_u", value)


def narrowed(kind: str, value: bytes) -> bytes:
    """Return the code of 64 bits as a value of type `kind`."""
    return value if kind == "i64" else op("i32.wrap_i64", value)


def may_leave_private(heap: HeapMemory, addresses: Sequence[int], length: Length, scratch: Sequence[int]) -> bytes:
    """Return the code of whether ranges of one length may reach beyond private memory.

    It is true for every range that the native instruction must not be given, and false for nearly all others.

    Args:
        heap: The heap memory.
        addresses: Locals with the ranges' first addresses, one or two.
        length: The ranges' length.
        scratch: One local of type i64, if the memory is a 64-bit one.
    """
    if not heap.is_64:
        # Or is not below the larger one and quicker to have; what exceeds it is only slower for memories beyond 2 GiB.
        first = op("i32.or", *map(get, addresses)) if len(addresses) > 1 else get(addresses[0])
        # Not below, rather than above: a range of no bytes may begin where the chain does, and is no private one.
        return op("i64.ge_u", op("i64.add", op("i64.extend_i32_u", first), length.wide), heap.start)
    larger = keep(scratch[0], _larger(*map(get, addresses)) if len(addresses) > 1 else get(addresses[0]))
    too_large = op("i64.and", op("i64.or", larger, length.wide), i64(TOO_LARGE))
    end = op("i64.add", get(scratch[0]), length.wide)
    return op("i64.gt_u", op("i64.or", too_large, end), heap.size)


def _larger(one: bytes, other: bytes) -> bytes:
    return op("select", one, other, op("i64.gt_u", one, other))
