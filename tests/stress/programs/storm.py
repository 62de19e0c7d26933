"""A client whose workers are killed and stopped at random moments, while threads, coroutines and a pool call them.

Usage: storm.py GUEST OPERATIONS SEED [SOCKET]. Without a socket it has a private coordinator. Each of its actors makes so many
calls of the guest of `calls.wat`, whose answers are worked out here too. Says {"ended": {HOW: COUNT}, "killed": COUNT,
"problems": [TEXT]}.

Calls are counted where they are handed to the ring: a future hides it if its call ends twice.
"""

import asyncio
import collections
import concurrent.futures
import json
import logging
import os
import random
import signal
import sys
import threading
import time
import traceback
from functools import partial
from typing import Any, NamedTuple

from shmwasm import Runtime
from shmwasm.client.calls import RingCallPath
from shmwasm.errors import CallTimeoutError, WorkerLostError, WorkerTrapError
from shmwasm.testing.leaks import Snapshot, mark_descendants

FACTOR, INCREMENT = 0x5851F42D4C957F2D, 0x14057B7EF767814F
SEATS = 2
POOL = 2
THREADS = 3
COROUTINES = 6
AHEAD = 24
"""How many futures an actor has under way at most."""
CALLS_A_BLOW = 40
"""How many calls end at most between two blows at workers."""
MAPPED = 10
LONGEST_STOP = 0.02
PATIENCE = 60.0
CANCELLED = (concurrent.futures.CancelledError, asyncio.CancelledError)


def woven(seed, rounds):
    """Return what `weave` answers: in as many squarings as the number of rounds has bits."""
    factor, increment, value = FACTOR, INCREMENT, seed
    while rounds:
        if rounds & 1:
            value = (value * factor + increment) % (1 << 64)
        factor, increment = factor * factor % (1 << 64), (factor + 1) * increment % (1 << 64)
        rounds >>= 1
    return value - (1 << 64) if value >> 63 else value


class Operation(NamedTuple):
    """A call, its right result, and the error that it may end with instead."""

    export: str
    arguments: tuple[Any, ...]
    result: Any = None
    error: type[Exception] | None = None
    must_fail: bool = False
    timeout: float | None = None

    def on(self, call):
        """Return what makes it, given a method like `Instance.call`."""
        return partial(call, self.export, *self.arguments, timeout=self.timeout)

    @classmethod
    def weave(cls, rng, most, timeout=None):
        seed, rounds = rng.randrange(1 << 63), rng.randrange(most)
        error = None if timeout is None else CallTimeoutError
        return cls("weave", (seed, rounds), woven(seed, rounds), error, timeout=timeout)

    @classmethod
    def random(cls, rng):
        match rng.randrange(10):
            case 0:
                return cls("spin", (), None, CallTimeoutError, must_fail=True, timeout=rng.uniform(0.0005, 0.005))
            case 1:
                return cls("divide", (rng.randrange(9), 0), None, WorkerTrapError, must_fail=True)
            case 2:
                return cls.weave(rng, 4_000_000, timeout=0.001)
            case 3:
                return cls.weave(rng, 1_000_000)
            case 4:
                numbers = [rng.randrange(1 << 31), -rng.randrange(1 << 60), rng.random()]
                return cls("turn", tuple(numbers), numbers[::-1])
            case _:
                return cls.weave(rng, 500)


