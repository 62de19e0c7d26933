"""Leases: batches, quotas, adopted slabs, making room, giving back, and what a death leaves."""

from __future__ import annotations

import pytest

from shmwasm import errors
from shmwasm.control import events
from shmwasm.control.deadlines import RecallDeadline
from shmwasm.control.slabs import SlabMap, ranges_of
from shmwasm.protocol import messages
from shmwasm.protocol.messages import COORDINATOR, NOBODY, SlabRange

SLAB = 1 << 16


def count(leased: messages.Leased) -> int:
    return sum(part.count for part in leased.ranges)


def open_by(shell, name: str) -> int:
    other = int(shell.connect())
    shell.ask(other, messages.OpenHeap, name=name)
    return other


def release_all(shell, peer: int, heap: int) -> None:
    held = [slab for slab, owner in enumerate(shell.heaps[heap].owners) if owner == peer]
    shell.tell(peer, messages.Release(heap=heap, ranges=list(ranges_of(held))))


def test_batches_of_a_size_class_double_up_to_64_slabs(shell, client):
    heap = shell.create(client, 4096)
    assert [count(shell.lease(client, heap)) for _ in range(9)] == [1, 2, 4, 8, 16, 32, 64, 64, 64]
    assert count(shell.lease(client, heap, size_class=2)) == 1


def test_nothing_is_kept_of_a_peer_that_gave_everything_back_before_it_went(shell, client):
    heap = shell.create(client, 64)
    worker = shell.spawn(client, heap)
    assert count(shell.lease(worker, heap)) == 1
    release_all(shell, worker, heap)
    shell.detach(client, worker)
    shell.end_worker(worker)
    shell.mind.invariants()


def test_a_batch_takes_at_most_an_eighth_of_what_is_free_but_one(shell, client):
    heap = shell.create(client, 17)
    assert [count(shell.lease(client, heap)) for _ in range(4)] == [1, 2, 1, 1]


def test_a_run_is_exactly_as_long_as_asked(shell, client):
    heap = shell.create(client, 64)
    assert shell.lease(client, heap, size_class=0, slabs=33).ranges == [SlabRange(0, 33)]
    refused = shell.lease(client, heap, size_class=0, slabs=32)
    assert not refused.ranges
    assert refused.largest_free == 31 * SLAB
    assert refused.quota == 0


def test_a_run_needs_free_slabs_that_lie_together(shell, client):
    heap = shell.create(client, 8)
    shell.lease(client, heap, size_class=0, slabs=8)
    shell.tell(client, messages.Release(heap=heap, ranges=[SlabRange(0, 2), SlabRange(3, 3)]))
    assert shell.lease(client, heap, size_class=0, slabs=4).largest_free == 3 * SLAB
    assert shell.lease(client, heap, size_class=0, slabs=3).ranges == [SlabRange(3, 3)]


@pytest.mark.parametrize(("size_class", "slabs"), [(-1, 1), (256, 1), (1, 0), (0, 0), (0, -1)])
def test_a_lease_that_can_never_be_right_is_refused_by_name(shell, client, size_class, slabs):
    heap = shell.create(client)
    with pytest.raises(errors.ArgumentError):
        shell.lease(client, heap, size_class=size_class, slabs=slabs)
    assert set(shell.heaps[heap].owners) == {NOBODY}


def test_a_preallocated_heap_has_nothing_to_lease(shell, client):
    heap = shell.create(client, managed=False, name="file")
    with pytest.raises(errors.ArgumentError, match="file"):
        shell.lease(client, heap)


def test_a_lease_of_more_than_the_heap_has_is_refused_without_asking_others(shell, client):
    heap = shell.create(client, 8, name="frames")
    other = open_by(shell, "frames")
    shell.lease(other, heap)
    assert not shell.lease(client, heap, size_class=0, slabs=9).ranges
    assert not shell.received(other, messages.Recall)


def test_without_memory_for_the_states_a_lease_is_refused_and_nothing_changes(shell, client):
    heap = shell.create(client, 8)
    shell.storage.memory_left = 0
    assert not shell.lease(client, heap).ranges
    shell.mind.invariants()
    shell.storage.memory_left = None
    assert shell.lease(client, heap).ranges == [SlabRange(0, 1)]


