"""SIGKILL to workers at random moments, while they allocate, hand blocks over and free."""

from __future__ import annotations

import collections
import signal
import threading
from concurrent.futures import Future, wait

import pytest

from shmwasm.addresses import SLAB_SIZE
from shmwasm.errors import WorkerLostError
from waiting import eventually

BATCHES = 7
KILLS = 10
"""In each batch: 3 tests with 7 batches kill 210 workers."""
CALLS = 16
"""In each batch: more than are killed, so some finish."""
ENTRIES = 64
SIZE = 3


class Tally:
    """How often each future ended, and how."""

    def __init__(self) -> None:
        self.ended: collections.Counter[Future] = collections.Counter()
        self.lost: list[WorkerLostError] = []
        self.finished = 0
        self._lock = threading.Lock()

    def watch(self, future: Future) -> Future:
        future.add_done_callback(self._note)
        return future

    def _note(self, future: Future) -> None:
        error = future.exception()
        with self._lock:
            self.ended[future] += 1
            if error is None:
                self.finished += 1
            else:
                self.lost.append(error)


def kill_some(pool, count, rng, signal_worker):
    """Kill random instances of a pool at random moments; return the processes' ids."""
    pause = threading.Event()
    killed = []
    while len(killed) < count:
        pause.wait(rng.choice([0, 0, rng.random() * 0.003, rng.random() * 0.02]))
        victim = rng.choice(eventually(lambda: [one for one in pool.instances if one.alive and one.pid not in killed[-SIZE:]]))
        if signal_worker(victim, signal.SIGKILL):
            killed.append(victim.pid)
    return killed


def storm(runtime, pool, ledgers, tally, export, kills, rng, signal_worker):
    """Run `export` on all ledgers while some workers are killed; return the killed processes' ids."""
    running = [
        tally.watch(pool.submit(export, ledger.block, ENTRIES, rng.randrange(100, 40_000), rng.randrange(1 << 31)))
        for ledger in ledgers
    ]
    killed = kill_some(pool, kills, rng, signal_worker)
    assert not wait(running, 60).not_done
    eventually(lambda: len(pool.instances) == pool.size and all(one.alive for one in pool.instances))
    runtime.verify()
    return killed


def check_futures(tally, killed, submitted):
    assert len(tally.ended) == submitted
    assert set(tally.ended.values()) == {1}
    for error in tally.lost:
        assert isinstance(error, WorkerLostError)
        assert error.signal == signal.SIGKILL
        assert error.pid in killed
    assert len({error.pid for error in tally.lost}) == len(tally.lost)  # one call runs on a worker, so one fails with it
    assert tally.finished > 0


def most_slabs(statistics):
    """Return how many slabs the live blocks can lie in: each in one, and a large one in as many as it has."""
    return statistics.live_blocks + statistics.live_bytes // SLAB_SIZE


@pytest.mark.parametrize("managed_heaps", [1, 2])
def test_killed_workers_lose_their_calls_and_nothing_of_anyone_else(
    runtime, guest_path, new_ledger, rng, times, signal_worker, allocate_all, managed_heaps
):
    """Blocks wander between workers and the client; whoever dies takes at most the block in its hand with it."""
    heap = runtime.create_shared_heap(32 << 20)
    if managed_heaps == 2:
        runtime.chain_shared_heaps(heap, runtime.create_shared_heap(1 << 20))
    tally, killed, submitted = Tally(), [], 0
    with runtime.load(guest_path) as module, runtime.pool(module, size=SIZE, shared_heap=heap) as pool:
        common = [new_ledger(heap) for _ in range(2)]  # each given to several calls at once
        for _ in range(times(BATCHES)):
            own = [new_ledger(heap) for _ in range(CALLS - 8)]
            for ledger in (*common, *own):
                ledger.clear()
                ledger.fill(rng.randrange(ENTRIES), rng)
            ledgers = [*common * 4, *own]
            rng.shuffle(ledgers)
            killed += storm(runtime, pool, ledgers, tally, "churn", KILLS, rng, signal_worker)
            submitted += len(ledgers)
            for ledger in own:
                ledger.close()
            heap.verify()
        check_futures(tally, killed, submitted)
        for ledger in common:
            ledger.close()
        assert heap.statistics().live_blocks <= len(killed)
    runtime.verify()
    # Whatever no block lives in can be had again, whoever held it before.
    slabs, left = heap.size // SLAB_SIZE, most_slabs(heap.statistics())
    again = allocate_all(heap, SLAB_SIZE)
    assert len(again) >= slabs - left, heap.statistics()
    for block in again:
        block.free()
    runtime.verify()


def test_with_on_death_free_nothing_of_killed_workers_is_left(runtime, guest_path, new_ledger, rng, times, signal_worker):
    heap = runtime.create_shared_heap(32 << 20, on_death="free")
    keepsake = heap.malloc(1000)
    keepsake.view[:] = bytes(range(250)) * 4
    tally, killed, submitted = Tally(), [], 0
    with runtime.load(guest_path) as module, runtime.pool(module, size=SIZE, shared_heap=heap) as pool:
        for _ in range(times(BATCHES)):
            ledgers = [new_ledger(heap) for _ in range(CALLS)]
            killed += storm(runtime, pool, ledgers, tally, "churn_and_clear", KILLS, rng, signal_worker)
            submitted += len(ledgers)
            # All that lives is the client's: the ledgers, and the keepsake.
            assert heap.statistics().live_blocks == len(ledgers) + 1
            for ledger in ledgers:
                ledger.cells.release()
                ledger.block.free()
        check_futures(tally, killed, submitted)
    heap.verify()
    assert heap.statistics().live_blocks == 1
    assert keepsake.view == bytes(range(250)) * 4
    keepsake.free()
    # What nobody holds any more can be had in one piece.
    heap.malloc(30 << 20).free()


def test_with_on_death_keep_a_dead_workers_blocks_are_read_and_freed_by_others(runtime, guest_path, rng, signal_worker):
    heap = runtime.create_shared_heap(16 << 20)
    with runtime.load(guest_path) as module, runtime.spawn(module, shared_heap=heap) as heir:
        with runtime.spawn(module, shared_heap=heap) as parent:
            sizes = [rng.choice([8, 100, 5000, 40_000, 200_000]) for _ in range(100)]
            addresses = [parent.call("allocate", size) & 0xFFFF_FFFF for size in sizes]
            dying = parent.submit("spin_allocating")
            eventually(dying.running)
            assert signal_worker(parent, signal.SIGKILL)
            with pytest.raises(WorkerLostError) as lost:
                dying.result(60)
            assert lost.value.last_call == "spin_allocating"
            eventually(lambda: not parent.alive)
        runtime.verify()
        for address, size in zip(addresses, sizes, strict=True):
            block = heap.block_at(address)
            assert block.size >= size
            assert int.from_bytes(block.view[:4], "little") == address ^ 0x5BD1E995
        # The call that was running may have left the block in its hand.
        assert len(sizes) <= heap.statistics().live_blocks <= len(sizes) + 1
        for address in addresses[::2]:
            heir.call("release", address)
        for address in addresses[1::2]:
            heap.free(address)
        assert heap.statistics().live_blocks <= 1
        heap.verify()
    runtime.verify()
