"""Word count: a file is mapped, not read, as a read-only heap; the counts come back in a managed heap chained to it.

`python word_count.py [FILE]`; without a file, the longest source file of the standard library is taken.
"""

from __future__ import annotations

import struct
import sys
import sysconfig
from itertools import repeat
from pathlib import Path

from shmwasm import Runtime

RESULT = struct.Struct("<II")  # words, letters
PARTS = 16


def longest_library_file() -> Path:
    """Return the longest .py file of the standard library's top directory and its packages."""
    library = Path(sysconfig.get_path("stdlib"))
    return max([*library.glob("*.py"), *library.glob("*/*.py")], key=lambda path: path.stat().st_size)


def main() -> int:
    """Count the words of a file in a pool, and compare with Python's own count."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else longest_library_file()
    length = path.stat().st_size

    with Runtime() as runtime:
        text = runtime.create_shared_heap(pre_allocated=path, read_only=True)  # guests that try to write it trap
        results = runtime.create_shared_heap(1 << 20)
        chain = runtime.chain_shared_heaps(results, text)

        table = results.malloc(RESULT.size * PARTS)
        cuts = [text.start + length * part // PARTS for part in range(PARTS + 1)]
        slots = [table.address + RESULT.size * part for part in range(PARTS)]

        module = runtime.load(Path(__file__).with_name("word_count.wasm"))
        with runtime.pool(module, size=2, shared_heap=chain) as pool:
            list(pool.map("count_words", repeat(text.start), cuts[:-1], cuts[1:], slots))

        words, letters = (sum(column) for column in zip(*RESULT.iter_unpack(table.view[: RESULT.size * PARTS]), strict=True))

    expected = path.read_bytes().split()
    same = words == len(expected) and letters == sum(map(len, expected))
    print(f"{path}: {words} words, {letters} letters: {'as' if same else 'NOT as'} Python counts them")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
