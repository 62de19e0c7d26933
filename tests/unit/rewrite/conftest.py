from __future__ import annotations

import ctypes
from collections.abc import Iterable

import pytest
import wasmtime

from shmwasm.addresses import ORIGIN_64, WINDOW_END
from shmwasm.engine.config import new_engine
from shmwasm.engine.guests import Guest
from shmwasm.engine.modules import describe
from shmwasm.engine.nests import Nest, new_store
from shmwasm.engine.traps import GuestTrapError
from shmwasm.engine.windows import Grant
from shmwasm.posix.segments import Segment
from shmwasm.rewrite import rewrite


@pytest.fixture(scope="session")
def engine():
    return new_engine(parallel_compilation=False)


class Chain:
    """Segments that make a chain: for each its bytes' number and whether it is writable, from head to last body."""

    def __init__(self, heaps: Iterable[tuple[int, bool]]) -> None:
        self.heaps = list(heaps)
        self.size = sum(size for size, _ in self.heaps)
        self.segments = [Segment.create(size, name_for_errors="heap") for size, _ in self.heaps]

    def grants(self) -> list[Grant]:
        start = WINDOW_END - self.size
        grants = []
        for (size, writable), segment in zip(self.heaps, self.segments, strict=True):
            grants.append(
                Grant(heap="heap", start=start, size=size, descriptor=segment.descriptor, writable=writable)  # type: ignore[arg-type]
            )
            start += size
        return grants

    def close(self) -> None:
        for segment in self.segments:
            segment.close()


class RewrittenGuest:
    """A module that was rewritten, in the engine."""

    def __init__(self, engine, text: str, **options: object) -> None:
        self.content, self.report = rewrite(bytes(wasmtime.wat2wasm(text)))
        module = wasmtime.Module(engine, self.content)
        self.store = new_store(engine)
        self.guest = Guest(
            1, Nest(self.store, {}), module, describe(module), name="unit", **{"functions": {}, "wasi": None, **options}
        )
        self.window = self.guest.window
        self.exports = self.guest._exports

    @property
    def origin(self) -> int:
        """How much higher the guest sees the chain than a 32-bit guest does."""
        return ORIGIN_64 if self.window.is_64 else 0

    def call(self, name: str, *arguments: int) -> object:
        results = self.guest.function(name).call(arguments)
        return results[0] if len(results) == 1 else results

    def trap(self, name: str, *arguments: int) -> str | None:
        """Return the code of the trap that a call ends in; None if it returns."""
        try:
            self.call(name, *arguments)
        except GuestTrapError as trap:
            return trap.description.code
        return None

    def peek(self, address: int, size: int) -> bytes:
        return ctypes.string_at(self.window.base + address, size)

    def poke(self, address: int, content: bytes) -> None:
        """Write into private memory, or into a heap that is mapped writable."""
        ctypes.memmove(self.window.base + address, content, len(content))

    def close(self) -> None:
        if self.window is not None:
            self.window.close()
        self.store.close()


@pytest.fixture
def make_guest(engine):
    """Makes rewritten guests, and gives their memory back after the test."""
    made = []

    def make(text: str, **options: object) -> RewrittenGuest:
        made.append(RewrittenGuest(engine, text, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for guest in made:
        guest.close()


@pytest.fixture
def make_chain():
    made = []

    def make(*heaps: tuple[int, bool]) -> Chain:
        made.append(Chain(heaps))
        return made[-1]

    yield make
    for chain in made:
        chain.close()
