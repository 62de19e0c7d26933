from __future__ import annotations

import gc
from pathlib import Path

import pytest


def _open_descriptors() -> dict[str, str]:
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found[entry.name] = str(entry.readlink())
        except FileNotFoundError:  # the listing's own
            continue
    return found


def _segments() -> set[str]:
    return {entry.name for entry in Path("/dev/shm").iterdir() if entry.name.startswith("shmwasm-test-")}


@pytest.fixture(autouse=True)
def _leaves_nothing_behind():
    gc.collect()
    descriptors, segments = _open_descriptors(), _segments()
    yield
    gc.collect()
    left = {number: target for number, target in _open_descriptors().items() if descriptors.get(number) != target}
    assert not left, f"descriptors left open: {left}"
    assert _segments() <= segments
