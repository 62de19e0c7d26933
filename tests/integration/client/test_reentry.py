"""What finalizers and signals' handlers do on top of the library's own work, at any step of it."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

import steps
from shmwasm import Instance, InstancePool, Runtime, errors
from shmwasm.posix.conditions import Lock
from shmwasm.posix.reentry import on_top_of_lock
from waiting import PATIENCE, eventually

SCALE = float(os.environ.get("SHMWASM_STRESS", "1"))

STEPS = round(24 * SCALE)
"""At how many steps, chosen at random, each kind of work is disturbed, by one kind of finalizer after the other."""

ENDS = round(60 * SCALE)
"""At how many steps of a call its instance is ended, chosen at random."""


class Bench:
    """What there is to work with."""

    def __init__(self, runtime: Runtime, text: str) -> None:
        self.runtime = runtime
        self.module = runtime.load(text)
        self.heap = runtime.create_shared_heap(1 << 20)
        self.scrubbed = runtime.create_shared_heap(1 << 20, scrub=True)
        self.instance: Instance = runtime.spawn(self.module)
        self.pool: InstancePool = runtime.pool(self.module, size=2)

    def check(self) -> None:
        """Everything answers."""
        assert self.instance.call("add", 1, 2, timeout=PATIENCE) == 3
        numbers = range(4)
        assert [one.result(PATIENCE) for one in [self.pool.submit("i32", number) for number in numbers]] == list(numbers)
        for heap in (self.heap, self.scrubbed):
            heap.malloc(100_000).free()
            heap.verify()
            assert not heap.statistics().own_live_blocks


@pytest.fixture(scope="module")
def bench(echo_text: str) -> Iterator[Bench]:
    with Runtime() as runtime:
        yield Bench(runtime, echo_text)


# ---------------------------------------------------------------- what is disturbed


def call(bench: Bench) -> None:
    with contextlib.suppress(errors.UnsupportedError):  # the last reference to a map's results may go here
        bench.instance.call("i32", 7, timeout=PATIENCE)


def submit(bench: Bench) -> None:
    bench.instance.submit("i32", 7).result(PATIENCE)


def submit_to_pool(bench: Bench) -> None:
    assert [one.result(PATIENCE) for one in [bench.pool.submit("i32", number) for number in range(2)]] == [0, 1]


def cancel(bench: Bench) -> None:
    bench.instance.submit("i32", 1).cancel()
    bench.pool.submit("i32", 1).cancel()


def map_over_a_range(bench: Bench) -> None:
    assert list(bench.pool.map("i32", range(50), chunksize=25)) == list(range(50))


def allocate(bench: Bench) -> None:
    bench.heap.malloc(40_000).free()
    bench.scrubbed.malloc(40).free()


def open_a_heap(bench: Bench) -> None:
    bench.runtime.create_shared_heap(1).close()


def attach(bench: Bench) -> None:
    bench.instance.attach_shared_heap(bench.heap)
    bench.instance.detach_shared_heap()


WORKS = [call, submit, submit_to_pool, cancel, map_over_a_range, allocate, open_a_heap, attach]


# ---------------------------------------------------------------- what finalizers do


class Finalizer:
    """Something that is done when this is collected."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act
        self.itself = self
        self.failures: list[BaseException] = []
        """What it raised, of a list that others have."""

    def __del__(self) -> None:
        try:
            self.act()
        except BaseException as failure:  # noqa: BLE001  the test looks at it
            self.failures.append(failure)


def prepare_submits(bench: Bench) -> tuple[Callable[[], object], Callable[[], object]]:
    futures: list[Future[Any]] = []

    def act() -> None:
        futures.extend(bench.instance.submit("i32", number, wait=number > 0) for number in range(2))
        futures.extend(bench.pool.submit("i32", number) for number in range(2, 4))
        for future in futures:
            assert not future.running() or future.done() or not on_top_of_lock()

    return act, lambda: [future.result(PATIENCE) for future in futures] == [0, 1, 2, 3]


def prepare_cancels(bench: Bench) -> tuple[Callable[[], object], Callable[[], object]]:
    futures = [bench.instance.submit("i32", 1), bench.pool.submit("i32", 1)]

    def act() -> None:
        for future in futures:
            future.cancel()
            future.done()

    return act, lambda: all(future.cancelled() or future.result(PATIENCE) == 1 for future in futures)


def prepare_frees(bench: Bench) -> tuple[Callable[[], object], Callable[[], object]]:
    blocks = [heap.malloc(size) for heap in (bench.heap, bench.scrubbed) for size in (24, 40_000)]

    def act() -> None:
        for block in blocks:
            block.free()

    # `bench.check` counts what is live.
    return act, lambda: all(block.freed for block in blocks)


def prepare_closing_of_iterators(bench: Bench) -> tuple[Callable[[], object], Callable[[], object]]:
    results = bench.pool.map("i32", range(100))
    next(results)
    awaited = bench.instance.exports.i32.call_async(7)
    with contextlib.suppress(RuntimeError):
        awaited.send(None)

    def act() -> None:
        results.close()
        awaited.close()

    return act, lambda: next(results, None) is None


def prepare_kill(bench: Bench) -> tuple[Callable[[], object], Callable[[], object]]:
    doomed = bench.runtime.spawn(bench.module)

    def is_dead() -> bool:
        eventually(lambda: not doomed.alive)
        doomed.close()
        return True

    return doomed.kill, is_dead


