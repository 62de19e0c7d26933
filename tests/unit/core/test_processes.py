"""Several processes (here: cores) on one heap: leases, remote frees, exhaustion, death."""

import pytest

from shmwasm.core import RUN, layout
from shmwasm.errors import ArgumentError, InvalidFreeError
from shmwasm.protocol.messages import SlabRange

SLAB = layout.SLAB_SIZE


def fill(slot, size):
    blocks = []
    while address := slot.malloc(size):
        blocks.append(address)
    return blocks


def test_block_freed_by_another_process_is_used_again_by_its_owner(machine, slot):
    other = machine.process()
    blocks = [slot.malloc(1000) for _ in range(200)]
    for block in blocks:
        other.free(block)
    assert slot.statistics().remote_freed_blocks == 200
    leases = len(slot.hooks.leases)
    assert set(blocks) & {slot.malloc(1000) for _ in range(400)} == set(blocks)
    assert len(slot.hooks.leases) <= leases + 2
    slot.verify()


@pytest.mark.parametrize("size", [64, 3 * SLAB])
def test_block_is_freed_once_whoever_frees_it_twice(machine, slot, size):
    other, third = machine.process(), machine.process()
    block = slot.malloc(size)
    other.free(block)
    for process in (slot, other, third):
        with pytest.raises(InvalidFreeError, match="freed already"):
            process.free(block)
    slot.verify()


def test_run_freed_by_another_process_is_used_again_by_its_owner(machine, slot):
    other = machine.process()
    run = slot.malloc(4 * SLAB)
    other.free(run)
    assert slot.malloc(4 * SLAB) == run
    assert len(slot.hooks.leases) == 1


def test_runs_that_are_freed_and_allocated_again_need_no_new_lease(slot):
    for _ in range(50):
        slot.free(slot.malloc(4 * SLAB))
    assert slot.hooks.leases == [(RUN, 4)]


def test_heap_where_only_owners_free_refuses_others(new_machine):
    machine = new_machine(owner_frees_only=True)
    slot, other = machine.process(), machine.process()
    block = slot.malloc(64)
    with pytest.raises(InvalidFreeError, match="another process"):
        other.free(block)
    slot.free(block)
    machine.close()


def test_heap_can_be_filled_to_the_last_slab_and_again_after_everything_was_freed(slot):
    for size, fit in (
        (1024, 64 * 64),
        (32768, 128),
        (5 * SLAB, 12),
        (64, 64 * 1024),
        (65 * 1024, 32),
        (60 * SLAB, 1),
        (48, 64 * 1365),
    ):
        blocks = fill(slot, size)
        assert len(blocks) == fit, size
        for block in blocks:
            slot.free(block)
        slot.verify()
    assert slot.statistics().live_blocks == 0


def test_refused_process_asks_again_only_when_slabs_became_free(machine, slot):
    other = machine.process()
    held = other.malloc(32768)
    fill(slot, 32768)
    asked = len(slot.hooks.leases)
    assert [slot.malloc(100) for _ in range(5)] == [0] * 5
    assert len(slot.hooks.leases) <= asked + 1
    other.free(held)
    machine.authority.release(other.trim())
    assert slot.malloc(100)


def test_process_that_is_refused_a_run_gives_its_unused_slabs_back_for_it(machine, slot):
    machine.batch = 64
    slot.free(slot.malloc(64))
    assert slot.statistics().free_slabs == 0
    assert slot.malloc(60 * SLAB)
    slot.verify()


def test_trim_gives_back_exactly_the_slabs_without_live_blocks(machine, slot):
    other = machine.process()
    blocks = [slot.malloc(8192) for _ in range(80)]
    run = slot.malloc(7 * SLAB)
    for block in blocks[8:]:
        other.free(block)
    slot.free(run)
    machine.authority.release(slot.trim())
    assert slot.statistics().own_slabs == 1
    assert slot.statistics().free_slabs == 63
    slot.verify()
    for block in blocks[:8]:
        slot.free(block)
    assert slot.trim() == [SlabRange((blocks[0] - machine.start) // SLAB, 1)]


def test_growing_process_reuses_its_empty_slabs_for_other_sizes(new_machine):
    machine = new_machine(slabs=256)
    slot = machine.process()
    for size in range(1024, 33000, 1024):
        for block in [slot.malloc(size) for _ in range(200 * 1024 // size + 8)]:
            slot.free(block)
    assert slot.statistics().own_slabs < 128
    slot.verify()
    machine.close()


def test_blocks_of_a_dead_process_stay_valid_and_can_be_freed(machine, slot):
    other = machine.process()
    blocks = [slot.malloc(500) for _ in range(300)]
    machine.bury(slot, free_live=False)
    machine.authority.verify()
    assert other.statistics().live_blocks == 300
    assert other.statistics().adopted_slabs > 0
    for block in blocks:
        other.free(block)
    for adopted in machine.authority.ranges_of(layout.OWNER_COORDINATOR):
        machine.authority.release(machine.authority.reclaim(adopted.first, adopted.count, free_live=False))
    assert other.statistics().free_slabs == 64
    machine.authority.verify()


def test_all_slabs_of_a_dead_process_become_free_where_its_blocks_are_to_be_freed(machine, slot):
    blocks = [slot.malloc(500), slot.malloc(5 * SLAB)]
    machine.bury(slot, free_live=True)
    assert machine.authority.statistics().free_slabs == 64
    with pytest.raises(InvalidFreeError):
        machine.process().free(blocks[0])


def test_adopted_slab_is_finished_by_the_process_that_needs_its_size(machine, slot):
    kept = slot.malloc(1000)
    machine.bury(slot, free_live=False)
    other = machine.process()
    assert (other.malloc(1000) - machine.start) // SLAB == (kept - machine.start) // SLAB
    assert other.statistics().adopted_slabs == 0
    other.free(kept)
    other.verify()


def test_reset_heap_is_empty_for_everybody(machine, slot):
    other = machine.process()
    for process in (slot, other):
        fill(process, 5000)
        process.malloc(3 * SLAB)
    machine.authority.reset()
    for process in (slot, other):
        process.reset()
        process.verify()
    assert slot.statistics().free_slabs == 64
    assert len(fill(other, 32768)) == 128


def test_slab_with_a_live_block_is_not_released(machine, slot):
    first = (slot.malloc(64) - machine.start) // SLAB
    with pytest.raises(ArgumentError):
        machine.authority.release([SlabRange(first, 1)])
    slot.verify()


def test_slab_of_a_process_is_not_assigned_to_another(machine, slot):
    first = (slot.malloc(64) - machine.start) // SLAB
    with pytest.raises(ArgumentError):
        machine.authority.assign(first, 1, slot.owner + 1)
    with pytest.raises(ArgumentError):
        machine.authority.assign(60, 5, slot.owner)
    slot.verify()
