"""A program whose user presses Ctrl-C at random moments, and that goes on.

Usage: interrupted.py GUEST ROUNDS SEED. The signals are real ones, from another process, which sends one whenever this program
asks for it, at a random moment soon after. Says how many of its waits were interrupted.
"""

import asyncio
import contextlib
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from concurrent.futures import wait

from shmwasm import Runtime
from shmwasm.core import layout
from shmwasm.errors import BusyError, CallTimeoutError
from shmwasm.testing.leaks import Snapshot, mark_descendants
from waiting import PATIENCE

LONGEST_SPIN = 5.0
ALL = 8


class Keyboard:
    """Another process, that presses Ctrl-C once for each time that it is asked to."""

    def __init__(self, seed):
        ours, theirs = multiprocessing.Pipe()
        self.asked = ours
        self.parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            ours.close()
            self.press(theirs, random.Random(seed))
            os._exit(0)
        theirs.close()

    def press(self, asked, rng):
        while True:
            try:
                asked.recv_bytes()
            except EOFError:
                return
            time.sleep(rng.choice([0.0005, 0.005, 0.02]) * rng.random())
            os.kill(self.parent, signal.SIGINT)

    def ask(self):
        self.asked.send_bytes(b".")

    def close(self):
        self.asked.close()
        os.waitpid(self.pid, 0)


class Program:
    def __init__(self, runtime, guest, rng, keyboard):
        self.runtime, self.rng, self.keyboard = runtime, rng, keyboard
        self.module = runtime.load(guest)
        self.pool = runtime.pool(self.module, size=2)
        self.instance = runtime.spawn(self.module)
        self.loop = asyncio.new_event_loop()
        self.interrupted, self.armed, self.looping = 0, False, False
        signal.signal(signal.SIGINT, self.handle)

    def handle(self, *_):
        if self.armed:
            self.armed = False  # once, as a user presses it
            if not self.looping:
                raise KeyboardInterrupt
            self.loop.call_soon_threadsafe(self.cancel_all)

    def interrupt(self, work):
        """Do something over and over, until Ctrl-C is pressed."""
        self.armed = True
        try:
            self.keyboard.ask()
            while self.armed:
                work()
        except KeyboardInterrupt:
            self.interrupted += 1
        finally:
            self.armed = False

    def run(self, rounds):
        works = [
            self.call,
            self.spin,
            self.call_with_limit,
            self.submit,
            self.submit_to_pool,
            self.map,
            self.wait_for_many,
            self.await_calls,
        ]
        for number in range(rounds):
            self.interrupt(works[number % len(works)])
            self.check()
        self.check_that_no_slot_is_lost()
        self.pool.shutdown()
        self.instance.close()
        self.module.close()
        self.loop.close()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which does not refer to this

    def call(self):
        self.instance.call("weave", 1, self.rng.randrange(3000))

    def spin(self):
        with contextlib.suppress(CallTimeoutError):  # Python loses what a handler raises in a finalizer
            self.instance.call("spin", timeout=LONGEST_SPIN)

    def call_with_limit(self):
        self.instance.call("weave", 1, 1000, timeout=PATIENCE)

    def submit(self):
        self.instance.submit("weave", 1, 10_000).result(PATIENCE)

    def submit_to_pool(self):
        self.pool.submit("weave", 1, 10_000).result(PATIENCE)

    def map(self):
        list(self.pool.map("weave", range(20), [1000] * 20))

    def wait_for_many(self):
        wait([self.pool.submit("weave", 1, 1000) for _ in range(ALL)], PATIENCE)

    def await_calls(self):
        async def some():
            await asyncio.gather(*(self.instance.call_async("weave", 1, 5000) for _ in range(ALL)))

        # An event loop is not made for what raises anywhere: as asyncio's own handler does, this one cancels the tasks.
        self.looping = True
        try:
            self.loop.run_until_complete(some())
        except asyncio.CancelledError:
            self.interrupted += 1
        finally:
            self.looping = False

    def cancel_all(self):
        for task in asyncio.all_tasks(self.loop):
            task.cancel()

    def check(self):
        """The pool and the instance answer, and rightly."""
        number = self.rng.randrange(1000)
        assert self.instance.call("turn", 1, number, 0.5, timeout=PATIENCE) == [0.5, number, 1]
        assert [future.result(PATIENCE) for future in [self.pool.submit("divide", number, 1) for _ in range(4)]] == [number] * 4

    def check_that_no_slot_is_lost(self):
        deadline = time.monotonic() + PATIENCE
        while True:
            futures = []
            try:
                for number in range(layout.RING_SLOTS):
                    futures.append(self.instance.submit("divide", number, 1, wait=False))  # noqa: PERF401  some may be refused
            except BusyError:
                assert time.monotonic() < deadline, "a slot of the ring is lost"
                wait(futures, PATIENCE)
                continue
            assert [future.result(PATIENCE) for future in futures] == list(range(layout.RING_SLOTS))
            return


def main(guest, rounds, seed):
    rng = random.Random(seed)
    keyboard = Keyboard(rng.random())
    with Runtime() as first:  # what is made at the first use is nobody's leftover
        first.create_shared_heap(1).close()
    snapshot = Snapshot(mark_descendants())
    with Runtime() as runtime:
        program = Program(runtime, guest, rng, keyboard)
        program.run(rounds)
        runtime.verify()
        interrupted = program.interrupted
        del program
    keyboard.close()
    print(
        json.dumps(
            {"interrupted": interrupted, "left": [one for one in snapshot.leftovers() if not one.startswith("/dev/shm/")]}
        ),
        flush=True,
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
