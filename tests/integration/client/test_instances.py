"""Instances and their calls."""

from __future__ import annotations

import math
import os
import signal
import threading
from concurrent.futures import Future
from pathlib import Path

import psutil
import pytest

from shmwasm import Instance, Module, Runtime, SharedHeap, errors
from shmwasm.addresses import WASM_PAGE, WINDOW_END
from waiting import eventually


@pytest.mark.parametrize(
    ("export", "given", "returned"),
    [
        ("i32", 5, 5),
        ("i32", -5, -5),
        ("i32", 0xFFFF_FFFF, -1),
        ("i32", 1 << 31, -(1 << 31)),
        ("i64", -(1 << 63), -(1 << 63)),
        ("i64", (1 << 64) - 1, -1),
        ("f32", 0.5, 0.5),
        ("f32", 3, 3.0),
        ("f64", math.pi, math.pi),
        ("f64", -math.inf, -math.inf),
    ],
)
def test_numbers_go_in_and_come_out(instance: Instance, export: str, given: float, returned: float) -> None:
    assert instance.call(export, given) == returned


def test_several_results_come_as_a_list_and_none_as_none(instance: Instance) -> None:
    assert instance.call("all", 1, 2, 0.5, 0.25) == [0.25, 0.5, 2, 1]
    assert instance.call("nothing") is None
    assert math.isnan(instance.call("f64", math.nan))


@pytest.mark.parametrize(
    ("export", "arguments"),
    [
        ("i32", ("5",)),
        ("i32", (0.5,)),
        ("i32", (None,)),
        ("i32", (1 << 32,)),
        ("i32", (-(1 << 31) - 1,)),
        ("i64", (1 << 64,)),
        ("f64", ("x",)),
        ("f64", (None,)),
        ("add", (1,)),
        ("add", (1, 2, 3)),
        ("nothing", (1,)),
    ],
)
def test_arguments_that_do_not_fit_are_refused_before_the_call(instance: Instance, export: str, arguments: tuple) -> None:
    with pytest.raises(errors.ArgumentError, match=export):
        instance.call(export, *arguments)
    assert instance.call("add", 1, 2) == 3


def test_unknown_export_names_what_there_is(instance: Instance) -> None:
    with pytest.raises(errors.UnknownExportError, match=r"blur.*count"):
        instance.call("blur")
    with pytest.raises(AttributeError, match="blur"):
        _ = instance.exports.blur
    with pytest.raises(errors.UnknownExportError):
        _ = instance.exports["blur"]


def test_a_function_of_vectors_cannot_be_called_from_python(instance: Instance) -> None:
    with pytest.raises(errors.UnsupportedError, match="v128"):
        instance.call("vector")


@pytest.mark.parametrize("timeout", [0, -1, math.nan])
def test_a_time_limit_that_is_none_is_refused(instance: Instance, timeout: float) -> None:
    with pytest.raises(errors.ArgumentError, match="time limit"):
        instance.call("nothing", timeout=timeout)


def test_exports_are_listed_and_bound(instance: Instance) -> None:
    assert "add" in instance.exports
    assert set(instance.exports) == set(instance.module.exports)
    assert len(instance.exports) == len(instance.module.exports)
    add = instance.exports.add
    assert instance.exports["add"] is add
    assert add(2, 3) == 5
    assert add.submit(3, 4).result() == 7


def test_calls_run_in_the_order_they_were_submitted(instance: Instance) -> None:
    futures = [instance.submit("count") for _ in range(200)]
    assert [future.result() for future in futures] == list(range(1, 201))


def test_threads_share_an_instance(instance: Instance) -> None:
    results: list[object] = []

    def add() -> None:
        results.extend(instance.call("add", number, 1) for number in range(50))

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == sorted(list(range(1, 51)) * 8)


def test_host_and_guest_see_the_same_bytes(instance: Instance, heap: SharedHeap) -> None:
    block = heap.malloc(10)
    block.view[3] = 42
    assert instance.call("load", block.address + 3) == 42
    assert instance.call("load", block.address + 3 - (1 << 32)) == 42
    instance.call("store", block, 7)
    assert block.view[0] == 7


