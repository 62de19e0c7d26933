"""Many processes on one coordinator: leases, chains, remote frees, pickled blocks, and exact accounts at the end."""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import threading

import pytest

from shmwasm import Runtime
from shmwasm.addresses import SLAB_SIZE
from shmwasm.errors import ArgumentError, UnknownHeapError
from waiting import eventually

NEIGHBOURS = 4
ENTRIES = 64


def accounts_are_closed(runtime, heap, allocate_all):
    """Nothing lives, and every slab can be had again, whoever leased it before."""
    assert heap.statistics().live_blocks == 0
    heap.verify()
    runtime.verify()
    blocks = allocate_all(heap, SLAB_SIZE)
    assert len(blocks) == heap.size // SLAB_SIZE
    for block in blocks:
        block.free()


@pytest.fixture
def neighbours(shared_coordinator, joined, program):
    """Clients in processes of their own, and the heap that they share with this one."""
    heap = joined.create_shared_heap(16 << 20, name="common")
    programs = [program("neighbour.py", shared_coordinator.socket) for _ in range(NEIGHBOURS)]
    for one in programs:
        assert one.hear() == "ready"
    return heap, programs


def test_processes_that_allocate_at_once_get_blocks_of_their_own(
    joined, neighbours, guest_path, new_ledger, rng, times, allocate_all
):
    heap, programs = neighbours
    with joined.load(guest_path) as module, joined.pool(module, size=2, shared_heap=heap) as pool:
        ledger = new_ledger(heap)  # one for both instances: they free each other's blocks
        calls = [pool.submit("churn", ledger.block, ENTRIES, times(40_000), rng.randrange(1 << 31)) for _ in range(4)]
        for one in programs:
            one.tell(["churn", times(1500), rng.randrange(1 << 31)])
        assert all(one.hear() > 0 for one in programs)
        assert all(call.result() > 0 for call in calls)
        joined.verify()
        ledger.close()
    accounts_are_closed(joined, heap, allocate_all)


def test_blocks_are_freed_by_others_than_allocated_them(joined, neighbours, rng, times, allocate_all):
    heap, programs = neighbours
    for _ in range(times(5)):
        for one in programs:
            one.tell(["hold", 300, rng.choice([16, 100, 2000, 20_000 // NEIGHBOURS])])
        held = [one.hear()[1] for one in programs]
        assert len({address for addresses in held for address in addresses}) == 300 * NEIGHBOURS
        assert heap.statistics().live_blocks == 300 * NEIGHBOURS
        for number, one in enumerate(programs):
            one.tell(["take", held[(number + 1) % NEIGHBOURS]])
        assert [one.hear() for one in programs] == [300] * NEIGHBOURS
        assert heap.statistics().live_blocks == 0
        heap.verify()
    accounts_are_closed(joined, heap, allocate_all)


def test_heaps_are_created_chained_and_closed_by_many_at_once(joined, neighbours, rng, times, allocate_all):
    heap, programs = neighbours
    for one in programs:
        one.tell(["chain", times(25), rng.randrange(1 << 31)])
    assert [one.hear() for one in programs] == [times(25)] * NEIGHBOURS
    assert [one["name"] for one in joined.status()["heaps"]] == ["common"]
    accounts_are_closed(joined, heap, allocate_all)


def test_a_pickled_block_goes_through_many_hands(joined, neighbours, allocate_all):
    heap, programs = neighbours
    first, *others = programs
    for size in (8, 5000, 300_000):
        first.tell(["pickle", size])
        capability = first.hear()
        for number, one in enumerate(others):
            one.tell(["unpickle", capability])
            assert bytes.fromhex(one.hear()) == (b"from one" if number == 0 else b"read one")
        block = pickle.loads(bytes.fromhex(capability))
        assert bytes(block.view[:8]) == b"read one"
        heap.free(heap.start + block.offset)  # through this process's own hold on the heap
    accounts_are_closed(joined, heap, allocate_all)


def read_and_free(block, answers):
    answers.put(bytes(block.view[:5]))
    block.free()


@pytest.mark.usefixtures("importable_tests")
def test_a_child_of_multiprocessing_reads_and_frees_what_it_is_given(runtime, allocate_all):
    context = multiprocessing.get_context("spawn")
    heap = runtime.create_shared_heap(1 << 20)
    answers = context.Queue()
    children = []
    for number in range(3):
        block = heap.malloc(100 << number)
        block.view[:5] = f"hello{number}".encode()[-5:]
        child = context.Process(target=read_and_free, args=(block, answers))
        child.start()
        children.append(child)
    assert sorted(answers.get(timeout=60) for _ in children) == [b"ello0", b"ello1", b"ello2"]
    for child in children:
        child.join(60)
        assert child.exitcode == 0
        child.close()
    answers.close()
    answers.join_thread()
    accounts_are_closed(runtime, heap, allocate_all)


def open_or_create(runtime, name, size):
    """Open the heap of that name; whoever is the first creates it, and several may be."""
    while True:
        with contextlib.suppress(UnknownHeapError):
            return runtime.open_shared_heap(name)
        with contextlib.suppress(ArgumentError):
            return runtime.create_shared_heap(size, name=name)


@pytest.mark.parametrize("_turn", range(4))
def test_the_workers_of_a_test_run_share_one_coordinator_and_one_heap(common_socket, guest_path, new_ledger, rng, times, _turn):
    """The run's other processes do the same at the same time; whoever leaves last finds the accounts closed."""
    with Runtime(connect=common_socket) as runtime, open_or_create(runtime, "hall", 16 << 20) as hall:
        with runtime.load(guest_path) as module, runtime.pool(module, size=2, shared_heap=hall) as pool:
            ledgers = [new_ledger(hall) for _ in range(4)]
            calls = [pool.submit("churn", ledger.block, ENTRIES, times(20_000), rng.randrange(1 << 31)) for ledger in ledgers]
            own = [hall.malloc(rng.choice([16, 500, 40_000, 200_000])) for _ in range(20)]
            for number, block in enumerate(own):
                block.view[:] = bytes([number]) * block.size
            for call in calls:
                call.result()
            for number, block in enumerate(own):
                assert bytes(block.view) == bytes([number]) * block.size
                block.free()
            for ledger in ledgers:
                ledger.close()
        assert hall.statistics().own_live_blocks == 0


def test_threads_that_join_and_leave_a_coordinator_at_once_hold_nobody_up(shared_coordinator, joined, times):
    heap = joined.create_shared_heap(1 << 20, name="common")
    failures = []

    def come_and_go():
        try:
            for _ in range(times(5)):
                with Runtime(connect=shared_coordinator.socket) as runtime:
                    runtime.open_shared_heap("common").malloc(100).free()
        except BaseException as error:  # noqa: BLE001  it belongs to the test
            failures.append(error)

    threads = [threading.Thread(target=come_and_go) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    eventually(lambda: joined.status()["clients"] == 1)
    assert heap.statistics().live_blocks == 0
