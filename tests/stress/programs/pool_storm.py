"""Pools of one kind, whose workers are killed and stopped at random moments, under calls and maps of every kind.

Usage: pool_storm.py GUEST LOAD SECONDS SEED [SOCKET]. LOAD is one of `pool_loads.LOADS`, or "mixed" for pools with options at
random. Without a socket it has a private coordinator. Three pools share the time, and get more if it is not enough to see what is
to be seen. The first one's statistics must be exact, so nothing happens to it that nobody sees; to the second all kinds of things
happen; the third is ended in the middle of its calls, or with its runtime. Says {"ended": {HOW: COUNT}, "killed": COUNT,
"problems": [TEXT]}.
"""

import asyncio
import collections
import faulthandler
import random
import sys
import threading
import time
from functools import partial

from chaos import CANCELLED, Tally, keep_striking, report
from pool_loads import CELLS, ENOUGH_FUEL, FEW_ROUNDS, LOADS, LONGEST_IDLE, PAGE, Desk, Judge, random_load
from pool_maps import Maps

from processes import children_of
from shmwasm.errors import ClosedError, FuelExhaustedError
from waiting import PATIENCE

COROUTINES = 4
LONGEST_ENDLESS = 0.05
"""Seconds after which a task is cancelled whose call does not end by itself."""
BATCH = 200
"""How many calls an actor makes at most before it looks around."""
AHEAD = 24
"""How many futures an actor has under way at most."""
CALLS_A_BLOW = 30
"""How many calls end at most between two blows at workers, those of maps not counted."""
SEEN = ("returned", "WorkerLostError", "mapped")


