from __future__ import annotations

import pytest
import wasmtime

from shmwasm.engine.calls import ExportedFunction
from shmwasm.engine.config import new_engine


@pytest.fixture(scope="session")
def engine():
    return new_engine(parallel_compilation=False)


class Guest:
    """An instance of a module given as text, and its exports ready to be called."""

    def __init__(
        self, engine: wasmtime.Engine, text: str, *, linker: wasmtime.Linker | None = None, limit: int = 1 << 32
    ) -> None:
        self.store = wasmtime.Store(engine)
        self.store.set_epoch_deadline(1 << 32)
        self.store.set_limits(memory_size=limit)
        module = wasmtime.Module(engine, text)
        linker = wasmtime.Linker(engine) if linker is None else linker
        self.exports = linker.instantiate(self.store, module).exports(self.store)
        self.memory = self.exports.get("memory")

    def function(self, name: str) -> ExportedFunction:
        function = self.exports[name]
        assert isinstance(function, wasmtime.Func)
        return ExportedFunction(self.store, function, name)

    def call(self, name: str, *arguments: object) -> object:
        results = self.function(name).call(arguments)
        return results[0] if len(results) == 1 else results


@pytest.fixture
def make_guest(engine):
    """Makes guests, and gives their memory back after the test."""
    made = []

    def make(text: str, **options: object) -> Guest:
        made.append(Guest(engine, text, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for guest in made:
        guest.store.close()
