"""Maps of pools: what goes in, what comes out, and what happens when something fails."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import wait

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shmwasm import Block, InstancePool, Module, Runtime, SharedHeap, errors
from shmwasm.client import calls
from shmwasm.core import layout
from waiting import PATIENCE

MIXED = """(module
  (func (export "mix") (param i32 i64 f32 f64) (result f64 f32 i64 i32)
    (local.get 3) (local.get 2) (local.get 1) (local.get 0))
  (func (export "wait_for") (param i32 i32) (result i32)
    (loop $again (br_if $again (i32.eqz (local.get 0))))
    (local.get 1)))"""


@pytest.fixture(scope="module")
def pool(shared_runtime: Runtime, echo_module: Module) -> Iterator[InstancePool]:
    with shared_runtime.pool(echo_module, size=2) as one:
        yield one


@pytest.fixture(scope="module")
def mixing_pool(shared_runtime: Runtime) -> Iterator[InstancePool]:
    with shared_runtime.load(MIXED) as module, shared_runtime.pool(module, size=1) as one:
        yield one


def looped(pool, fn, *iterables):
    """Return what a plain loop over `Instance.call` gives: results, and the error that ends it."""
    instance = pool.instances[0]
    results = []
    for arguments in zip(*iterables, strict=False):
        try:
            results.append(instance.call(fn, *arguments))
        except errors.ShmwasmError as error:
            return results, type(error)
    return results, None


def mapped(pool, fn, *iterables, **options):
    results = []
    try:
        results.extend(itertools.chain.from_iterable([one] for one in pool.map(fn, *iterables, **options)))
    except errors.ShmwasmError as error:
        return results, type(error)
    return results, None


integers = st.integers(-(1 << 63) - 1, 1 << 64) | st.integers(-200, 200)
numbers = integers | st.floats(allow_nan=False) | st.none()
SORTS = [list, tuple, iter, lambda values: (value for value in values), lambda values: np.array(values, object)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_map_is_a_loop_over_calls(mixing_pool: InstancePool, data) -> None:
    calls = data.draw(st.lists(st.tuples(integers, integers, numbers, numbers), max_size=20))
    sorts = [data.draw(st.sampled_from(SORTS)) for _ in range(4)]
    columns = list(zip(*calls, strict=True)) or [()] * 4
    expected = looped(mixing_pool, "mix", *columns)
    iterables = [sort(column) for sort, column in zip(sorts, columns, strict=True)]
    assert repr(mapped(mixing_pool, "mix", *iterables)) == repr(expected)


@pytest.mark.parametrize("dtype", ["i1", "u2", "i4", "u4", "i8", "u8", ">i4", "f4", "f8"])
@pytest.mark.parametrize("export", ["i32", "i64", "f32", "f64"])
def test_an_array_goes_as_its_elements_do(pool: InstancePool, dtype, export) -> None:
    array = np.array([0, 1, 2, 100, 3]).astype(dtype)
    assert mapped(pool, export, array) == looped(pool, export, array)


def test_many_calls_keep_their_order(pool: InstancePool) -> None:
    count = 200_000
    expected = list(range(1, count + 1))
    assert list(pool.map("add", np.arange(count), np.ones(count, "i4"))) == expected
    assert list(pool.map("add", list(range(count)), [1] * count)) == expected
    assert list(pool.map("add", (number for number in range(count)), itertools.repeat(1))) == expected
    assert sorted(pool.map("add", range(count), itertools.repeat(1), ordered=False)) == expected
    assert list(pool.map("nothing", *[])) == []


def test_results_go_into_an_array(pool: InstancePool) -> None:
    array = np.arange(100_000)
    for dtype in ("i4", "u4", "i8", "f8"):
        out = np.zeros(len(array), dtype)
        assert pool.map("i32", array, out=out) is out
        assert np.array_equal(out, array)
    out = np.zeros(10, "i4")
    assert pool.map("i32", itertools.count(), out=out) is out
    assert out.tolist() == list(range(10))
    part = pool.map("i32", iter([7, 8]), out=out)
    assert (part.tolist(), part.base is out) == ([7, 8], True)
    assert pool.map("i32", range(10), out=out, call_timeout=PATIENCE).tolist() == list(range(10))
    strided = np.zeros(20, "i4")
    pool.map("i32", range(10), out=strided[::2])
    assert strided.tolist() == [number // 2 if number % 2 == 0 else 0 for number in range(20)]


def test_several_results_go_into_the_fields_of_a_structured_array(mixing_pool: InstancePool) -> None:
    calls = np.array([(1, 2, 3.5, 4.5), (5, -6, 7.5, 8.5)], [("a", "i4"), ("b", "i8"), ("c", "f4"), ("d", "f8")])
    out = np.zeros(2, [("d", "f8"), ("c", "f4"), ("b", "i8"), ("a", "i4")])
    mixing_pool.map("mix", calls, out=out)
    assert out.tolist() == [(4.5, 3.5, 2, 1), (8.5, 7.5, -6, 5)]
    assert list(mixing_pool.map("mix", calls)) == [[4.5, 3.5, 2, 1], [8.5, 7.5, -6, 5]]


@pytest.mark.parametrize(
    "options",
    [
        {"out": [0] * 3},
        {"out": np.zeros((3, 1))},
        {"out": np.zeros(2, "i4")},
        {"out": np.zeros(3, "i2")},
        {"out": np.zeros(3, "?")},
        {"out": np.zeros(3, [("a", "i4"), ("b", "i4")])},
        {"out": np.zeros(3, "i4"), "return_exceptions": True},
        {"out": np.frombuffer(bytes(12), "i4")},
        {"chunksize": 0},
        {"chunksize": "many"},
        {"buffersize": 0},
        {"call_timeout": -1},
        {"timeout": "soon"},
        {"ordered": 1},
        {"return_exceptions": None},
        {"progress": 3},
        {"fuel": 3},
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_called(pool: InstancePool, options) -> None:
    calls = pool.statistics().calls
    with pytest.raises((errors.ArgumentError, errors.UnsupportedError)):
        pool.map("i32", [1, 2, 3], **options)
    assert pool.statistics().calls == calls


def test_a_trap_is_raised_when_its_turn_comes(pool: InstancePool) -> None:
    divisors = [1] * 1000
    divisors[700] = 0
    results = pool.map("divide", [6] * 1000, divisors)
    assert list(itertools.islice(results, 700)) == [6] * 700
    with pytest.raises(errors.WorkerTrapError):
        next(results)
    assert list(results) == []
    with pytest.raises(errors.WorkerTrapError):
        pool.map("divide", [6] * 1000, divisors, out=np.zeros(1000, "i4"))
    assert list(pool.map("divide", [6], [2])) == [3]


def test_a_trap_ends_its_map_and_no_other(pool: InstancePool) -> None:
    failing = pool.map("divide", itertools.repeat(6), itertools.chain([1, 0], itertools.repeat(1)))
    fine = pool.map("divide", [6] * 10_000, [1] * 10_000)
    assert next(failing) == 6
    with pytest.raises(errors.WorkerTrapError):
        next(failing)
    assert list(fine) == [6] * 10_000


def test_errors_can_be_results(pool: InstancePool) -> None:
    divisors = [0 if number % 7 == 3 else 1 for number in range(100)]
    for options in ({}, {"chunksize": 1}, {"call_timeout": PATIENCE}):
        results = list(pool.map("divide", [6] * 100, divisors, return_exceptions=True, **options))
        assert [isinstance(one, errors.WorkerTrapError) for one in results] == [one == 0 for one in divisors]
        assert [one for one in results if not isinstance(one, Exception)] == [6] * divisors.count(1)
    results = list(pool.map("i32", [1, None, 2, "x", 3], return_exceptions=True))
    assert [one if isinstance(one, int) else type(one) for one in results] == [
        1, errors.ArgumentError, 2, errors.ArgumentError, 3,
    ]  # fmt: skip


def test_an_endless_iterable_is_read_only_as_far_ahead_as_it_should(pool: InstancePool) -> None:
    taken = 0

    def endless() -> Iterator[int]:
        nonlocal taken
        for number in itertools.count():
            taken = number
            yield number

    results = pool.map("i32", endless(), buffersize=50)
    for number in range(500):
        assert next(results) == number
        assert taken <= number + 50
    results.close()
    results = pool.map("i32", endless())
    assert list(itertools.islice(results, 1000)) == list(range(1000))
    results.close()
    assert pool.submit("add", 1, 2).result(PATIENCE) == 3


def test_the_result_of_a_slow_iterable_comes_before_the_next_argument_is_asked_for(pool: InstancePool) -> None:
    received: list[int] = []

    def paced() -> Iterator[int]:
        for number in range(5):
            assert len(received) == number
            yield number

    results = pool.map("i32", paced(), buffersize=1)
    for _ in range(5):
        received.append(next(results))  # noqa: PERF401  the iterable looks at what there is so far
    assert received == list(range(5))


def test_an_iterable_that_raises_ends_its_map_with_that(pool: InstancePool) -> None:
    def failing() -> Iterator[int]:
        yield 1
        yield 2
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        list(pool.map("i32", failing()))
    assert pool.submit("add", 1, 2).result(PATIENCE) == 3


def test_results_that_nobody_takes_are_made_all_the_same(shared_runtime: Runtime, echo_module: Module) -> None:
    with shared_runtime.pool(echo_module, size=2) as pool:
        pool.map("count", *[])
        pool.map("store", range(5000), itertools.islice(itertools.repeat(1), 5000))
        results = pool.map("i32", range(5000))
    assert list(results) == list(range(5000))
    with pytest.raises(errors.ClosedError):
        pool.map("i32", [1])


def test_a_map_that_is_not_read_to_its_end_ends_with_its_pool(shared_runtime: Runtime, echo_module: Module) -> None:
    with shared_runtime.pool(echo_module, size=1) as pool:
        endless = pool.map("i32", itertools.count())
        bounded = pool.map("i32", range(1000), buffersize=10)
        assert next(endless) == next(bounded) == 0
    with pytest.raises(errors.ClosedError):
        list(endless)
    with pytest.raises(errors.ClosedError):
        list(bounded)


def test_a_map_reports_its_progress(pool: InstancePool) -> None:
    reports: list[tuple[int, int | None]] = []
    count = 50_000
    pool.map("i32", np.arange(count), out=np.zeros(count, "i4"), progress=lambda *report: reports.append(report))
    assert reports[-1] == (count, count)
    assert reports == sorted(set(reports))
    reports.clear()
    list(pool.map("i32", iter(range(100)), progress=lambda *report: reports.append(report)))
    assert reports[-1][0] == 100


def test_there_is_a_time_for_all_results_and_one_for_each_call(shared_runtime: Runtime) -> None:
    with shared_runtime.load(MIXED) as module, shared_runtime.pool(module, size=2) as pool:
        results = pool.map("wait_for", [1, 0, 1], [5, 6, 7], timeout=0.2)
        assert next(results) == 5
        with pytest.raises(TimeoutError):
            next(results)
        timed = pool.map("wait_for", [1, 0, 1], [5, 6, 7], call_timeout=0.1, return_exceptions=True)
        first, second, third = timed
        assert (first, type(second), third) == (5, errors.CallTimeoutError, 7)
        for instance in pool.instances:
            instance.kill()


SLEEPING = """(module
  (memory (export "memory") 1 1 shared)
  (global $calls (mut i32) (i32.const 0))
  (func (export "sleep") (param i64) (result i32)
    (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
    (loop $forever (br_if $forever (i64.lt_s (local.get 0) (i64.const 0))))
    (if (i64.ne (local.get 0) (i64.const 0))
      (then (drop (memory.atomic.wait32 (i32.const 0) (i32.const 0) (local.get 0)))))
    (global.get $calls))
  (func (export "calls") (result i32) (global.get $calls)))"""


def test_the_time_of_a_call_is_its_own_also_in_a_lot(shared_runtime: Runtime) -> None:
    with shared_runtime.load(SLEEPING) as module, shared_runtime.pool(module, size=1, timeout=1.0) as pool:
        naps = np.zeros(20_000, "i8")
        naps[10_000:10_008] = 150_000_000
        before = pool.instances[0].path.calls
        assert pool.map("sleep", naps, out=np.zeros(20_000, "i4"))[-1] == 20_000
        assert pool.instances[0].path.calls - before < 2_000
        assert pool.statistics().timeouts == 0


def test_a_call_whose_time_is_over_ends_no_other_of_its_lot(shared_runtime: Runtime) -> None:
    with shared_runtime.load(SLEEPING) as module, shared_runtime.pool(module, size=1) as pool:
        naps = np.zeros(20_000, "i8")
        naps[[5_000, 5_001, 19_999]] = -1
        results = list(pool.map("sleep", naps, call_timeout=0.5, return_exceptions=True))
        late = [index for index, one in enumerate(results) if isinstance(one, errors.CallTimeoutError)]
        assert late == [5_000, 5_001, 19_999]
        # What waited behind the lot ran before the rest of it did.
        assert len({one for one in results if isinstance(one, int)}) == 20_000 - 3
        assert pool.submit("calls").result() == 20_000
        assert pool.statistics().timeouts == 3


def test_a_worker_that_does_not_come_back_from_a_call_of_a_lot_fails_that_call(
    shared_runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "GRACE", 0.2)
    with shared_runtime.load(MIXED) as module, shared_runtime.pool(module, size=1) as pool:
        flags = np.ones(2000, "i4")
        flags[1200] = 0
        results = pool.map("wait_for", flags, np.arange(2000), call_timeout=1.0, return_exceptions=True)
        (member,) = pool._dispatcher._members
        while not is_at(member, 1200):
            pass  # the test's own time limit ends it
        os.kill(member.instance.pid, signal.SIGSTOP)
        collected = list(results)
        assert isinstance(collected.pop(1200), errors.CallTimeoutError)
        assert collected == [number for number in range(2000) if number != 1200]


def test_a_slow_call_of_a_map_holds_no_other_lot_up(shared_runtime: Runtime) -> None:
    with shared_runtime.load(MIXED) as module, shared_runtime.pool(module, size=2) as pool:
        flags = [0] + [1] * 99
        results = pool.map("wait_for", flags, range(100), ordered=False, chunksize=1)
        assert sorted(itertools.islice(results, 99)) == list(range(1, 100))
        (busy,) = pool._dispatcher.busy
        os.kill(busy.pid, signal.SIGKILL)
        with pytest.raises(errors.WorkerLostError):
            next(results)


def is_at(member, index) -> bool:
    """Return whether an instance runs the call at that place of a map."""
    running = member.instance.path._ring.running()
    flights = [one for one in member.flights if running and getattr(one.call, "sequence", None) == running.sequence]
    return any(flight.work.start + running.progress == index for flight in flights)


def test_a_worker_that_dies_in_a_lot_loses_one_call(shared_runtime: Runtime) -> None:
    with shared_runtime.load(MIXED) as module, shared_runtime.pool(module, size=1) as pool:
        list(pool.map("wait_for", [1] * 1000, range(1000)))
        flags = np.ones(4000, "i4")
        flags[2500] = 0
        results = pool.map("wait_for", flags, np.arange(4000), return_exceptions=True)
        collected = [next(results)]
        (member,) = pool._dispatcher._members
        while not is_at(member, 2500):
            pass  # the test's own time limit ends it
        os.kill(member.instance.pid, signal.SIGKILL)
        collected.extend(results)
        assert isinstance(collected[2500], errors.WorkerLostError)
        del collected[2500]
        assert collected == [number for number in range(4000) if number != 2500]
        assert pool.statistics().losses == 1


def test_a_worker_that_dies_after_the_last_call_of_a_lot_loses_none(shared_runtime: Runtime) -> None:
    with shared_runtime.load(MIXED) as module, shared_runtime.pool(module, size=1) as pool:
        results = pool.map("wait_for", [1, 1, 0], [5, 6, 7], return_exceptions=True)
        (member,) = pool._dispatcher._members
        while not is_at(member, 2):
            pass  # the test's own time limit ends it
        ring = member.instance.path._ring
        running = ring.running()
        # As if the worker, too, had come to the end of the lot, and not yet said so.
        words = ring._core.view(ring._core.call("ring_running", ring.address), layout.RING_SLOT_HEADER).cast("I")
        words[7] = running.calls
        assert ring.running().progress == running.calls
        os.kill(member.instance.pid, signal.SIGKILL)
        first, second, third = results
        assert (first, second, type(third)) == (5, 6, int)
        assert pool.statistics().calls == 3
        assert pool.statistics().losses == 0
        words.release()


def test_blocks_go_as_their_addresses(shared_runtime: Runtime, echo_module: Module, heap: SharedHeap) -> None:
    blocks = [heap.malloc(16) for _ in range(10)]
    for number, block in enumerate(blocks):
        block.view[0] = number
    with shared_runtime.pool(echo_module, size=2, shared_heap=heap) as pool:
        assert list(pool.map("load", blocks)) == list(range(10))
        assert list(pool.map("load", itertools.repeat(blocks[3], 5))) == [3] * 5
        freed: Block = blocks.pop()
        freed.free()
        with pytest.raises(errors.ArgumentError, match="freed"):
            list(pool.map("load", [blocks[0], freed]))
    for block in blocks:
        block.free()


def test_a_map_in_a_callback_does_not_wait_for_itself(pool: InstancePool) -> None:
    outcome: list[BaseException | None] = []
    done = threading.Event()

    def callback(_future) -> None:
        try:
            list(pool.map("i32", range(1000)))
            outcome.append(None)
        except errors.UnsupportedError as error:
            outcome.append(error)
        done.set()

    future = pool.submit("add", 1, 2)
    future.add_done_callback(callback)
    wait([future])
    assert done.wait(PATIENCE)
    assert len(outcome) == 1


def test_programs_that_leave_by_exiting_have_returned_and_all_of_them_run(shared_runtime: Runtime) -> None:
    text = """(module
      (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
      (memory (export "memory") 1)
      (global $left (mut i32) (i32.const 0))
      (func (export "leave") (param i32)
        (global.set $left (i32.add (global.get $left) (i32.const 1))) (call $exit (local.get 0)))
      (func (export "left") (result i32) (global.get $left)))"""
    with shared_runtime.load(text, name="leaving") as module, shared_runtime.pool(module, size=1) as pool:
        assert list(pool.map("leave", [0] * 200)) == [None] * 200
        assert pool.submit("left").result() == 200
