"""The life of workers whose calls each run in an instance of their own."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from concurrent.futures import wait
from pathlib import Path

import pytest

from shmwasm import Caller, Module, Runtime, errors
from shmwasm.addresses import OS_PAGE
from shmwasm.client.pool_life import FRESH_CALLS
from shmwasm.worker.fresh import MOST_GUESTS, MOST_RESIDENT
from waiting import PATIENCE, eventually


def test_workers_are_replaced_before_they_must_end(shared_runtime: Runtime, counting: Module) -> None:
    calls = 3 * FRESH_CALLS
    with shared_runtime.pool(counting, size=1, fresh=True, init=("prepare", 100)) as pool:
        pids = {pool.instances[0].pid}
        futures = [pool.submit("count") for _ in range(calls)]
        assert {future.result(PATIENCE) for future in futures} == {1111}
        pids.add(pool.instances[0].pid)
        assert list(pool.map("same", range(calls))) == list(range(calls))
        eventually(lambda: len(pool.instances) == 1)
        counted = pool.statistics()
        assert counted.calls == 2 * calls
        assert 2 <= counted.replaced <= 2 * calls // FRESH_CALLS + 1
        assert counted.losses == 0
        assert len(pids) == 2


def test_a_worker_ends_by_itself_in_the_end(shared_runtime: Runtime, counting: Module) -> None:
    with shared_runtime.pool(counting, size=1, fresh=True) as pool:
        instance = pool.instances[0]
        same = instance.exports["same"]
        for number in range(MOST_GUESTS - 1):
            assert same(number) == number
        with pytest.raises(errors.WorkerLostError):
            [same(number) for number in range(2)]
        eventually(lambda: pool.instances and pool.instances[0] is not instance)
        assert pool.submit("count").result(PATIENCE) == 1011


@pytest.mark.parametrize("items", ["(table 1 funcref)", "(memory 1)"])
def test_modules_of_many_tables_or_memories_run_any_number_of_calls(shared_runtime: Runtime, items: str) -> None:
    text = f"""(module {items * 100}
      (global $count (mut i32) (i32.const 0))
      (func (export "count") (result i32)
        (global.set $count (i32.add (global.get $count) (i32.const 1))) (global.get $count)))"""
    with shared_runtime.load(text, name="many") as module, shared_runtime.pool(module, size=1, fresh=True) as pool:
        futures = [pool.submit("count") for _ in range(400)]
        assert {future.result(PATIENCE) for future in futures} == {1}
        assert pool.statistics().losses == 0


def test_what_a_lot_leaves_is_bounded_and_its_rest_runs_in_another_worker(shared_runtime: Runtime) -> None:
    text = """(module (table $table 1 funcref)
      (func (export "leave") (param i32) (result i32)
        (drop (table.grow $table (ref.null func) (i32.const 2000000))) (local.get 0)))"""
    with shared_runtime.load(text, name="leaving") as module, shared_runtime.pool(module, size=1, fresh=True) as pool:
        assert list(pool.map("leave", range(50), chunksize=25)) == list(range(50))
        counted = pool.statistics()
        assert (counted.calls, counted.losses) == (50, 0)
        assert counted.started >= 50 * 16_000_000 // (MOST_RESIDENT + 16_000_000)
    with shared_runtime.load(text, name="leaving") as module, shared_runtime.pool(module, size=3, fresh=True) as pool:
        assert sorted(pool.map("leave", range(60), ordered=False)) == list(range(60))


def test_each_memory_that_can_be_reached_is_given_back(shared_runtime: Runtime) -> None:
    text = """(module
      (import "env" "first" (memory $imported 16)) (import "env" "second" (memory $shared 16 16 shared))
      (memory $exported (export "data") 16)
      (memory (export "memory") 16) (export "again" (memory 3))
      (func (export "fill") (param i32) (result i32)
        (memory.fill $imported (i32.const 0) (i32.const 1) (i32.const 0x100000))
        (memory.fill $shared (i32.const 0) (i32.const 1) (i32.const 0x100000))
        (memory.fill $exported (i32.const 0) (i32.const 1) (i32.const 0x100000))
        (memory.fill 3 (i32.const 0) (i32.const 1) (i32.const 0x100000))
        (local.get 0)))"""
    calls = 2 * MOST_RESIDENT // (1 << 20)
    with shared_runtime.load(text, name="filling") as module, shared_runtime.pool(module, size=1, fresh=True) as pool:
        maps = Path(f"/proc/{pool.instances[0].pid}/maps")
        before = len(maps.read_text().splitlines())
        assert list(pool.map("fill", range(calls))) == list(range(calls))
        assert len(maps.read_text().splitlines()) < before + calls
        assert pool.statistics().started == 1


def take_address_space(_caller: Caller) -> None:
    """What a guest calls: leaves its process room for two more."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * OS_PAGE
    resource.setrlimit(resource.RLIMIT_AS, (size + 2 * (5 << 30), resource.RLIM_INFINITY))


