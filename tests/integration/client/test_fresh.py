"""Pools whose calls each run in an instance of their own: how it is prepared."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from shmwasm import Caller, InstancePool, Module, Runtime, SharedHeap, errors, on_client
from waiting import PATIENCE, eventually

# "prepare" does what the word at its argument says, and counts in the one after it.
OBEYING = """(module
  (memory (export "memory") 1)
  (func (export "prepare") (param i32)
    (drop (i32.atomic.rmw.add offset=4 (local.get 0) (i32.const 1)))
    (if (i32.eq (i32.load (local.get 0)) (i32.const 1)) (then unreachable))
    (if (i32.eq (i32.load (local.get 0)) (i32.const 2)) (then (loop $forever (br $forever))))
    (if (i32.eq (i32.load (local.get 0)) (i32.const 3))
      (then (drop (memory.atomic.wait32 (local.get 0) (i32.const 3) (i64.const -1))))))
  (func (export "same") (param i32) (result i32) (local.get 0)))"""


def settle(pool: InstancePool) -> None:
    """Wait until the pool's only worker has prepared the next instance, and has nothing to do."""
    eventually(pool.instances[0].path._ring.is_parked)


@pytest.fixture(scope="module")
def obeying(shared_runtime: Runtime) -> Iterator[Module]:
    with shared_runtime.load(OBEYING, name="obeying") as module:
        yield module


def test_each_call_of_any_kind_finds_a_prepared_instance(shared_runtime: Runtime, counting: Module) -> None:
    async def call(pool) -> list[int]:
        return await asyncio.gather(*(pool.call_async("count") for _ in range(5)))

    with shared_runtime.pool(counting, size=2, fresh=True, init=("prepare", 100)) as pool:
        assert [pool.submit("count").result() for _ in range(5)] == [1111] * 5
        assert pool.broadcast("count") == [1111] * 2
        assert asyncio.run(call(pool)) == [1111] * 5
        count = pool.instances[0].exports["count"]
        assert [count() for _ in range(5)] == [1111] * 5
        assert pool.instances[0].submit("count").result() == 1111
    with shared_runtime.pool(counting, size=1, fresh=True) as pool:
        assert [pool.submit("count").result() for _ in range(3)] == [1011] * 3


def test_values_of_every_type_pass_singly_and_in_lots(shared_runtime: Runtime, counting: Module) -> None:
    rows = [(-1, -(1 << 63), 0.5, -0.0), (1 << 31, 1 << 63, float("inf"), 1e300), (7, 8, -1.25, 2.5)] * 40
    expected = [
        [float(d), float(c), (b + (1 << 63)) % (1 << 64) - (1 << 63), (a + (1 << 31)) % (1 << 32) - (1 << 31)]
        for a, b, c, d in rows
    ]
    with shared_runtime.pool(counting, size=1, fresh=True) as pool:
        assert list(pool.map("all", *zip(*rows, strict=True))) == expected
        assert [pool.submit("all", *row).result() for row in rows[:3]] == expected[:3]
        assert list(pool.map("same", range(500), chunksize=7, ordered=True)) == list(range(500))


def test_a_call_that_fails_leaves_nothing_to_the_next(shared_runtime: Runtime, counting: Module) -> None:
    with shared_runtime.pool(counting, size=1, fresh=True) as pool:
        pid = pool.instances[0].pid
        for _ in range(3):
            with pytest.raises(errors.WorkerTrapError):
                pool.submit("divide", 1, 0).result()
            with pytest.raises(errors.CallTimeoutError):
                pool.submit("spin", timeout=0.02).result()
            assert pool.submit("count").result() == 1011
        failed = list(pool.map("divide", [1] * 9, [1, 0, 1] * 3, return_exceptions=True))
        assert [isinstance(one, errors.WorkerTrapError) for one in failed] == [False, True, False] * 3
        with pytest.raises(errors.WorkerTrapError):
            list(pool.map("divide", [1] * 9, [1, 1, 0] * 3))
        with pytest.raises(errors.CallTimeoutError):
            pool.instances[0].call("spin", timeout=0.02)
        assert pool.instances[0].pid == pid


def test_an_awaited_call_that_is_cancelled_is_interrupted(shared_runtime: Runtime, counting: Module) -> None:
    async def use() -> None:
        async with shared_runtime.pool(counting, size=1, fresh=True) as pool:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(pool.call_async("spin"), 0.05)
            assert await pool.call_async("count") == 1011

    asyncio.run(use())


def test_limits_hold_for_each_instance(shared_runtime: Runtime, counting: Module) -> None:
    with shared_runtime.pool(counting, size=1, fresh=True, memory_limit=4 << 16) as pool:
        assert list(pool.map("grow", [3, 4, 3, 4] * 5)) == [1, -1, 1, -1] * 5


def test_fuel_is_given_to_each_call_and_to_each_init(shared_runtime: Runtime) -> None:
    text = """(module (global $turns (mut i32) (i32.const 0))
      (func $count (export "count") (param i32) (result i32)
        (loop $next
          (global.set $turns (i32.add (global.get $turns) (i32.const 1)))
          (br_if $next (local.tee 0 (i32.sub (local.get 0) (i32.const 1)))))
        (global.get $turns)))"""
    with (
        shared_runtime.load(text, metered=True, name="metered") as module,
        shared_runtime.pool(module, size=1, fresh=True, fuel=1000, init=("count", 100)) as pool,
    ):
        assert list(pool.map("count", [1, 2, 100])) == [101, 102, 200]
        for _ in range(3):
            with pytest.raises(errors.FuelExhaustedError):
                pool.submit("count", 1000).result()
            with pytest.raises(errors.FuelExhaustedError):
                pool.submit("count", 10, fuel=5).result()
            assert pool.submit("count", 1000, fuel=1 << 40).result() == 1100
        with pytest.raises(errors.FuelExhaustedError):
            shared_runtime.pool(module, size=1, fresh=True, fuel=50, init=("count", 100))


