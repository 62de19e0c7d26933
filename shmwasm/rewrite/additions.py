"""What is appended to a module: types, functions, tables, memories, globals and exports; no index moves."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence

from shmwasm.rewrite import assembler
from shmwasm.rewrite.offsets import Edit, replacement
from shmwasm.wasm import binary as sections
from shmwasm.wasm.binary import KINDS, SECTION_ORDER, Binary, Section
from shmwasm.wasm.leb128 import decode_unsigned, encode_unsigned


class Additions:
    """Collects what is appended to a module, and what else is edited in it, and makes the list of edits."""

    def __init__(self, binary: Binary) -> None:
        self._binary = binary
        self._entries: dict[int, list[bytes]] = {number: [] for number in SECTION_ORDER}
        self._indices: dict[Hashable, int] = {}
        self._edits: dict[int, list[Edit]] = {number: [] for number in SECTION_ORDER}
        self._removed: set[int] = set()

    def type(self, parameters: Sequence[str], results: Sequence[str]) -> int:
        """Return the index of a function type, appended at its first use."""
        key = "type", tuple(parameters), tuple(results)
        if key in self._indices:
            return self._indices[key]
        return self._once(key, sections.TYPE, len(self._binary.types), assembler.function_type(parameters, results))

    def function(self, key: Hashable, parameters: Sequence[str], results: Sequence[str], make: Callable[[int], bytes]) -> int:
        """Return the index of the function known as `key`, appended at its first use.

        Args:
            key: Anything; the same for the same function.
            parameters: Its parameters' types.
            results: Its results' types.
            make: Returns its body (see `assembler.body`), given its own index; may append others.
        """
        if key not in self._indices:
            kind = encode_unsigned(self.type(parameters, results))
            index = self._once(key, sections.FUNCTION, len(self._binary.functions), kind)
            bodies = self._entries[sections.CODE]
            place = len(bodies)
            bodies.append(b"")  # the bodies stand in the order of the indices, and making one may append others
            body = make(index)
            bodies[place] = encode_unsigned(len(body)) + body
        return self._indices[key]

    def global_(self, export: str, kind: str, value: bytes) -> int:
        """Return the index of a mutable global, appended and exported at its first use."""
        entry = assembler.VALUE_TYPES[kind] + b"\x01" + value + assembler.END
        return self._exported(export, "global", sections.GLOBAL, len(self._binary.globals), entry)

    def memory(self, export: str) -> int:
        """Return the index of a 32-bit memory of no pages and without a limit, appended and exported at its first use."""
        return self._exported(export, "memory", sections.MEMORY, len(self._binary.memories), b"\x00\x00")

    def table(self, export: str, size: int) -> int:
        """Return the index of a table of functions, appended and exported at its first use."""
        limits = b"\x01" + 2 * encode_unsigned(size)
        entry = assembler.VALUE_TYPES["funcref"] + limits
        return self._exported(export, "table", sections.TABLE, len(self._binary.tables), entry)

    def export(self, name: str, kind: str, index: int) -> None:
        """Append an export; `kind` is one of `KINDS`."""
        self._entries[sections.EXPORT].append(assembler.name(name) + bytes([KINDS.index(kind)]) + encode_unsigned(index))

    def edit(self, section: int, edits: Sequence[Edit]) -> None:
        """Edit the payload of a section that is there, beside what is appended to it; ascending, after all edits before."""
        self._edits[section] += edits

    def remove(self, section: int) -> None:
        """Leave a whole section out."""
        self._removed.add(section)

    def edits(self) -> Iterator[Edit]:
        """Yield everything as edits of the module, ascending."""
        missing = [number for number in SECTION_ORDER if self._entries[number] and self._binary.section(number) is None]
        for section in self._binary.sections:
            if section.number == sections.CUSTOM:
                continue
            rank = SECTION_ORDER.index(section.number)
            while missing and SECTION_ORDER.index(missing[0]) < rank:
                yield self._new_section(missing.pop(0), section.start)
            if section.number in self._removed:
                yield replacement(section.start, section.payload.end, b"")
            else:
                yield from self._section_edits(section)
        end = len(self._binary.content)
        for number in missing:
            yield self._new_section(number, end)

    def _once(self, key: Hashable, section: int, originals: int, entry: bytes) -> int:
        if key not in self._indices:
            self._indices[key] = originals + len(self._entries[section])
            self._entries[section].append(entry)
        return self._indices[key]

    def _exported(self, export: str, kind: str, section: int, originals: int, entry: bytes) -> int:
        if export not in self._indices:
            self.export(export, kind, self._once(export, section, originals, entry))
        return self._indices[export]

    def _new_section(self, number: int, offset: int) -> Edit:
        entries = self._entries[number]
        payload = encode_unsigned(len(entries)) + b"".join(entries)
        return replacement(offset, offset, bytes([number]) + encode_unsigned(len(payload)) + payload)

    def _section_edits(self, section: Section) -> list[Edit]:
        entries, edits = self._entries[section.number], self._edits[section.number]
        start, end = section.payload
        if entries:
            count, first = decode_unsigned(self._binary.content, start, end)
            number = replacement(start, first, encode_unsigned(count + len(entries)))
            edits = [number, *edits, replacement(end, end, b"".join(entries))]
        if not edits:
            return []
        size = end - start + growth(edits)
        return [replacement(section.start + 1, start, encode_unsigned(size)), *edits]


def growth(edits: Sequence[Edit]) -> int:
    """Return by how many bytes the edits make the file longer."""
    return sum([len(new) - (end - start) for start, end, new, _ in edits])
