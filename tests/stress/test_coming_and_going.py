"""Instances, heaps and runtimes that come and go leave nothing behind, in any of the processes."""

from __future__ import annotations

import contextlib
from pathlib import Path

from processes import children_of, descriptors_of
from waiting import eventually

INSTANCES = 300

FLAT = 256 << 10
"""Bytes that a process may grow by, however much comes and goes."""


def count_of(pid):
    """Return a process's descriptors and threads."""
    return (descriptors_of(pid), len(list(Path(f"/proc/{pid}/task").iterdir())))


def written_bytes(pid):
    """Return the bytes that a process has written to, and has for itself."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_Dirty"))


def mappings_of(pid):
    return len(Path(f"/proc/{pid}/maps").read_text().splitlines())


def processes_of(runtime):
    """Return this process, the coordinator and the launcher."""
    coordinator = runtime._process.pid
    return "self", coordinator, *children_of(coordinator)


@contextlib.contextmanager
def costs_nothing(processes, mappings):
    """Fail if what is done meanwhile leaves something in one of the processes: as many mappings as these are nothing, too."""
    before = [count_of(pid) for pid in processes]
    memory, mapped = [written_bytes(pid) for pid in processes], [mappings_of(pid) for pid in processes]
    yield
    eventually(lambda: [count_of(pid) for pid in processes] == before)
    for pid, written, areas in zip(processes, memory, mapped, strict=True):
        assert written_bytes(pid) - written < FLAT, f"process {pid} grew"
        assert mappings_of(pid) - areas < mappings, f"process {pid} has more mappings"


def test_instances_that_come_and_go_cost_nothing_for_good(runtime, guest_path, rng, times):
    heap = runtime.create_shared_heap(4 << 20)

    def come_and_go(module, count):
        for _ in range(count):
            with runtime.spawn(module, shared_heap=rng.choice([heap, None])) as instance:
                if instance.shared_heap is None:
                    instance.attach_shared_heap(heap)
                instance.call("release", instance.call("allocate", rng.choice([16, 5000, 100_000])))
                if rng.random() < 0.3:
                    instance.memory.release()
                if rng.random() < 0.3:
                    instance.detach_shared_heap()
                if rng.random() < 0.2:
                    instance.kill()

    with runtime.load(guest_path) as module:
        come_and_go(module, 30)
        with costs_nothing(processes_of(runtime), 30):
            come_and_go(module, times(INSTANCES))
    assert heap.statistics().live_blocks == 0
    runtime.verify()


def test_heaps_that_come_and_go_cost_nothing_for_good(runtime, rng, times):
    def come_and_go(count):
        for _ in range(count):
            first, second = (runtime.create_shared_heap(rng.choice([1, 5, 64]) << 16) for _ in range(2))
            runtime.chain_shared_heaps(first, second)
            blocks = [first.malloc(rng.randrange(1, 50_000)), second.malloc(16)]
            if rng.random() < 0.5:
                blocks.pop().free()
            first.close()
            second.close()

    come_and_go(20)
    with costs_nothing(("self", runtime._process.pid), 30):
        come_and_go(times(300))
    assert runtime.status()["heaps"] == []


def test_a_thousand_instances_that_were_called_and_closed_cost_no_more_than_a_hundred(runtime, guest_path, times):
    def come_and_go(count):
        for _ in range(count):
            with runtime.spawn(module) as instance:
                instance.call("nothing")
                instance.submit("nothing", timeout=60).result(60)

    with runtime.load(guest_path) as module:
        come_and_go(100)
        with costs_nothing(processes_of(runtime), 10):
            come_and_go(times(900))
