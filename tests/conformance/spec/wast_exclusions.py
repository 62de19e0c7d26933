"""Commands of the test suite that wasmtime 50 does not do as asserted, untouched, and why. There are no others."""

from __future__ import annotations

from typing import Final, NamedTuple

ANY: Final = None
"""Commands of a script that is about something that the engine does not have: some of them fail."""


class Row(NamedTuple):
    """A script, the lines of its commands that fail, and the reason."""

    script: str
    lines: frozenset[int] | None
    reason: str


_DESCRIPTORS = "proposals/custom-descriptors/"
_PAGE_SIZES = "proposals/custom-page-sizes/"
_ON_DESCRIPTORS = (
    "array_new_exact",
    "binary-descriptors",
    "br_on_cast",
    "br_on_cast_desc_eq",
    "br_on_cast_desc_eq_fail",
    "br_on_cast_fail",
    "descriptors",
    "exact",
    "exact-casts",
    "exact-func-import",
    "ref_cast_desc_eq",
    "ref_get_desc",
    "struct_new_desc",
)

EXCLUSIONS: Final = (
    *(
        Row(f"legacy/{name}.wast", ANY, "the engine's compiler has no exceptions of the old form (try, catch, delegate)")
        for name in ("rethrow", "throw", "try_catch", "try_delegate")
    ),
    *(Row(f"{_DESCRIPTORS}{name}.wast", ANY, "custom descriptors are not implemented") for name in _ON_DESCRIPTORS),
    *(
        Row(f"{_PAGE_SIZES}{name}.wast", ANY, "custom page sizes are off")
        for name in ("custom-page-sizes", "custom-page-sizes-invalid", "memory_max", "memory_max_i64")
    ),
    Row(
        "custom/branch_hint.wast",
        frozenset({85}),
        "custom sections are not validated: a misplaced branch hint is ignored",
    ),
    Row(
        "proposals/threads/imports.wast",
        frozenset({309, 313, 317, 404, 408, 412}),
        "the proposal's script is older than several tables and memories in a module",
    ),
    Row(
        "proposals/threads/memory.wast",
        frozenset({14, 15}),
        "the proposal's script is older than several memories in a module",
    ),
)


def excluded(script: str) -> Row | None:
    """Return the row of a script, if it has one."""
    return next((row for row in EXCLUSIONS if row.script == script), None)
