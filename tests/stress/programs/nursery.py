"""Fork clients and kill each at a random moment of its life.

Usage: nursery.py COUNT AT_ONCE SEED GUEST [SOCKET]. Without a socket each client has a private coordinator. Says the address of
every coordinator that was reached, a line each, then null.

The nursery itself uses nothing of the package that could start a thread, so its children begin clean.
"""

import contextlib
import json
import os
import random
import select
import signal
import sys
import time
import traceback

from shmwasm import Runtime
from shmwasm.errors import HeapExhaustedError

ENTRIES = 64
LONGEST_LIFE = 60.0


class Life:
    """What a client does until it is killed: random steps, each announced by a byte to `pipe`."""

    def __init__(self, rng, guest, socket, pipe):
        self.rng, self.guest, self.socket, self.pipe = rng, guest, socket, pipe

    def live(self):
        deadline = time.monotonic() + LONGEST_LIFE
        while time.monotonic() < deadline:
            self.step()
            self.runtime = Runtime(connect=self.socket)
            os.write(1, json.dumps(self.runtime.address).encode() + b"\n")
            self.heaps, self.instances, self.blocks = [], [], []
            self.module = self.runtime.load(self.guest)
            self.create()
            for _ in range(self.rng.randrange(5, 40)):
                self.step()
                self.rng.choice([self.create, self.chain, self.unchain, self.spawn, self.attach, self.call, self.malloc,
                                 self.malloc, self.common, self.close_one])()  # fmt: skip
            self.step()
            self.runtime.close()

    def step(self):
        os.write(self.pipe, b".")

    def create(self):
        if len(self.heaps) < 6:
            self.heaps.append(self.runtime.create_shared_heap(self.rng.choice([1 << 16, 1 << 20, 4 << 20])))

    def chain(self):
        with contextlib.suppress(Exception):  # many of these are refused, and rightly
            self.runtime.chain_shared_heaps(*self.rng.sample(self.heaps, 2))

    def unchain(self):
        with contextlib.suppress(Exception):
            self.runtime.unchain_shared_heaps(self.rng.choice(self.heaps), entire_chain=True)

    def spawn(self):
        if len(self.instances) < 2:
            with contextlib.suppress(Exception):
                self.instances.append(self.runtime.spawn(self.module, shared_heap=self.rng.choice([None, *self.heaps])))

    def attach(self):
        for instance in self.instances:
            with contextlib.suppress(Exception):
                instance.detach_shared_heap()
            with contextlib.suppress(Exception):
                instance.attach_shared_heap(self.rng.choice(self.heaps), read_only=self.rng.random() < 0.2)

    def call(self):
        for instance in self.instances:
            heap = instance.shared_heap
            if heap in self.heaps:
                with contextlib.suppress(HeapExhaustedError):
                    instance.submit("churn", heap.calloc(ENTRIES, 4), ENTRIES, 20_000, self.rng.randrange(1 << 31))

    def malloc(self):
        heap = self.rng.choice(self.heaps)
        for _ in range(60):
            with contextlib.suppress(HeapExhaustedError):
                size = self.rng.choice([8, 100, 5000, 70_000])
                self.blocks.append(heap.malloc(size, alignment=self.rng.choice([16, 64, 65536])))
        self.rng.shuffle(self.blocks)
        while len(self.blocks) > 100:
            block = self.blocks.pop()
            if block.heap in self.heaps:
                block.free()

    def common(self):
        if self.socket is not None:
            heap = self.runtime.open_shared_heap("common")  # and never closed: only a process's end frees its blocks
            for size in (16, 1000, 40_000, 100_000):
                with contextlib.suppress(HeapExhaustedError):
                    heap.malloc(size).view[0] = 1

    def close_one(self):
        if self.rng.random() < 0.5 and self.instances:
            self.instances.pop().close()
        elif len(self.heaps) > 1:
            self.heaps.pop().close()


class Child:
    """A forked client with the moment of its death: `delay` seconds after its step number `steps`."""

    def __init__(self, rng, guest, socket):
        self.steps, self.delay = rng.choice([1, 2, 3, 5, 8, rng.randrange(25)]), rng.random() * rng.choice([0.002, 0.02, 0.1])
        seed = rng.randrange(1 << 32)
        self.pipe, theirs = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            try:
                Life(random.Random(seed), guest, socket, theirs).live()
            except BaseException:  # noqa: BLE001  whatever it is must not end in the nursery's code
                traceback.print_exc()
            os._exit(1)
        os.close(theirs)
        self.due = None if self.steps else time.monotonic()

    def note_steps(self):
        seen = len(os.read(self.pipe, 1024))
        self.steps -= seen
        if not seen or self.steps <= 0:
            self.due = time.monotonic() + (self.delay if seen else 0)

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        os.close(self.pipe)
        assert os.WIFSIGNALED(status), "a client ended before it was killed"


def main(count, at_once, seed, guest, socket=None):
    rng = random.Random(seed)
    children = []
    while count or children:
        while count and len(children) < at_once:
            children.append(Child(rng, guest, socket))
            count -= 1
        waiting = [child for child in children if child.due is None]
        patience = max(0.0, min((child.due for child in children if child.due is not None), default=1e9) - time.monotonic())
        for child in select.select(waiting, [], [], min(patience, LONGEST_LIFE))[0]:
            child.note_steps()
        for child in [child for child in children if child.due is not None and child.due <= time.monotonic()]:
            children.remove(child)
            child.kill()
    os.write(1, b"null\n")


Child.fileno = lambda self: self.pipe

if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
