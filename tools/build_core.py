"""Compile the core to shmwasm/core/core.wasm: `python tools/build_core.py [--check]`.

Needs the pinned `ziglang` of the `dev` extra. The result depends on the source alone, so `--check` can compare byte by byte.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

CORE = Path(__file__).resolve().parent.parent / "shmwasm" / "core"
COMMITTED = CORE / "core.wasm"
SOURCES = ("src/allocator.c", "src/authority.c", "src/heaps.c", "src/inspect.c", "src/ring.c", "src/slabs.c")
FLAGS = (
    "-target",
    "wasm32-freestanding",
    # No bulk memory: `memory.copy` and `memory.fill` compare with the linear memory's length, so they trap in the window.
    "-mcpu=generic+atomics+simd128+mutable_globals+sign_ext",
    "-O2",
    "-std=c17",
    "-Wall",
    "-Wextra",
    "-Wconversion",
    "-Werror",
    # The same bytes are read as single states and as words of eight; and no loop of ours becomes a call of memset.
    "-fno-strict-aliasing",
    "-fno-builtin",
    "-nostdlib",
    "-Wl,--no-entry",
    "-Wl,--export-memory",
    "-Wl,--strip-all",
    "-Wl,-z,stack-size=16384",
    # The private state of about 30 heaps at once; it grows on demand up to where the windows start.
    "-Wl,--initial-memory=4194304",
    "-Wl,--max-memory=268435456",
)


def build(target: Path) -> None:
    """Compile the core to `target`.

    The compiler runs in the sources' directory and gets relative paths, so that none of this machine's can reach the output.
    """
    command = [sys.executable, "-m", "ziglang", "cc", *FLAGS, "-o", str(target), *SOURCES]
    subprocess.run(command, cwd=CORE, check=True)
    target.chmod(0o644)  # a module is no program of this machine


def main(arguments: list[str]) -> int:
    """Build the core, or compare it with what is committed; return the exit code."""
    if arguments == ["--check"]:
        with tempfile.TemporaryDirectory() as scratch:
            rebuilt = Path(scratch) / COMMITTED.name
            build(rebuilt)
            same = COMMITTED.is_file() and COMMITTED.read_bytes() == rebuilt.read_bytes()
        if not same:
            print("core.wasm is not what its source compiles to: run `make core`")
        return 0 if same else 1
    if arguments:
        print(__doc__)
        return 2
    build(COMMITTED)
    print(f"{COMMITTED.name}: {COMMITTED.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
