from __future__ import annotations

import pytest

from shmwasm.addresses import (
    WASM_PAGE,
    WINDOW_END,
    WINDOW_END_64,
    AppAddress,
    AppAddress64,
    chain_starts,
    narrowed,
    widened,
    window_start,
)
from shmwasm.errors import ArgumentError

SIZES = [3 * WASM_PAGE, WASM_PAGE, 2 * WASM_PAGE]


def test_chain_ends_where_the_window_ends_each_heap_below_its_body():
    assert window_start(SIZES) == WINDOW_END - sum(SIZES)
    assert chain_starts(SIZES) == [WINDOW_END - 6 * WASM_PAGE, WINDOW_END - 3 * WASM_PAGE, WINDOW_END - 2 * WASM_PAGE]


def test_64_bit_window_holds_the_chain_in_the_same_order_up_to_its_end():
    assert [WINDOW_END_64 - widened(start) for start in chain_starts(SIZES)] == [
        WINDOW_END - start for start in chain_starts(SIZES)
    ]


@pytest.mark.parametrize("address", [0, WASM_PAGE, WINDOW_END - 1])
def test_widened_address_is_narrowed_to_itself(address):
    assert narrowed(widened(AppAddress(address))) == address


@pytest.mark.parametrize("address", [-1, 0, WINDOW_END, WINDOW_END_64 - WINDOW_END - 1, WINDOW_END_64, 1 << 63])
def test_address_that_no_chain_reaches_cannot_be_narrowed(address):
    with pytest.raises(ArgumentError, match="no window"):
        narrowed(AppAddress64(address))
