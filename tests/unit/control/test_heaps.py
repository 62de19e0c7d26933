"""Heaps: who may open them, how they are chained, and when they end. PARITY, table 1 and rows 17, 18, 19, 22."""

from __future__ import annotations

import pytest

from shmwasm import errors
from shmwasm.addresses import MAXIMUM_CHAIN_SIZE, OS_PAGE, WINDOW_END
from shmwasm.control.actions import MetadataDescriptor, SegmentDescriptor
from shmwasm.control.heaps import MAXIMUM_CHAIN_DESCRIPTORS
from shmwasm.posix.channels import MAXIMUM_DESCRIPTORS
from shmwasm.protocol import messages
from shmwasm.protocol.messages import ChainLink

SLAB = 1 << 16

OTHER_DESCRIPTORS_OF_FORK = 4
"""The artifact and two channels: see `messages.Fork`."""


def test_a_new_heap_alone_ends_where_the_window_ends(shell, client):
    heap = shell.create(client, 4, name="frames", scrub=True)
    opened = shell.last(client, messages.HeapOpened)
    assert opened.heap == messages.HeapDescription(
        heap=heap, name="frames", token="token-1", size=4 * SLAB, start=WINDOW_END - 4 * SLAB,
        managed=True, read_only=False, scrub=True,
    )  # fmt: skip
    assert shell.descriptors[client][-1] == (MetadataDescriptor(heap),)


@pytest.mark.parametrize(
    ("managed", "size"),
    [(True, 0), (True, -SLAB), (True, SLAB + 1), (False, 0), (False, OS_PAGE - 1), (True, MAXIMUM_CHAIN_SIZE + SLAB)],
)
def test_a_heap_of_a_size_that_cannot_be_is_refused_by_name(shell, client, managed, size):
    with pytest.raises(errors.ArgumentError, match=str(size)):
        shell.create(client, name="frames", managed=managed, size=size)
    assert not shell.heaps
    assert shell.create(client, name="frames")


def test_a_managed_heap_cannot_be_read_only(shell, client):
    with pytest.raises(errors.ArgumentError, match="read-only"):
        shell.create(client, read_only=True)


def test_a_name_is_taken_while_its_heap_lives_and_free_afterwards(shell, client):
    heap = shell.create(client, name="frames")
    with pytest.raises(errors.ArgumentError, match="frames"):
        shell.create(client, name="frames")
    shell.ask(client, messages.CloseHeap, heap=heap)
    assert shell.create(client, name="frames") != heap


def test_heaps_without_a_name_get_different_ones(shell, client):
    shell.create(client)
    shell.create(client)
    first, second = shell.received(client, messages.HeapOpened)
    assert first.heap.name != second.heap.name


def test_a_heap_without_a_name_gets_one_that_no_other_has(shell, client):
    shell.create(client, name="heap-2")
    shell.create(client)
    names = {opened.heap.name for opened in shell.received(client, messages.HeapOpened)}
    assert len(names) == 2


def test_a_heap_that_cannot_be_stored_leaves_its_name_free(shell, client, no_space):
    shell.storage_error = no_space
    with pytest.raises(errors.HeapNoSpaceError):
        shell.create(client, name="frames")
    shell.storage_error = None
    shell.create(client, name="frames")
    shell.mind.invariants()


def test_a_token_or_a_name_opens_a_heap_for_another_client(shell, client):
    heap = shell.create(client, name="frames")
    other = shell.connect()
    for way in ({"token": "token-1"}, {"name": "frames"}):
        assert shell.ask(other, messages.OpenHeap, **way).heap.heap == heap
        assert shell.descriptors[other][-1] == (SegmentDescriptor(heap, read_only=False), MetadataDescriptor(heap))


