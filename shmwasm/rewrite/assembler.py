"""An assembler for what is put into modules: each function returns bytes of code, so that nesting them reads like folded text.

``op("i64.add", get(base), i64(8))`` is ``(i64.add (local.get $base) (i64.const 8))``.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import groupby
from typing import Final

from shmwasm.wasm.leb128 import encode_signed, encode_unsigned
from shmwasm.wasm.opcodes import OPCODES

VALUE_TYPES: Final = {"i32": b"\x7f", "i64": b"\x7e", "f32": b"\x7d", "f64": b"\x7c", "v128": b"\x7b", "funcref": b"\x70"}

_ENCODED: Final = {
    row.name: bytes([row.number] if row.prefix is None else [row.prefix])
    + (b"" if row.prefix is None else encode_unsigned(row.number))
    for row in OPCODES.values()
}
_OTHER_MEMORY: Final = 0x40
"""The bit of a memory argument's alignment that announces the number of a memory."""

_EMPTY_BLOCK: Final = b"\x40"
END: Final = _ENCODED["end"]


def op(name: str, *operands: bytes, at: Sequence[int] = ()) -> bytes:
    """Return the operands' code and then the instruction, with indices as its immediates."""
    return b"".join((*operands, _ENCODED[name], *map(encode_unsigned, at)))


@functools.lru_cache
def i32(value: int) -> bytes:
    """Return a constant, signed or unsigned."""
    return _ENCODED["i32.const"] + encode_signed(as_signed(value, 32))


@functools.lru_cache
def i64(value: int) -> bytes:
    """Return a constant, signed or unsigned."""
    return _ENCODED["i64.const"] + encode_signed(as_signed(value, 64))


@functools.lru_cache
def get(local: int) -> bytes:
    """Return the code that reads a local."""
    return op("local.get", at=[local])


def put(local: int, *value: bytes) -> bytes:
    """Return the code that sets a local, to what is on the stack if no value is given."""
    return op("local.set", *value, at=[local])


def keep(local: int, *value: bytes) -> bytes:
    """Return the code that sets a local and leaves the value on the stack."""
    return op("local.tee", *value, at=[local])


def access(name: str, *operands: bytes, memory: int, offset: int = 0, align: int = 0) -> bytes:
    """Return a load, store or atomic instruction of a memory; `align` is the exponent."""
    if memory:
        return b"".join(
            (*operands, _ENCODED[name], bytes([align | _OTHER_MEMORY]), encode_unsigned(memory), encode_unsigned(offset))
        )
    return b"".join((*operands, _ENCODED[name], bytes([align]), encode_unsigned(offset)))


def all_of(*conditions: bytes) -> bytes:
    """Return the code of whether all conditions hold; each is 0 or 1, and all are computed."""
    return functools.reduce(functools.partial(op, "i32.and"), conditions)


def if_(condition: bytes, then: bytes, otherwise: bytes = b"", *, result: str | None = None) -> bytes:
    """Return a conditional whose branches leave a value of the type `result`, or nothing."""
    kind = _EMPTY_BLOCK if result is None else VALUE_TYPES[result]
    last = op("else") + otherwise if otherwise else b""
    return condition + _ENCODED["if"] + kind + then + last + END


def loop(body: bytes) -> bytes:
    """Return a loop without a result; branch to 0 repeats it."""
    return _ENCODED["loop"] + _EMPTY_BLOCK + body + END


def function_type(parameters: Sequence[str], results: Sequence[str]) -> bytes:
    """Return an entry of the type section."""
    return b"\x60" + b"".join(_vector([VALUE_TYPES[kind] for kind in kinds]) for kinds in (parameters, results))


def body(local_types: Sequence[str], *code: bytes) -> bytes:
    """Return a function with these locals beside its parameters: an entry of the code section, without its size."""
    return b"".join((_vector(local_groups(local_types)), *code, END))


def local_groups(types: Sequence[str]) -> list[bytes]:
    """Return the declaration of locals: a group for each run of one type."""
    return [encode_unsigned(len(list(run))) + VALUE_TYPES[kind] for kind, run in groupby(types)]


def name(text: str) -> bytes:
    """Return a name as modules hold it."""
    encoded = text.encode()
    return encode_unsigned(len(encoded)) + encoded


def _vector(items: Sequence[bytes]) -> bytes:
    return encode_unsigned(len(items)) + b"".join(items)


def as_signed(value: int, bits: int) -> int:
    """Return the signed number that has the bits of an unsigned one."""
    return value - (1 << bits) if value >= 1 << (bits - 1) else value
