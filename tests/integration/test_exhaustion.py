"""A heap that is full of what one process merely keeps is not exhausted."""

import pytest

from shmwasm import Runtime
from shmwasm.errors import HeapExhaustedError, QuotaExceededError

SLAB = 1 << 16


@pytest.mark.parametrize("kept", [[SLAB], [SLAB] * 4, [11 * SLAB], [16 * SLAB], [SLAB, 2 * SLAB]])
def test_what_a_process_keeps_of_freed_runs_is_there_for_any_later_size(runtime, kept):
    with runtime.create_shared_heap(16 * SLAB) as heap:
        for block in [heap.malloc(size) for size in kept]:
            block.free()
        with pytest.raises(HeapExhaustedError):
            heap.malloc(32 * SLAB)
        for size in (SLAB, 15 * SLAB, SLAB, 16 * SLAB, 100):
            heap.malloc(size).free()


def test_what_is_given_back_in_one_heap_lets_the_quota_be_used_in_another():
    with Runtime(quota=4 * SLAB) as runtime, runtime.create_shared_heap(16 * SLAB) as heap:
        with runtime.create_shared_heap(16 * SLAB) as other:
            other.malloc(4 * SLAB).free()
            with pytest.raises(QuotaExceededError):
                heap.malloc(SLAB)
        heap.malloc(4 * SLAB).free()