def prepare_what_waits(bench: Bench) -> tuple[Callable[[], object], Callable[[], object]]:
    ended: list[object] = []
    waiting: list[Callable[[], object]] = [
        lambda: bench.instance.call("i32", 7, timeout=PATIENCE),
        lambda: bench.instance.exports.i32(7),
        lambda: bench.instance.submit("i32", 7).result(PATIENCE),
        lambda: bench.heap.malloc(50_000).free(),
        lambda: list(bench.pool.map("i32", [7])),
        lambda: bench.pool.statistics().size,
        lambda: bench.runtime.create_shared_heap(1).close(),
        lambda: bench.runtime.open_shared_heap(bench.heap.name),
        lambda: bytes(bench.instance.memory[:1]),
        lambda: bench.runtime.spawn(bench.module).close(),
    ]

    def act() -> None:
        for wait in waiting:
            with contextlib.suppress(errors.UnsupportedError) if on_top_of_lock() else contextlib.nullcontext():
                wait()
            ended.append(wait)

    return act, lambda: len(ended) == len(waiting)


FINALIZERS = [
    prepare_submits,
    prepare_cancels,
    prepare_frees,
    prepare_closing_of_iterators,
    prepare_kill,
    prepare_what_waits,
]


def while_another_thread_holds_the_locks(act: Callable[[], object]) -> bool:
    """Do something while another thread holds each lock that can be had; return whether it did not wait for one."""
    held, done = threading.Event(), threading.Event()
    in_time: list[bool] = []

    def hold() -> None:
        locks = [one._lock for one in gc.get_objects() if type(one) is not type and isinstance(one, Lock)]
        taken = [lock for lock in locks if lock.acquire(blocking=False)]
        held.set()
        in_time.append(done.wait(PATIENCE / 3))
        for lock in taken:
            lock.release()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(PATIENCE)
    act()
    done.set()
    holder.join(PATIENCE)
    return in_time == [True]


@pytest.mark.parametrize("work", WORKS)
def test_a_finalizer_at_any_step_waits_for_no_lock_of_another_thread(bench: Bench, work: Callable[[Bench], None]) -> None:
    """Where it runs on top of a lock, another thread holds all others, and lets go of them only once it is done."""

    preparations = itertools.cycle(FINALIZERS)

    def disturb(work_once: Callable[[], object], step: int) -> None:
        act, is_done = next(preparations)(bench)
        failures: list[BaseException] = []
        on_top: list[bool] = []
        collected: list[bool] = []

        def collect() -> None:
            Finalizer(act).failures = failures
            collected.append(True)
            if on_top_of_lock():
                on_top.append(while_another_thread_holds_the_locks(lambda: gc.collect(0)))
            else:
                gc.collect(0)

        steps.do_on_top(work_once, step, collect)
        if not collected:  # how many steps a wait has differs
            collect()
        assert not failures
        assert on_top in ([], [True]), "it waited for a lock"
        assert is_done()

    for _ in steps.chosen(lambda: work(bench), STEPS, disturb):
        bench.check()


# ---------------------------------------------------------------- what ends an instance, on top of a call of it


def call_by_name(instance: Instance) -> object:
    return instance.call("add", 1, 2)


def call_with_limit(instance: Instance) -> object:
    return instance.exports.add(1, 2, timeout=PATIENCE)


def call_later(instance: Instance) -> object:
    return instance.submit("add", 1, 2).result(PATIENCE)


class Used:
    """A pool of one instance, which is called; another one in its place once it was ended."""

    def __init__(self, bench: Bench, work: Callable[[Instance], object]) -> None:
        self._bench = bench
        self._work = work
        self.renew()

    def renew(self) -> None:
        self.pool = self._bench.runtime.pool(self._bench.module, size=1)
        (self.instance,) = self.pool.instances

    def work(self) -> None:
        """Call the instance, which may be ended meanwhile."""
        with contextlib.suppress(errors.ClosedError, errors.WorkerLostError):
            assert self._work(self.instance) == 3


@pytest.mark.parametrize("work", [call_by_name, call_with_limit, call_later])
@pytest.mark.parametrize("how", ["close", "shut down", "kill"])
def test_ending_an_instance_on_top_of_its_call_ends_or_is_refused_at_any_step(
    bench: Bench, how: str, work: Callable[[Instance], object]
) -> None:
    """It never waits for what it interrupts; and what is refused changes nothing."""
    used = Used(bench, work)
    refused = 0

    def disturb(work_once: Callable[[], object], step: int) -> None:
        nonlocal refused
        instance, pool = used.instance, used.pool
        ends = {"close": instance.close, "shut down": pool.shutdown, "kill": instance.kill}
        refusals: list[BaseException] = []

        def end() -> None:
            try:
                ends[how]()
            except errors.UnsupportedError as refusal:
                refusals.append(refusal)

        steps.do_on_top(work_once, step, end)
        refused += len(refusals)
        if refusals:
            assert work(instance) == 3
        else:
            pool.shutdown()
            used.renew()

    for _ in steps.chosen(used.work, ENDS if how != "kill" else ENDS // 4, disturb):
        pass
    used.pool.shutdown()
    # A call by name holds hardly any lock: at none of the chosen steps, it may be.
    assert refused == 0 if how == "kill" else refused > 0 or work is call_by_name
