"""The facts of a module: what is kept of it beside its code, and how that is written.

There may be a hundred thousand exports of a few types. So types are written once each, and named by their numbers; reading them
back takes a fraction of the time, and equal types are one object.
"""

from __future__ import annotations

from typing import Final

import msgspec

from shmwasm.engine.modules import ExternType, Import, ModuleDescription
from shmwasm.rewrite import Report


class Facts(msgspec.Struct, frozen=True):
    """What is kept of a module beside its code.

    Attributes:
        description: What the original imports and exports.
        is_64: Whether a chain is mapped into a memory with 64-bit addresses.
        report: What the rewriter found and did.
    """

    description: ModuleDescription
    is_64: bool
    report: Report


class _Written(msgspec.Struct, frozen=True, array_like=True):
    """Facts as they are written; types are places in `types`."""

    types: list[ExternType]
    imports: list[tuple[str, str, int]]
    names: list[str]
    exports: list[int]
    is_64: bool
    report: Report


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(_Written).decode


def packed(facts: Facts) -> bytes:
    """Return the facts as bytes."""
    numbers: dict[ExternType, int] = {}

    def number(kind: ExternType) -> int:
        return numbers.setdefault(kind, len(numbers))

    description = facts.description
    imports = [(one.module, one.name, number(one.type)) for one in description.imports]
    exports = [number(kind) for kind in description.exports.values()]
    return _encode(_Written(list(numbers), imports, list(description.exports), exports, facts.is_64, facts.report))


def unpacked(content: bytes) -> Facts:
    """Return the facts that `packed` wrote.

    Raises:
        msgspec.DecodeError: They are none.
    """
    written = _decode(content)
    types = written.types
    description = ModuleDescription(
        tuple(Import(module, name, types[kind]) for module, name, kind in written.imports),
        dict(zip(written.names, map(types.__getitem__, written.exports), strict=True)),
    )
    return Facts(description, written.is_64, written.report)
