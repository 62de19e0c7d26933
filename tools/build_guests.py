"""Compile the guests that are committed as .wasm beside their C source: `python tools/build_guests.py [--check]`.

Needs the pinned `ziglang` of the `dev` extra. The result depends on the source alone, so `--check` can compare byte by byte.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIRECTORIES = ("shmwasm/guests", "examples", "benchmarks/guests")
FLAGS = (
    "-target",
    "wasm32-freestanding",
    # No bulk memory: `memory.copy` and `memory.fill` compare with the linear memory's length, so they trap in the window.
    "-mcpu=generic+atomics+simd128+mutable_globals+sign_ext",
    "-O3",
    "-std=c11",
    "-Wall",
    "-Wextra",
    "-Werror",
    # A heap's bytes are read as whatever type the guest needs; and no loop of ours becomes a call of memcpy.
    "-fno-strict-aliasing",
    "-fno-builtin",
    "-nostdlib",
    "-Wl,--no-entry",
    "-Wl,--export-memory",
    "-Wl,--strip-all",
)


def build(source: Path, target: Path) -> None:
    """Compile `source` to `target`.

    The compiler runs in the source's directory and gets no path, so that none can reach the output.
    """
    command = [sys.executable, "-m", "ziglang", "cc", *FLAGS, "-o", str(target), source.name]
    subprocess.run(command, cwd=source.parent, check=True)
    target.chmod(0o644)  # a module is no program of this machine


def differs(source: Path, scratch: Path) -> bool:
    """Tell whether the committed .wasm is not what `source` compiles to."""
    rebuilt = scratch / source.with_suffix(".wasm").name
    build(source, rebuilt)
    committed = source.with_suffix(".wasm")
    return not committed.is_file() or committed.read_bytes() != rebuilt.read_bytes()


def main(arguments: list[str]) -> int:
    """Build every guest, or compare each with what is committed; return the exit code."""
    sources = sorted(source for directory in DIRECTORIES for source in (ROOT / directory).glob("*.c"))
    if arguments == ["--check"]:
        with tempfile.TemporaryDirectory() as scratch:
            stale = [source.relative_to(ROOT) for source in sources if differs(source, Path(scratch))]
        for source in stale:
            print(f"{source.with_suffix('.wasm')} is not what {source} compiles to: run `make guests`")
        return 1 if stale else 0
    if arguments:
        print(__doc__)
        return 2
    for source in sources:
        build(source, source.with_suffix(".wasm"))
        print(source.with_suffix(".wasm").relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