class Tally:
    """How calls ended, and whatever should not have happened."""

    def __init__(self):
        self.lock = threading.Lock()
        self.ended, self.problems = collections.Counter(), []
        self.begun, self.ends = 0, collections.Counter()

    def note(self, what):
        with self.lock:
            self.ended[what] += 1

    def problem(self, text):
        with self.lock:
            self.problems.append(text)

    def judge(self, operation, attempt, *, cancelled=False):
        """Note how a call ended, given what returns its result."""
        try:
            found = attempt()
        except BaseException as error:  # noqa: BLE001  each is looked at
            self.judge_error(operation, error, cancelled=cancelled)
        else:
            if operation.must_fail or found != operation.result:
                self.problem(f"{operation} returned {found}")
            self.note("returned")

    def judge_error(self, operation, error, *, cancelled=False):
        allowed = isinstance(error, WorkerLostError) and error.signal == signal.SIGKILL
        allowed |= operation.error is not None and isinstance(error, operation.error)
        allowed |= cancelled and isinstance(error, CANCELLED)
        if not allowed:
            self.problem(f"{operation} ended with {error!r}\n" + "".join(traceback.format_exception(error)))
        self.note(type(error).__name__)

    def watch_calls(self):
        """Count how often each asynchronous call ends."""
        start = RingCallPath.start

        def counted(path, call, *rest):
            ended = call.ended
            with self.lock:
                number = self.begun
                self.begun += 1

            def note(results, error):
                with self.lock:
                    self.ends[number] += 1
                ended(results, error)

            call.ended = note
            try:
                start(path, call, *rest)
            except BaseException:
                with self.lock:
                    self.ends[number] += 1  # it was refused
                raise

        RingCallPath.start = counted

    def check_calls(self):
        odd = [number for number in range(self.begun) if self.ends[number] != 1]
        if odd:
            self.problem(f"{len(odd)} of {self.begun} calls ended {sorted({self.ends[number] for number in odd})} times")


class Seat:
    """An instance, replaced when it is lost. The lost ones stay: others may be calling them."""

    def __init__(self, runtime, module):
        self.runtime, self.module, self.lock = runtime, module, threading.Lock()
        self.instances = [runtime.spawn(module)]

    def take(self):
        with self.lock:
            if not self.instances[-1].alive:
                self.instances.append(self.runtime.spawn(self.module))
            return self.instances[-1]

    def close(self):
        for instance in self.instances:
            instance.close()


