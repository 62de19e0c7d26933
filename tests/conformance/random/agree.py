"""Compare random modules with what the rewriter makes of them: `python agree.py WASM_OPT FIRST COUNT`.

Each module is run as it is, and rewritten; every second one is metered, too. The two must agree on every result, trap and log,
and in the end on memories and globals. Then the rewritten one runs with a chain attached, and calls that aim at it; beside it,
the original with a memory of 4 GiB. What lies in the chain for one is memory for the other, so they must agree up to the first
access that finds nothing in the window or may not write there; after it, both are made anew. Whatever happens, the process must
live.

Prints each seed before it is tried, then a line of JSON: counts of what was done, and disagreements by seed.
"""

from __future__ import annotations

import collections
import json
import os
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parent))  # for the modules beside this program

from editing import NUMBERS, enlarged, expose, hang_limit, numeric_globals, state
from generation import generate
from running import CHAIN_START, HEAP_SIZE, OUT_OF_BOUNDS, STACK, Code, Engine, Run, heaps

from shmwasm.rewrite import meter, rewrite
from shmwasm.wasm.binary import Binary
from shmwasm.wasm.decoding import decode

BITS: Final = {"i32": 32, "i64": 64}
EDGES: Final = (0, 1 << 12, 1 << 16, 1 << 17, 1 << 31, 1 << 32)
"""Addresses and lengths to try, and what is near them: edges of pages, of small memories and of numbers."""

PLACES: Final = tuple(CHAIN_START + offset for offset in (0, 4096, HEAP_SIZE, 2 * HEAP_SIZE))
"""The same for a chain: in its heaps, and at their edges."""

ATTEMPTS: Final = 10
"""How often a module is instantiated anew to compare it with a chain attached."""

Call = tuple[str, list[float]]
"""An export's name and the arguments."""


class Comparison:
    """Compares modules, one after the other."""

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self._engine = Engine()

    def disagreement(self, seed: int, content: bytes) -> str | None:
        """Return how a module and its rewritten form differ; None if they agree."""
        dice = random.Random(seed)
        binary = decode(content)
        exposed = expose(binary, memories=True)
        # Half of the modules keep their memories to themselves, so that it is the rewriter who exports one.
        rewritten = rewrite(exposed if dice.random() < 0.5 else expose(binary, memories=False))
        metered = meter(rewritten.content, rewritten.report.functions).content if seed % 2 else rewritten.content
        ours = self._engine.compile(metered)
        self.counts["modules"] += 1
        self.counts["changed"] += rewritten.report.changed
        calls, aimed = list(plan(binary, dice, EDGES)), list(plan(binary, dice, PLACES))
        difference = self._difference(binary, self._engine.compile(exposed), ours, calls)
        if difference is None:
            difference = self._difference_in_chain(binary, exposed, ours, aimed, writable=dice.random() < 0.7)
        return difference

    def _difference(self, binary: Binary, code: Code, rewritten: Code, calls: Sequence[Call]) -> str | None:
        original, ours = (Run(self._engine, one, hang_limit(binary)) for one in (code, rewritten))
        if original.failure != ours.failure:
            return f"instantiation: {original.failure!r} and {ours.failure!r}"
        if original.failure is not None:
            return None
        for name, arguments in calls:
            expected, found = original.call(name, arguments), ours.call(name, arguments)
            if STACK in {expected, found}:
                return None
            self.counts["traps" if isinstance(expected, str) else "results"] += 1
            if expected != found:
                return f"{name}{tuple(arguments)}: {expected!r} and {found!r}"
        return unlike(original, ours, binary) or unlike_memories(original, ours)

    def _difference_in_chain(
        self, binary: Binary, exposed: bytes, rewritten: Code, calls: Sequence[Call], *, writable: bool
    ) -> str | None:
        content = enlarged(exposed) if calls else None
        large = self._engine.compile(content) if content is not None else None
        left = collections.deque(calls)
        for attempt in range(ATTEMPTS):
            with heaps() as descriptors:
                ours = Run(self._engine, rewritten, hang_limit(binary), descriptors, writable=writable)
                if not ours.attached:
                    return None
                self.counts["attached"] += attempt == 0
                original = Run(self._engine, large, hang_limit(binary)) if large is not None else None
                difference = self._difference_to_large(binary, original, ours, left, descriptors)
                ours.window.close()
            if difference is not None:
                return f"with a chain, {difference}"
            if not left:
                break
        return None

    def _difference_to_large(
        self, binary: Binary, original: Run | None, ours: Run, calls: collections.deque[Call], descriptors: Sequence[int]
    ) -> str | None:
        """Compare call by call, until one finds something out of bounds; without an original, only call."""
        while calls:
            name, arguments = calls.popleft()
            found = ours.call(name, arguments)
            if original is None:
                continue
            if found in {OUT_OF_BOUNDS, STACK}:
                self.counts["traps with a chain"] += 1
                return None
            expected = original.call(name, arguments)
            if expected != found:
                return f"{name}{tuple(arguments)}: {expected!r} and {found!r}"
            chain = b"".join(os.pread(one, HEAP_SIZE, 0) for one in descriptors)
            self.counts["calls with a chain"] += 1
            self.counts["calls with data in the chain"] += any(chain)
            if chain != original.memory(original.memories[0], CHAIN_START, len(chain)):
                return f"what the chain holds after {name}{tuple(arguments)}"
        return unlike(original, ours, binary) if original is not None else None


