"""Random modules, each from a number: it decides what the module uses, and every byte that binaryen's fuzzer makes it from."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

HERE: Final = Path(__file__).parent

_NOT_IN_WASMTIME: Final = (
    "acquire-release-atomics",
    "compact-imports",
    "custom-descriptors",
    "custom-page-sizes",
    "fp16",
    "multibyte",
    "relaxed-atomics",
    "shared-everything",
    "stack-switching",
    "strings",
)
_LARGE: Final = ("gc", "exception-handling", "reference-types")
"""What brings so many types and values of its own that little else is left in a module."""


class Kind(NamedTuple):
    """A kind of random module: proposals that are left out, and the module in `bases` that the fuzzer starts from."""

    without: tuple[str, ...]
    base: str | None = None


KINDS: Final = (
    Kind(()),
    Kind((*_LARGE, "memory64")),
    Kind((), "narrow"),
    Kind(_LARGE, "narrow"),
    Kind(_LARGE, "several"),
    Kind(_LARGE, "wide"),
    Kind((), "wide"),
)


def kind_of(seed: int) -> Kind:
    """Return the kind of the module that `seed` makes."""
    return KINDS[seed % len(KINDS)]


def generate(program: Path, seeds: Sequence[int], directory: Path) -> None:
    """Make `<seed>.wasm` in `directory` for each seed.

    Args:
        program: binaryen's `wasm-opt` for node.
        seeds: Any numbers.
        directory: Where to.

    Raises:
        RuntimeError: The fuzzer failed; its own words say how.
    """
    jobs = []
    for seed in seeds:
        source = directory / f"{seed}.in"
        dice = random.Random(seed)
        source.write_bytes(dice.randbytes(dice.randrange(200, 1500)))
        kind = kind_of(seed)
        without = [f"--disable-{name}" for name in (*_NOT_IN_WASMTIME, *kind.without)]
        base = [f"--initial-fuzz={HERE / 'bases' / kind.base}.wat"] if kind.base else []
        output = directory / f"{seed}.wasm"
        # wasmtime takes exceptions in the form that was standardized.
        jobs.append([str(source), "-ttf", "-all", *without, *base, "--translate-to-exnref", "-o", str(output)])
    command = ["node", str(HERE / "batch.js"), str(program)]
    done = subprocess.run(command, input=json.dumps(jobs), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"binaryen's fuzzer failed: {done.stderr[-2000:]}")
