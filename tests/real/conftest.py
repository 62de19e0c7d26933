"""What the tests with other people's modules share: a runtime, and modules by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shmwasm import Instance, Runtime, SharedHeap, on_client
from shmwasm.wasm.decoding import decode

Spawn = Callable[..., Instance]


@pytest.fixture
def heap(shared_runtime: Runtime) -> Iterator[SharedHeap]:
    made = shared_runtime.create_shared_heap(16 << 20)
    yield made
    made.close()


def refuse(name: str) -> Any:
    def refused(caller: Any, *arguments: float) -> None:
        raise NotImplementedError(f"{name} is not provided")

    return on_client(refused)


@pytest.fixture
def spawn(shared_runtime: Runtime, npm: Path) -> Iterator[Spawn]:
    """Make an instance of a file of an npm package, with the host functions that it calls; it ends with the test.

    What else it imports is there too, and raises.
    """
    made: list[Instance] = []

    def make(path: str, heap: SharedHeap, **called: Any) -> Instance:
        content = (npm / path).read_bytes()
        imports: dict[str, dict[str, Any]] = {module: dict(functions) for module, functions in called.items()}
        for entry in decode(content).imports:
            if entry.kind == "function" and entry.module != "wasi_snapshot_preview1":
                imports.setdefault(entry.module, {}).setdefault(entry.name, refuse(entry.name))
        with shared_runtime.load(content, imports=imports) as module:
            made.append(shared_runtime.spawn(module, shared_heap=heap))
        return made[-1]

    yield make
    for instance in made:
        instance.close()
