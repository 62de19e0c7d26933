"""Moving a module's memory to where a chain of heaps lies, so that scripts about memory become scripts about heaps.

A module is changed so that what it took for address 0 of its heap memory is `Place.base`:

* Loads, stores and atomic instructions get it added to their static offset, which is exact: effective addresses do not wrap.
  Where that does not do, they become calls of appended functions that add it to the address.
* The address operands of bulk instructions go through an appended function, too. What was out of bounds, these functions turn
  into an address between memory and chain, where everything traps.
* Active data segments become empty passive ones, as they are once they were copied; what they hold is returned, to be put into
  the heaps.

memory.size and memory.grow stay with the memory itself, which the module then uses for nothing else. Where the place ends at the
window's end, the window's bounds are the bounds of the moved memory; elsewhere the appended functions check those themselves.
Static offsets do not do there, nor in a 32-bit memory that declares a maximum: what is beyond that by its static offset alone,
the engine takes for out of bounds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import wasmtime

from shmwasm.addresses import ORIGIN_64, OS_PAGE, WASM_PAGE, WINDOW_END, WINDOW_END_64
from shmwasm.wasm import binary as sections
from shmwasm.wasm.binary import Binary, Body
from shmwasm.wasm.decoding import decode
from shmwasm.wasm.instructions import read_instruction, read_opcode
from shmwasm.wasm.leb128 import decode_unsigned, encode_unsigned
from shmwasm.wasm.opcodes import VALUE_TYPE

_LARGEST = 1 << 20
"""Bytes of the largest memory that is moved."""
_LOCAL_GET, _LOCAL_SET, _CALL = b"\x20", b"\x21", b"\x10"
_EXTEND_U = b"\xad"
_CONSTANTS = {"i32.const", "i64.const"}
_TYPES = {"i32": b"\x7f", "i64": b"\x7e", "f32": b"\x7d", "f64": b"\x7c", "v128": b"\x7b"}
_WIDTHS = {"i32": 4, "i64": 8, "f32": 4, "f64": 8, "v128": 16}
_ANY_VALUE_TYPE = re.compile(VALUE_TYPE)


class Place(NamedTuple):
    """Where a memory of `size` bytes is moved: the sizes of the heaps, ascending, and the distance from the first one's start.

    So many heaps at the beginning are read-only; the memory lies above them.
    """

    heaps: tuple[int, ...]
    shift: int
    size: int
    is_64: bool
    read_only: int = 0

    @property
    def start(self) -> int:
        """The first heap's 32-bit app address."""
        return WINDOW_END - sum(self.heaps)

    @property
    def base(self) -> int:
        """The address, as the guest has it, of what was address 0."""
        return self.start + self.shift + (ORIGIN_64 if self.is_64 else 0)

    @property
    def end(self) -> int:
        """The window's end, as the guest has it."""
        return WINDOW_END_64 if self.is_64 else WINDOW_END

    @property
    def hole(self) -> int:
        """An address between memory and chain."""
        return self.end // 2


def heap(size: int, *, is_64: bool) -> Place:
    """Return a place that is one heap."""
    return Place((size,), 0, size, is_64)


