"""Modules with random damage: an error, or a decoding that the engine cannot contradict; never a hang, never much memory."""

from __future__ import annotations

import contextlib
import os
import random
import tracemalloc
from pathlib import Path

import pytest
import wasmtime

import shmwasm
from shmwasm.errors import ModuleError, UnsupportedError
from shmwasm.wasm.decoding import HEADER, decode
from shmwasm.wasm.leb128 import encode_unsigned
from shmwasm.wasm.scanning import Scan

ROUNDS = int(os.environ.get("SHMWASM_MUTATIONS", "3000"))
SEED = int(os.environ.get("SHMWASM_MUTATION_SEED", "3"))

TEXTS = [
    """(module (import "a" "f" (func $f (param i32) (result i32))) (import "a" "m" (memory 1 4))
        (type $pair (struct (field i32) (field (mut i64)))) (rec (type $r (sub (array (mut i8)))))
        (table 4 funcref) (tag $e (param i32)) (global (mut i64) (i64.const -5)) (elem (i32.const 0) $f $g)
        (func $g (export "g") (param i32) (result i32) (local i64 f32)
            (block $b (result i32)
                (try_table (catch $e $b) (memory.copy (local.get 0) (i32.const 8) (i32.const 16)))
                (memory.fill (i32.const 0) (i32.const 1) (local.get 0))
                (br_table $b $b (local.get 0) (call $f (memory.size)))))
        (data (i32.const 8) "hello") (data "passive"))""",
    """(module (memory (export "memory") 1 2 shared) (memory i64 2)
        (func (param i32 i64) (result v128)
            (drop (memory.atomic.wait32 offset=8 (local.get 0) (i32.const 1) (i64.const -1)))
            (drop (memory.atomic.notify (local.get 0) (i32.const 1)))
            (memory.copy 1 0 (local.get 1) (local.get 0) (i32.const 4))
            (drop (memory.grow 1 (i64.const 1)))
            (i8x16.shuffle 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15
                (v128.const i64x2 1 2) (v128.load offset=16 (local.get 0)))))""",
]


def originals() -> list[bytes]:
    inside = Path(shmwasm.__file__).parent
    return [wasmtime.wat2wasm(text) for text in TEXTS] + [path.read_bytes() for path in sorted(inside.rglob("*.wasm"))][:4]


