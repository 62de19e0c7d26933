"""Limits by fuel: what metered modules count."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from shmwasm import Instance, Runtime, SharedHeap, errors

WORKING = """(module
  (import "env" "shared_heap_malloc" (func $malloc (param i32) (result i32)))
  (import "env" "shared_heap_free" (func $free (param i32)))
  (memory (export "memory") 1)
  (global $turns (mut i32) (i32.const 0))
  (func $start (local i32)
    (loop $next (br_if $next (i32.lt_u (local.tee 0 (i32.add (local.get 0) (i32.const 1))) (i32.const 1000)))))
  (start $start)
  (func (export "turns") (result i32) (global.get $turns))
  (func (export "nothing"))
  (func (export "count") (param i32)
    (loop $next
      (global.set $turns (i32.add (global.get $turns) (i32.const 1)))
      (br_if $next (local.tee 0 (i32.sub (local.get 0) (i32.const 1))))))
  (func (export "add") (param i32 f64) (result f64 i32)
    (f64.add (local.get 1) (f64.const 1)) (i32.add (local.get 0) (i32.const 1)))
  (func $recurse (export "recurse") (call $recurse))
  (func (export "stop") (global.set $turns (i32.const 7)) unreachable)
  (func (export "allocate") (param i32) (result i32) (local i32)
    (local.set 1 (call $malloc (local.get 0))) (call $free (local.get 1)) (local.get 1))
  (func (export "spin") (loop $forever (br $forever))))"""

TURN = 7
"""What a turn of the loop costs: its instructions, `br_if` included and `loop` not."""


@pytest.fixture
def metered(shared_runtime: Runtime, heap: SharedHeap) -> Iterator[Instance]:
    with shared_runtime.spawn(shared_runtime.load(WORKING, metered=True, name="working"), shared_heap=heap) as instance:
        yield instance


def _least(instance: Instance, export: str, *arguments: int) -> int:
    """Return how much fuel a call needs."""
    low, high = 0, 1 << 20
    while high - low > 1:
        middle = (low + high) // 2
        try:
            instance.call(export, *arguments, fuel=middle)
            high = middle
        except errors.FuelExhaustedError:
            low = middle
    return high


def test_a_call_needs_the_same_fuel_each_time_and_a_unit_for_each_instruction(metered: Instance) -> None:
    assert _least(metered, "count", 11) - _least(metered, "count", 10) == TURN + 2
    assert _least(metered, "count", 1000) == _least(metered, "count", 1000)
    assert _least(metered, "nothing") == 1


def test_what_the_allocator_does_costs_nothing(metered: Instance) -> None:
    assert _least(metered, "allocate", 16) == _least(metered, "allocate", 1 << 20)


def test_a_call_that_uses_up_its_fuel_stops_at_the_same_point_each_time(metered: Instance) -> None:
    turns = []
    for _ in range(3):
        before = metered.call("turns")
        with pytest.raises(errors.FuelExhaustedError) as caught:
            metered.call("count", 1_000_000, fuel=5000)
        turns.append(metered.call("turns") - before)
    assert turns[0] == turns[1] == turns[2] > 0
    error = caught.value
    assert (error.instance, error.export, error.fuel, error.code) == (metered.number, "count", 5000, "fuel_exhausted")
    assert "its 5000 units of fuel are used up" in str(error)
    assert len(error.backtrace) == 1


def test_endless_loops_and_endless_recursion_end(metered: Instance) -> None:
    for export in ("spin", "recurse"):
        with pytest.raises(errors.FuelExhaustedError):
            metered.call(export, fuel=10_000)
    assert metered.call("turns") == 0


def test_other_traps_stay_what_they_are(metered: Instance) -> None:
    with pytest.raises(errors.WorkerTrapError) as caught:
        metered.call("stop", fuel=10_000)
    assert type(caught.value) is errors.WorkerTrapError
    assert caught.value.code == "unreachable"
    with pytest.raises(errors.WorkerTrapError, match="call stack exhausted"):
        metered.call("recurse")
    with pytest.raises(errors.CallTimeoutError):
        metered.call("spin", timeout=0.05, fuel=1 << 62)


def test_every_way_of_calling_takes_fuel(metered: Instance) -> None:
    assert metered.call("add", 1, 0.5) == metered.exports.add(1, 0.5) == [1.5, 2]
    assert metered.call("add", 1, 0.5, fuel=100) == metered.submit("add", 1, 0.5, fuel=100).result() == [1.5, 2]
    assert asyncio.run(metered.call_async("add", 1, 0.5, fuel=100)) == [1.5, 2]
    with pytest.raises(errors.FuelExhaustedError):
        metered.exports.count(1000, fuel=100)
    with pytest.raises(errors.FuelExhaustedError):
        metered.submit("count", 1000, fuel=100).result()
    with pytest.raises(errors.FuelExhaustedError):
        asyncio.run(metered.call_async("count", 1000, fuel=100))
    with pytest.raises(errors.ArgumentError, match=r"'add' takes 2 arguments \(i32, f64\), not 3"):
        metered.call("add", 1, 0.5, 2)
    with pytest.raises(errors.ArgumentError, match=r"'add' takes 2 arguments \(i32, f64\), not 1"):
        metered.call("add", 1, fuel=5)


def test_calls_that_say_nothing_may_use_what_the_instance_was_given(shared_runtime: Runtime) -> None:
    module = shared_runtime.load(WORKING, metered=True)
    with shared_runtime.spawn(module, fuel=1000) as instance:
        instance.call("count", 10)
        for call in (instance.call, lambda *arguments: instance.submit(*arguments).result()):
            with pytest.raises(errors.FuelExhaustedError, match="its 1000 units"):
                call("count", 1000)
        instance.call("count", 1000, fuel=100_000)
    with shared_runtime.pool(module, size=1, fuel=1000) as pool:
        with pytest.raises(errors.FuelExhaustedError, match="its 1000 units"):
            pool.submit("count", 1000).result()
        assert list(pool.map("add", [1, 2, 3], [0.5, 1.5, 2.5])) == [[1.5, 2], [2.5, 3], [3.5, 4]]
        with pytest.raises(errors.FuelExhaustedError):
            list(pool.map("count", [10, 10, 1000, 10]))
        with pytest.raises(errors.FuelExhaustedError, match="its 100 units"):
            pool.submit("count", 1000, fuel=100).result()
        assert pool.submit("count", 1000, fuel=100_000).result() is None
        assert list(pool.map("count", [1000, 1000], fuel=100_000)) == [None] * 2
        assert list(pool.map("count", iter([1000, 1000]), fuel=100_000)) == [None] * 2
        with pytest.raises(errors.FuelExhaustedError):
            list(pool.map("count", [1, 100], fuel=100))
        with pytest.raises(errors.ArgumentError):
            pool.map("count", [1], fuel=0)


def test_a_map_of_many_calls_gives_each_its_fuel(shared_runtime: Runtime) -> None:
    count = 70_000  # more than a batch has room for
    with shared_runtime.pool(shared_runtime.load(WORKING, metered=True), size=1, fuel=100) as pool:
        assert list(pool.map("add", range(count), [0.5] * count)) == [[1.5, number + 1] for number in range(count)]
        outcomes = list(pool.map("count", [1, 1000] * 50, return_exceptions=True))
    assert [type(one) for one in outcomes] == [type(None), errors.FuelExhaustedError] * 50


def test_fuel_for_a_module_that_is_not_metered_is_refused_by_name(shared_runtime: Runtime, instance: Instance) -> None:
    with pytest.raises(errors.UnsupportedError, match=r"a limit of fuel for 'count'.*load\(\.\.\., metered=True\)"):
        instance.call("count", fuel=5)
    with pytest.raises(errors.UnsupportedError, match="a limit of fuel for <module 'echo'"):
        shared_runtime.spawn(instance.module, fuel=5)


@pytest.mark.parametrize("amount", [0, -1, 1 << 63, 1.5, "much"])
def test_amounts_of_fuel_that_cannot_be_are_refused(metered: Instance, amount: object) -> None:
    with pytest.raises(errors.ArgumentError, match="an amount of fuel must be"):
        metered.call("nothing", fuel=amount)  # type: ignore[arg-type]


def test_a_backtrace_of_a_metered_module_tells_of_the_module_as_it_was_loaded(shared_runtime: Runtime) -> None:
    with shared_runtime.spawn(shared_runtime.load(WORKING)) as plain, pytest.raises(errors.WorkerTrapError) as expected:
        plain.call("stop")
    with (
        shared_runtime.spawn(shared_runtime.load(WORKING, metered=True)) as metered,
        pytest.raises(errors.WorkerTrapError) as caught,
    ):
        metered.call("stop")
    assert caught.value.backtrace == expected.value.backtrace
