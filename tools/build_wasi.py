"""Make WASI's adapters, shmwasm/engine/wasi/*.wasm, from the table of its functions: `python tools/build_wasi.py [--check]`."""

from __future__ import annotations

import sys

import wasmtime

from shmwasm.engine.wasi.code import ADAPTERS
from shmwasm.engine.wasi.text import adapters


def main(arguments: list[str]) -> int:
    """Make the modules, or compare them with what is committed; return the exit code."""
    if arguments not in ([], ["--check"]):
        print(__doc__)
        return 2
    stale = []
    for name, text in adapters().items():
        content = bytes(wasmtime.wat2wasm(text))
        path = ADAPTERS[name]
        if not arguments:
            path.write_bytes(content)
        elif not path.is_file() or path.read_bytes() != content:
            stale.append(path.name)
    if stale:
        print(f"{', '.join(stale)}: not what the table makes; run `make wasi`")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
