"""`memory.copy` in a rewritten module, beside the untouched instruction on the very same bytes.

Both modules import one memory, and the untouched one the alias memory too, so that both sides move the same bytes, and neither is
better off by where its pages happen to lie. The untouched instruction is libc's `memmove` behind a check of bounds. Each loop is
compiled at several places in the code, since short loops gain and lose by where they begin, and goes over a megabyte, as programs
that copy do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

import wasmtime

from benchmarks.context import MIB, Context
from benchmarks.measuring import elapsed, interleave
from benchmarks.rows import Budget, Row, at_most, compare, ratio_at_most
from shmwasm.addresses import WASM_PAGE, WINDOW_END, AppAddress
from shmwasm.engine.aliases import Alias
from shmwasm.engine.calls import ExportedFunction
from shmwasm.engine.config import new_engine
from shmwasm.engine.nests import new_store
from shmwasm.engine.windows import Grant, Window
from shmwasm.posix.segments import Segment
from shmwasm.rewrite import rewrite, seam

TOPIC: Final = "bulk"

SIZES: Final = (16, 64, 256, 1 << 10, 4 << 10, 64 << 10, MIB)
CONSTANT: Final = 16
"""The length that is a constant in the code; the engine copies so few bytes without a call."""

PRIVATE: Final = 16 * MIB
HEAP: Final = 16 * MIB
HEAP_START: Final = WINDOW_END - HEAP
SOURCE: Final = 1 << 12
TARGET: Final = (8 << 20) + (2 << 12)
"""Offsets in both: neither the same page of a cache, nor near each other."""

REGION: Final = MIB
"""How many bytes a loop goes over, from both addresses."""

PLACES: Final = 5
"""How many times each loop is compiled."""

UNROLLED: Final = 4
WORK: Final = 100 * MIB
MOST_COPIES: Final = 2_000_000
"""What one round does for each side: so many bytes, but no more copies than that."""

UNTOUCHED: Final = "the untouched module"
NATIVE: Final = "native, same bytes"
INTO_A_HEAP: Final = 1 / 0.95


class Move(NamedTuple):
    """From where to where: whether source and target are in the heap, and what limits the ratio, from which size on."""

    name: str
    source_in_heap: bool
    target_in_heap: bool
    peer: str
    limit: float | None
    from_size: int


MOVES: Final = (
    Move("private memory", False, False, UNTOUCHED, 1.02, 256),
    Move("private memory into a heap", False, True, NATIVE, INTO_A_HEAP, 4 << 10),
    Move("heap to heap", True, True, NATIVE, INTO_A_HEAP, 4 << 10),
    Move("a heap into private memory", True, False, NATIVE, None, 0),
)


def rows(context: Context) -> Iterator[Row]:
    """Yield a row for each direction and size."""
    with _sides() as (ours, peers):
        yield _row(context, ours, peers, MOVES[0], CONSTANT, constant=True)
        for move in MOVES:
            for size in SIZES:
                yield _row(context, ours, peers, move, size, constant=False)


class _Side:
    """One of the two modules, ready to copy."""

    def __init__(self, store: wasmtime.Store, instance: wasmtime.Instance) -> None:
        self._store = store
        self._exports = instance.exports(store)

    def copies(self, loop: str, target: int, source: int, size: int, times: int) -> Callable[[], float]:
        """Return a subject: the time of one copy, at all places by turns."""
        functions = [self._function(f"{loop}, {place}") for place in range(PLACES)]

        def run() -> None:
            for function in functions:
                function.call((target, source, size, times))

        return lambda: elapsed(run, clock=time.thread_time) / (PLACES * times * UNROLLED)

    def _function(self, name: str) -> ExportedFunction:
        function = self._exports[name]
        assert isinstance(function, wasmtime.Func)
        return ExportedFunction(self._store, function, name)


def _row(context: Context, ours: _Side, peers: _Side, move: Move, size: int, *, constant: bool) -> Row:
    length = "constant" if constant else "computed"
    times = max(1, context.scaled(min(WORK // size, MOST_COPIES)) // (PLACES * UNROLLED))
    target = TARGET + move.target_in_heap * HEAP_START
    source = SOURCE + move.source_in_heap * HEAP_START
    alias_target = TARGET + move.target_in_heap * seam.ALIAS_CHAIN
    alias_source = SOURCE + move.source_in_heap * seam.ALIAS_CHAIN
    measured = interleave(
        ours.copies(f"{length} 0 0", target, source, size, times),
        peers.copies(f"{length} {move.target_in_heap:d} {move.source_in_heap:d}", alias_target, alias_source, size, times),
        rounds=context.rounds,
    )
    budget: Budget | None = None
    if constant:
        budget = at_most(2e-9)
    elif move.limit is not None and size >= move.from_size:
        budget = ratio_at_most(move.limit)
    return compare(TOPIC, f"copy {_readable(size)} ({length}), {move.name}", measured[0], move.peer, measured[1], budget=budget)


@contextmanager
def _sides() -> Iterator[tuple[_Side, _Side]]:
    """Yield the rewritten and the untouched module, on one memory with a heap attached to it."""
    engine = new_engine(parallel_compilation=False)
    store = new_store(engine)
    memory = wasmtime.Memory(store, wasmtime.MemoryType(wasmtime.Limits(PRIVATE // WASM_PAGE, None)))
    rewritten = rewrite(bytes(wasmtime.wat2wasm(_module(memories=1)))).content
    ours = wasmtime.Instance(store, wasmtime.Module(engine, rewritten), [memory])
    exports = ours.exports(store)
    window = Window(store, memory, alias=Alias(store, exports))
    with Segment.create(HEAP, name_for_errors="bulk") as segment:
        grant = Grant(
            heap="bulk", start=AppAddress(HEAP_START), size=HEAP, descriptor=segment.descriptor, writable=True, prefault=True
        )
        window.attach([grant])
        alias = exports[seam.ALIAS]
        assert isinstance(alias, wasmtime.Memory)
        untouched = wasmtime.Instance(store, wasmtime.Module(engine, _module(memories=2)), [memory, alias])
        yield _Side(store, ours), _Side(store, untouched)
        window.close()
    store.close()


def _module(*, memories: int) -> str:
    """Return the text of a module with loops of copies between each two of its memories."""
    imports = "".join(f'(import "memory" "{number}" (memory 0))' for number in range(memories))
    loops = "".join(
        _loop(f"{length} {target} {source}", place, f"memory.copy {target} {source}", operand)
        for length, operand in (("computed", "(local.get 2)"), ("constant", f"(i32.const {CONSTANT})"))
        for target in range(memories)
        for source in range(memories)
        for place in range(PLACES)
    )
    return f"(module {imports} (global $shift (mut i32) (i32.const 0)) {loops})"


def _loop(name: str, place: int, instruction: str, length: str) -> str:
    # What stands before the loop moves it, by some bytes for each place.
    shift = "(global.set $shift (local.get 3))" * place
    copy = f"({instruction} (i32.add (local.get 0) (local.get $at)) (i32.add (local.get 1) (local.get $at)) {length})"
    step = f"(local.set $at (i32.and (i32.add (local.get $at) {length}) (i32.const {REGION - 1})))"
    return f"""(func (export "{name}, {place}") (param i32 i32 i32 i32) (local $at i32) {shift}
      (loop $again {f"{copy} {step}" * UNROLLED}
        (br_if $again (local.tee 3 (i32.sub (local.get 3) (i32.const 1))))))"""


def _readable(size: int) -> str:
    return next(f"{size // unit} {name}" for unit, name in ((MIB, "MiB"), (1 << 10, "KiB"), (1, "B")) if size >= unit)