def test_a_block_of_a_heap_that_is_not_attached_is_refused(shared_runtime: Runtime, instance: Instance) -> None:
    with shared_runtime.create_shared_heap(1 << 20) as other, pytest.raises(errors.ArgumentError, match="not attached"):
        instance.call("load", other.malloc(10))


def test_a_trap_names_the_function_and_the_instance_lives(instance: Instance) -> None:
    with pytest.raises(errors.WorkerTrapError) as caught:
        instance.call("divide", 1, 0)
    assert caught.value.code == "integer_division_by_zero"
    assert caught.value.export == "divide"
    assert caught.value.backtrace
    with pytest.raises(errors.WorkerTrapError) as caught:
        instance.call("recurse")
    assert caught.value.code == "stack_overflow"
    assert instance.call("add", 1, 2) == 3


def test_an_access_outside_of_memory_and_heap_traps(instance: Instance, heap: SharedHeap) -> None:
    for address in (WASM_PAGE, heap.start - 1, 1 << 31):
        with pytest.raises(errors.WorkerTrapError) as caught:
            instance.call("load", address)
        assert caught.value.code == "memory_out_of_bounds"


def test_a_call_is_interrupted_at_its_time_limit_and_the_worker_lives(instance: Instance) -> None:
    pid = instance.pid
    for _ in range(5):
        with pytest.raises(errors.CallTimeoutError) as caught:
            instance.call("spin", timeout=0.02)
        assert (caught.value.export, caught.value.timeout) == ("spin", 0.02)
        assert isinstance(caught.value, TimeoutError)
        assert instance.call("add", 1, 1, timeout=30) == 2
    assert (instance.pid, instance.alive) == (pid, True)


def test_a_killed_worker_fails_its_calls_with_the_signal(shared_runtime: Runtime, echo_module: Module) -> None:
    instance = shared_runtime.spawn(echo_module)
    running, waiting = instance.submit("spin"), instance.submit("add", 1, 2)
    eventually(running.running)
    os.kill(instance.pid, signal.SIGKILL)
    for future in (running, waiting):
        with pytest.raises(errors.WorkerLostError) as caught:
            future.result(timeout=30)
        assert (caught.value.signal, caught.value.exit_code, caught.value.pid) == (signal.SIGKILL, None, instance.pid)
        assert caught.value.last_call == "spin"
    assert not instance.alive
    with pytest.raises(errors.WorkerLostError):
        instance.call("add", 1, 2)
    instance.close()
    instance.close()


def test_kill_ends_a_worker_whatever_it_does(shared_runtime: Runtime, echo_module: Module) -> None:
    with shared_runtime.spawn(echo_module) as instance:
        future = instance.submit("spin")
        instance.kill()
        instance.kill()
        with pytest.raises(errors.WorkerLostError, match="SIGKILL"):
            future.result()
        assert not psutil.pid_exists(instance.pid)


def test_close_lets_the_calls_under_way_finish(shared_runtime: Runtime, echo_module: Module) -> None:
    instance = shared_runtime.spawn(echo_module)
    futures = [instance.submit("count") for _ in range(200)]
    instance.close()
    assert [future.result(timeout=0) for future in futures] == list(range(1, 201))
    assert not psutil.pid_exists(instance.pid)
    with pytest.raises(errors.ClosedError):
        instance.call("count")
    with pytest.raises(errors.ClosedError):
        instance.detach_shared_heap()


def test_the_very_next_access_after_detach_traps(instance: Instance, heap: SharedHeap) -> None:
    block = heap.calloc(10)
    assert instance.call("load", block) == 0
    instance.detach_shared_heap()
    assert instance.shared_heap is None
    with pytest.raises(errors.WorkerTrapError):
        instance.call("load", block.address)
    with pytest.raises(errors.AttachError):
        instance.detach_shared_heap()
    instance.attach_shared_heap(heap)
    assert instance.call("load", block) == 0
    with pytest.raises(errors.AttachError):
        instance.attach_shared_heap(heap)


