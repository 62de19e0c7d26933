"""SIGSTOP: a stopped process is not a dead one."""

from __future__ import annotations

import os
import signal

from processes import state_of
from shmwasm.client import calls
from shmwasm.errors import CallTimeoutError
from waiting import eventually

ENTRIES = 64


def leased(runtime, number):
    (heap,) = runtime.status()["heaps"]
    return heap["leased_slabs"].get(str(number), 0)


def test_a_stopped_worker_keeps_its_slabs_and_goes_on_where_it_was(runtime, guest_path, new_ledger, rng, allocate_all):
    heap = runtime.create_shared_heap(4 << 20, on_death="free")
    with runtime.load(guest_path) as module, runtime.spawn(module, shared_heap=heap) as instance:
        ledger = new_ledger(heap)
        churning = instance.submit("churn", ledger.block, ENTRIES, 300_000, rng.randrange(1 << 31))
        eventually(lambda: any(ledger.cells))
        os.kill(instance.pid, signal.SIGSTOP)
        eventually(lambda: state_of(instance.pid) == "T")
        held = leased(runtime, instance.number)
        assert held
        live = heap.statistics().live_blocks
        # Everybody else goes on, and takes what there is; the stopped process's slabs stay its own.
        taken = allocate_all(heap, 40_000)
        assert taken
        assert leased(runtime, instance.number) == held
        assert heap.statistics().live_blocks == live + len(taken)
        assert not churning.done()
        assert instance.alive
        for block in taken:
            block.free()
        os.kill(instance.pid, signal.SIGCONT)
        churning.result(60)
        ledger.close()
        runtime.verify()
        assert heap.statistics().live_blocks == 0


def test_a_stopped_client_keeps_its_slabs_and_goes_on_where_it_was(joined, shared_coordinator, program, allocate_all):
    heap = joined.create_shared_heap(4 << 20, name="common", on_death="free")
    neighbour = program("neighbour.py", shared_coordinator.socket)
    assert neighbour.hear() == "ready"
    neighbour.tell(["hold", 20, 3000])
    number, addresses = neighbour.hear()
    neighbour.signal(signal.SIGSTOP)
    eventually(lambda: state_of(neighbour.pid) == "T")
    held = leased(joined, number)
    taken = allocate_all(heap, 40_000)
    assert taken
    assert leased(joined, number) == held
    assert all(heap.usable_size(address) >= 3000 for address in addresses)
    for block in taken:
        block.free()
    neighbour.signal(signal.SIGCONT)
    neighbour.tell(["release"])
    assert neighbour.hear() == 20
    assert heap.statistics().live_blocks == 0
    neighbour.tell(["hold", 5, 3000])
    neighbour.hear()
    neighbour.signal(signal.SIGSTOP)
    eventually(lambda: state_of(neighbour.pid) == "T")
    # Killed while it is stopped, it is dead.
    neighbour.signal(signal.SIGKILL)
    eventually(lambda: not leased(joined, number))
    assert heap.statistics().live_blocks == 0
    joined.verify()


def test_a_call_into_a_stopped_worker_times_out_and_the_worker_is_replaced(runtime, guest_path, monkeypatch):
    monkeypatch.setattr(calls, "GRACE", 0.2)
    heap = runtime.create_shared_heap(1 << 20)
    with runtime.load(guest_path) as module, runtime.pool(module, size=2, shared_heap=heap) as pool:
        (stopped, _) = pool.instances
        for instance in pool.instances:
            os.kill(instance.pid, signal.SIGSTOP)
        running = [pool.submit("nothing", timeout=0.1) for _ in range(2)]
        waiting = [pool.submit("nothing") for _ in range(4)]
        for future in running:
            assert isinstance(future.exception(60), CallTimeoutError)
        assert [future.result(60) for future in waiting] == [None] * 4
        eventually(lambda: len(pool.instances) == 2)
        assert stopped not in pool.instances
        assert not stopped.alive
    runtime.verify()


def test_a_runtime_whose_workers_are_stopped_closes_all_the_same(runtime, guest_path):
    heap = runtime.create_shared_heap(1 << 20)
    module = runtime.load(guest_path)
    for _ in range(3):
        instance = runtime.spawn(module, shared_heap=heap)
        os.kill(instance.pid, signal.SIGSTOP)
    runtime.close()