def chain(size: int, *, is_64: bool) -> Place:
    """Return a place that is a chain of the smallest heaps there are, below which the chain has a read-only one."""
    return Place((OS_PAGE,) * (1 + size // OS_PAGE), OS_PAGE, size, is_64, read_only=1)


def seam(at: int, size: int, *, is_64: bool) -> Place:
    """Return a place across two heaps, whose first `at` bytes lie in the first heap."""
    return Place((OS_PAGE, size), OS_PAGE - at, size, is_64)


Choose = Callable[..., Place]
"""Returns a place, given a memory's size in bytes and `is_64`."""


class Moved(NamedTuple):
    """A module whose memory was moved, and what its data segments put where, in addresses as they were."""

    content: bytes
    place: Place
    data: list[tuple[int, bytes]]


def move(content: bytes, choose: Choose) -> Moved | None:
    """Return a module with its heap memory moved to `choose(size, is_64=...)`; None for one that cannot be moved."""
    binary = decode(content)
    memory = _memory_to_move(binary)
    if memory is None or not _can_be_moved(binary, memory):
        return None
    kind = binary.memories[memory]
    place = choose(kind.minimum * WASM_PAGE, is_64=kind.is_64)
    mover = _Mover(binary, memory, place)
    data = [
        (segment.address, content[segment.content.start : segment.content.end])
        for segment in binary.data
        if segment.mode == "active" and segment.memory == memory
    ]
    return Moved(mover.module(), place, data)


def _memory_to_move(binary: Binary) -> int | None:
    """Return the memory that a chain is mapped into; without exports, the first that has a page, which is exported then."""
    exported = [entry for entry in binary.exports if entry.kind == "memory"]
    named = [entry for entry in exported if entry.name == "memory"] or exported
    if named:
        return named[0].number
    return next((index for index, kind in enumerate(binary.memories) if kind.minimum), None)


def _can_be_moved(binary: Binary, memory: int) -> bool:
    kind = binary.memories[memory]
    return (
        memory >= binary.imported("memory")
        and binary.start is None
        and binary.section(sections.EXPORT) is not None
        and 0 < kind.minimum * WASM_PAGE <= _LARGEST
        and len({one.is_64 for one in binary.memories}) == 1
        and all(
            segment.address is not None
            and segment.address + segment.content.end - segment.content.start <= kind.minimum * WASM_PAGE
            for segment in binary.data
            if segment.mode == "active"
        )
    )


class _Function(NamedTuple):
    """An appended function: types of parameters and results, and its body in the text format."""

    parameters: tuple[str, ...]
    results: tuple[str, ...]
    body: str


class _Mover:
    def __init__(self, binary: Binary, memory: int, place: Place) -> None:
        self._binary = binary
        self._content = binary.content
        self._memory = memory
        self._place = place
        self._address = "i64" if place.is_64 else "i32"
        self._ends_at_window = place.base + place.size == place.end
        self._by_offset = self._ends_at_window and (place.is_64 or binary.memories[memory].maximum is None)
        self._appended: dict[_Function, int] = {}

    def module(self) -> bytes:
        bodies = self._bodies()
        made = self._appended_module()
        rebuilt = {sections.DATA: self._data()}
        if not any(entry.kind == "memory" for entry in self._binary.exports):
            rebuilt[sections.EXPORT] = self._extended(sections.EXPORT, [b"\x06memory\x02" + encode_unsigned(self._memory)])
        if made is not None:
            rebuilt[sections.TYPE] = self._extended(sections.TYPE, [_function_type(one) for one in self._appended])
            first = len(self._binary.types)
            rebuilt[sections.FUNCTION] = self._extended(
                sections.FUNCTION, [encode_unsigned(first + index) for index in range(len(self._appended))]
            )
            bodies += [made.content[body.locals : body.end] for body in made.bodies]
        if bodies:
            entries = [encode_unsigned(len(body)) + body for body in bodies]
            rebuilt[sections.CODE] = encode_unsigned(len(bodies)) + b"".join(entries)
        parts = [self._content[:8]]
        for section in self._binary.sections:
            payload = rebuilt.get(section.number)
            if payload is None:
                parts.append(self._content[section.start : section.payload.end])
            else:
                parts.append(bytes([section.number]) + encode_unsigned(len(payload)) + payload)
        return b"".join(parts)

    def _extended(self, number: int, entries: list[bytes]) -> bytes:
        """Return the payload of a section, a vector, with more entries."""
        section = self._binary.section(number)
        assert section is not None
        count, after = decode_unsigned(self._content, section.payload.start, section.payload.end)
        return encode_unsigned(count + len(entries)) + self._content[after : section.payload.end] + b"".join(entries)

    def _data(self) -> bytes:
        parts = [encode_unsigned(len(self._binary.data))]
        for segment in self._binary.data:
            moved = segment.mode == "active" and segment.memory == self._memory
            parts.append(b"\x01\x00" if moved else self._content[segment.span.start : segment.span.end])
        return b"".join(parts)

    def _bodies(self) -> list[bytes]:
        return [self._body(index, body) for index, body in enumerate(self._binary.bodies, self._binary.imported("function"))]

    def _body(self, function: int, body: Body) -> bytes:
        groups, after_count = decode_unsigned(self._content, body.locals, body.end)
        kind = self._binary.function_type(function)
        assert kind is not None
        first, position = len(kind.parameters), after_count
        for _ in range(groups):
            count, position = decode_unsigned(self._content, position, body.end)
            found = _ANY_VALUE_TYPE.match(self._content, position)
            assert found is not None
            first, position = first + count, found.end()
        added = b"\x03" + _TYPES[self._address] + b"\x02" + _TYPES["i32"]
        declared = encode_unsigned(groups + 2) + self._content[after_count:position] + added
        return declared + b"".join(self._instructions(body, first))

    def _instructions(self, body: Body, first: int) -> Iterator[bytes]:
        content = self._content
        position = body.code
        before = None
        while position < body.end:
            row, end = read_instruction(content, position, body.end)
            instruction = content[position:end]
            if row.immediates[:1] == ("memarg",):
                yield self._access(row.name, position, end)
            elif row.name in {"memory.copy", "memory.fill", "memory.init"}:
                yield self._bulk(row.name, position, end, before, first)
            else:
                yield instruction
            before = instruction if row.name in _CONSTANTS else None
            position = end

    def _access(self, name: str, position: int, end: int) -> bytes:
        content = self._content
        _, start = read_opcode(content, position, end)
        flags, after = decode_unsigned(content, start, end)
        memory = 0
        if flags & 0x40:
            memory, after = decode_unsigned(content, after, end)
        if memory != self._memory:
            return content[position:end]
        offset, behind = decode_unsigned(content, after, end, 64)
        raised = offset + self._place.base
        if self._by_offset and not raised >> (64 if self._place.is_64 else 32):
            return content[position:after] + encode_unsigned(raised) + content[behind:end]
        lane = str(content[behind]) if behind < end else ""
        return self._call(self._accessor(name, offset, lane))

    def _bulk(self, name: str, position: int, end: int, length: bytes | None, first: int) -> bytes:
        """Return a bulk instruction on translated addresses; `length` is the constant before it, which it then still has."""
        _, after = read_opcode(self._content, position, end)
        one, after = decode_unsigned(self._content, after, end)
        other = decode_unsigned(self._content, after, end)[0] if name != "memory.fill" else None
        to, source, count = range(first, first + 3)
        memories: tuple[int | None, int | None] = (one, other)
        if name == "memory.init":
            source, count = first + 3, first + 4
            memories = (other, None)
        elif name == "memory.fill":
            source = first + 3
        parts = [_LOCAL_SET + encode_unsigned(local) for local in (count, source, to)]
        extended = _EXTEND_U if self._place.is_64 and name == "memory.init" else b""
        for local, memory in zip((to, source), memories, strict=True):
            parts.append(_LOCAL_GET + encode_unsigned(local))
            if memory == self._memory:
                parts.append(_LOCAL_GET + encode_unsigned(count) + extended + self._call(self._translation()))
        parts.append(length or _LOCAL_GET + encode_unsigned(count))
        return b"".join(parts) + self._content[position:end]

    def _call(self, function: _Function) -> bytes:
        index = self._appended.setdefault(function, len(self._appended))
        return _CALL + encode_unsigned(len(self._binary.functions) + index)

    def _translation(self) -> _Function:
        """Return the function from an address and the length of what begins there to the address in the window."""
        place, kind = self._place, self._address
        address, length = "(local.get 0)", "(local.get 1)"
        size, base, hole = (f"({kind}.const {value})" for value in (place.size, place.base, place.hole))
        if self._ends_at_window:
            # One past the last address, at which nothing may be copied, can be told in 64 bits only.
            edge = f"({kind}.const {place.end if place.is_64 else place.base})"
            at_edge = f"(i32.and ({kind}.eq {address} {size}) ({kind}.eqz {length}))"
            inside, outside = f"({kind}.lt_u {address} {size})", f"(select {edge} {hole} {at_edge})"
        else:
            inside = f"(i32.and ({kind}.le_u {address} {size}) ({kind}.le_u {length} ({kind}.sub {size} {address})))"
            outside = hole
        body = f"(if (result {kind}) {inside} (then ({kind}.add {address} {base})) (else {outside}))"
        return _Function((kind, kind), (kind,), body)

    def _accessor(self, name: str, offset: int, lane: str) -> _Function:
        """Return the function that does what the instruction does, at the address in the window."""
        place = self._place
        operands, results, width = _signature(name)
        local = 1 + len(operands)
        address = f"(local.get {local})"
        given = "(local.get 0)" if place.is_64 else "(i64.extend_i32_u (local.get 0))"
        effective = f"(local.set {local} (i64.add {given} (i64.const {offset})))"
        fits = f"(i64.le_u {address} (i64.const {place.size - (1 if self._ends_at_window else width)}))"
        inside = f"(i32.and (i64.ge_u {address} {given}) {fits})"
        # Alignment is checked before bounds, so it must stay what it was.
        hole = f"(i64.or (i64.const {place.hole}) (i64.and {address} (i64.const 15)))"
        translated = f"(if (result i64) {inside} (then (i64.add {address} (i64.const {place.base}))) (else {hole}))"
        if not place.is_64:
            translated = f"(i32.wrap_i64 {translated})"
        values = " ".join(f"(local.get {index + 1})" for index in range(len(operands)))
        body = f"(local i64) {effective} ({name} {self._memory} {lane} {translated} {values})"
        return _Function((self._address, *operands), results, body)

    def _appended_module(self) -> Binary | None:
        if not self._appended:
            return None
        memory = f"(memory {'i64 ' if self._place.is_64 else ''}1)"
        functions = (
            f"(func {' '.join(f'(param {one})' for one in function.parameters)}"
            f" {' '.join(f'(result {one})' for one in function.results)} {function.body})"
            for function in self._appended
        )
        return decode(bytes(wasmtime.wat2wasm(f"(module {memory * (self._memory + 1)} {' '.join(functions)})")))


def _function_type(function: _Function) -> bytes:
    vectors = (encode_unsigned(len(kinds)) + b"".join(_TYPES[kind] for kind in kinds) for kinds in function[:2])
    return b"\x60" + b"".join(vectors)


def _signature(name: str) -> tuple[tuple[str, ...], tuple[str, ...], int]:
    """Return what an instruction takes besides an address, its results, and how many bytes it reaches."""
    kind, _, operation = name.partition(".")
    digits = re.search(r"(?:load|store|rmw|wait)([0-9]+)(?:x([0-9]+))?", operation)
    width = int(digits[1]) * int(digits[2] or 1) // 8 if digits else _WIDTHS.get(kind, 4)
    if kind == "memory":
        return {
            "atomic.notify": (("i32",), ("i32",), 4),
            "atomic.wait32": (("i32", "i64"), ("i32",), 4),
            "atomic.wait64": (("i64", "i64"), ("i32",), 8),
        }[operation]
    if operation.endswith("_lane"):
        return ("v128",), ("v128",) if operation.startswith("load") else (), width
    if "store" in operation:
        return (kind,), (), width
    if "cmpxchg" in operation:
        return (kind, kind), (kind,), width
    return (kind,) if "rmw" in operation else (), (kind,), width
