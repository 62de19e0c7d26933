"""A client that does what it is told, a JSON array a line.

Usage: neighbour.py SOCKET. It works in the heap "common". Commands:

["hold", COUNT, SIZE]: allocate blocks; says its owner number and the blocks' app addresses.
["release"]: free all that it holds; says how many those were.
["take", ADDRESSES]: free these blocks, whoever allocated them; says how many.
["churn", ROUNDS, SEED]: allocate and free at random; says how many blocks it allocated.
["chain", ROUNDS, SEED]: create, chain, fill, unchain and close heaps of its own; says how many.
["unpickle", HEX]: say the first bytes of a pickled block, in hex, and write b"read" over them.
["pickle", SIZE]: allocate a block, and say it pickled, in hex.
"""

import json
import os
import pickle
import random
import sys

from shmwasm import Runtime
from shmwasm.errors import HeapExhaustedError


class Neighbour:
    def __init__(self, socket):
        self.runtime = Runtime(connect=socket)
        self.heap = self.runtime.open_shared_heap("common")
        self.held = []

    def hold(self, count, size):
        new = [self.heap.malloc_address(size) for _ in range(count)]
        self.held += new
        return [self.runtime._welcome.peer, new]

    def release(self):
        count = len(self.held)
        while self.held:
            self.heap.free(self.held.pop())
        return count

    def take(self, addresses):
        for address in addresses:
            self.heap.free(address)
        return len(addresses)

    def churn(self, rounds, seed):
        rng, own, allocated = random.Random(seed), {}, 0
        for _ in range(rounds):
            if own and rng.random() < 0.5:
                block, mark = own.popitem()
                assert bytes(block.view[:8]) == mark
                block.free()
                continue
            try:
                size = rng.choice([8, 24, 200, 3000, 20_000, 100_000])
                block = self.heap.malloc(size, alignment=rng.choice([16, 16, 128, 4096]))
            except HeapExhaustedError:
                continue
            allocated += 1
            mark = os.urandom(8)
            block.view[:8] = mark
            own[block] = mark
        for block in own:
            block.free()
        return allocated

    def chain(self, rounds, seed):
        rng = random.Random(seed)
        for _ in range(rounds):
            heaps = [self.runtime.create_shared_heap(rng.choice([1, 3, 10]) << 16) for _ in range(rng.choice([2, 3, 4]))]
            head = heaps[-1]
            for heap in reversed(heaps[:-1]):
                head = self.runtime.chain_shared_heaps(heap, head)
            assert sum(heap.size for heap in heaps) == (1 << 32) - head.start
            blocks = [heap.malloc(rng.randrange(1, 60_000)) for heap in heaps]
            if rng.random() < 0.5:
                self.runtime.unchain_shared_heaps(head, entire_chain=True)
            for block in blocks:
                block.free()
            for heap in heaps:
                heap.close()
        return rounds

    def unpickle(self, text):
        block = pickle.loads(bytes.fromhex(text))
        found = bytes(block.view[:8]).hex()
        block.view[:4] = b"read"
        return found

    def pickle(self, size):
        block = self.heap.malloc(size)
        block.view[:8] = b"from one"
        return pickle.dumps(block).hex()


def main(socket):
    neighbour = Neighbour(socket)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        print(json.dumps(getattr(neighbour, command)(*arguments)), flush=True)
    neighbour.runtime.close()


if __name__ == "__main__":
    main(sys.argv[1])