def plan(binary: Binary, dice: random.Random, places: Sequence[int]) -> Iterator[Call]:
    """Choose calls of a module's functions whose parameters and results are numbers."""
    for export in binary.exports:
        kind = binary.function_type(export.number) if export.kind == "function" else None
        if kind is not None and {*kind.parameters, *kind.results} <= NUMBERS.keys():
            of_base = not export.name.startswith("func")  # such a function is there for what is rewritten
            for _ in range(6 if of_base and kind.parameters else 2):
                arguments = [choose(one, dice, places, index) for index, one in enumerate(kind.parameters)]
                if of_base and len(arguments) == 3 and dice.random() < 0.3:
                    which = dice.randrange(2)
                    arguments[which] = (dice.choice(places) - arguments[2]) & (
                        (1 << BITS[kind.parameters[which]]) - 1
                    )  # up to an edge
                yield export.name, arguments


def choose(kind: str, dice: random.Random, places: Sequence[int], index: int) -> float:
    """Choose an argument: one at or near one of `places`, or a small number, as most must be that come where lengths stand."""
    small = dice.random() < (0.5 if index < 2 else 0.9)
    number = dice.randrange(300) if small else dice.choice(places) + dice.choice((0, 0, 0, -40, -8, -1, 1, 5))
    return number & ((1 << BITS[kind]) - 1) if kind in BITS else float(number)


def unlike(original: Run, ours: Run, binary: Binary) -> str | None:
    """Return how two instances differ in what they logged and in what their globals hold."""
    if original.trace() != ours.trace():
        return "what they logged"
    for index in numeric_globals(binary) if binary.exports else []:
        before, after = (run.number(state("global", index), binary.globals[index].type) for run in (original, ours))
        if before != after:
            return f"global {index}: {before.hex()} and {after.hex()}"
    return None


def unlike_memories(original: Run, ours: Run) -> str | None:
    """Return how two instances differ in their memories; where those are private, in the first."""
    names = [name for name in original.memories if name in ours.memories]
    for name, its_name in zip(names or original.memories, names or ours.memories, strict=False):
        before, after = original.memory(name), ours.memory(its_name)
        if len(before) != len(after):
            return f"the size of {name}: {len(before)} and {len(after)} bytes"
        if before != after:
            return f"{name} at {next(index for index in range(len(before)) if before[index] != after[index]):#x}"
    return None


def main(program: str, first: str, count: str) -> None:
    seeds = range(int(first), int(first) + int(count))
    comparison = Comparison()
    disagreements = {}
    with tempfile.TemporaryDirectory() as directory:
        generate(Path(program), seeds, Path(directory))
        for seed in seeds:
            print(seed, flush=True)  # a fault would leave nothing else behind
            try:
                difference = comparison.disagreement(seed, Path(directory, f"{seed}.wasm").read_bytes())
            except Exception as error:  # noqa: BLE001 - the other seeds are still to be tried
                difference = f"{type(error).__name__}: {error}"
            if difference is not None:
                disagreements[seed] = difference
    print(json.dumps({"counts": comparison.counts, "disagreements": disagreements}))


if __name__ == "__main__":
    main(*sys.argv[1:])
