"""Instructions that are replaced: where the code finds locals, and the edits that this makes of the code section."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Final

from shmwasm.errors import UnsupportedError
from shmwasm.rewrite.assembler import local_groups
from shmwasm.rewrite.expansion import Expansion
from shmwasm.rewrite.offsets import Edit
from shmwasm.wasm.binary import Binary
from shmwasm.wasm.leb128 import decode_unsigned, encode_unsigned
from shmwasm.wasm.reader import Reader
from shmwasm.wasm.scanning import Site
from shmwasm.wasm.types import read_value_type

_TYPES: Final = ("i32", "i64")
"""The types of the locals that expansions use, in the order in which they are appended."""


class CodeEditor:
    """Edits bodies, and keeps what it made: of ten thousand, most need the same few pieces."""

    def __init__(self, binary: Binary) -> None:
        self._binary = binary
        self._imported = binary.imported("function")
        self._codes: dict[tuple[int, tuple[str, ...]], dict[Expansion, bytes]] = {}

    def edits(self, replaced: Sequence[tuple[Site, Expansion]]) -> list[Edit]:
        """Return the edits that replace sites of one function, which are in ascending order."""
        function = replaced[0][0].function
        start, first_byte, code_start, end = self._binary.bodies[function - self._imported]
        appended = _appended(frozenset([expansion.locals for _, expansion in replaced]))
        declared, declaration = _with_locals(self._binary.content[first_byte:code_start], appended)
        first = declared + (self._parameters(function) if appended else 0)
        codes = self._codes.setdefault((first, appended), {})
        size = end - code_start + len(declaration)
        edits = []
        for site, expansion in replaced:
            code = codes.get(expansion)
            if code is None:
                code = codes[expansion] = expansion.code(_places(expansion, first, appended))
            at = site.constant if expansion.constants else site.start
            edits.append(Edit(at, site.end, code, site.start))
            size += len(code) - (site.end - at)
        return [Edit(start, code_start, encode_unsigned(size) + declaration, start), *edits]

    def _parameters(self, function: int) -> int:
        kind = self._binary.function_type(function)
        if kind is None:
            raise UnsupportedError(f"the function {function}", "its type is not that of a function")
        return len(kind.parameters)


@functools.lru_cache
def _appended(needs: frozenset[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the types of the locals that are enough for each of these lists."""
    return tuple(kind for kind in _TYPES for _ in range(max(need.count(kind) for need in needs)))


@functools.lru_cache(maxsize=4096)
def _with_locals(declaration: bytes, types: tuple[str, ...]) -> tuple[int, bytes]:
    """Return how many locals a body declares, and its declaration with more of these types; if there are none, as it was."""
    groups, start = decode_unsigned(declaration, 0, len(declaration))
    reader = Reader(declaration, start, len(declaration))
    declared = 0
    for _ in range(groups):
        declared += reader.unsigned()
        read_value_type(reader, set())
    added = local_groups(types)
    if not added:
        return declared, declaration
    return declared, b"".join((encode_unsigned(groups + len(added)), declaration[start:], *added))


def _places(expansion: Expansion, first: int, appended: Sequence[str]) -> list[int]:
    """Return the locals for an expansion, among those that were appended from `first` on."""
    free = {kind: first + appended.index(kind) for kind in _TYPES if kind in appended}
    places = []
    for kind in expansion.locals:
        places.append(free[kind])
        free[kind] += 1
    return places
