"""What is put in the place of one instruction, and the check that inlined instructions begin with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from shmwasm.rewrite.assembler import get, i32, i64, keep, op, put
from shmwasm.rewrite.heap_memory import TOO_LARGE, HeapMemory
from shmwasm.rewrite.template import Template
from shmwasm.wasm.scanning import Constant


class Expansion:
    """Code in the place of an instruction; the same for all instructions that are alike.

    Args:
        code: Returns it, given a local for each of the operands and then of the scratch values.
        operands: Types of the operands that are to be taken off the stack into locals first, in their order.
        scratch: Types of more locals that the code uses.
        takes_constant: Whether the constant before the instruction is replaced too.
    """

    def __init__(
        self,
        code: Callable[[Sequence[int]], bytes],
        operands: tuple[str, ...] = (),
        scratch: tuple[str, ...] = (),
        *,
        takes_constant: bool = False,
    ) -> None:
        self.locals = operands + scratch
        """The types of all locals that the code uses."""
        self.takes_constant = takes_constant
        self._template = Template(
            len(self.locals), lambda places: b"".join(map(put, reversed(places[: len(operands)]))) + code(places)
        )

    def code(self, places: Sequence[int]) -> bytes:
        """Return the code that uses these locals, of the types of `locals`."""
        return self._template.fill(places)


class Length(NamedTuple):
    """A length in generated code: in the instruction's own type, and in 64 bits."""

    code: bytes
    wide: bytes


def length_in(local: int, kind: str) -> Length:
    """Return the length that is in a local of type `kind`."""
    return Length(get(local), widened(kind, get(local)))


def length_of(constant: Constant, kind: str) -> Length:
    """Return the length that a constant of type `kind` gives."""
    value = constant.value % (1 << 64 if kind == "i64" else 1 << 32)
    return Length(i64(value) if kind == "i64" else i32(value), i64(value))


def widened(kind: str, value: bytes) -> bytes:
    """Return the code of an unsigned value of type `kind` in 64 bits."""
    return value if kind == "i64" else op("i64.extend_i32_u", value)


def narrowed(kind: str, value: bytes) -> bytes:
    """Return the code of 64 bits as a value of type `kind`."""
    return value if kind == "i64" else op("i32.wrap_i64", value)


def scratch_of(heap: HeapMemory) -> tuple[str, ...]:
    """Return the types of the locals that `may_leave_private` needs."""
    return ("i64",) if heap.is_64 else ()


def may_leave_private(heap: HeapMemory, addresses: Sequence[int], length: Length, scratch: Sequence[int]) -> bytes:
    """Return the code of whether ranges of one length may reach beyond private memory.

    It is true for every range that the native instruction must not be given, and false for nearly all others.

    Args:
        heap: The heap memory.
        addresses: Locals with the ranges' first addresses, one or two.
        length: The ranges' length.
        scratch: Locals of the types that `scratch_of` gives.
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
