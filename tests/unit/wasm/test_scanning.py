from __future__ import annotations

import pytest
import wasmtime
from hypothesis import given, settings
from hypothesis import strategies as st

from shmwasm.errors import ModuleError
from shmwasm.wasm.decoding import decode
from shmwasm.wasm.leb128 import encode_signed
from shmwasm.wasm.scanning import Operation, Scan, Site


def sites_of(text: str) -> tuple[bytes, list[Site]]:
    content = wasmtime.wat2wasm(text)
    return content, list(Scan(decode(content)))


def test_sites_tell_which_memories_and_segments_they_name():
    content, sites = sites_of(
        """(module
        (import "a" "f" (func)) (memory 1) (memory 1) (data "a") (data "b")
        (func
            (memory.copy 1 0 (local.get 0) (local.get 0) (local.get 0))
            (memory.init 1 1 (local.get 0) (local.get 0) (local.get 0)))
        (func (param i32)
            (memory.fill 1 (local.get 0) (local.get 0) (local.get 0))
            (drop (memory.grow 1 (memory.size 1)))))""".replace("(func\n", "(func (param i32)\n")
    )
    assert [(site.function, *site.operation[:3]) for site in sites] == [
        (1, "memory.copy", 1, 0),
        (1, "memory.init", 1, 1),
        (2, "memory.fill", 1, 0),
        (2, "memory.size", 1, 0),
        (2, "memory.grow", 1, 0),
    ]
    assert [content[site.start : site.end] for site in sites] == [
        b"\xfc\x0a\x01\0",
        b"\xfc\x08\x01\x01",
        b"\xfc\x0b\x01",
        b"\x3f\x01",
        b"\x40\x01",
    ]
    assert all(site.constant == site.start for site in sites)


def test_waits_and_notifies_tell_their_offset_and_memory():
    content, sites = sites_of("""(module (memory 1) (memory i64 1)
        (func
            (drop (memory.atomic.notify offset=300 (i32.const 0) (i32.const 0)))
            (drop (memory.atomic.wait32 (i32.const 0) (i32.const 0) (i64.const 0)))
            (drop (memory.atomic.wait64 1 offset=0x123456789a (i64.const 0) (i64.const 0) (i64.const 0)))))""")
    assert [
        (site.operation.instruction, site.operation.memory, site.operation.align, site.operation.offset) for site in sites
    ] == [
        ("memory.atomic.notify", 0, 2, 300),
        ("memory.atomic.wait32", 0, 2, 0),
        ("memory.atomic.wait64", 1, 3, 0x123456789A),
    ]
    assert all(content[site.start] == 0xFE for site in sites)


def test_an_alignment_beyond_all_memory_is_malformed(functions, refusal):
    module = functions(b"\x41\0\x41\0\xfe\0\x80\x04\0\x1a\x0b")
    assert refusal(module) is not None
    with pytest.raises(ModuleError, match="an alignment to 2\\^512 bytes is too large"):
        list(Scan(decode(module)))


def test_a_constant_directly_before_a_bulk_instruction_is_told():
    content, sites = sites_of("""(module (memory 1) (memory i64 1)
        (func (param i32 i64)
            (memory.copy (local.get 0) (local.get 0) (i32.const 300))
            (memory.fill (local.get 0) (local.get 0) (i32.const -1))
            (memory.fill 1 (local.get 1) (local.get 0) (i64.const 5))
            (memory.copy (local.get 0) (local.get 0) (i32.add (i32.const 1) (i32.const 2)))
            (memory.copy (i32.const 1) (i32.const 2) (block (result i32) (i32.const 3)))
            (drop (i32.trunc_sat_f32_s (f32.const 0)))
            (drop (i32.const 1)) (drop (memory.size))))""")
    assert [site.operation.length for site in sites] == [300, -1, 5, None, None, None]
    first = sites[0]
    assert first == Site(0, first.start - 3, first.start, first.start + 4, Operation("memory.copy", 0, 0, length=300))
    assert content[first.constant : first.start] == b"\x41\xac\x02"


def test_a_constant_of_full_width_is_no_bulk_instruction():
    # The bytes of a constant look like a bulk instruction after a constant.
    content, sites = sites_of(
        "(module (memory 1) (func (drop (i64.const 0xfc0a_0000_fc0b)) (drop (f64.const nan:0x0afc410000041))))"
    )
    assert sites == []
    assert content