@pytest.mark.parametrize("way", [{"token": "token-9"}, {"name": "nothing"}, {"token": "", "name": ""}])
def test_an_unknown_token_or_name_opens_nothing(shell, client, way):
    shell.create(client, name="frames")
    with pytest.raises(errors.UnknownHeapError):
        shell.ask(client, messages.OpenHeap, **way)


def test_a_read_only_heap_is_opened_by_a_read_only_descriptor(shell, client):
    heap = shell.create(client, name="file", managed=False, read_only=True)
    shell.ask(client, messages.OpenHeap, name="file")
    assert shell.descriptors[client][-1] == (SegmentDescriptor(heap, read_only=True),)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (messages.CloseHeap, {"heap": 1}),
        (messages.ChainHeaps, {"head": 1, "body": 2}),
        (messages.UnchainHeaps, {"head": 1, "entire_chain": True}),
        (messages.ResetChain, {"head": 1}),
        (messages.Lease, {"heap": 1, "size_class": 1, "slabs": 1}),
        (messages.Verify, {"heap": 1}),
        (messages.Spawn, {"plan": messages.SpawnPlan(module_key="", module_name=""), "chain_head": 1}),
    ],
)
def test_a_number_is_no_capability(shell, client, kind, fields):
    shell.create(client)
    shell.create(client)
    stranger = shell.connect()
    with pytest.raises(errors.UnknownHeapError, match="number 1"):
        shell.ask(stranger, kind, **fields)


def test_a_heap_lives_until_everybody_who_opened_it_closed_it(shell, client):
    heap = shell.create(client, name="frames")
    other = shell.connect()
    shell.ask(other, messages.OpenHeap, name="frames")
    shell.ask(other, messages.OpenHeap, name="frames")
    shell.ask(client, messages.CloseHeap, heap=heap)
    shell.ask(other, messages.CloseHeap, heap=heap)
    assert heap in shell.heaps
    shell.ask(other, messages.CloseHeap, heap=heap)
    assert not shell.heaps
    with pytest.raises(errors.UnknownHeapError):
        shell.ask(other, messages.CloseHeap, heap=heap)


def test_a_chain_lives_while_one_of_its_heaps_is_open(shell, client):
    head, body = shell.create(client), shell.create(client)
    shell.chain(client, head, body)
    shell.ask(client, messages.CloseHeap, heap=head)
    assert set(shell.heaps) == {head, body}
    shell.ask(client, messages.CloseHeap, heap=body)
    assert not shell.heaps


def test_a_chain_lives_while_an_instance_is_attached(shell, client):
    head, body = shell.create(client), shell.create(client)
    shell.chain(client, head, body)
    worker = shell.spawn(client, head)
    shell.ask(client, messages.CloseHeap, heap=head)
    shell.ask(client, messages.CloseHeap, heap=body)
    assert set(shell.heaps) == {head, body}
    shell.end_worker(worker)
    assert not shell.heaps


def test_the_head_lies_directly_below_the_body_and_the_last_heap_ends_the_window(shell, client):
    first, second, third = (shell.create(client, slabs) for slabs in (1, 2, 3))
    assert shell.chain(client, second, third).chains == [
        [ChainLink(second, WINDOW_END - 5 * SLAB), ChainLink(third, WINDOW_END - 3 * SLAB)]
    ]
    laid_out = shell.chain(client, first, second)
    assert laid_out.result == first
    assert laid_out.chains == [
        [
            ChainLink(first, WINDOW_END - 6 * SLAB),
            ChainLink(second, WINDOW_END - 5 * SLAB),
            ChainLink(third, WINDOW_END - 3 * SLAB),
        ]
    ]


def test_refused_chains_change_nothing(shell, client):
    head, body, alone = (shell.create(client) for _ in range(3))
    shell.chain(client, head, body)
    before = [shell.mind._state.heaps.heaps[number].describe() for number in (head, body, alone)]
    for lower, upper, reason in [
        (alone, alone, "itself"),
        (head, head, "itself"),
        (body, head, "already a body"),
        (alone, body, "already a body"),
        (body, alone, "already a body"),
        (head, alone, "already heads a chain"),
        (head, body, "already heads a chain"),
    ]:
        with pytest.raises(errors.ChainError, match=reason):
            shell.chain(client, lower, upper)
    assert [shell.mind._state.heaps.heaps[number].describe() for number in (head, body, alone)] == before


