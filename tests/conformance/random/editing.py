"""What random modules are changed into before they run: ones whose state can be seen, and ones with a memory of 4 GiB."""

from __future__ import annotations

from typing import Final

from shmwasm.addresses import WASM_PAGE, WINDOW_END
from shmwasm.wasm.binary import EXPORT, MEMORY, Binary, Section
from shmwasm.wasm.decoding import decode
from shmwasm.wasm.leb128 import decode_unsigned, encode_unsigned
from shmwasm.wasm.scanning import Scan

NUMBERS: Final = {"i32": "<i", "i64": "<q", "f32": "<f", "f64": "<d"}
"""The types of numbers, and how `struct` writes each."""

_KINDS: Final = {"memory": 2, "global": 3}


def state(kind: str, index: int) -> str:
    """Return the name of an export that `expose` adds."""
    return f"state:{kind}:{index}"


def numeric_globals(binary: Binary) -> list[int]:
    return [index for index, one in enumerate(binary.globals) if one.type in NUMBERS]


def hang_limit(binary: Binary) -> str | None:
    """Return the exposed global in which a module counts calls and loops down to a trap: the last that the fuzzer adds."""
    found = [index for index, one in enumerate(binary.globals) if (one.type, one.mutable) == ("i32", True)]
    return state("global", found[-1]) if found and binary.exports else None


def expose(binary: Binary, *, memories: bool) -> bytes:
    """Return the module with one more export for each global that holds a number, and perhaps for each memory."""
    section = binary.section(EXPORT)
    if section is None:
        return binary.content
    names = [("global", index) for index in numeric_globals(binary)]
    if memories:
        names += [("memory", index) for index in range(len(binary.memories))]
    added = b"".join(
        encode_unsigned(len(state(*one))) + state(*one).encode() + bytes([_KINDS[one[0]]]) + encode_unsigned(one[1])
        for one in names
    )
    count, first = decode_unsigned(binary.content, section.payload.start, section.payload.end)
    return _replaced(binary, section, encode_unsigned(count + len(names)) + binary.content[first : section.payload.end] + added)


def enlarged(content: bytes) -> bytes | None:
    """Return the module with a first memory of 4 GiB; None if it has none of its own or a special one, or sees its size."""
    binary = decode(content)
    section = binary.section(MEMORY)
    if section is None or binary.imported("memory") or binary.memories[0].is_64 or binary.memories[0].shared:
        return None
    if any(site.operation.instruction in {"memory.size", "memory.grow"} and site.operation.memory == 0 for site in Scan(binary)):
        return None
    span, payload = binary.memories[0].span, section.payload
    limits = b"\0" + encode_unsigned(WINDOW_END // WASM_PAGE)
    return _replaced(binary, section, content[payload.start : span.start] + limits + content[span.end : payload.end])


def _replaced(binary: Binary, section: Section, payload: bytes) -> bytes:
    header = bytes([section.number]) + encode_unsigned(len(payload))
    return binary.content[: section.start] + header + payload + binary.content[section.payload.end :]