class PoolStorm:
    """One pool, its actors, and who strikes its workers."""

    def __init__(self, runtime, module, load, judge, desk, rng, *, exact):
        self.runtime, self.load, self.judge, self.desk, self.rng, self.exact = runtime, load, judge, desk, rng, exact
        self.tally, self.over, self.peace = judge.tally, threading.Event(), threading.Event()
        self.least = load.options.get("min_size", load.options.get("size"))
        self.most = load.options.get("max_size", load.options.get("size"))
        self.pool = runtime.pool(module, shared_heap=desk.heap, init=("prepare", desk.tickets), **load.options)
        actors = [self.submit, self.submit, self.await_calls, self.map, self.map] + [self.call_all] * (not exact)
        self.actors = [self.thread(self.until_closed, actor) for actor in actors]
        self.striker = self.thread(self.strike)

    def thread(self, target, *arguments):
        return threading.Thread(target=target, args=(*arguments, random.Random(self.rng.random())))

    def begin(self):
        for thread in (*self.actors, self.striker):
            thread.start()

    def go_on_until(self, deadline, seen):
        """Wait until the time is over and all that is to be seen has been seen."""
        patience = time.monotonic() + PATIENCE
        while not self.over.wait(0.01) and (time.monotonic() < deadline or not all(self.tally.ended[one] for one in seen)):
            found = self.pool.statistics()
            for sight, is_seen in (
                ("recycled", found.replaced > len(self.tally.struck)),
                ("grown", found.size > self.least),
            ):
                self.tally.ended[sight] += is_seen
            # A worker of fresh calls goes on until the one is there that takes its place.
            if found.size + found.starting > self.most * (2 if "fresh" in self.load.options else 1):
                self.tally.problem(f"the pool is too large: {found}")
            if time.monotonic() > patience:
                self.tally.problem(f"not seen within {PATIENCE} s: {[one for one in seen if not self.tally.ended[one]]}")
                return

    def end(self):
        """End the actors, then the blows."""
        self.over.set()
        for thread in self.actors:
            thread.join()
        self.peace.set()
        self.striker.join()

    # ------------------------------------------------------------ blows

    def strike(self, rng):
        keep_striking(self.tally, self.peace, partial(self.choose, rng), lambda: self.judge.judged, CALLS_A_BLOW, rng)

    def choose(self, rng):
        """Return a worker's process, and how to know it again. It may not be the pool's yet, unless all is to be seen."""
        if self.exact or self.runtime._process is None:
            alive = [instance for instance in self.pool.instances if instance.alive]
            if not alive:
                return None
            victim = rng.choice(alive)
            return victim.pid, lambda: victim.alive
        pids = self.workers()
        if not pids:
            return None
        pid = rng.choice(pids)
        return pid, lambda: pid in self.workers()

    def workers(self):
        launchers = children(self.runtime._process.pid)
        return [pid for launcher in launchers for pid in children(launcher)]

    # ------------------------------------------------------------ actors

    def until_closed(self, actor, rng):
        try:
            while not (self.over.is_set() or self.judge.closing):
                actor(rng)
                if "min_size" in self.load.options and rng.random() < 0.1:
                    self.over.wait(rng.random() * 3 * LONGEST_IDLE)  # so that the pool shrinks
        except ClosedError as error:
            if not self.judge.closing:
                self.tally.unexpected(actor, error)
        except BaseException as error:  # noqa: BLE001  it is told, and the others go on
            self.tally.unexpected(actor, error)

    def start(self, rng, call, operation=None):
        """Make a call, a random one unless it is given; return it, its cell and what it gave."""
        operation, cell = operation or self.judge.operation(rng), self.take()
        arguments = (operation.export, self.desk.address(cell), *operation.arguments)
        return operation, cell, call(*arguments, timeout=operation.timeout, fuel=operation.fuel)

    def take(self, count=1):
        cell = self.desk.take(count)
        if cell is None:
            self.over.set()
            raise ClosedError("the desk")
        return cell

    def submit(self, rng):
        ahead = collections.deque()
        try:
            for _ in range(rng.randrange(BATCH)):
                if self.over.is_set():
                    break
                operation, cell, future = self.start(rng, self.pool.submit)
                cancelled = rng.random() < 0.2 and future.cancel()
                ahead.append((operation, cell, future, cancelled))
                while len(ahead) > rng.randrange(AHEAD):
                    self.await_future(*ahead.popleft())
        finally:
            while ahead:
                self.await_future(*ahead.popleft())

    def await_future(self, operation, cell, future, cancelled, *, shared=False):
        result, error = outcome(partial(future.result, PATIENCE))
        self.judge.judge(operation, cell, result, error, cancelled=cancelled, shared=shared)
        if cancelled and not future.cancelled():
            self.tally.problem(f"{operation} was cancelled, and was not")

    def await_calls(self, rng):
        async def some(rng):
            for _ in range(rng.randrange(BATCH) // COROUTINES):
                if self.over.is_set():
                    break
                abandoned = not self.exact and rng.random() < 0.3
                for_ever = abandoned and rng.random() < 0.3
                operation, cell, call = self.start(rng, self.pool.call_async, self.judge.endless() if for_ever else None)
                task = asyncio.ensure_future(call)
                if abandoned:
                    await asyncio.sleep(rng.random() * LONGEST_ENDLESS if for_ever else rng.choice([0, 0.0002, 0.003]))
                    task.cancel()
                await asyncio.wait([task])
                result, error = outcome(task.result)
                if abandoned and isinstance(error, CANCELLED):
                    self.judge.miss(1)
                self.judge.judge(operation, cell, result, error, abandoned=abandoned)

        async def at_once():
            ended = await asyncio.gather(*(some(random.Random(rng.random())) for _ in range(COROUTINES)), return_exceptions=True)
            for error in ended:
                if error is not None:
                    raise error

        asyncio.run(at_once())

    def call_all(self, rng):
        operation, cell, futures = self.start(rng, self.pool.submit_to_all)
        for future in futures:
            self.await_future(operation, cell, future, False, shared=True)
        self.judge.note_shared(cell, len(futures))
        self.over.wait(rng.random() * 0.01)

    def map(self, rng):
        Maps(self.pool, self.judge, self.desk, self.take, rng, exact=self.exact).run_one()

    # ------------------------------------------------------------ afterwards

    def check(self):
        """Check that the pool becomes whole again, what it counted, and that its instances answer."""
        rng = random.Random(self.rng.random())
        deadline = time.monotonic() + PATIENCE
        while not self.is_whole():
            # A pool whose instance could not be made tries again when something is submitted; but that may be an instance's last.
            if self.pool.statistics().starting:
                time.sleep(0.001)
            else:
                self.await_future(*self.start(rng, self.pool.submit), False)
            if time.monotonic() > deadline:
                self.tally.problem(f"the pool did not become whole: {self.pool.instances}, {self.pool.statistics()}")
                return
        self.judge.check_statistics(self.pool.statistics(), exact=self.exact)
        fuel = ENOUGH_FUEL if self.load.metered else None
        found = self.pool.broadcast("who", self.desk.address(self.take()), fuel=fuel)
        if len({ticket for ticket, *_ in found}) != len(found):
            self.tally.problem(f"two instances are one: {found}")
        while "min_size" in self.load.options and len(self.pool.instances) > self.least:
            time.sleep(0.005)
            if time.monotonic() > deadline:
                self.tally.problem(f"the pool did not shrink: {self.pool.statistics()}")
                return

    def is_whole(self):
        found = self.pool.statistics()
        alive = [instance for instance in self.pool.instances if instance.alive and instance.pid not in self.tally.struck]
        return found.size == len(alive) >= self.least and not (found.busy or found.queued or found.starting)


def children(pid):
    try:
        return children_of(pid)
    except FileNotFoundError:
        return []


def outcome(function):
    """Return a function's result and None, or None and what it raised."""
    try:
        return function(), None
    except BaseException as error:  # noqa: BLE001  each is judged
        return None, error


def fuel_needed(runtime, module, desk):
    """Return a function that tells how much fuel a call of `note` needs for so many rounds."""

    def is_enough(instance, rounds, fuel):
        try:
            instance.call("note", desk.address(desk.take()), 1, rounds, fuel=fuel)
        except FuelExhaustedError:
            return False
        return True

    with runtime.spawn(module, shared_heap=desk.heap) as instance:
        needed = []
        for rounds in (0, 1, 7):
            low, high = 0, 1 << 12
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if is_enough(instance, rounds, middle) else (middle, high)
            needed.append(high)
    desk.clear()
    first, step = needed[0], needed[1] - needed[0]
    assert needed[2] == first + 7 * step
    return lambda rounds: first + rounds * step


def run(guest, load, seconds, rng, runtime):
    tally = Tally()
    tally.watch_calls()
    desk = Desk(runtime.create_shared_heap(CELLS + 16 * PAGE))
    modules = {metered: runtime.load(guest, metered=metered) for metered in (False, True)}
    fuel = fuel_needed(runtime, modules[True], desk) if load == "mixed" or LOADS[load].metered else None
    closes_all = False
    for exact, merciless in ((True, False), (False, False), (False, True)):
        kind = random_load(rng) if load == "mixed" else LOADS[load]
        if kind.metered:
            kind = kind._replace(options=kind.options | {"fuel": fuel(FEW_ROUNDS)})
        judge = Judge(tally, kind, desk, fuel)
        storm = PoolStorm(runtime, modules[kind.metered], kind, judge, desk, rng, exact=exact)
        storm.begin()
        storm.go_on_until(time.monotonic() + seconds / 3, () if exact else (*SEEN, *kind.seen))
        if merciless:
            judge.closing = True
            closes_all = rng.random() < 0.5
            if closes_all:
                runtime.close()
            else:
                storm.pool.shutdown(cancel_futures=True)
        storm.end()
        if not merciless:
            storm.check()
            storm.pool.shutdown()
            runtime.verify()
            desk.clear()
        if tally.problems:
            tally.problem(f"by now there was a pool with {kind.options}{' of a metered module' * kind.metered}")
            break
    if not closes_all:
        desk.close()
        runtime.verify()
    tally.check_calls()
    return tally


def main(guest, load, seconds, seed, socket=None):
    faulthandler.dump_traceback_later(10 * seconds + 2 * PATIENCE, exit=True)
    report(partial(run, guest, load, seconds, random.Random(seed)), socket)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]), *sys.argv[5:])