class Storm:
    def __init__(self, runtime, guest, operations, rng):
        self.runtime, self.operations, self.rng = runtime, operations, rng
        self.tally, self.over, self.killed = Tally(), threading.Event(), 0
        self.tally.watch_calls()
        threading.excepthook = lambda raised: self.tally.problem(f"{raised.exc_value!r} in {raised.thread}")
        handler = logging.Handler(logging.WARNING)
        handler.emit = lambda record: self.tally.problem(logging.Formatter().format(record))
        logging.getLogger().addHandler(handler)
        self.module = runtime.load(guest)
        self.seats = [Seat(runtime, self.module) for _ in range(SEATS)]
        self.pool = runtime.pool(self.module, size=POOL)

    def run(self):
        actors = [self.call] * THREADS + [self.submit, self.submit_to_pool, self.map, self.await_calls]
        threads = [threading.Thread(target=actor, args=(random.Random(self.rng.random()),)) for actor in actors]
        killer = threading.Thread(target=self.kill, args=(random.Random(self.rng.random()),))
        for thread in (killer, *threads):
            thread.start()
        for thread in threads:
            thread.join()
        self.over.set()
        killer.join()
        self.check_survivors()
        for seat in self.seats:
            seat.close()
        self.pool.shutdown()
        self.module.close()
        self.tally.check_calls()

    def call(self, rng):
        for _ in range(self.operations):
            operation, instance = Operation.random(rng), rng.choice(self.seats).take()
            if operation.timeout is None and rng.random() < 0.7:
                self.tally.judge(operation, partial(getattr(instance.exports, operation.export), *operation.arguments))
            else:
                self.tally.judge(operation, operation.on(instance.call))

    def submit(self, rng):
        self.keep_under_way(rng, lambda: rng.choice(self.seats).take())

    def submit_to_pool(self, rng):
        self.keep_under_way(rng, lambda: self.pool)

    def keep_under_way(self, rng, choose):
        ahead = collections.deque()
        for _ in range(self.operations):
            operation = Operation.random(rng)
            future = operation.on(choose().submit)()
            cancelled = rng.random() < 0.2 and future.cancel()
            ahead.append((operation, future, cancelled))
            while len(ahead) > rng.randrange(AHEAD):
                self.await_future(*ahead.popleft())
        while ahead:
            self.await_future(*ahead.popleft())

    def await_future(self, operation, future, cancelled):
        self.tally.judge(operation, partial(future.result, PATIENCE), cancelled=cancelled)
        if cancelled and not future.cancelled():
            self.tally.problem(f"{operation} was cancelled, and was not")

    def map(self, rng):
        for _ in range(max(1, self.operations // MAPPED)):
            seeds = [rng.randrange(1 << 63) for _ in range(MAPPED)]
            expected = iter([woven(seed, 700) for seed in seeds])
            operation = Operation("map", ())
            try:
                for found in self.pool.map("weave", seeds, [700] * len(seeds)):
                    if found != next(expected):
                        self.tally.problem("a result of a map is wrong")
            except WorkerLostError as error:
                self.tally.judge_error(operation, error)
            else:
                self.tally.note("mapped")

    def await_calls(self, rng):
        async def one(rng):
            for _ in range(self.operations // COROUTINES):
                operation, instance = Operation.random(rng), rng.choice(self.seats).take()
                task = asyncio.ensure_future(operation.on(instance.call_async)())
                cancelled = rng.random() < 0.3
                if cancelled:
                    await asyncio.sleep(rng.choice([0, 0.0002, 0.003]))
                    task.cancel()
                await asyncio.wait([task])
                self.tally.judge(operation, task.result, cancelled=cancelled)

        async def all_at_once():
            await asyncio.gather(*(one(random.Random(rng.random())) for _ in range(COROUTINES)))

        asyncio.run(all_at_once())

    def kill(self, rng):
        due = 0
        while not self.over.wait(rng.random() * 0.003):
            # By the calls that have ended, not by the clock: so there is time for some, however slow the machine is.
            if self.tally.ended.total() < due:
                continue
            due = self.tally.ended.total() + rng.randrange(CALLS_A_BLOW)
            instances = [seat.instances[-1] for seat in self.seats] + self.pool.instances
            with_pid = [instance for instance in instances if instance.alive]
            if not with_pid:
                continue
            victim = rng.choice(with_pid)
            try:
                pidfd = os.pidfd_open(victim.pid)
            except ProcessLookupError:
                continue
            try:
                # The process of that number is the worker as long as the coordinator has not said that the worker is gone.
                if not victim.alive:
                    continue
                if rng.random() < 0.4:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    self.killed += 1
                else:
                    signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
                    time.sleep(rng.random() * LONGEST_STOP)
                    signal.pidfd_send_signal(pidfd, signal.SIGCONT)
            except ProcessLookupError:
                continue
            finally:
                os.close(pidfd)

    def check_survivors(self):
        operation = Operation.weave(self.rng, 1000)._replace(timeout=PATIENCE)
        for instance in [seat.take() for seat in self.seats]:
            self.tally.judge(operation, operation.on(instance.call))
            self.tally.judge(operation, operation.on(instance.submit)().result)
        deadline = time.monotonic() + PATIENCE
        while not (len(self.pool.instances) == POOL and all(one.alive for one in self.pool.instances)):
            assert time.monotonic() < deadline, "the pool's lost instances were not replaced"
            time.sleep(0.005)
        for instance in self.pool.instances:
            self.tally.judge(operation, operation.on(instance.call))
        self.runtime.verify()


def main(guest, operations, seed, socket=None):
    with Runtime() as first:  # what is made at the first use is nobody's leftover
        first.create_shared_heap(1).close()
    snapshot = Snapshot(mark_descendants())
    with Runtime(connect=socket) as runtime:
        storm = Storm(runtime, guest, operations, random.Random(seed))
        storm.run()
    # Names in /dev/shm are looked at by the test: there they are told from other programs'.
    left = [one for one in snapshot.leftovers() if not one.startswith("/dev/shm/")]
    problems = storm.tally.problems + [f"left behind: {one}" for one in left]
    print(json.dumps({"ended": storm.tally.ended, "killed": storm.killed, "problems": problems}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