def test_a_program_that_leaves_by_exiting_has_returned_and_so_do_those_after_it(shared_runtime: Runtime) -> None:
    text = """(module
      (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
      (memory (export "memory") 1)
      (func (export "leave") (param i32) (call $exit (local.get 0))))"""
    with shared_runtime.load(text, name="leaving") as module, shared_runtime.pool(module, size=1, fresh=True) as pool:
        assert list(pool.map("leave", [0] * 20)) == [None] * 20
        found = list(pool.map("leave", [0, 3, 0] * 5, return_exceptions=True))
        assert [None if one is None else one.exit_code for one in found] == [None, 3, None] * 5
    with (
        shared_runtime.load(text, name="leaving") as module,
        shared_runtime.pool(module, size=1, fresh=True, init=("leave", 0)) as pool,
    ):
        assert pool.submit("leave", 0).result() is None


def test_options_that_cannot_be_are_refused(shared_runtime: Runtime, counting: Module) -> None:
    with pytest.raises(errors.ArgumentError, match="fresh"):
        shared_runtime.pool(counting, size=1, fresh="yes")  # type: ignore[arg-type]
    with pytest.raises(errors.WorkerTrapError):
        shared_runtime.pool(counting, size=1, fresh=True, init=("divide", 1, 0))
    with pytest.raises(errors.CallTimeoutError):
        shared_runtime.pool(counting, size=1, fresh=True, init="spin", timeout=0.05)


def test_the_memory_of_instances_that_last_for_a_call_cannot_be_viewed(shared_runtime: Runtime, counting: Module) -> None:
    with shared_runtime.pool(counting, size=1, fresh=True) as pool:
        with pytest.raises(errors.UnsupportedError, match="each of its calls has a memory of its own"):
            _ = pool.instances[0].memory
        assert pool.submit("count").result() == 1011


def test_a_call_is_told_that_init_failed_and_the_next_one_has_it_tried_anew(
    shared_runtime: Runtime, obeying: Module, heap: SharedHeap
) -> None:
    with (
        heap.calloc(64) as order,
        shared_runtime.pool(
            obeying, size=1, fresh=True, init=("prepare", order), timeout=0.1, shared_heap=heap, idle_timeout=None
        ) as pool,
    ):
        word = order.view.cast("I")
        for how, why in [
            (1, "stopped: wasm `unreachable` instruction executed"),
            (2, "took longer than 0.1 s"),
            (3, "took longer than 0.1 s"),
        ]:
            settle(pool)
            word[0], before = how, word[1]
            assert pool.submit("same", how).result(PATIENCE) == how  # it was prepared before
            with pytest.raises(errors.InstantiationError, match=f"its init 'prepare' {why}"):
                pool.submit("same", 1).result(PATIENCE)
            with pytest.raises(errors.InstantiationError, match=f"its init 'prepare' {why}"):
                list(pool.map("same", [1]))
            settle(pool)
            word[0] = 0
            with pytest.raises(errors.InstantiationError, match=f"its init 'prepare' {why}"):
                pool.submit("same", 1).result(PATIENCE)
            assert list(pool.map("same", range(10))) == list(range(10))
            assert word[1] > before + 10
        assert pool.statistics().started == 1


def fail_if(path: Path, caller: Caller) -> None:
    """What guests call: fails as soon as there is a file."""
    if path.exists():
        raise ValueError(path.name)


@pytest.mark.usefixtures("importable_tests")
@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("(start $check)", "could not be made: host function env.check raised ValueError: fails"),
        ('(export "_initialize" (func $check))', "its function '_initialize' stopped: host function env.check raised ValueError"),
        ('(export "prepare" (func $check))', "its init 'prepare' stopped: host function env.check raised ValueError: fails"),
    ],
)
def test_whatever_fails_while_an_instance_is_prepared_is_named(
    shared_runtime: Runtime, tmp_path: Path, place: str, why: str
) -> None:
    text = f"""(module
      (import "env" "check" (func $host))
      (func $check (call $host)) {place} (memory (export "memory") 1)
      (func (export "same") (param i32) (result i32) (local.get 0)))"""
    imports = {"env": {"check": partial(fail_if, tmp_path / "fails")}}
    init = "prepare" if "prepare" in place else None
    with (
        shared_runtime.load(text, imports=imports, name="failing") as module,
        shared_runtime.pool(module, size=1, fresh=True, init=init) as pool,
    ):
        assert list(pool.map("same", range(5))) == list(range(5))
        settle(pool)
        (tmp_path / "fails").touch()
        assert pool.submit("same", 1).result() == 1
        with pytest.raises(errors.InstantiationError, match=why):
            pool.submit("same", 1).result()
        settle(pool)
        (tmp_path / "fails").unlink()
        with pytest.raises(errors.InstantiationError, match=why):
            pool.submit("same", 1).result()
        assert pool.submit("same", 1).result() == 1


def test_init_may_call_functions_of_the_client(shared_runtime: Runtime) -> None:
    text = """(module
      (import "env" "next" (func $next (result i32)))
      (global $number (mut i32) (i32.const 0))
      (func (export "prepare") (global.set $number (call $next)))
      (func (export "number") (result i32) (global.get $number)))"""
    numbers = iter(range(1000))
    with (
        shared_runtime.load(text, imports={"env": {"next": on_client(lambda _caller: next(numbers))}}) as module,
        shared_runtime.pool(module, size=1, fresh=True, init="prepare") as pool,
    ):
        assert [pool.submit("number").result() for _ in range(20)] == list(range(20))
