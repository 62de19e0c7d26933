"""How long rewriting takes for each megabyte of code, beside the engine's validation of the same module.

The module is the allocator's, its functions repeated until they are as many as a large program's; in the second row functions
that copy stand between them, with one copy in two kilobytes of code. (SQLite has 0.7 in a kilobyte, DuckDB 0.6.)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import wasmtime

import shmwasm.core
from benchmarks.context import Context
from benchmarks.measuring import elapsed, interleave
from benchmarks.rows import Row, at_most, compare
from shmwasm.engine.config import new_engine
from shmwasm.rewrite import rewrite
from shmwasm.wasm.binary import CODE, FUNCTION, Binary
from shmwasm.wasm.decoding import decode
from shmwasm.wasm.leb128 import decode_unsigned, encode_unsigned

TOPIC: Final = "rewriting"
MEGABYTE: Final = 1_000_000
CODE_SIZE: Final = 5 * MEGABYTE
COPYING: Final = 3
"""Functions that copy, in each repetition of the others."""

COPIES: Final = 4
"""Copies in each of those."""

BUDGET: Final = at_most(1 / 40)
"""Seconds for a megabyte."""

_COPY: Final = b"\x20\x00\x20\x01\x20\x02\xfc\x0a\x00\x00"
_COPYING_BODY: Final = b"\x00" + _COPY * COPIES + b"\x41\x00\x0b"
_COPYING_TYPE: Final = (("i32", "i32", "i32"), ("i32",))


def rows(context: Context) -> Iterator[Row]:
    """Yield a row for a module that needs nothing, and one for a module with many copies."""
    engine = new_engine(parallel_compilation=False)
    original = decode((Path(shmwasm.core.__file__).parent / "core.wasm").read_bytes())
    for copying, name in ((0, "with nothing to change"), (COPYING, "with a copy in 2 KB")):
        content = repeated(original, context.scaled(CODE_SIZE), copying)
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
        yield compare(TOPIC, f"rewrite 1 MB of code, {name}", ours, "the engine validates it", peers, budget=BUDGET)


def repeated(binary: Binary, code_size: int, copying: int) -> bytes:
    """Return the module with its functions repeated up to a size, and functions that copy after each repetition."""
    content = binary.content
    kinds, bodies = (_entries(binary, number) for number in (FUNCTION, CODE))
    copying_type = encode_unsigned([tuple(kind or ()) for kind in binary.types].index(_COPYING_TYPE))
    times = max(1, code_size // len(bodies))
    kinds += copying * copying_type
    bodies += copying * (encode_unsigned(len(_COPYING_BODY)) + _COPYING_BODY)
    count = times * (len(binary.bodies) + copying)
    parts, position = [], 0
    for number, entries in ((FUNCTION, kinds), (CODE, bodies)):
        section = binary.section(number)
        assert section is not None
        payload = encode_unsigned(count) + times * entries
        parts += [content[position : section.start], bytes([number]), encode_unsigned(len(payload)), payload]
        position = section.payload.end
    return b"".join([*parts, content[position:]])


def _entries(binary: Binary, number: int) -> bytes:
    """Return a section's entries, without their count."""
    section = binary.section(number)
    assert section is not None
    _, first = decode_unsigned(binary.content, *section.payload)
    return binary.content[first : section.payload.end]
