from __future__ import annotations

from shmwasm.addresses import WASM_PAGE, WINDOW_END, WINDOW_END_64, address64, chain_starts, window_start

SIZES = [3 * WASM_PAGE, WASM_PAGE, 2 * WASM_PAGE]


def test_chain_ends_where_the_window_ends_each_heap_below_its_body():
    assert window_start(SIZES) == WINDOW_END - sum(SIZES)
    assert chain_starts(SIZES) == [WINDOW_END - 6 * WASM_PAGE, WINDOW_END - 3 * WASM_PAGE, WINDOW_END - 2 * WASM_PAGE]


def test_64_bit_window_holds_the_chain_in_the_same_order_up_to_its_end():
    starts = chain_starts(SIZES)
    assert [WINDOW_END_64 - address64(start) for start in starts] == [WINDOW_END - start for start in starts]
