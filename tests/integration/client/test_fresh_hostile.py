"""Guests that look for anything an earlier call left behind, and leave all that they can."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmwasm import InstancePool, Runtime, SharedHeap, errors

MEMORIES = {
    "memory": '(memory (export "memory") 2 40)',
    "hidden": "(memory 2 40)",
    "imported": '(import "env" "memory" (memory 2 40))',
    "shared": '(memory (export "memory") 2 40 shared)',
    "64-bit": '(memory (export "memory") i64 2 40)',
}

# "look" sums up all that the guest has; "soil" does so too, and then changes all of it, and ends as it is told.
HOSTILE = """(module
  {imports} {memory}
  {own_table} (elem $functions func $look $look $look)
  (global $i32 (mut i32) (i32.const 1)) (global $i64 (mut i64) (i64.const 2))
  (global $f64 (mut f64) (f64.const 3)) (global $v128 (mut v128) (v128.const i64x2 4 5))
  (global $reference (mut funcref) (ref.null func)) (global $outer (mut externref) (ref.null extern))
  (global $started (mut i32) (i32.const 0))
  (data $passive "what a passive segment holds") (data ({index}.const 70000) "what an active segment holds")
  (func $start (global.set $started (i32.add (global.get $started) (i32.const 1)))
    ({index}.store8 ({index}.const 5) ({index}.const 50)))
  (start $start)
  (func $prepare (export "prepare") (param i32)
    (global.set $i32 (i32.add (global.get $i32) (local.get 0))) ({index}.store ({index}.const 90000) ({index}.const 123)))
  (func $mix (param i64 i64) (result i64)
    (i64.add (i64.mul (i64.rotl (local.get 0) (i64.const 5)) (i64.const 0x9E3779B97F4A7C15)) (local.get 1)))
  (func $look (export "look") (result i64) (local $sum i64) (local $at {index}) (local $index i32)
    (local.set $sum (i64.extend_i32_u (global.get $i32)))
    (local.set $sum (call $mix (local.get $sum) (global.get $i64)))
    (local.set $sum (call $mix (local.get $sum) (i64.reinterpret_f64 (global.get $f64))))
    (local.set $sum (call $mix (local.get $sum) (i64x2.extract_lane 0 (global.get $v128))))
    (local.set $sum (call $mix (local.get $sum) (i64x2.extract_lane 1 (global.get $v128))))
    (local.set $sum (call $mix (local.get $sum) (i64.extend_i32_u (ref.is_null (global.get $reference)))))
    (local.set $sum (call $mix (local.get $sum) (i64.extend_i32_u (ref.is_null (global.get $outer)))))
    (local.set $sum (call $mix (local.get $sum) (i64.extend_i32_u (global.get $started))))
    (local.set $sum (call $mix (local.get $sum) (i64.extend_i32_u (table.size $table))))
    (loop $next
      (local.set $sum (call $mix (local.get $sum)
        (i64.extend_i32_u (ref.is_null (table.get $table (local.get $index))))))
      (local.set $index (i32.add (local.get $index) (i32.const 1)))
      (br_if $next (i32.lt_u (local.get $index) (table.size $table))))
    (loop $next
      (local.set $sum (call $mix (local.get $sum) (i64.load (local.get $at))))
      (local.set $at ({index}.add (local.get $at) ({index}.const 8)))
      (br_if $next ({index}.lt_u (local.get $at) ({index}.shl (memory.size) ({index}.const 16)))))
    (memory.init $passive ({index}.const 64) (i32.const 0) (i32.const 28))
    (table.init $table $functions (i32.const 0) (i32.const 0) (i32.const 3))
    (call $mix (local.get $sum) (i64.load ({index}.const 64))))
  (func (export "soil") (param $how i32) (param $what i64) (result i64) (local $found i64) (local $at {index})
    (local.set $found (call $look))
    (global.set $i32 (i32.wrap_i64 (local.get $what))) (global.set $i64 (local.get $what))
    (global.set $f64 (f64.reinterpret_i64 (local.get $what))) (global.set $v128 (i64x2.splat (local.get $what)))
    (global.set $reference (ref.func $look)) (global.set $started (i32.const 99))
    (drop (memory.grow ({index}.const 3)))
    (drop (table.grow $table (ref.func $look) (i32.const 100)))
    (table.fill $table (i32.const 0) (ref.func $look) (table.size $table))
    (data.drop $passive) (elem.drop $functions)
    (loop $next
      (i64.store (local.get $at) (local.get $what))
      (local.set $at ({index}.add (local.get $at) ({index}.const 8)))
      (br_if $next ({index}.lt_u (local.get $at) ({index}.shl (memory.size) ({index}.const 16)))))
    (if (i32.eq (local.get $how) (i32.const 1)) (then unreachable))
    (if (i32.eq (local.get $how) (i32.const 2)) (then (loop $forever (br $forever))))
    (if (i32.eq (local.get $how) (i32.const 3)) (then (drop (i64.load ({index}.const 0x7fff0000)))))
    (local.get $found)))"""


def hostile(kind: str) -> str:
    """Return the guest's text, with one of the kinds of memory."""
    memory, index = MEMORIES[kind], "i64" if kind == "64-bit" else "i32"
    imported = kind == "imported"
    table = '(import "env" "table" (table $table 8 1000 funcref))' if imported else ""
    own_table = "" if imported else "(table $table 8 1000 funcref)"
    return HOSTILE.format(
        imports=table + (memory if imported else ""), memory="" if imported else memory, own_table=own_table, index=index
    )


