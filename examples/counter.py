"""Two instances, two processes, one atomic counter: not one increment is lost."""

from __future__ import annotations

import sys
from pathlib import Path

from shmwasm import Runtime

TIMES = 2_000_000


def main() -> int:
    """Let two instances count at once, and compare with what they were told to add."""
    with Runtime() as runtime:
        heap = runtime.create_shared_heap(1 << 20)
        counter = heap.calloc(8)
        module = runtime.load(Path(__file__).with_name("counter.wasm"))
        with runtime.spawn(module, shared_heap=heap) as first, runtime.spawn(module, shared_heap=heap) as second:
            for future in [first.submit("add", counter, TIMES), second.submit("add", counter, TIMES)]:
                future.result()
        count = int.from_bytes(counter.view[:8], "little")

    print(f"two instances added {TIMES} each: the counter says {count}")
    return 0 if count == 2 * TIMES else 1


if __name__ == "__main__":
    sys.exit(main())
