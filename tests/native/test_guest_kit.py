"""The guest kit's headers, compiled natively: threads under sanitizers, and real processes that are killed."""

import json
from pathlib import Path

import pytest

import shmwasm

INCLUDE = Path(shmwasm.__file__).parent / "include"
SEEDS = [1, 2, 3]


@pytest.fixture(scope="module", params=["thread", "address,undefined"])
def threads(request, compile_natively):
    return compile_natively("kit_threads", "-O1", include=INCLUDE, sanitizers=request.param)


@pytest.fixture(scope="module")
def deaths(compile_natively):
    return compile_natively("kit_deaths", "-O2", include=INCLUDE)


@pytest.mark.parametrize("seed", SEEDS)
def test_threads_that_die_with_claims_and_locks_neither_race_nor_touch_a_byte_outside(threads, run_natively, seed):
    run_natively(threads, seed, 5_000)


@pytest.mark.parametrize("seed", SEEDS)
def test_processes_killed_at_random_lose_no_message_but_the_one_in_hand_and_no_lock(deaths, run_natively, seed):
    found = json.loads(run_natively(deaths, seed, 300))
    assert min(found["voided"], found["lost"], found["inherited"]) > 0, "nobody was killed where it matters"
