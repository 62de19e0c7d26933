"""The pass for `memory.copy`: both ranges may lie in private memory, in the chain, or over seams.

Theory
------
Most copies stay in private memory, so what they pay counts most. They get a check where they stand: nothing that can reach the
window passes it, and what passes runs the instruction as it was. Calling a function would cost more than the check, and only
where the instruction stands has the engine its own quick way for a small constant length. The check may turn down what is private
after all; the appended function decides exactly. Where the length is computed, copies to and from a chain are at the site as
well, since a call would be felt up to some ten thousand bytes.

The appended function is made of cases: where does each range lie? Each case ends in one native instruction, between the heap
memory and the alias memory. A range that begins below the chain and ends in it is cut at the seam, and the parts are copied in
the order that overlapping ranges need. All checks come before the first byte is written. Short copies are loads and stores in
the heap memory itself, all loads first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from shmwasm.rewrite.assembler import access, all_of, body, get, i64, if_, op, put
from shmwasm.rewrite.expansion import Expansion, Length, inline, may_leave_private, narrowed, widened
from shmwasm.rewrite.heap_memory import PAGE_BITS, HeapMemory, Range
from shmwasm.wasm.binary import Memory
from shmwasm.wasm.scanning import Operation

SHORT: Final = range(8, 65)
"""Lengths for which loads and stores in the heap memory are quicker than a native instruction on the alias memory."""

_TO, _SOURCE, _LENGTH = range(3)


class _Unit(NamedTuple):
    """What short copies are made of: a type of values, its size, and the locals of the appended function that hold some."""

    type: str
    size: int
    scratch: range


_WORD: Final = _Unit("i64", 8, range(6, 8))
_VECTOR: Final = _Unit("v128", 16, range(8, 12))


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two memories of a copy: its index, whether its addresses have 64 bits, and whether it is the heap memory."""

    memory: int
    is_64: bool
    is_heap: bool

    @property
    def type(self) -> str:
        """The type of its addresses."""
        return "i64" if self.is_64 else "i32"


def expand(heap: HeapMemory, memories: Sequence[Memory], operation: Operation) -> Expansion:
    """Return what is put in the place of a `memory.copy` that the heap memory takes part in."""
    to, source = (Side(index, memories[index].is_64, index == heap.index) for index in (operation.memory, operation.source))
    return _Copy(heap, to, source).expansion(operation)


