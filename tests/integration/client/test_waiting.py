"""`memory.atomic.wait32`, `wait64` and `notify` on words of a heap, between processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from shmwasm import Instance, Module, Runtime, SharedHeap, errors
from waiting import PATIENCE, eventually

GUEST = """(module
  (import "env" "shared_heap_self" (func $self (result i32)))
  (import "env" "shared_heap_peer_alive" (func $alive (param i32) (result i32)))
  (memory (export "memory") 1 1 shared)
  (func (export "wait32") (param i32 i32 i64) (result i32)
    (memory.atomic.wait32 (local.get 0) (local.get 1) (local.get 2)))
  (func (export "wait64") (param i32 i64 i64) (result i32)
    (memory.atomic.wait64 (local.get 0) (local.get 1) (local.get 2)))
  (func (export "notify") (param i32 i32) (result i32) (memory.atomic.notify (local.get 0) (local.get 1)))
  (func (export "change32") (param i32 i32) (result i32)
    (i32.atomic.store (local.get 0) (local.get 1))
    (memory.atomic.notify (local.get 0) (i32.const -1)))
  (func (export "change64") (param i32 i64) (result i32)
    (i64.atomic.store (local.get 0) (local.get 1))
    (memory.atomic.notify (local.get 0) (i32.const -1)))
  (func (export "ping_pong") (param $word i32) (param $own i32) (param $rounds i32) ;; waits for its turn, then gives it away
    (local $seen i32)
    (loop $next
      (block $mine
        (loop $again
          (local.set $seen (i32.atomic.load (local.get $word)))
          (br_if $mine (i32.eq (i32.and (local.get $seen) (i32.const 1)) (local.get $own)))
          (drop (memory.atomic.wait32 (local.get $word) (local.get $seen) (i64.const -1)))
          (br $again)))
      (drop (i32.atomic.rmw.add (local.get $word) (i32.const 1)))
      (drop (memory.atomic.notify (local.get $word) (i32.const 1)))
      (br_if $next (local.tee $rounds (i32.sub (local.get $rounds) (i32.const 1))))))
  (func (export "self") (result i32) (call $self))
  (func (export "alive") (param i32) (result i32) (call $alive (local.get 0))))"""

FOR_EVER = -1
WOKEN, NOT_EQUAL, TIMED_OUT = 0, 1, 2
WAITS = pytest.mark.parametrize("wait", ["wait32", "wait64"])


@pytest.fixture(scope="module")
def waiting_module(shared_runtime: Runtime) -> Module:
    return shared_runtime.load(GUEST, name="waiting")


@pytest.fixture
def pair(shared_runtime: Runtime, waiting_module: Module, heap: SharedHeap) -> Iterator[tuple[Instance, Instance]]:
    """Two instances in two processes, attached to `heap`."""
    with (
        shared_runtime.spawn(waiting_module, shared_heap=heap) as one,
        shared_runtime.spawn(waiting_module, shared_heap=heap) as other,
    ):
        yield one, other


@WAITS
def test_an_instance_wakes_another_in_another_process(pair: tuple[Instance, Instance], heap: SharedHeap, wait: str) -> None:
    waiter, waker = pair
    assert waiter.pid != waker.pid
    with heap.calloc(64) as block:
        call = waiter.submit(wait, block, 0, FOR_EVER)
        eventually(lambda: waker.call("notify", block, 1))
        assert call.result(PATIENCE) == WOKEN


@WAITS
@pytest.mark.parametrize(("held", "limit", "result"), [(1, FOR_EVER, NOT_EQUAL), (0, 1_000_000, TIMED_OUT), (0, 0, TIMED_OUT)])
def test_a_wait_that_nobody_wakes_ends_as_the_standard_says(
    pair: tuple[Instance, Instance], heap: SharedHeap, wait: str, held: int, limit: int, result: int
) -> None:
    with heap.calloc(64) as block:
        block.view[0] = held
        assert pair[0].call(wait, block, 0, limit) == result


def test_a_change_of_the_high_half_alone_is_told_to_a_64_bit_waiter(pair: tuple[Instance, Instance], heap: SharedHeap) -> None:
    waiter, changer = pair
    with heap.calloc(64) as block:
        for value in range(200):
            call = waiter.submit("wait64", block, value << 32, FOR_EVER)
            changer.call("change64", block, (value + 1) << 32)
            assert call.result(PATIENCE) in {WOKEN, NOT_EQUAL}


def test_as_many_are_woken_as_wait_and_as_asked_for(
    shared_runtime: Runtime, waiting_module: Module, pair: tuple[Instance, Instance], heap: SharedHeap
) -> None:
    with heap.calloc(64) as block, shared_runtime.pool(waiting_module, size=3, shared_heap=heap) as pool:
        calls = [instance.submit("wait32", block, 0, FOR_EVER) for instance in pool.instances]
        woken = 0

        def wake() -> bool:
            nonlocal woken
            woken += pair[0].call("notify", block, 2)
            return woken == 3

        eventually(wake)
        assert [call.result(PATIENCE) for call in calls] == [WOKEN] * 3
        assert pair[0].call("notify", block, -1) == 0


def test_two_instances_take_turns(pair: tuple[Instance, Instance], heap: SharedHeap) -> None:
    with heap.calloc(64) as block:
        calls = [instance.submit("ping_pong", block, own, 2000) for own, instance in enumerate(pair)]
        for call in calls:
            call.result(PATIENCE)
        assert int.from_bytes(block.view[:4], "little") == 4000


@WAITS
@pytest.mark.parametrize("own", [FOR_EVER, 3_600_000_000_000])
def test_the_calls_own_time_limit_ends_a_wait(pair: tuple[Instance, Instance], heap: SharedHeap, wait: str, own: int) -> None:
    waiter, _ = pair
    with heap.calloc(64) as block:
        for _ in range(3):
            with pytest.raises(errors.CallTimeoutError) as late:
                waiter.call(wait, block, 0, own, timeout=0.05)
            assert (late.value.export, late.value.timeout, late.value.instance) == (wait, 0.05, waiter.number)
        assert waiter.call(wait, block, 1, FOR_EVER) == NOT_EQUAL
        assert waiter.alive


def test_a_guests_own_limit_within_the_calls_is_no_error(pair: tuple[Instance, Instance], heap: SharedHeap) -> None:
    with heap.calloc(64) as block:
        assert pair[0].call("wait32", block, 0, 1_000_000, timeout=PATIENCE) == TIMED_OUT


def test_a_peer_that_is_killed_leaves_its_waiter_to_the_calls_limit_and_is_known_to_be_gone(
    pair: tuple[Instance, Instance], heap: SharedHeap
) -> None:
    waiter, peer = pair
    with heap.calloc(64) as block:
        number = peer.call("self")
        assert waiter.call("alive", number) == 1
        call = waiter.submit("wait32", block, 0, FOR_EVER, timeout=0.3)
        os.kill(peer.pid, signal.SIGKILL)
        with pytest.raises(errors.CallTimeoutError):
            call.result(PATIENCE)
        eventually(lambda: not waiter.call("alive", number))
        assert waiter.call("alive", waiter.call("self")) == 1


def test_a_waiting_instance_is_killed_like_any_other(pair: tuple[Instance, Instance], heap: SharedHeap) -> None:
    waiter, _ = pair
    with heap.calloc(64) as block:
        call = waiter.submit("wait32", block, 0, FOR_EVER)
        waiter.kill()
        with pytest.raises(errors.WorkerLostError, match="SIGKILL"):
            call.result(PATIENCE)


def test_an_instance_that_is_closed_ends_once_its_wait_has(pair: tuple[Instance, Instance], heap: SharedHeap) -> None:
    waiter, waker = pair
    with heap.calloc(64) as block:
        call = waiter.submit("wait32", block, 0, 200_000_000)
        waiter.close()
        assert call.result(PATIENCE) == TIMED_OUT
        assert waker.alive


def test_a_stopped_wait_in_private_memory_is_the_engines_own(pair: tuple[Instance, Instance]) -> None:
    assert pair[0].call("wait32", 64, 1, FOR_EVER) == NOT_EQUAL
    assert pair[0].call("wait32", 64, 0, 1_000_000) == TIMED_OUT
    assert pair[0].call("notify", 64, 1) == 0


@pytest.mark.parametrize(("export", "width"), [("wait32", 4), ("wait64", 8), ("notify", 4)])
def test_a_misaligned_word_traps(pair: tuple[Instance, Instance], heap: SharedHeap, export: str, width: int) -> None:
    rest = (1,) if export == "notify" else (0, 0)
    with heap.calloc(64) as block:
        for shift in range(1, width):
            with pytest.raises(errors.WorkerTrapError) as trapped:
                pair[0].call(export, block.address + shift, *rest)
            assert trapped.value.code == "heap_misaligned"


@pytest.mark.parametrize("export", ["wait32", "wait64", "notify"])
def test_a_word_below_the_chain_traps(pair: tuple[Instance, Instance], heap: SharedHeap, export: str) -> None:
    rest = (1,) if export == "notify" else (0, 0)
    with pytest.raises(errors.WorkerTrapError) as trapped:
        pair[0].call(export, heap.start - 8, *rest)
    assert trapped.value.code == "memory_out_of_bounds"


@WAITS
def test_a_word_of_a_heap_that_is_attached_read_only_can_be_waited_for(
    shared_runtime: Runtime, waiting_module: Module, pair: tuple[Instance, Instance], heap: SharedHeap, wait: str
) -> None:
    with heap.calloc(64) as block, shared_runtime.spawn(waiting_module, shared_heap=heap, read_only=True) as reader:
        call = reader.submit(wait, block, 0, FOR_EVER)
        eventually(lambda: pair[0].call("notify", block, 1))
        assert call.result(PATIENCE) == WOKEN


def test_instances_and_their_client_have_numbers_of_their_own(pair: tuple[Instance, Instance]) -> None:
    one, other = pair
    assert (one.call("self"), other.call("self")) == (one.number, other.number)
    assert one.call("alive", other.number) == 1
    assert one.call("alive", 0) == 0
