"""How long rewriting takes for each megabyte of code, beside the engine's validation of the same module.

The module is the allocator's, its functions repeated until they are as many as a large program's. Between them stand functions
that copy: none, as many as make the density of DuckDB (SQLite and esbuild have the same, 0.6 to 0.7 in a kilobyte), and as many
as no program is known to have. As in DuckDB, they have four copies each, of which more than half are of constant length.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import wasmtime

import shmwasm.core
from benchmarks.context import Context
from benchmarks.measuring import elapsed, interleave
from benchmarks.rows import Budget, Row, at_most, compare
from shmwasm.engine.config import new_engine
from shmwasm.rewrite import rewrite
from shmwasm.wasm.binary import CODE, FUNCTION, Binary
from shmwasm.wasm.decoding import decode
from shmwasm.wasm.leb128 import decode_unsigned, encode_unsigned

TOPIC: Final = "rewriting"
MEGABYTE: Final = 1_000_000
CODE_SIZE: Final = 5 * MEGABYTE
COPIES: Final = 4
"""Copies in each function that copies."""

BUDGET: Final = at_most(1 / 40)
"""Seconds for a megabyte."""


class Density(NamedTuple):
    """A row: how many copies there are in a kilobyte of the allocator's code, and what that may take."""

    copies: float
    name: str
    budget: Budget | None


DENSITIES: Final = (
    Density(0, "with nothing to change", BUDGET),
    Density(0.6, "with 0.6 copies in 1 KB, as DuckDB", BUDGET),
    Density(2, "with 2 copies in 1 KB", None),
)

_COMPUTED: Final = b"\x20\x00\x20\x01\x20\x02\xfc\x0a\x00\x00"
_CONSTANT: Final = b"\x20\x00\x20\x01\x41\x10\xfc\x0a\x00\x00"
_COPYING_BODY: Final = b"\x00" + (_COMPUTED + _CONSTANT) * (COPIES // 2) + b"\x41\x00\x0b"
_COPYING_TYPE: Final = (("i32", "i32", "i32"), ("i32",))


def rows(context: Context) -> Iterator[Row]:
    """Yield a row for each density."""
    engine = new_engine(parallel_compilation=False)
    original = decode((Path(shmwasm.core.__file__).parent / "core.wasm").read_bytes())
    for copies, name, budget in DENSITIES:
        content = repeated(original, context.scaled(CODE_SIZE), copies)
        section = decode(content).section(CODE)
        assert section is not None
        megabytes = (section.payload.end - section.payload.start) / MEGABYTE

        def subject(work: Callable[[], object], size: float = megabytes) -> Callable[[], float]:
            return lambda: elapsed(work, clock=time.process_time) / size

        ours, peers = interleave(
            subject(lambda content=content: rewrite(content)),  # type: ignore[misc]
            subject(lambda content=content: wasmtime.Module.validate(engine, content)),  # type: ignore[misc]
            rounds=context.rounds,
        )
        yield compare(TOPIC, f"rewrite 1 MB of code, {name}", ours, "the engine validates it", peers, budget=budget)


def repeated(binary: Binary, code_size: int, copies: float) -> bytes:
    """Return the module with its functions repeated up to a size, and functions that copy between the repetitions.

    Args:
        binary: The module.
        code_size: Bytes of code, without those functions.
        copies: Copies in each thousand bytes of it.
    """
    content = binary.content
    kinds, bodies = (_entries(binary, number) for number in (FUNCTION, CODE))
    copying_type = encode_unsigned([tuple(kind or ()) for kind in binary.types].index(_COPYING_TYPE))
    copying_body = encode_unsigned(len(_COPYING_BODY)) + _COPYING_BODY
    times = max(1, code_size // len(bodies))
    copying = round(times * len(bodies) / 1000 * copies / COPIES)
    # So many stand after each of the repetitions that in the end there are as many as are wanted.
    after_each = [copying * (turn + 1) // times - copying * turn // times for turn in range(times)]
    count = times * len(binary.bodies) + copying
    parts, position = [], 0
    for number, entries, entry in ((FUNCTION, kinds, copying_type), (CODE, bodies, copying_body)):
        section = binary.section(number)
        assert section is not None
        payload = encode_unsigned(count) + b"".join(entries + copies_here * entry for copies_here in after_each)
        parts += [content[position : section.start], bytes([number]), encode_unsigned(len(payload)), payload]
        position = section.payload.end
    return b"".join([*parts, content[position:]])


def _entries(binary: Binary, number: int) -> bytes:
    """Return a section's entries, without their count."""
    section = binary.section(number)
    assert section is not None
    _, first = decode_unsigned(binary.content, *section.payload)
    return binary.content[first : section.payload.end]
