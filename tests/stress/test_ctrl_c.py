"""Ctrl-C at random moments: what waits stops at once, and everything goes on being usable in the same process."""

from __future__ import annotations

from pathlib import Path

CALLS = Path(__file__).with_name("calls.wat")
ROUNDS = 240


def test_ctrl_c_at_any_moment_of_any_call_leaves_a_pool_and_an_instance_that_go_on(program, rng, times):
    interrupted = program("interrupted.py", CALLS, times(ROUNDS), rng.randrange(1 << 31))
    report = interrupted.hear(times(120))
    assert report is not None, "the program ended in the middle"
    assert not report["left"]
    assert report["interrupted"] > times(ROUNDS) * 3 // 4
