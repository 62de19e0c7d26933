"""Time limits that pass in the very moment in which the call ends."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import pytest

from shmwasm.errors import CallTimeoutError

CALLS = Path(__file__).with_name("calls.wat")
RACES = 1500
AT_ONCE = 16


@pytest.fixture
def module(runtime):
    with runtime.load(CALLS) as loaded:
        yield loaded


def rounds_in(instance, seconds):
    """Return how many rounds `weave` makes in about that time."""
    rounds = 1 << 20
    begun = time.perf_counter()
    instance.call("weave", 1, rounds)
    return int(rounds * seconds / (time.perf_counter() - begun))


def test_a_limit_that_passes_as_its_call_ends_interrupts_that_call_or_none(runtime, module, rng, times):
    """The calls without a limit between them would be hit by an interrupt that comes too late."""
    with runtime.spawn(module) as instance:
        expected = {}
        millisecond = rounds_in(instance, 0.001)
        late = unlimited = 0
        under_way: list[tuple[Future[int], int, int, bool]] = []

        def end(future, seed, rounds, limited):
            nonlocal late, unlimited
            error = future.exception(60)
            if error is not None:
                assert limited, f"a call without a limit ended with {error!r}"
                assert isinstance(error, CallTimeoutError)
                late += 1
                return
            unlimited += not limited
            # Each pair of arguments has one right answer, whenever it is asked for.
            assert expected.setdefault((seed, rounds), future.result()) == future.result()

        for number in range(times(RACES)):
            rounds = int(millisecond * rng.choice([rng.uniform(0.9, 1.15), rng.uniform(0.5, 2)]))
            under_way.append((instance.submit("weave", number, rounds, timeout=0.001), number, rounds, True))
            short = rng.choice([1, 50, 2000])
            under_way.append((instance.submit("weave", number % 7, short), number % 7, short, False))
            while len(under_way) > AT_ONCE:
                end(*under_way.pop(0))
        for one in under_way:
            end(*one)
        assert unlimited == times(RACES)
        assert late > 0
        assert instance.call("count") == 1


def test_threads_whose_limits_pass_as_their_calls_end_do_not_interrupt_each_other(runtime, module, rng, times):
    with runtime.spawn(module) as instance:
        millisecond = rounds_in(instance, 0.001)
        seeds, problems, ended = [rng.random() for _ in range(4)], [], []

        def work(seed):
            rng = random.Random(seed)
            for _ in range(times(RACES) // 8):
                limit = rng.choice([None, 0.001])
                rounds = int(millisecond * rng.uniform(0.8, 1.3)) if limit else 100
                try:
                    ended.append(instance.call("weave", 1, rounds, timeout=limit))
                except CallTimeoutError as error:
                    problems.extend([] if limit else [error])
                    ended.append(None)
                except BaseException as error:  # noqa: BLE001  whatever it is
                    problems.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in seeds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not problems
        assert len(ended) == times(RACES) // 8 * len(seeds)
        assert instance.call("count") == 1
