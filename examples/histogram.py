"""A histogram of a file, by guests in Rust: each counts a part of the file, a read-only heap, and all add up."""

from __future__ import annotations

import sys
import typing
from collections import Counter
from itertools import pairwise, repeat
from pathlib import Path

from shmwasm import Runtime

PARTS = 8


def main() -> int:
    """Count the bytes of a file (by default a module of the standard library) in a pool, and compare with Python's count."""
    path = Path(sys.argv[1] if len(sys.argv) > 1 else typing.__file__)
    length = path.stat().st_size
    with Runtime() as runtime:
        file = runtime.create_shared_heap(pre_allocated=path, read_only=True)
        heap = runtime.create_shared_heap(1 << 20)
        chain = runtime.chain_shared_heaps(heap, file)
        totals = heap.calloc(256, 4)
        cuts = [length * part // PARTS for part in range(PARTS + 1)]
        starts = [file.start + cut for cut in cuts[:-1]]
        lengths = [end - start for start, end in pairwise(cuts)]
        module = runtime.load(Path(__file__).with_name("histogram.wasm"))
        with runtime.pool(module, size=2, shared_heap=chain) as pool:
            done = list(pool.map("count", starts, lengths, repeat(totals)))
        counts = totals.view.cast("I").tolist()
        left = heap.statistics().live_blocks
    expected = Counter(path.read_bytes())
    same = all(done) and counts == [expected[value] for value in range(256)] and left == 1
    print(f"{path.name}: {sum(counts)} bytes, {counts[32]} of them spaces: {'as' if same else 'NOT as'} Python counts them")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
