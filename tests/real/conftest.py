"""What the tests with other people's modules share: a runtime, and modules by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shmwasm import Instance, Runtime, SharedHeap

Spawn = Callable[..., Instance]


@pytest.fixture
def heap(shared_runtime: Runtime) -> Iterator[SharedHeap]:
    made = shared_runtime.create_shared_heap(16 << 20)
    yield made
    made.close()


@pytest.fixture
def spawn(shared_runtime: Runtime, npm: Path) -> Iterator[Spawn]:
    """Make an instance of a file of an npm package; it ends with the test."""
    made: list[Instance] = []

    def make(path: str, heap: SharedHeap, **imports: Any) -> Instance:
        with shared_runtime.load(npm / path, imports=imports) as module:
            made.append(shared_runtime.spawn(module, shared_heap=heap))
        return made[-1]

    yield make
    for instance in made:
        instance.close()