def mutated(content: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    damaged = bytearray(content)
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        at = chance.randrange(len(damaged)) if damaged else 0
        match chance.randrange(8):
            case 0 | 1:
                damaged[at : at + 1] = bytes([chance.randrange(256)])
            case 2:
                damaged[at:at] = chance.randbytes(chance.randrange(1, 5))
            case 3:
                del damaged[at : at + chance.randrange(1, 9)]
            case 4:
                damaged[at : at + 5] = chance.choice([b"\xff\xff\xff\xff\x0f", b"\xff\xff\xff\xff\x07", b"\x80\x80\x80\x80\0"])
            case 5:
                del damaged[at:]
            case 6:
                other = chance.choice(others)
                start = chance.randrange(len(other))
                damaged[at:at] = other[start : start + chance.randrange(64)]
            case _:
                damaged[at : at + 1] = bytes([damaged[at] ^ 1 << chance.randrange(8)]) if damaged else b""
    return bytes(damaged)


def check(module: bytes) -> None:
    """Decode and scan a module, and check what must hold of any that is accepted.

    Raises:
        ModuleError: It was not accepted.
        UnsupportedError: The same.
    """
    binary = decode(module)
    assert all(module[site.start] in {0xFC, 0xFE, 0x3F, 0x40} for site in Scan(binary))
    assert all(body.locals < body.code < body.end <= len(module) for body in binary.bodies)
    assert HEADER + b"".join(module[one.start : one.payload.end] for one in binary.sections) == module


def test_a_damaged_module_gives_an_error_or_what_the_engine_agrees_to(refusal):
    chance, whole = random.Random(SEED), originals()
    refused = {}
    for number in range(ROUNDS):
        module = mutated(chance.choice(whole), chance, whole)
        try:
            check(module)
        except (ModuleError, UnsupportedError) as error:
            refused[number, str(error)] = module
    assert not [case for case, module in refused.items() if refusal(module) is None]
    assert len(refused) < ROUNDS


def section(number: int, payload: bytes) -> bytes:
    return bytes([number]) + encode_unsigned(len(payload)) + payload


MANY = 4_000
COUNT = encode_unsigned(MANY)
TINY_PARTS = {
    "types": section(1, COUNT + b"\x60\0\0" * MANY),
    "recursive types": section(1, b"\x01\x4e" + COUNT + b"\x50\0\x5f\0" * MANY),
    "results": section(1, b"\x01\x60\0" + COUNT + b"\x7f" * MANY),
    "imports": section(1, b"\x01\x60\0\0") + section(2, COUNT + b"\0\0\0\0" * MANY),
    "imports of one type": section(1, b"\x01\x60\0\0") + section(2, b"\x01\0\0\x7e\0\0" + COUNT + b"\0" * MANY),
    "functions": section(1, b"\x01\x60\0\0") + section(3, COUNT + b"\0" * MANY) + section(10, COUNT + b"\x02\0\x0b" * MANY),
    "globals": section(6, COUNT + b"\x7f\0\x41\0\x0b" * MANY),
    "exports": section(5, b"\x01\0\0") + section(7, COUNT + b"\0\x02\0" * MANY),
    "elements": section(9, COUNT + b"\x01\0\0" * MANY),
    "items": section(9, b"\x01\x01\0" + COUNT + b"\0" * MANY),
    "data": section(11, COUNT + b"\x01\0" * MANY),
    "custom sections": section(0, b"\0") * MANY,
    "sites": section(1, b"\x01\x60\0\0")
    + section(3, b"\x01\0")
    + section(10, b"\x01" + encode_unsigned(2 * MANY + 2) + b"\0" + b"\x3f\0" * MANY + b"\x0b"),
    "labels": section(1, b"\x01\x60\0\0")
    + section(3, b"\x01\0")
    + section(10, b"\x01" + encode_unsigned(MANY + 4 + len(COUNT)) + b"\0\x0e" + COUNT + b"\0" * (MANY + 1) + b"\x0b"),
}
"""The same tiny entry over and over: what makes most of each byte."""


@pytest.mark.parametrize("parts", TINY_PARTS)
def test_no_entry_takes_more_than_400_bytes(parts):
    module = HEADER + TINY_PARTS[parts]
    list(Scan(decode(module)))  # the expressions are compiled once
    tracemalloc.start()
    try:
        for _ in Scan(decode(module)):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 400 * MANY + (64 << 10)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 13])
def test_an_absurd_count_takes_no_memory(number):
    tracemalloc.start()
    try:
        with pytest.raises(ModuleError, match="more than"):
            decode(HEADER + section(number, b"\xff\xff\xff\xff\x0f" + b"\0" * 1000))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize(
    ("number", "entry", "limit"),
    [
        (1, b"\x60\0\0", 1_000_000),
        (4, b"\x70\0\0", 100),
        (5, b"\0\0", 100),
        (6, b"\x7f\0\x41\0\x0b", 1_000_000),
        (9, b"\x01\0\0", 100_000),
        (11, b"\x01\0", 100_000),
    ],
)
def test_there_are_as_many_entries_as_the_engine_takes_at_most(refusal, number, entry, limit):
    module = HEADER + section(number, encode_unsigned(limit + 1) + entry * (limit + 1))
    assert "limit" in (refusal(module) or "")
    with pytest.raises(ModuleError, match=f"more than {limit}"):
        decode(module)


@pytest.mark.parametrize(
    "piece",
    [
        b"\x41\x80\x80\x80\x80\0\x1a",
        b"\x02\x40\x0b",
        b"\x0e\0\0",
        b"\x0e\x01\x80\0\0",
        b"\x1c\x02\x7f\x7f",
        b"\xfd\x8c\0" + b"\xff" * 16,
        b"\xff" * 1000 + b"\0",
        b"\x02" + b"\xff" * 1000 + b"\0",
    ],
)
def test_the_scan_of_a_large_function_ends(piece):
    """Were its time not in proportion to the code, it would not end within this test's limit."""
    code = piece * (200_000 // len(piece))
    size = encode_unsigned(len(code) + 2)
    sections = section(1, b"\x01\x60\0\0") + section(3, b"\x01\0") + section(10, b"\x01" + size + b"\0" + code + b"\x0b")
    with contextlib.suppress(UnsupportedError, ModuleError):
        assert list(Scan(decode(HEADER + sections))) == []