@dataclass(frozen=True, slots=True)
class _Copy:
    """`memory.copy` between two memories, at least one of them the heap memory."""

    heap: HeapMemory
    to: Side
    source: Side

    @property
    def types(self) -> tuple[str, str, str]:
        """The types of the operands."""
        return self.to.type, self.source.type, "i64" if self.to.is_64 and self.source.is_64 else "i32"

    @property
    def within_heap(self) -> bool:
        return self.to.is_heap and self.source.is_heap

    def expansion(self, operation: Operation) -> Expansion:
        quick = self.within_heap and operation.length is None
        return inline(self.heap, operation, self.types, lambda *known: self._site(*known, quick=quick))

    def _site(self, addresses: Sequence[int], length: Length, scratch: Sequence[int], *, quick: bool) -> bytes:
        """Return the code at a site; `quick` is whether it copies to and from a chain without a call."""
        operands = get(addresses[0]), get(addresses[1]), length.code
        call = op("call", *operands, at=[self._anywhere()])
        in_heap = [local for local, side in zip(addresses, (self.to, self.source), strict=True) if side.is_heap]
        native = op("memory.copy", *operands, at=[self.to.memory, self.source.memory])
        otherwise = self._quick(addresses, length, call) if quick else call
        return if_(may_leave_private(self.heap, in_heap, length, scratch), otherwise, native)

    def _quick(self, addresses: Sequence[int], length: Length, call: bytes) -> bytes:
        """Return the code for ranges that lie each in private memory or in a chain that is writable as a whole; else it calls."""
        heap = self.heap
        to, source = (widened(self.to.type, get(local)) for local in addresses)
        count = narrowed("i32", length.wide) if heap.is_64 else length.code
        writable = [op("i32.eqz", heap.mixed)]
        if heap.is_64:
            writable.append(heap.fits(to, source, length.wide))

        def end(first: bytes) -> bytes:
            return op("i64.add", first, length.wide)

        def in_chain(first: bytes) -> list[bytes]:
            return [op("i64.ge_u", first, heap.start), op("i64.le_u", end(first), heap.end)]

        def below(first: bytes) -> bytes:
            return op("i64.lt_u", end(first), heap.private_end)  # not up to it: a range of no bytes may begin in the chain

        def copy(to_alias: bytes | None, source_alias: bytes | None) -> bytes:
            memories = [heap.index if one is None else heap.alias for one in (to_alias, source_alias)]
            return op("memory.copy", to_alias or get(addresses[0]), source_alias or get(addresses[1]), count, at=memories)

        into_chain = if_(
            below(source),
            copy(heap.alias_address(to), None),
            if_(all_of(*in_chain(source)), copy(heap.alias_address(to), heap.alias_address(source)), call),
        )
        out_of_chain = if_(all_of(*writable, *in_chain(source), below(to)), copy(None, heap.alias_address(source)), call)
        return if_(all_of(*writable, *in_chain(to)), into_chain, out_of_chain)

    def _anywhere(self) -> int:
        """Return the index of the function that copies between any two ranges."""
        return self.heap.additions.function(("copy", self.to, self.source), self.types, [], self._anywhere_body)

    def _anywhere_body(self, _index: int) -> bytes:
        heap = self.heap
        to, source = Range(3, 5), Range(4, 5)
        checks = [
            heap.trap_if_refused(part, write=side is self.to)
            for side, part in ((self.to, to), (self.source, source))
            if side.is_heap
        ]
        return body(
            ["i64"] * 5 + ["v128"] * 4 if self.within_heap else ["i64"] * 3,
            self._widen(to, source),
            *checks,
            self._short(to, source) if self.within_heap else b"",
            self._where(self.to, to, lambda first: self._where(self.source, source, lambda second: self._native(first, second))),
        )

    def _widen(self, to: Range, source: Range) -> bytes:
        """Return the code that fills the locals of the ranges from the parameters."""
        places = zip((to.address, source.address, to.length), self.types, strict=True)
        widening = b"".join(put(place, widened(kind, get(operand))) for operand, (place, kind) in enumerate(places))
        if "i64" not in self.types:
            return widening
        return widening + self.heap.trap_unless_fits(to.address, source.address, to.length)

    def _where(self, side: Side, part: Range, then: Callable[[bytes | None], bytes]) -> bytes:
        """Return the cases of where a range lies.

        Args:
            side: The range's memory.
            part: The range.
            then: Returns the code of a case, given the code of the range's address in the alias memory if it lies there.
        """
        if not side.is_heap:
            return then(None)
        heap = self.heap
        across = op("call", get(_TO), get(_SOURCE), get(_LENGTH), at=[self._across()])
        below = if_(op("i64.gt_u", part.end, heap.start), across, heap.trap_if_not_private(part) + then(None))
        in_chain = heap.trap_if(op("i64.gt_u", part.end, heap.end)) + then(heap.alias_address(get(part.address)))
        return if_(op("i64.ge_u", get(part.address), heap.start), in_chain, below)

    def _native(self, to: bytes | None, source: bytes | None) -> bytes:
        alias = self.heap.alias
        length = get(_LENGTH)
        if self.types[_LENGTH] == "i64" and (to or source):
            length = op("i32.wrap_i64", length)
        memories = [self.to.memory if to is None else alias, self.source.memory if source is None else alias]
        return op("memory.copy", to or get(_TO), source or get(_SOURCE), length, at=memories)

    def _short(self, to: Range, source: Range) -> bytes:
        """Return the code for short copies, which returns if it did the work."""
        heap, length = self.heap, get(to.length)
        out_of_reach = op("i32.eqz", all_of(heap.reachable(to), heap.reachable(source)))
        return if_(
            op("i64.le_u", op("i64.sub", length, i64(SHORT.start)), i64(len(SHORT) - 1)),
            heap.trap_if(out_of_reach)
            + if_(op("i64.le_u", length, i64(16)), self._both_ends(to, source, _WORD, 1))
            + if_(op("i64.le_u", length, i64(32)), self._both_ends(to, source, _VECTOR, 1))
            + self._both_ends(to, source, _VECTOR, 2),
        )

    def _both_ends(self, to: Range, source: Range, unit: _Unit, count: int) -> bytes:
        """Return the code that copies `count` units from each end of a range, which may overlap each other, and returns."""

        def places(part: Range) -> list[tuple[bytes, int]]:
            front = [(get(part.address), unit.size * step) for step in range(count)]
            back = [(op("i64.sub", part.end, i64(unit.size * (step + 1))), 0) for step in range(count)]
            return [(self.heap.address(address), offset) for address, offset in front + back]

        memory = self.heap.index
        loads = [
            put(local, access(f"{unit.type}.load", address, memory=memory, offset=offset))
            for local, (address, offset) in zip(unit.scratch, places(source), strict=False)
        ]
        stores = [
            access(f"{unit.type}.store", address, get(local), memory=memory, offset=offset)
            for local, (address, offset) in zip(unit.scratch, places(to), strict=False)
        ]
        return b"".join(loads + stores) + op("return")

    def _across(self) -> int:
        """Return the index of the function for a range that begins below the chain and ends in it."""
        return self.heap.additions.function(("copy across", self.to, self.source), self.types, [], self._across_body)

    def _across_body(self, _index: int) -> bytes:
        to, source, first = Range(3, 5), Range(4, 5), 6
        start = self.heap.start
        out_of_reach = op("i32.eqz", all_of(self._reachable(self.to, to), self._reachable(self.source, source)))
        # Which of the ranges is to be cut: at least one is. A part whose other range is to be cut comes here again.
        cut_source = put(first, op("i64.sub", start, get(source.address)))
        cut_to = put(first, op("i64.sub", start, get(to.address)))
        if not self.to.is_heap:
            cut = cut_source
        else:
            starts_below = op("i64.lt_u", get(to.address), start)
            cut = if_(op("i32.and", starts_below, op("i64.gt_u", to.end, start)), cut_to, cut_source)
        front = self._part(get(to.address), get(source.address), get(first))
        back = self._part(
            op("i64.add", get(to.address), get(first)),
            op("i64.add", get(source.address), get(first)),
            op("i64.sub", get(to.length), get(first)),
        )
        upwards = op("i64.le_u", get(to.address), get(source.address))
        return body(
            ["i64"] * 4,
            self._widen(to, source),
            self.heap.trap_if(out_of_reach),
            cut,
            if_(upwards, front + back, back + front),
        )

    def _reachable(self, side: Side, part: Range) -> bytes:
        if side.is_heap:
            return self.heap.reachable(part)
        pages = widened(side.type, op("memory.size", at=[side.memory]))
        return op("i64.le_u", part.end, op("i64.shl", pages, i64(PAGE_BITS)))

    def _part(self, *operands: bytes) -> bytes:
        narrow = [narrowed(kind, operand) for kind, operand in zip(self.types, operands, strict=True)]
        return op("call", *narrow, at=[self._anywhere()])