def test_a_quota_bounds_what_a_peer_leases_in_all_heaps(shell):
    client = shell.connect(quota=5 * SLAB + 1)
    first, second = shell.create(client, 64), shell.create(client, 64)
    assert [count(shell.lease(client, first)) for _ in range(2)] == [1, 2]
    assert count(shell.lease(client, second, slabs=8)) == 2
    refused = shell.lease(client, second)
    assert not refused.ranges
    assert refused.quota == 5 * SLAB + 1
    assert refused.largest_free == 62 * SLAB
    shell.tell(client, messages.Release(heap=first, ranges=[SlabRange(0, 1)]))
    assert not shell.lease(client, second, size_class=0, slabs=2).ranges
    assert count(shell.lease(client, second, size_class=0, slabs=1)) == 1


def test_giving_slabs_back_lets_a_peer_ask_again_in_every_heap_where_its_quota_stood_in_the_way(shell):
    client = shell.connect(quota=2 * SLAB)
    holding, denied, untouched = (shell.create(client, 8) for _ in range(3))
    shell.lease(client, holding, size_class=0, slabs=2)
    assert shell.lease(client, denied).quota
    assert shell.asking_again == []
    shell.tell(client, messages.Release(heap=holding, ranges=[SlabRange(0, 1)]))
    assert shell.asking_again == [denied]
    assert untouched not in shell.asking_again
    shell.ask(client, messages.CloseHeap, heap=holding)
    assert shell.asking_again == [denied]
    assert count(shell.lease(client, denied)) == 1


def test_an_instance_has_a_quota_of_its_own(shell, client):
    heap = shell.create(client, 64)
    worker = shell.spawn(client, heap, quota=SLAB)
    assert count(shell.lease(worker, heap)) == 1
    assert shell.lease(worker, heap).quota == SLAB
    assert count(shell.lease(client, heap)) == 1


# ---------------------------------------------------------------- making room


def test_an_exhausted_heap_recalls_from_every_other_holder_and_then_tries_again(shell, client):
    heap = shell.create(client, 2, name="frames")
    other = open_by(shell, "frames")
    shell.lease(other, heap, size_class=0, slabs=2)
    number = shell.begin(client, messages.Lease, heap=heap, size_class=1, slabs=1)
    assert not shell.answers(client, number)
    assert shell.received(other, messages.Recall) == [messages.Recall(heap=heap)]
    shell.tell(other, messages.Release(heap=heap, ranges=[SlabRange(1, 1)]))
    assert not shell.answers(client, number)
    shell.tell(other, messages.Recalled(heap=heap))
    assert shell.only_answer(client, number).ranges == [SlabRange(1, 1)]


def test_a_recall_that_brings_nothing_ends_in_a_refusal(shell, client):
    heap = shell.create(client, 2, name="frames")
    other = open_by(shell, "frames")
    shell.lease(other, heap, size_class=0, slabs=2)
    number = shell.begin(client, messages.Lease, heap=heap, size_class=1, slabs=1)
    shell.tell(other, messages.Recalled(heap=heap))
    assert shell.only_answer(client, number) == messages.Leased(request=number, ranges=[], largest_free=0)


def test_a_holder_that_does_not_answer_delays_a_lease_only_to_the_deadline(shell, client):
    heap = shell.create(client, 2, name="frames")
    other = open_by(shell, "frames")
    shell.lease(other, heap, size_class=0, slabs=2)
    number = shell.begin(client, messages.Lease, heap=heap, size_class=1, slabs=1)
    shell.tell(other, messages.Release(heap=heap, ranges=[SlabRange(0, 1)]))
    shell.time_passes()
    assert shell.only_answer(client, number).ranges == [SlabRange(0, 1)]
    shell.tell(other, messages.Recalled(heap=heap))
    shell.mind.invariants()


def test_the_deadline_of_an_earlier_round_does_not_end_a_later_one(shell, client):
    heap = shell.create(client, 1, name="frames")
    other = open_by(shell, "frames")
    shell.lease(other, heap)
    shell.begin(client, messages.Lease, heap=heap, size_class=1, slabs=1)
    (old,) = [deadline for deadline in shell.deadlines if isinstance(deadline, RecallDeadline)]
    shell.tell(other, messages.Recalled(heap=heap))
    number = shell.begin(client, messages.Lease, heap=heap, size_class=1, slabs=1)
    shell.feed(events.DeadlinePassed(old))
    assert not shell.answers(client, number)