@pytest.fixture(params=MEMORIES)
def pool(request: pytest.FixtureRequest, shared_runtime: Runtime, heap: SharedHeap) -> Iterator[InstancePool]:
    module = shared_runtime.load(hostile(request.param), name=request.param)
    with shared_runtime.pool(module, size=2, fresh=True, init=("prepare", 40), timeout=20.0, shared_heap=heap) as one:
        yield one
    module.close()


def outcome(call) -> object:
    """Return a call's result, or the name of its error."""
    try:
        return call()
    except errors.ShmwasmError as error:
        return type(error).__name__


def test_no_call_finds_anything_of_another(pool: InstancePool) -> None:
    seed = random.randrange(1 << 32)
    dice = random.Random(seed)
    first = pool.submit("look").result()
    expected = {0: first, 1: "WorkerTrapError", 2: "CallTimeoutError", 3: "WorkerTrapError"}
    for _ in range(12):
        match dice.randrange(4):
            case 0:
                asked = [(dice.choice([0, 0, 1, 2, 3]), dice.getrandbits(63)) for _ in range(8)]
                futures = [pool.submit("soil", how, what, timeout=0.02 if how == 2 else None) for how, what in asked]
                found = [outcome(future.result) for future in futures]
                assert found == [expected[how] for how, _ in asked], seed
            case 1:
                hows = [dice.choice([0, 0, 0, 1, 3]) for _ in range(30)]
                results = pool.map("soil", hows, [dice.getrandbits(63)] * 30, return_exceptions=True, call_timeout=None)
                found = [type(one).__name__ if isinstance(one, Exception) else one for one in results]
                assert found == [expected[how] for how in hows], seed
            case 2:
                assert pool.broadcast("soil", 0, dice.getrandbits(63)) == [first] * 2, seed
            case _:
                instance = pool.instances[0]
                assert [instance.call("soil", 0, dice.getrandbits(63)) for _ in range(3)] == [first] * 3, seed
    assert pool.broadcast("look") == [first] * 2, seed


def test_lots_of_maps_leave_nothing_to_each_other(shared_runtime: Runtime) -> None:
    module = shared_runtime.load(hostile("memory"), name="hostile")
    with shared_runtime.pool(module, size=1, fresh=True) as pool:
        first = pool.submit("look").result()
        hows = [index % 7 == 3 for index in range(300)]
        results = list(pool.map("soil", hows, range(300), return_exceptions=True))
        assert [isinstance(one, errors.WorkerTrapError) for one in results] == hows
        assert {one for one in results if isinstance(one, int)} == {first}
    module.close()


def test_memory_of_guests_that_are_done_with_is_given_back(shared_runtime: Runtime) -> None:
    module = shared_runtime.load(hostile("memory"), name="hostile")

    def resident(pid: int) -> int:
        status = Path(f"/proc/{pid}/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0]) << 10

    with shared_runtime.pool(module, size=1, fresh=True) as pool:
        list(pool.map("soil", [0] * 20, range(20)))
        pid = pool.instances[0].pid
        before = resident(pid)
        for _ in pool.map("soil", [0] * 300, range(300)):  # each soils 320 KiB
            pass
        assert pool.instances[0].pid == pid
        assert resident(pid) - before < 16 << 20
        assert len(Path(f"/proc/{pid}/maps").read_text().splitlines()) < 5000
    module.close()


def test_a_worker_in_which_too_much_is_left_is_replaced_and_no_call_notices(shared_runtime: Runtime) -> None:
    text = """(module (table $table 1 10000000 funcref)
      (func $grow (export "grow") (param i32) (result i32)
        (drop (table.grow $table (ref.func $grow) (i32.const 1000000))) (local.get 0))
      (elem declare func $grow))"""
    module = shared_runtime.load(text, name="tables")
    with shared_runtime.pool(module, size=1, fresh=True) as pool:
        assert list(pool.map("grow", range(40))) == list(range(40))
        futures = [pool.submit("grow", number) for number in range(40)]
        assert [future.result() for future in futures] == list(range(40))
        counted = pool.statistics()
        assert counted.replaced >= 4  # a table takes 8 MB
        assert counted.losses == 0
    module.close()
