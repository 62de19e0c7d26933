"""Compile the guests that are committed as .wasm beside their source: `python tools/build_guests.py [--check]`.

Needs the pinned `ziglang` of the `dev` extra. The result depends on the source alone, so `--check` can compare byte by byte.
The guests in Rust and AssemblyScript need compilers that are no Python packages: they are built as their sources say, and not
checked.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
INCLUDE = ROOT / "shmwasm" / "include"
DIRECTORIES = ("shmwasm/guests", "examples", "benchmarks/guests", "tests/integration/guests")
BOTH_SIZES = {"tests/integration/guests/kit.c", "tests/integration/guests/kit_zig.zig"}
"""What is also compiled for 64-bit memories, to `NAME64.wasm`."""

FEATURES = "generic+atomics+simd128"
C_FLAGS = (
    f"-mcpu={FEATURES}",
    "-O3",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-fno-strict-aliasing",  # a heap's bytes are read as whatever type the guest needs
    "-nostdlib",
    "-Wl,--no-entry",
    "-Wl,--export-memory",
    "-Wl,--strip-all",
)
CPP_FLAGS = ("-std=c++17", "-fno-exceptions", "-fno-rtti")
ZIG_FLAGS = ("-mcpu", FEATURES, "-O", "ReleaseFast", "-fno-entry", "-rdynamic", "-fstrip", "--dep", "shmwasm")


class Guest(NamedTuple):
    """One module: its source, what it is compiled to, and for how wide a memory."""

    source: Path
    target: Path
    bits: int


def guests() -> Iterator[Guest]:
    """Yield every guest, in order of its name."""
    for directory in DIRECTORIES:
        sources = (path for path in (ROOT / directory).iterdir() if path.suffix in {".c", ".cpp", ".zig"})
        for source in sorted(sources):
            yield Guest(source, source.with_suffix(".wasm"), 32)
            if str(source.relative_to(ROOT)) in BOTH_SIZES:
                yield Guest(source, source.with_name(f"{source.stem}64.wasm"), 64)


def command(guest: Guest, target: Path) -> list[str]:
    """Return how to compile a guest to `target`, in its source's directory. No path of this machine may reach the output."""
    zig = [sys.executable, "-m", "ziglang"]
    include = os.path.relpath(INCLUDE, guest.source.parent)
    wasm = f"wasm{guest.bits}-freestanding"
    match guest.source.suffix:
        case ".zig":
            modules = [f"-Mroot={guest.source.name}", f"-Mshmwasm={include}/shmwasm.zig"]
            return [*zig, "build-exe", "-target", wasm, *ZIG_FLAGS, *modules, f"-femit-bin={target}"]
        case ".cpp":
            return [*zig, "c++", "-target", wasm, *CPP_FLAGS, *C_FLAGS, f"-I{include}", "-o", str(target), guest.source.name]
        case _:
            return [*zig, "cc", "-target", wasm, "-std=c11", *C_FLAGS, f"-I{include}", "-o", str(target), guest.source.name]


def build(guest: Guest, target: Path) -> None:
    """Compile a guest to `target`."""
    subprocess.run(command(guest, target), cwd=guest.source.parent, check=True)
    target.chmod(0o644)  # a module is no program of this machine


def differs(guest: Guest, scratch: Path) -> bool:
    """Tell whether the committed .wasm is not what the source compiles to."""
    rebuilt = scratch / guest.target.name
    build(guest, rebuilt)
    return not guest.target.is_file() or guest.target.read_bytes() != rebuilt.read_bytes()


def main(arguments: list[str]) -> int:
    """Build every guest, or compare each with what is committed; return the exit code."""
    if arguments == ["--check"]:
        with tempfile.TemporaryDirectory() as scratch:
            stale = [guest for guest in guests() if differs(guest, Path(scratch))]
        for guest in stale:
            print(f"{guest.target.relative_to(ROOT)} is not what {guest.source.name} compiles to: run `make guests`")
        return 1 if stale else 0
    if arguments:
        print(__doc__)
        return 2
    for guest in guests():
        build(guest, guest.target)
        print(guest.target.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