def test_attached_read_only_a_store_traps_and_nothing_changes(instance: Instance, heap: SharedHeap) -> None:
    block = heap.calloc(10)
    instance.detach_shared_heap()
    instance.attach_shared_heap(heap, read_only=True)
    assert instance.call("load", block) == 0
    with pytest.raises(errors.WorkerTrapError):
        instance.call("store", block, 1)
    assert block.view[0] == 0
    instance.detach_shared_heap()
    instance.attach_shared_heap(heap)
    instance.call("store", block, 1)
    assert block.view[0] == 1


def test_linear_memory_cannot_grow_into_the_window(shared_runtime: Runtime, tmp_path: Path) -> None:
    module = shared_runtime.load(
        '(module (memory (export "memory") 1) (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0))))'
    )
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(WINDOW_END - 4 * WASM_PAGE)
    with (
        shared_runtime.create_shared_heap(pre_allocated=path, read_only=True) as heap,
        shared_runtime.spawn(module, shared_heap=heap) as instance,
    ):
        assert instance.call("grow", 4) == -1
        assert instance.call("grow", 3) == 1
        assert instance.call("grow", 1) == -1
        instance.detach_shared_heap()
        assert instance.call("grow", 1) == 4
        with pytest.raises(errors.AttachError, match="reaches the window"):
            instance.attach_shared_heap(heap)


def test_a_heap_cannot_be_chained_while_it_is_attached(shared_runtime: Runtime, instance: Instance, heap: SharedHeap) -> None:
    with shared_runtime.create_shared_heap(1 << 20) as other:
        for head, body in ((heap, other), (other, heap)):
            with pytest.raises(errors.ChainError, match="attached"):
                shared_runtime.chain_shared_heaps(head, body)
        with pytest.raises(errors.ChainError, match="attached"):
            heap.reset()
        instance.detach_shared_heap()
        shared_runtime.chain_shared_heaps(other, heap)
        with pytest.raises(errors.AttachError, match="head"):
            instance.attach_shared_heap(heap)
        instance.attach_shared_heap(other)


def test_guests_allocate_from_the_heap_and_the_host_frees(
    shared_runtime: Runtime, allocating_module: Module, heap: SharedHeap
) -> None:
    with shared_runtime.spawn(allocating_module, shared_heap=heap) as instance:
        address = instance.call("malloc", 100)
        block = heap.block_at(address)
        block.view[0] = 5
        assert instance.call("load", address) == 5
        block.free()
        with pytest.raises(errors.WorkerTrapError, match=hex(block.address)) as caught:
            instance.call("free", address)
        assert caught.value.code == "invalid_free"
        mine = heap.malloc(100)
        instance.call("free", mine)
        with pytest.raises(errors.InvalidFreeError):
            mine.free()
        assert instance.call("malloc", 1 << 30) == 0
        assert instance.call("malloc", 0) == 0
        instance.call("free", 0)
    assert heap.statistics().live_blocks == 0
    heap.verify()


def test_a_guest_without_a_heap_gets_null(shared_runtime: Runtime, allocating_module: Module) -> None:
    with shared_runtime.spawn(allocating_module) as instance:
        assert instance.call("malloc", 100) == 0
        instance.call("free", 0)
        with pytest.raises(errors.WorkerTrapError):
            instance.call("free", 64)


def test_quota_of_an_instance_is_null_to_the_guest(shared_runtime: Runtime, allocating_module: Module, heap: SharedHeap) -> None:
    with shared_runtime.spawn(allocating_module, shared_heap=heap, quota=2 * WASM_PAGE) as instance:
        got = [instance.call("malloc", 20_000) for _ in range(10)]
        assert any(got)
        assert not all(got)
    heap.malloc(1 << 20).free()


