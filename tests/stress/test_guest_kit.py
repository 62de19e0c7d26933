"""SIGKILL to instances at random moments, while they hold the guest kit's mutex, send, and receive."""

from __future__ import annotations

import signal
import struct
import threading
from pathlib import Path

import pytest

from shmwasm.errors import WorkerLostError
from waiting import eventually

GUEST = Path(__file__).parents[1] / "integration" / "guests" / "lives.wasm"
LIVES = 256
MESSAGES = 32768
PROCESSES = 3
KILLS = 40
WORLD = struct.Struct(f"<qIIQQII{LIVES}I{LIVES * MESSAGES}s")
"""As in lives.c."""


@pytest.mark.parametrize("capacity", [2, 64])
def test_a_mutex_and_a_queue_survive_whoever_is_killed_with_them(runtime, rng, times, signal_worker, capacity):
    heap = runtime.create_shared_heap(16 << 20)
    pause = threading.Event()
    kills = min(times(KILLS), LIVES - PROCESSES)
    lives = iter(range(LIVES))
    with runtime.load(GUEST) as module:
        keeper = runtime.spawn(module, shared_heap=heap)
        world = keeper.call("create", capacity)

        def begin():
            instance = runtime.spawn(module, shared_heap=heap)
            return instance, instance.submit("live", world, next(lives), rng.randrange(1 << 62))

        def end(instance, call):
            assert not call.done(), call.exception()  # no check of its own failed
            assert signal_worker(instance, signal.SIGKILL)
            with pytest.raises(WorkerLostError):
                call.result(60)
            eventually(lambda: not instance.alive)

        running = [begin() for _ in range(PROCESSES)]
        for _ in range(kills):
            pause.wait(rng.random() * 0.01)
            place = rng.randrange(PROCESSES)
            end(*running[place])
            running[place] = begin()
        for one in running:
            end(*one)
        keeper.call("end", world, timeout=60)
        keeper.close()
    _, word, _, left, right, locked, _, *sent, received = WORLD.unpack(heap.block_at(world, WORLD.size).view)
    killed = kills + PROCESSES
    assert word == 0
    assert left == right
    assert locked <= left <= locked + killed  # an unlock that was not counted, or a repair of what was half done
    rows = [received[life * MESSAGES : (life + 1) * MESSAGES] for life in range(LIVES)]
    assert max(received) == 1
    # What did not arrive was in a dead consumer's hand; what arrived and was not counted as sent was a dead producer's last.
    assert sum(rows[life][: sent[life]].count(0) for life in range(LIVES)) <= killed
    assert all(sum(rows[life][sent[life] :]) <= 1 for life in range(LIVES))
    heap.verify()
