"""The core's own C, compiled natively with a sanitizer: long random histories, and threads that play processes."""

from pathlib import Path

import pytest

from shmwasm import core

HERE = Path(__file__).parent
INCLUDE = Path(core.__file__).parent / "src"
# The ring has a host of its own: see test_call_ring.
SOURCES = [HERE / "harness.c", *(source for source in sorted(INCLUDE.glob("*.c")) if source.name != "ring.c")]


@pytest.fixture(scope="module")
def history(compile_natively):
    return compile_natively("history", "-O1", sources=SOURCES, include=INCLUDE, sanitizers="address,undefined")


@pytest.fixture(scope="module")
def threads(compile_natively):
    return compile_natively("threads", "-O1", sources=SOURCES, include=INCLUDE, sanitizers="thread")


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_history_touches_no_byte_outside_the_segment_and_breaks_no_invariant(history, run_natively, seed):
    run_natively(history, seed, 400_000)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_processes_that_allocate_free_and_die_at_once_never_race(threads, run_natively, seed):
    run_natively(threads, seed, 40_000)
