import itertools
import threading

import pytest

from shmwasm.addresses import signed32
from shmwasm.core import layout
from shmwasm.errors import ArgumentError, ClosedError, HeapCorruptError, InvalidFreeError

SLAB = layout.SLAB_SIZE


def test_blocks_of_every_size_up_to_a_slab_do_not_overlap(new_machine):
    machine = new_machine(slabs=256)
    slot = machine.process()
    blocks = {slot.malloc(size): size for size in [*range(1, 600, 7), *range(600, 40000, 1111), SLAB, SLAB + 1]}
    assert 0 not in blocks
    for (address, size), (following, _) in itertools.pairwise(sorted(blocks.items())):
        assert address + max(size, slot.usable_size(address - machine.start)) <= following
    slot.verify()
    machine.close()


@pytest.mark.parametrize("size", [1, 15, 16, 17, 128, 129, 145, 1000, 4097, 32768, 32769, 70000])
def test_block_holds_what_was_asked_for_and_wastes_at_most_an_eighth_of_large_ones(machine, slot, size):
    usable = slot.usable_size(slot.malloc(size) - machine.start)
    assert usable >= size
    if 128 < size <= layout.MAXIMUM_SMALL:
        assert usable <= size * 1.125 + 16


@pytest.mark.parametrize("alignment", [1, 2, 16, 32, 256, 4096, 32768, 65536])
@pytest.mark.parametrize("size", [1, 48, 100, 5000, 40000])
def test_block_starts_at_a_multiple_of_the_alignment(slot, size, alignment):
    address = slot.malloc(size, alignment)
    assert address
    assert address % max(alignment, 16) == 0
    slot.free(address)
    slot.verify()


@pytest.mark.parametrize("size", [0, 65 * SLAB, 1 << 32, (1 << 63) - 1])
def test_no_block_is_empty_or_larger_than_the_heap(slot, size):
    assert slot.malloc(size) == 0
    assert slot.malloc(64)


@pytest.mark.parametrize(
    ("size", "alignment"), [(-1, 16), (1 << 70, 16), (64, 0), (64, 3), (64, -16), (64, 131072), ("64", 16), (1.5, 16), (64, None)]
)
def test_sizes_and_alignments_that_can_never_be_right_are_named(slot, size, alignment):
    with pytest.raises(ArgumentError, match=str(size if alignment == 16 else alignment)):
        slot.malloc(size, alignment)
    assert slot.statistics().live_blocks == 0


def test_freed_block_is_used_again(slot):
    first = slot.malloc(100)
    slot.free(first)
    assert slot.malloc(100) == first


def test_arguments_that_the_hot_path_does_not_take_leave_nothing_behind(slot):
    for _ in range(10):
        slot.free(signed32(slot.malloc(64)))
        with pytest.raises(ArgumentError):
            slot.malloc(-1)
    assert len(slot._cells._made) == 2  # one malloc's and one free's


def test_address_may_be_signed(slot):
    slot.free(slot.malloc(64) - (1 << 32))
    assert slot.statistics().live_blocks == 0


def refused_frees(machine, slot):
    block, run, freed = slot.malloc(64), slot.malloc(3 * SLAB), slot.malloc(64)
    slot.free(freed)
    start = machine.start
    return {
        "double": freed,
        "interior": block + 16,
        "misaligned": block + 1,
        "interior of a run": run + 16,
        "body of a run": run + SLAB,
        "below the heap": start - 64,
        "above the heap": 64,
        "never leased": start + 60 * SLAB,
        "null": 0,
    }


def test_frees_of_what_is_no_live_block_are_refused_and_change_nothing(machine, slot):
    other = machine.process()
    for what, address in refused_frees(machine, slot).items():
        before = slot.statistics()
        for process in (slot, other):
            with pytest.raises(InvalidFreeError, match=f"{address:#x}") as refusal:
                process.free(address)
            assert refusal.value.heap == "frames", what
            process.verify()
        assert slot.statistics() == before, what


@pytest.mark.parametrize("address", ["x", None, 1.5])
def test_free_of_what_is_no_number_is_named(slot, address):
    with pytest.raises(ArgumentError, match="address"):
        slot.free(address)


