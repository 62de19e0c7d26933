from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmwasm.errors import ModuleError
from shmwasm.wasm.leb128 import decode_signed, decode_unsigned, encode_signed, encode_unsigned

U32 = st.integers(0, (1 << 32) - 1)
S64 = st.integers(-(1 << 63), (1 << 63) - 1)


@given(U32, st.binary(max_size=3))
def test_an_unsigned_number_is_read_as_it_was_written(value, rest):
    encoded = encode_unsigned(value)
    assert decode_unsigned(encoded + rest, 0, len(encoded + rest)) == (value, len(encoded))


@given(S64, st.binary(max_size=3))
def test_a_signed_number_is_read_as_it_was_written(value, rest):
    encoded = encode_signed(value)
    assert decode_signed(encoded + rest, 0, len(encoded + rest), 64) == (value, len(encoded))


@given(U32, st.integers(0, 4))
def test_a_number_may_be_padded_as_far_as_its_bits_go(value, padding):
    encoded = encode_unsigned(value)
    padded = encoded[:-1] + bytes([encoded[-1] | 0x80]) + b"\x80" * padding + b"\0"
    if len(padded) <= 5:
        assert decode_unsigned(padded, 0, len(padded)) == (value, len(padded))
    else:
        with pytest.raises(ModuleError, match="too long"):
            decode_unsigned(padded, 0, len(padded))


@given(S64)
def test_a_number_that_is_cut_off_is_malformed(value):
    encoded = encode_signed(value)
    for end in range(len(encoded)):
        with pytest.raises(ModuleError, match="end within a number"):
            decode_signed(encoded, 0, end, 64)


@pytest.mark.parametrize(
    ("encoded", "bits", "read"),
    [
        (b"\xff\xff\xff\xff\x1f", 32, decode_unsigned),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", 64, decode_unsigned),
        (b"\xff\xff\xff\xff\x4f", 32, decode_signed),
        (b"\x80\x80\x80\x80\x08", 32, decode_signed),
    ],
)
def test_a_number_of_too_many_bits_is_malformed(encoded, bits, read):
    with pytest.raises(ModuleError, match="too large"):
        read(encoded, 0, len(encoded), bits)


def test_the_smallest_numbers_are_read():
    assert decode_signed(b"\x80\x80\x80\x80\x78", 0, 5, 32) == (-(1 << 31), 5)
    assert decode_signed(b"\x7f", 0, 1, 32) == (-1, 1)
    assert decode_signed(b"\xff\x7f", 0, 2, 33) == (-1, 2)