def test_linear_memory_is_seen_and_changed_without_a_copy(instance: Instance) -> None:
    instance.call("store", 1000, 42)
    memory = instance.memory
    assert len(memory) == WASM_PAGE
    assert memory[1000] == 42
    memory[1001] = 43
    assert instance.call("load", 1001) == 43
    assert instance.call("grow", 2) == 1
    instance.call("store", 2 * WASM_PAGE, 9)
    assert len(instance.memory) == 3 * WASM_PAGE
    assert instance.memory[2 * WASM_PAGE] == 9
    assert memory[1000] == 42
    with pytest.raises(errors.WorkerTrapError):
        instance.call("load", 3 * WASM_PAGE)


def test_a_module_without_memory_runs_but_cannot_be_attached(shared_runtime: Runtime, heap: SharedHeap) -> None:
    module = shared_runtime.load('(module (func (export "one") (result i32) (i32.const 1)))')
    with shared_runtime.spawn(module) as instance:
        assert instance.call("one") == 1
        with pytest.raises(errors.ShmwasmError, match="memory"):
            instance.attach_shared_heap(heap)
        with pytest.raises(errors.UnsupportedError, match="memory"):
            _ = instance.memory
        assert instance.call("one") == 1


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (b"\0asm\1\0\0\0\xff", None),
        (b"nonsense", None),
        (b"", None),
        ("(module (func (result i32)))", None),
        ('(module (import "env" "missing" (func)))', "env.missing"),
        ('(module (import "env" "number" (global i32)))', "the global env.number"),
        ('(module (import "env" "event" (tag)))', "the tag env.event"),
        ("/does/not/exist.wasm", "exist"),
    ],
)
def test_what_is_no_module_is_refused(shared_runtime: Runtime, source: bytes | str, reason: str | None) -> None:
    with pytest.raises(errors.ModuleError, match=reason):
        shared_runtime.load(source)


def test_a_start_function_that_traps_is_an_error_of_spawn(shared_runtime: Runtime) -> None:
    module = shared_runtime.load("(module (func $start unreachable) (start $start))")
    with pytest.raises(errors.InstanceError, match="unreachable"):
        shared_runtime.spawn(module)


SPINS = "(func $spin (loop $forever (br $forever)))"


@pytest.mark.parametrize("place", ["(start $spin)", '(export "_initialize" (func $spin))'])
def test_a_start_that_does_not_return_is_ended_with_its_worker_at_its_time_limit(shared_runtime: Runtime, place: str) -> None:
    with shared_runtime.load(f"(module {SPINS} {place})") as module:
        with pytest.raises(errors.InstantiationError, match=r"was not ready within 0\.1 s"):
            shared_runtime.spawn(module, start_timeout=0.1)
        with pytest.raises(errors.InstantiationError, match=r"was not ready within 0\.2 s"):
            shared_runtime.pool(module, size=2, start_timeout=0.2)


def test_a_worker_that_was_not_ready_in_time_is_gone_when_that_is_raised(runtime: Runtime) -> None:
    spinning = runtime.load(f"(module {SPINS} (start $spin))")
    with pytest.raises(errors.InstantiationError):
        runtime.spawn(spinning, start_timeout=0.1)
    assert not runtime.status()["workers"]


@pytest.mark.parametrize("limit", [1e8, math.inf])
def test_an_instance_that_is_ready_in_time_is_not_limited_any_more(runtime: Runtime, limit: float) -> None:
    quick = runtime.load('(module (func (export "five") (result i32) (i32.const 5)))')
    with runtime.spawn(quick, start_timeout=limit) as instance:
        assert instance.call("five") == 5
    with runtime.pool(quick, size=1, start_timeout=limit, init="five") as pool:
        assert pool.submit("five").result(timeout=30) == 5


def test_a_blocking_call_in_a_callback_is_refused(instance: Instance) -> None:
    raised: Future[BaseException] = Future()

    def callback(_done: Future[object]) -> None:
        try:
            instance.call("add", 1, 2)
        except errors.UnsupportedError as error:
            raised.set_result(error)

    instance.submit("count").add_done_callback(callback)
    assert "callback" in str(raised.result(timeout=30))
