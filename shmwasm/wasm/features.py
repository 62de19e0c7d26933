"""The proposals that a module uses: those beyond WebAssembly 1.0."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from shmwasm.wasm.binary import KINDS, Binary
from shmwasm.wasm.scanning import Scan

FEATURES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "mutable-global": "import and export of mutable globals",
        "sign-extension": "sign extension instructions",
        "saturating-float-to-int": "conversions that do not trap",
        "multi-value": "several results, and blocks with parameters",
        "bulk-memory": "memory.copy, memory.fill, passive segments",
        "reference-types": "references in tables and as values, several tables",
        "simd": "128-bit vectors",
        "relaxed-simd": "vector instructions whose results may differ between machines",
        "threads": "shared memory and atomic instructions",
        "tail-call": "tail calls",
        "exceptions": "exceptions",
        "legacy-exceptions": "exceptions in their first form",
        "multi-memory": "several memories",
        "memory64": "memories and tables with 64-bit addresses",
        "extended-const": "arithmetic in constant expressions",
        "function-references": "typed references to functions",
        "gc": "garbage-collected structures and arrays",
        "wide-arithmetic": "128-bit arithmetic",
        "custom-page-sizes": "memories with other pages than 64 KiB",
        "compact-imports": "imports in groups",
    }
)
"""The proposals, oldest first, and what each is about."""


def features_of(binary: Binary, scan: Scan) -> list[str]:
    """Return the proposals that a module uses, in the order of `FEATURES`.

    Args:
        binary: The module.
        scan: A scan of it that is complete.
    """
    used = binary.syntax | scan.features
    if len(binary.memories) > 1:
        used.add("multi-memory")
    if len(binary.tables) > 1:
        used.add("reference-types")
    if "mutable-global" not in used and _exports_mutable_global(binary):
        used.add("mutable-global")
    return [feature for feature in FEATURES if feature in used]


def _exports_mutable_global(binary: Binary) -> bool:
    _, _, mutable = binary.globals.columns
    _, kinds, numbers = binary.exports.columns
    wanted = KINDS.index("global")
    return any(mutable[number] for kind, number in zip(kinds, numbers, strict=True) if kind == wanted)
