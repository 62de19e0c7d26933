from __future__ import annotations

import pytest

from shmwasm.addresses import ORIGIN_64, WASM_PAGE, WINDOW_END, WINDOW_END_64, address32, address64, chain_starts, window_start

SIZES = [3 * WASM_PAGE, WASM_PAGE, 2 * WASM_PAGE]


def test_chain_ends_where_the_window_ends_each_heap_below_its_body():
    assert window_start(SIZES) == WINDOW_END - sum(SIZES)
    assert chain_starts(SIZES) == [WINDOW_END - 6 * WASM_PAGE, WINDOW_END - 3 * WASM_PAGE, WINDOW_END - 2 * WASM_PAGE]


def test_64_bit_window_holds_the_chain_in_the_same_order_up_to_its_end():
    starts = chain_starts(SIZES)
    assert [WINDOW_END_64 - address64(start) for start in starts] == [WINDOW_END - start for start in starts]


@pytest.mark.parametrize("address", [0, 1, 0x7FFF_FFFF, 0x8000_0000, WINDOW_END - 1])
def test_an_address_is_known_signed_and_unsigned_and_as_a_64_bit_guest_has_it(address):
    assert address32(address) == address32(address64(address)) == address
    if address >= 1 << 31:
        assert address32(address - (1 << 32)) == address


@pytest.mark.parametrize("number", [-(1 << 31) - 1, WINDOW_END, ORIGIN_64 - 1, WINDOW_END_64, 1 << 63])
def test_a_number_in_no_window_is_no_32_bit_address(number):
    assert not 0 <= address32(number) < 1 << 32
