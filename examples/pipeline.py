"""A pipeline of four processes, with the guest kit's queue and mutex: one sends the lines of a file, three take them."""

from __future__ import annotations

import struct
import sys
import typing
from pathlib import Path

from shmwasm import Runtime

PIPELINE = struct.Struct("<qIIQQ")  # as in pipeline.c: distance of the queue, mutex, lines, offset and length of the longest
WORKERS = 3


def main() -> int:
    """Find the longest line of a file (by default a module of the standard library), and compare with what Python finds."""
    path = Path(sys.argv[1] if len(sys.argv) > 1 else typing.__file__)
    size = path.stat().st_size
    with Runtime() as runtime:
        text = runtime.create_shared_heap(pre_allocated=path, read_only=True)
        heap = runtime.create_shared_heap(1 << 20)
        chain = runtime.chain_shared_heaps(heap, text)
        module = runtime.load(Path(__file__).with_name("pipeline.wasm"))
        splitter, *workers = (runtime.spawn(module, shared_heap=chain) for _ in range(1 + WORKERS))
        pipeline = splitter.call("create")
        taking = [worker.submit("work", pipeline) for worker in workers]
        splitter.call("split", pipeline, text.start, size)
        taken = sorted(future.result() for future in taking)
        _, _, count, offset, length = PIPELINE.unpack(heap.block_at(pipeline, PIPELINE.size).view)
    lines = path.read_bytes().split(b"\n")[:-1]
    longest = path.read_bytes()[offset : offset + length]
    same = sum(taken) == count == len(lines) and longest in lines and len(longest) == max(map(len, lines))
    print(f"{path.name}: {count} lines, taken by {WORKERS} processes; the longest: {longest.decode().strip()}")
    print("as Python finds it" if same else "NOT as Python finds it")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