@pytest.mark.usefixtures("importable_tests")
@pytest.mark.parametrize("in_a_lot", [False, True])
def test_a_worker_with_no_room_for_an_instance_is_replaced_and_no_call_notices(shared_runtime: Runtime, in_a_lot: bool) -> None:
    text = """(module (import "env" "take" (func $take)) (memory 1)
      (func (export "same") (param i32) (result i32)
        (if (i32.eqz (local.get 0)) (then (call $take)))
        (local.get 0)))"""
    with (
        shared_runtime.load(text, imports={"env": {"take": take_address_space}}, name="taking") as module,
        shared_runtime.pool(module, size=1, fresh=True) as pool,
    ):
        if in_a_lot:
            assert list(pool.map("same", [1, 1, 1, 1, 0, 1, 1, 1] * 3, chunksize=12)) == [1, 1, 1, 1, 0, 1, 1, 1] * 3
        else:
            assert [pool.submit("same", number).result(PATIENCE) for number in [0, 1, 2, 3] * 3] == [0, 1, 2, 3] * 3
        counted = pool.statistics()
        assert counted.started >= 3  # the last one in whose place another comes may be the last of all, too
        assert counted.losses == 0


def test_instances_are_recycled_and_replaced_as_in_other_pools(shared_runtime: Runtime, counting: Module) -> None:
    with shared_runtime.pool(counting, size=1, fresh=True, recycle_after=5) as pool:
        assert [pool.submit("count").result(PATIENCE) for _ in range(20)] == [1011] * 20
        assert list(pool.map("same", range(50))) == list(range(50))
        assert pool.statistics().started >= 13
    with shared_runtime.pool(counting, size=1, fresh=True, on_trap="replace") as pool:
        before = pool.instances[0].pid
        failed, following = pool.submit("divide", 1, 0), pool.submit("count")
        assert isinstance(failed.exception(PATIENCE), errors.WorkerTrapError)
        assert following.result(PATIENCE) == 1011
        assert pool.instances[0].pid != before


def test_every_future_ends_whenever_workers_are_killed(shared_runtime: Runtime, counting: Module) -> None:
    with shared_runtime.pool(counting, size=2, fresh=True, init=("prepare", 100)) as pool:
        for pause in (0.0, 0.001, 0.003, 0.01):
            futures = [pool.submit("count") for _ in range(60)]
            mapped = pool.map("same", range(200), return_exceptions=True)
            time.sleep(pause)  # a worker is killed at any moment, most likely while it makes an instance
            for instance in pool.instances:
                os.kill(instance.pid, signal.SIGKILL)
            done, left = wait(futures, PATIENCE)
            assert not left
            singly = pool.map("same", range(50), return_exceptions=True, call_timeout=PATIENCE)
            lost = [one for results in (mapped, singly) for index, one in enumerate(results) if one != index]
            assert all(isinstance(one, errors.WorkerLostError) for one in lost)
            ended = [future.exception() for future in done]
            assert all(one is None or isinstance(one, errors.WorkerLostError) for one in ended)
            assert sum(one is not None for one in ended) + len(lost) <= 2
            assert {future.result() for future in done if future.exception() is None} <= {1111}


def test_a_fresh_pool_sleeps_when_it_has_nothing_to_do(shared_runtime: Runtime, counting: Module) -> None:
    def used(pid: int) -> int:
        return sum(int(task.read_text().split()[0]) for task in Path(f"/proc/{pid}/task").glob("*/schedstat"))

    with shared_runtime.pool(counting, size=1, fresh=True, timeout=0.01) as pool:
        assert [pool.submit("count").result() for _ in range(20)] == [1011] * 20
        pid = pool.instances[0].pid
        tasks = Path(f"/proc/{pid}/task")
        eventually(lambda: all("sleeping" in (one / "status").read_text() for one in tasks.iterdir()))
        before = used(pid)
        threading.Event().wait(0.3)
        assert used(pid) == before
