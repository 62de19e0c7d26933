"""What nobody calls costs nothing: not a tick of processor time, in any process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from shmwasm import Module, Runtime

SECONDS = 10.0
SETTLING = 30.0
ONE_WAKE_UP = 5_000_000
"""Nanoseconds that one may take on a machine that is busy otherwise. The coordinator looks once, some seconds after a client has
come, whether it has said hello."""


@pytest.fixture
def module(runtime: Runtime, echo_text: str) -> Iterator[Module]:
    with runtime.load(echo_text) as loaded:
        yield loaded


def _used() -> dict[str, int]:
    """Return the nanoseconds that each thread of this process and of its descendants has run, ours aside.

    The scheduler's own count: a tick of `/proc/PID/stat` is ten milliseconds.
    """
    mine = str(threading.get_native_id())
    used = {}
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        for task in Path(f"/proc/{process.pid}/task").iterdir():
            if task.name != mine:
                used[f"{task.name} of {process.cmdline()[:4]}"] = int((task / "schedstat").read_text().split()[0])
    return used


def test_a_pool_that_is_idle_after_a_burst_of_calls_uses_no_processor_time_in_any_process(
    runtime: Runtime, module: Module
) -> None:
    with runtime.pool(module, size=2) as pool, runtime.spawn(module) as instance:
        for future in [pool.submit("add", number, 1) for number in range(500)]:
            future.result(timeout=30)
        for number in range(2000):
            assert instance.call("add", number, 1) == number + 1
        assert instance.call("add", 1, 1, timeout=1) == 2
        assert len(list(psutil.Process().children(recursive=True))) >= 5  # coordinator, launcher and three workers
        # What the burst has left to do, it does at once: from then on nothing runs.
        deadline = time.monotonic() + SETTLING
        before: dict[str, int] = {}
        while (now := _used()) != before:
            assert time.monotonic() < deadline, f"still at work: {_difference(before, now)}"
            before = now
            time.sleep(0.2)
        time.sleep(SECONDS)
        used = _difference(before, _used())
        assert sum(used.values()) < ONE_WAKE_UP, used
        assert instance.call("add", 1, 2) == 3


def _difference(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name)}