def test_usable_size_of_what_is_no_live_block_is_zero(machine, slot):
    assert [slot.usable_size(address - machine.start) for address in refused_frees(machine, slot).values()] == [0] * 9


def test_moved_heap_hands_out_and_takes_addresses_of_its_new_place(machine, slot):
    block = slot.malloc(64)
    slot.move(machine.start - SLAB)
    assert slot.malloc(64) < machine.start
    slot.free(block - SLAB)
    slot.verify()


def test_place_stays_right_when_the_heap_moves(machine, slot):
    first, large = slot.malloc_place(64), slot.malloc_place(3 * SLAB, 4096)
    offset = slot.malloc(64) - machine.start
    slot.move(machine.start - SLAB)
    assert slot.usable_size(first - layout.FIRST_PLACE) == slot.usable_size(offset) == 64
    for place in (first, large, offset + layout.FIRST_PLACE):
        slot.free_place(place)
    assert slot.statistics().live_blocks == 0
    with pytest.raises(InvalidFreeError, match=f"{machine.start - SLAB + offset:#x}"):
        slot.free_place(offset + layout.FIRST_PLACE)
    slot.verify()


@pytest.mark.parametrize("place", [0, 16, layout.FIRST_PLACE - 16, (1 << 32) - 16])
def test_place_outside_the_heap_is_no_block(slot, place):
    with pytest.raises(InvalidFreeError, match="no part"):
        slot.free_place(place)


def test_closed_heap_refuses_every_use(slot):
    slot.close()
    slot.close()
    for use in (lambda: slot.malloc(64), lambda: slot.free(64), lambda: slot.malloc_place(64), slot.verify, slot.trim):
        with pytest.raises(ClosedError, match="frames"):
            use()


def test_disowned_core_refuses_every_use(slot):
    block = slot.malloc(64)
    slot.core.disown()
    for use in (lambda: slot.malloc(64), lambda: slot.free(block), slot.statistics):
        with pytest.raises(ClosedError, match="forked child"):
            use()


def test_thousand_heaps_can_be_open_and_their_slots_are_used_again(machine, slot):
    core = slot.core
    slots = [core.open_heap(machine.metadata, machine.size, start=machine.start) for _ in range(100)]
    numbers = {opened.number for opened in slots}
    assert len(numbers) == 100
    for opened in slots:
        opened.close()
    assert core.open_heap(machine.metadata, machine.size, start=machine.start).number in numbers


def test_threads_of_a_process_never_get_the_same_block(new_machine):
    machine = new_machine(slabs=128)
    slot = machine.process()
    held = [[] for _ in range(4)]

    def work(mine):
        for round_ in range(3000):
            mine.append(slot.malloc(16 + round_ % 200))
            if round_ % 3 == 0:
                slot.free(mine.pop(round_ % len(mine)))

    threads = [threading.Thread(target=work, args=(mine,)) for mine in held]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    addresses = [address for mine in held for address in mine]
    assert len(set(addresses)) == len(addresses) == slot.statistics().live_blocks
    slot.verify()
    machine.close()


@pytest.mark.parametrize(
    ("offset", "value", "invariant"),
    [
        (0, 0, "header"),
        (layout.DESCRIPTORS_OFFSET + 4, 99, "class"),
        (layout.DESCRIPTORS_OFFSET + 24, 40, "ring"),
        (layout.DESCRIPTORS_OFFSET + 63 * layout.DESCRIPTOR_SIZE + 4, 5, "free slab"),
        (2 * 65536 + 1, 1, "only where a block starts"),
        (2 * 65536 + 4, 7, "state exists"),
    ],
)
def test_verify_finds_broken_metadata(machine, slot, offset, value, invariant):
    slot.malloc(64)
    slot.verify()
    machine.poke(offset, value)
    with pytest.raises(HeapCorruptError, match=invariant):
        slot.verify()


def test_segment_of_another_layout_is_not_opened(machine):
    machine.poke(8, 200)
    with pytest.raises(Exception, match="layout"):
        machine.process()
