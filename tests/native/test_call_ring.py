"""The call ring's own C: threads that sleep and wake under sanitizers, and every order in which its two sides can go on."""

import re
from pathlib import Path

import pytest

from shmwasm import core

HERE = Path(__file__).parent
INCLUDE = Path(core.__file__).parent / "src"
SOURCES = [HERE / "harness.c", *(source for source in sorted(INCLUDE.glob("*.c")) if source.name != "ring.c")]


@pytest.fixture(scope="module", params=["thread", "address,undefined"])
def threads(request, compile_natively):
    return compile_natively("ring_threads", "-O1", sources=SOURCES, include=INCLUDE, sanitizers=request.param)


@pytest.fixture(scope="module")
def interleavings(compile_natively):
    return compile_natively("interleavings", "-O1", include=INCLUDE)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_calls_from_threads_end_once_with_their_own_result_whoever_sleeps(threads, run_natively, seed):
    assert re.search(r"[1-9]\d* of them collected, [1-9]\d* interrupted, [1-9]\d* withdrawn", run_natively(threads, seed, 15_000))


@pytest.mark.timeout(180)
def test_no_order_of_steps_and_no_death_loses_a_wake_up_or_hits_the_wrong_call(interleavings, run_natively):
    explored = run_natively(interleavings, 0, 0)
    assert len(explored.splitlines()) == 14
