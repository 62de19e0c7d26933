"""A client whose workers are killed and stopped at random moments, while threads, coroutines and a pool call them.

Usage: storm.py GUEST OPERATIONS SEED [SOCKET]. Without a socket it has a private coordinator. Each of its actors makes so many
calls of the guest of `calls.wat`, whose answers are worked out here too. Says {"ended": {HOW: COUNT}, "killed": COUNT,
"problems": [TEXT]}.
"""

import asyncio
import collections
import random
import sys
import threading
import time
from functools import partial
from typing import Any, NamedTuple

from chaos import CANCELLED, Tally, keep_striking, report, woven

from shmwasm.errors import CallTimeoutError, WorkerLostError, WorkerTrapError
from waiting import PATIENCE

SEATS = 2
POOL = 2
THREADS = 3
COROUTINES = 6
AHEAD = 24
"""How many futures an actor has under way at most."""
CALLS_A_BLOW = 40
"""How many calls end at most between two blows at workers."""
MAPPED = 10


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


class Judge(Tally):
    """Looks at how operations end."""

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
        allowed = self.was_killed(error)
        allowed |= operation.error is not None and isinstance(error, operation.error)
        allowed |= cancelled and isinstance(error, CANCELLED)
        if not allowed:
            self.unexpected(operation, error)
        self.note(type(error).__name__)


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
        self.tally, self.over = Judge(), threading.Event()
        self.tally.watch_calls()
        self.module = runtime.load(guest)
        self.seats = [Seat(runtime, self.module) for _ in range(SEATS)]
        self.pool = runtime.pool(self.module, size=POOL)

    def run(self):
        actors = [self.call] * THREADS + [self.submit, self.submit_to_pool, self.map, self.await_calls]
        threads = [threading.Thread(target=actor, args=(random.Random(self.rng.random()),)) for actor in actors]
        rng, ended = random.Random(self.rng.random()), self.tally.ended
        striking = (self.tally, self.over, partial(self.choose, rng), ended.total, CALLS_A_BLOW, rng)
        killer = threading.Thread(target=keep_striking, args=striking)
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

    def choose(self, rng):
        """Return a worker's process, and how to know it again: as long as the coordinator has not said that it is gone."""
        instances = [seat.instances[-1] for seat in self.seats] + self.pool.instances
        alive = [instance for instance in instances if instance.alive]
        if not alive:
            return None
        victim = rng.choice(alive)
        return victim.pid, lambda: victim.alive

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
    def run(runtime):
        storm = Storm(runtime, guest, operations, random.Random(seed))
        storm.run()
        return storm.tally

    report(run, socket)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