def test_a_chain_that_does_not_fit_the_window_is_refused(shell, client):
    huge = shell.create(client, size=MAXIMUM_CHAIN_SIZE - SLAB, managed=False)
    fits = shell.create(client, 1, managed=False)
    shell.chain(client, fits, huge)
    one_more = shell.create(client, 1, managed=False)
    with pytest.raises(errors.ChainError, match=str(MAXIMUM_CHAIN_SIZE + SLAB)):
        shell.chain(client, one_more, fits)


def test_a_chain_of_more_heaps_than_one_message_can_grant_is_refused(shell, client):
    assert MAXIMUM_CHAIN_DESCRIPTORS + OTHER_DESCRIPTORS_OF_FORK == MAXIMUM_DESCRIPTORS
    head = shell.create(client, 1)
    for _ in range(MAXIMUM_CHAIN_DESCRIPTORS // 2 - 1):
        lower = shell.create(client, 1)
        shell.chain(client, lower, head)
        head = lower
    with pytest.raises(errors.ChainError, match="too many heaps"):
        shell.chain(client, shell.create(client, 1), head)


def test_unchaining_the_first_heap_returns_the_rest(shell, client):
    first, second, third = (shell.create(client) for _ in range(3))
    shell.chain(client, second, third)
    shell.chain(client, first, second)
    laid_out = shell.ask(client, messages.UnchainHeaps, head=first, entire_chain=False)
    assert laid_out.result == second
    assert [[link.heap for link in chain] for chain in laid_out.chains] == [[first], [second, third]]


def test_unchaining_all_returns_the_last_and_they_can_be_chained_anew(shell, client):
    first, second, third = (shell.create(client) for _ in range(3))
    shell.chain(client, second, third)
    shell.chain(client, first, second)
    laid_out = shell.ask(client, messages.UnchainHeaps, head=first, entire_chain=True)
    assert laid_out.result == third
    assert laid_out.chains == [[ChainLink(heap, WINDOW_END - 8 * SLAB)] for heap in (first, second, third)]
    shell.chain(client, third, second)
    assert [link.heap for link in shell.chain(client, first, third).chains[0]] == [first, third, second]


def test_unchaining_what_is_no_head_of_a_chain_is_refused(shell, client):
    head, body, alone = (shell.create(client) for _ in range(3))
    shell.chain(client, head, body)
    with pytest.raises(errors.ChainError, match="is a body"):
        shell.ask(client, messages.UnchainHeaps, head=body, entire_chain=True)
    with pytest.raises(errors.ChainError, match="heads no chain"):
        shell.ask(client, messages.UnchainHeaps, head=alone, entire_chain=False)


def test_a_rest_that_nobody_has_open_ends_when_it_is_unchained(shell, client):
    head, body = shell.create(client), shell.create(client)
    shell.chain(client, head, body)
    shell.ask(client, messages.CloseHeap, heap=body)
    shell.ask(client, messages.UnchainHeaps, head=head, entire_chain=False)
    assert set(shell.heaps) == {head}


def test_others_who_have_a_moved_heap_open_are_told(shell, client):
    head, body = shell.create(client), shell.create(client, name="body")
    holder, stranger = shell.connect(), shell.connect()
    shell.ask(holder, messages.OpenHeap, name="body")
    shell.lease(holder, body)
    chains = shell.chain(client, head, body).chains
    assert shell.last(holder, messages.ChainMoved).chains == chains
    assert not shell.received(stranger, messages.ChainMoved)
    assert not shell.received(client, messages.ChainMoved)


@pytest.mark.parametrize("attached_by", ["spawn", "attach", "attaching", "detaching"])
def test_no_chain_changes_while_an_instance_may_be_attached_to_any_of_its_heaps(shell, client, attached_by):
    head, body, alone = (shell.create(client) for _ in range(3))
    shell.chain(client, head, body)
    if attached_by == "spawn":
        shell.begin_spawn(client, head, read_only=True)
    else:
        worker = shell.spawn(client)
        if attached_by == "attaching":
            shell.begin(client, messages.Attach, instance=worker, chain_head=head, read_only=False)
        else:
            shell.attach(client, worker, head)
        if attached_by == "detaching":
            shell.begin(client, messages.Detach, instance=worker)
    for request in (
        {"kind": messages.UnchainHeaps, "head": head, "entire_chain": False},
        {"kind": messages.UnchainHeaps, "head": head, "entire_chain": True},
        {"kind": messages.ResetChain, "head": head},
        {"kind": messages.ChainHeaps, "head": alone, "body": head},
    ):
        with pytest.raises(errors.ChainError, match="attached to 1 instances"):
            shell.ask(client, **request)


def test_an_attached_heap_cannot_become_a_head(shell, client):
    attached, body = shell.create(client), shell.create(client)
    worker = shell.spawn(client, attached)
    with pytest.raises(errors.ChainError, match="attached"):
        shell.chain(client, attached, body)
    shell.detach(client, worker)
    shell.chain(client, attached, body)


def test_reset_frees_every_slab_of_every_managed_heap(shell, client):
    head, body, file = shell.create(client), shell.create(client), shell.create(client, managed=False)
    shell.chain(client, body, file)
    shell.chain(client, head, body)
    for heap in (head, body):
        shell.lease(client, heap)
        shell.heaps[heap].live[0] = 1
    shell.ask(client, messages.ResetChain, head=head)
    for heap in (head, body):
        assert set(shell.heaps[heap].owners) == {0}
        assert shell.lease(client, heap).ranges[0].first == 0
    shell.mind.invariants()


def test_reset_gives_the_quota_back(shell):
    client = shell.connect(quota=SLAB)
    heap = shell.create(client)
    shell.lease(client, heap)
    shell.ask(client, messages.ResetChain, head=heap)
    assert shell.lease(client, heap).ranges


def test_reset_is_refused_for_a_body_and_while_another_client_has_a_heap_open(shell, client):
    head, body = shell.create(client), shell.create(client, name="body")
    shell.chain(client, head, body)
    with pytest.raises(errors.ChainError, match="is a body"):
        shell.ask(client, messages.ResetChain, head=body)
    other = shell.connect()
    shell.ask(other, messages.OpenHeap, name="body")
    with pytest.raises(errors.ChainError, match="another client"):
        shell.ask(client, messages.ResetChain, head=head)
    shell.kill_client(other)
    shell.ask(client, messages.ResetChain, head=head)


def test_verify_counts_managed_heaps_and_finds_a_wrong_owner(shell, client):
    heap, _ = shell.create(client), shell.create(client, managed=False)
    shell.lease(client, heap)
    assert shell.ask(client, messages.Verify).heaps == 1
    assert shell.ask(client, messages.Verify, heap=heap).heaps == 1
    shell.heaps[heap].owners[5] = client
    with pytest.raises(errors.HeapCorruptError):
        shell.ask(client, messages.Verify)


def test_the_status_report_tells_of_every_heap_and_worker(shell, client):
    heap = shell.create(client, name="frames")
    worker = shell.spawn(client, heap)
    shell.lease(client, heap)
    report = shell.ask(client, messages.Status)
    assert report.clients == 1
    assert report.heaps[0]["name"] == "frames"
    assert report.heaps[0]["leased_slabs"] == {str(client): 1}
    assert report.workers[0]["instance"] == worker
    assert report.workers[0]["attachment"] == "attached"