def test_the_only_holder_of_an_exhausted_heap_is_refused_at_once(shell, client):
    heap = shell.create(client, 1)
    shell.lease(client, heap)
    assert not shell.lease(client, heap).ranges


def test_two_peers_that_exhaust_a_heap_do_not_wait_for_each_other(shell, client):
    heap = shell.create(client, 2, name="frames")
    other = open_by(shell, "frames")
    shell.lease(client, heap)
    shell.lease(other, heap)
    first = shell.begin(client, messages.Lease, heap=heap, size_class=1, slabs=1)
    second = shell.begin(other, messages.Lease, heap=heap, size_class=1, slabs=1)
    assert not shell.only_answer(client, first).ranges
    assert not shell.only_answer(other, second).ranges


def test_a_holder_that_dies_during_a_recall_gives_its_slabs_to_the_lease(shell, client):
    heap = shell.create(client, 2, name="frames")
    other = open_by(shell, "frames")
    shell.lease(other, heap, size_class=0, slabs=2)
    number = shell.begin(client, messages.Lease, heap=heap, size_class=0, slabs=2)
    shell.feed(events.ConnectionClosed(other))
    assert not shell.answers(client, number)
    shell.feed(events.ProcessGone(other))
    assert shell.only_answer(client, number).ranges == [SlabRange(0, 2)]


def test_a_holder_that_already_left_is_not_asked(shell, client):
    heap = shell.create(client, 1, name="frames")
    other = open_by(shell, "frames")
    shell.lease(other, heap)
    shell.feed(events.ConnectionClosed(other))
    assert not shell.lease(client, heap).ranges


def test_closing_a_heap_answers_the_leases_that_wait_for_room_in_it(shell, client):
    heap = shell.create(client, 1, name="frames")
    other = open_by(shell, "frames")
    shell.lease(other, heap)
    number = shell.begin(client, messages.Lease, heap=heap, size_class=1, slabs=1)
    shell.ask(client, messages.CloseHeap, heap=heap)
    assert not shell.only_answer(client, number).ranges
    shell.tell(other, messages.Recalled(heap=heap))
    shell.mind.invariants()


def test_adopted_slabs_that_became_empty_are_found_before_a_lease_is_refused(shell, client):
    heap = shell.create(client, 2, name="frames")
    other = open_by(shell, "frames")
    shell.lease(other, heap, size_class=0, slabs=2)
    shell.heaps[heap].live[0] = shell.heaps[heap].live[1] = 1
    shell.kill_client(other)
    assert shell.heaps[heap].owners == [COORDINATOR] * 2
    assert not shell.lease(client, heap, size_class=0, slabs=2).ranges
    shell.heaps[heap].live.clear()
    assert shell.lease(client, heap, size_class=0, slabs=2).ranges == [SlabRange(0, 2)]


# ---------------------------------------------------------------- giving back


def test_released_slabs_can_be_leased_by_another(shell, client):
    heap = shell.create(client, 4, name="frames")
    shell.lease(client, heap, size_class=0, slabs=4)
    other = open_by(shell, "frames")
    shell.tell(client, messages.Release(heap=heap, ranges=[SlabRange(2, 2)]))
    assert shell.lease(other, heap, size_class=0, slabs=2).ranges == [SlabRange(2, 2)]


def test_a_released_slab_in_which_something_lives_is_adopted(shell, client):
    heap = shell.create(client, 4)
    shell.lease(client, heap, size_class=0, slabs=4)
    shell.heaps[heap].live[1] = 1
    shell.tell(client, messages.Release(heap=heap, ranges=[SlabRange(0, 4)]))
    assert shell.heaps[heap].owners == [NOBODY, COORDINATOR, NOBODY, NOBODY]
    shell.mind.invariants()


