"""Instructions that are replaced: where the code finds locals, and the edits that this makes of the code section."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Final, NamedTuple

from shmwasm.errors import UnsupportedError
from shmwasm.rewrite.additions import growth
from shmwasm.rewrite.assembler import local_groups
from shmwasm.rewrite.expansion import Expansion
from shmwasm.rewrite.offsets import Edit, replacement
from shmwasm.wasm.binary import Binary, Body
from shmwasm.wasm.leb128 import decode_unsigned, encode_unsigned
from shmwasm.wasm.opcodes import VALUE_TYPE
from shmwasm.wasm.scanning import Site

_VALUE_TYPE: Final = re.compile(VALUE_TYPE, re.DOTALL)
_TYPES: Final = ("i32", "i64")
"""The types of the locals that expansions use, in the order in which they are appended."""


class Replaced(NamedTuple):
    """A site, and what is put in its place."""

    site: Site
    expansion: Expansion


def code_edits(binary: Binary, replaced: Iterable[Replaced]) -> Iterator[Edit]:
    """Yield the edits of the code section that replace these sites, which are in ascending order."""
    imported = binary.imported("function")
    for function, sites in groupby(replaced, key=lambda one: one.site.function):
        yield from _body_edits(binary, function, binary.bodies[function - imported], list(sites))


def _body_edits(binary: Binary, function: int, body: Body, replaced: Sequence[Replaced]) -> list[Edit]:
    appended = _appended(replaced)
    first, edits = _append_locals(binary, function, body, appended) if appended else (0, [])
    codes: dict[Expansion, bytes] = {}
    for site, expansion in replaced:
        code = codes.get(expansion)
        if code is None:
            code = codes[expansion] = expansion.code(_places(expansion, first, appended))
        start = site.constant.start if expansion.constants and site.constant else site.start
        edits.append(Edit(start, site.end, code, site.start))
    size = body.end - body.locals + growth(edits)
    return [replacement(body.start, body.locals, encode_unsigned(size)), *edits]


def _appended(replaced: Iterable[Replaced]) -> list[str]:
    """Return the types of the locals that are enough for each of these expansions."""
    needs = [expansion.locals for _, expansion in replaced]
    return [kind for kind in _TYPES for _ in range(max(need.count(kind) for need in needs))]


def _append_locals(binary: Binary, function: int, body: Body, types: Sequence[str]) -> tuple[int, list[Edit]]:
    """Return the index of the first appended local, and the edits that append them."""
    kind = binary.function_type(function)
    if kind is None:
        raise UnsupportedError(f"the function {function}", "its type is not that of a function")
    content = binary.content
    groups, position = decode_unsigned(content, body.locals, body.code)
    count_end, first = position, len(kind.parameters)
    for _ in range(groups):
        count, position = decode_unsigned(content, position, body.code)
        first += count
        found = _VALUE_TYPE.match(content, position, body.code)
        assert found is not None  # the decoder went over it
        position = found.end()
    added = local_groups(types)
    return first, [
        replacement(body.locals, count_end, encode_unsigned(groups + len(added))),
        replacement(body.code, body.code, b"".join(added)),
    ]


def _places(expansion: Expansion, first: int, appended: Sequence[str]) -> list[int]:
    """Return the locals for an expansion, among those that were appended from `first` on."""
    free = {kind: first + appended.index(kind) for kind in _TYPES if kind in appended}
    places = []
    for kind in expansion.locals:
        places.append(free[kind])
        free[kind] += 1
    return places
