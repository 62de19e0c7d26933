"""A linked list: one instance builds it with the guest's own malloc, another process's instance walks it and frees it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from shmwasm import Runtime

COUNT = 10_000


def main() -> int:
    """Build, walk and free a list in two processes, and compare with the host's sum."""
    with Runtime() as runtime:
        heap = runtime.create_shared_heap(4 << 20)
        module = runtime.load(Path(__file__).with_name("linked_list.wasm"))
        with runtime.spawn(module, shared_heap=heap) as builder, runtime.spawn(module, shared_heap=heap) as walker:
            head: Any = builder.call("build", COUNT)  # an app address: it means the same in every instance
            total = walker.call("sum", head)
            freed = walker.call("destroy", head)
            print(f"process {builder.pid} built {COUNT} nodes, process {walker.pid} walked them: their sum is {total}")

    same = (total, freed) == (sum(i * i for i in range(COUNT)), COUNT)
    if not same:
        print(f"the sum should be {sum(i * i for i in range(COUNT))}; {freed} nodes were freed")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