def test_a_branch_table_of_any_size_is_passed():
    targets = " ".join(["0", "200"] * 100)
    blocks = "(block " * 201 + f"(br_table {targets} (local.get 0))" + ")" * 201
    _, sites = sites_of(f"(module (memory 1) (func (param i32) {blocks} (drop (memory.size))))")
    assert len(sites) == 1


def test_catches_and_typed_selections_of_any_number_are_passed():
    _, sites = sites_of("""(module (memory 1) (tag $e)
        (func (block $b
            (try_table (drop (memory.size)))
            (try_table (catch $e $b) (drop (memory.size)))
            (try_table (catch_all $b) (catch $e $b) (catch_all $b) (catch $e $b) (drop (memory.size)))
            (drop (select (result (ref null extern)) (ref.null extern) (ref.null extern) (memory.size))))))""")
    assert [site.operation.instruction for site in sites] == ["memory.size"] * 4


@pytest.mark.parametrize(
    "code",
    [
        b"",
        b"\x01",
        b"\x41\x0b",  # the last byte looks like an end, but is an immediate
        b"\x02\x0b",
        b"\x44\0\0\0\0\0\0\0\x0b",
        b"\x0e\x05\0\0\x0b",
        b"\x0e\xff\xff\xff\xff\x0f\0\x0b",
        b"\xfc",
        b"\xfc\x8a\x80\x0b",
    ],
)
def test_a_function_must_end_with_its_end(functions, refusal, code):
    module = functions(code, b"\x0b")
    assert refusal(module) is not None
    with pytest.raises(ModuleError, match=r"at offset 0x|no code"):
        list(Scan(decode(module)))


def test_scanning_twice_gives_the_same(functions):
    scan = Scan(decode(functions(b"\x3f\0\x1a\0\xfc\x0a\0\0\x0b")))
    assert list(scan) == list(scan)
    assert scan.features == {"bulk-memory"}


def padded(number: bytes, padding: int) -> bytes:
    """A LEB128 number of one byte, written with more."""
    return bytes([number[0] | 0x80]) + b"\x80" * (padding - 1) + b"\0" if padding else number


PADDING = st.integers(0, 4)
DULL = st.one_of(
    st.just(b"\x01"),
    st.builds(lambda number: b"\x42" + encode_signed(number), st.integers(-(1 << 63), (1 << 63) - 1)),
    st.builds(lambda bits: b"\x43" + bits, st.binary(min_size=4, max_size=4)),
    st.builds(lambda bits: b"\xfd\x0c" + bits, st.binary(min_size=16, max_size=16)),
    st.builds(lambda padding: b"\x28" + padded(b"\x02", padding) + padded(b"\x7f", padding), PADDING),
    st.builds(lambda padding: b"\x28" + padded(b"\x42", padding) + b"\0\x7f", PADDING),
    st.builds(lambda padding: b"\xfc" + padded(b"\x03", padding), PADDING),
    st.builds(lambda padding: b"\xfd" + padded(b"\x4d", padding), PADDING),
    st.just(b"\x02\x40\x0b"),
    st.just(b"\x03\x80\0\x0b"),
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(DULL.map(lambda code: (code, None)), st.tuples(st.sampled_from([b"\x0a", b"\x0b"]), PADDING)), max_size=30
    ),
    st.one_of(st.none(), st.integers(-(1 << 31), (1 << 31) - 1)),
)
def test_exactly_the_sites_that_were_written_are_found(functions, refusal, pieces, constant):
    code, expected = b"\0", []
    for piece, padding in pieces:
        if padding is None:
            code += piece + b"\0"
            continue
        if constant is not None:
            code += b"\x41" + encode_signed(constant)
        expected.append((len(code), "memory.copy" if piece == b"\x0a" else "memory.fill"))
        code += b"\xfc" + padded(piece, padding) + padded(b"\0", padding) * (2 if piece == b"\x0a" else 1)
        if padding == 0 and constant is not None:
            expected[-1] = (*expected[-1], constant)
        code += b"\0"
    module = functions(code + b"\x0b")
    assert refusal(module) is None
    binary = decode(module)
    start = binary.bodies[0].code
    found = [
        (site.start - start, site.operation.instruction) + (() if site.operation.length is None else (site.operation.length,))
        for site in Scan(binary)
    ]
    assert found == expected