@pytest.mark.parametrize(
    "ranges",
    [
        [SlabRange(0, 2)],
        [SlabRange(0, 1), SlabRange(0, 1)],
        [SlabRange(4, 1)],
        [SlabRange(-1, 1)],
        [SlabRange(0, 0)],
        [SlabRange(0, 1 << 40)],
        [SlabRange(1, 1)],
    ],
)
def test_releasing_what_one_does_not_hold_costs_the_connection_and_changes_nothing(shell, client, ranges):
    heap = shell.create(client, 4, name="frames")
    other = open_by(shell, "frames")
    shell.lease(client, heap)
    shell.lease(other, heap)
    before = list(shell.heaps[heap].owners)
    shell.tell(client, messages.Release(heap=heap, ranges=ranges))
    assert "frames" in shell.disconnected[client]
    assert shell.heaps[heap].owners == before
    shell.mind.invariants()


# ---------------------------------------------------------------- death


def test_a_dead_client_s_empty_slabs_are_free_and_the_others_adopted(shell, client):
    heap = shell.create(client, 8, name="frames")
    other = open_by(shell, "frames")
    shell.lease(other, heap, size_class=0, slabs=4)
    shell.heaps[heap].live[2] = 1
    shell.feed(events.ConnectionClosed(other))
    assert shell.heaps[heap].owners[:4] == [other] * 4
    shell.feed(events.ProcessGone(other))
    assert shell.heaps[heap].owners[:4] == [NOBODY, NOBODY, COORDINATOR, NOBODY]
    shell.mind.invariants()


def test_with_free_on_death_a_dead_client_s_live_blocks_are_freed(shell, client):
    heap = shell.create(client, 8, name="frames", free_on_death=True)
    other = open_by(shell, "frames")
    shell.lease(other, heap, size_class=0, slabs=4)
    shell.heaps[heap].live[2] = 1
    shell.kill_client(other)
    assert set(shell.heaps[heap].owners) == {NOBODY}


def test_goodbye_gives_the_leases_back_though_the_process_lives(shell, client):
    heap = shell.create(client, 8, name="frames")
    other = open_by(shell, "frames")
    shell.lease(other, heap)
    shell.tell(other, messages.Goodbye())
    assert set(shell.heaps[heap].owners) == {NOBODY}


def test_closing_a_heap_keeps_its_live_blocks_even_with_free_on_death(shell, client):
    heap = shell.create(client, 8, name="frames", free_on_death=True)
    other = open_by(shell, "frames")
    shell.lease(other, heap)
    shell.heaps[heap].live[0] = 1
    shell.ask(other, messages.CloseHeap, heap=heap)
    assert shell.heaps[heap].owners[0] == COORDINATOR


def test_adopted_slabs_with_a_free_block_are_handed_out_first_and_full_ones_not(shell, client):
    heap = shell.create(client, 8, name="frames")
    other = open_by(shell, "frames")
    shell.lease(other, heap, size_class=0, slabs=3)
    fake = shell.heaps[heap]
    fake.classes = {0: 7, 1: 7, 2: 8}
    fake.live.update({0: 4, 1: 1, 2: 1})
    shell.kill_client(other)
    assert shell.lease(client, heap, size_class=7).ranges == [SlabRange(1, 1, adopted=True)]
    assert shell.lease(client, heap, size_class=7).ranges == [SlabRange(3, 1)]
    assert shell.lease(client, heap, size_class=8).ranges == [SlabRange(2, 1, adopted=True)]
    shell.mind.invariants()


def test_an_adopted_slab_without_memory_for_its_states_stays_adopted(shell, client):
    heap = shell.create(client, 8, name="frames")
    other = open_by(shell, "frames")
    shell.lease(other, heap)
    shell.heaps[heap].classes[0] = 7
    shell.heaps[heap].live[0] = 1
    shell.kill_client(other)
    shell.storage.memory_left = 0
    assert not shell.lease(client, heap, size_class=7).ranges
    assert shell.heaps[heap].owners[0] == COORDINATOR
    shell.mind.invariants()


def test_a_dead_owner_of_most_of_a_huge_heap_is_reclaimed_range_by_range():
    slabs = SlabMap(65535)
    slabs.take([SlabRange(0, 60000)], 7)
    slabs.give([SlabRange(10, 1)], 7)
    assert ranges_of(slabs.held_by(7)) == (SlabRange(0, 10), SlabRange(11, 59989))
    slabs.move(ranges_of(slabs.held_by(7)), 7, COORDINATOR)
    assert slabs.holders() == {COORDINATOR}
    assert slabs.largest_run() == 5535
    slabs.reset()
    assert slabs.free_count == slabs.largest_run() == 65535
    slabs.verify("frames")
