"""SIGKILL to clients at random moments: nothing of theirs remains, and nobody else notices."""

from __future__ import annotations

from pathlib import Path

from processes import children_of, descriptors_of
from waiting import eventually

PRIVATE = 30
SHARED = 170
AT_ONCE = 6


def addresses_of(nursery):
    return set(iter(nursery.hear, None))


def listening():
    """Return the abstract addresses on which somebody of this machine listens."""
    names = (line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines()[1:])
    return {name for name in names if name.startswith("@shmwasm-")}


def test_of_a_killed_client_and_its_private_coordinator_nothing_remains(program, guest_path, rng, times):
    nursery = program("nursery.py", times(PRIVATE), AT_ONCE, rng.randrange(1 << 32), guest_path)
    addresses = addresses_of(nursery)
    assert nursery.process.wait(60) == 0
    assert len(addresses) >= times(PRIVATE) // 3  # many died before they had connected
    eventually(lambda: addresses.isdisjoint(name.replace("@", "\0") for name in listening()))
    # No process, no segment, no descriptor: the watch of every test looks.


def test_killed_clients_of_a_shared_coordinator_leave_it_as_it_was(shared_coordinator, joined, program, guest_path, rng, times):
    common = joined.create_shared_heap(8 << 20, name="common", on_death="free")
    kept = [common.malloc(size) for size in (16, 1000, 100_000)]
    with joined.load(guest_path) as module, joined.spawn(module, shared_heap=common):
        pass  # what the coordinator and the launcher open at their first instance stays open
    pid = shared_coordinator.pid
    (launcher,) = children_of(pid)
    before = (descriptors_of(pid), descriptors_of(launcher))
    nursery = program("nursery.py", times(SHARED), AT_ONCE, rng.randrange(1 << 32), guest_path, shared_coordinator.socket)
    assert addresses_of(nursery) <= {joined.address}
    assert nursery.process.wait(60) == 0
    eventually(lambda: joined.status()["clients"] == 1)
    eventually(lambda: not joined.status()["workers"])
    assert [heap["name"] for heap in joined.status()["heaps"]] == ["common"]
    assert children_of(pid) == [launcher]
    assert children_of(launcher) == []
    joined.verify()
    common.verify()
    # All that the dead had allocated in the heap that they shared is free.
    assert common.statistics().live_blocks == len(kept)
    assert common.statistics().adopted_slabs == 0
    eventually(lambda: (descriptors_of(pid), descriptors_of(launcher)) <= before)
    for block in kept:
        block.free()
    common.malloc(common.size - (1 << 16)).free()
