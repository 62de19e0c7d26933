"""Host functions in the client and in the worker, and WASI."""

from __future__ import annotations

import operator
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shmwasm import Caller, Module, Runtime, SharedHeap, WasiOptions, errors, on_client

Load = Callable[..., Module]


@pytest.fixture
def load(shared_runtime: Runtime, calling_text: str) -> Load:
    """Loads the guest that calls host functions, with those given in place of useless ones."""

    def loader(**functions: object) -> Module:
        useless = {name: on_client(lambda _caller, *_arguments: None) for name in ("host", "pair", "tell")}
        return shared_runtime.load(calling_text, imports={"env": {**useless, **functions}})

    return loader


def test_a_function_of_the_client_gets_the_arguments_and_gives_the_result(shared_runtime: Runtime, load: Load) -> None:
    seen: list[object] = []

    def host(caller: Caller, a: int, b: int, c: float) -> int:
        seen.append((caller.instance, a, b, c, os.getpid()))
        return 0xFFFF_FFFE

    with shared_runtime.spawn(load(host=on_client(host), pair=on_client(lambda _caller: (7, 0.5)))) as instance:
        assert instance.call("host", -1, 1 << 40, 0.25) == -2
        assert instance.call("pair") == [7, 0.5]
        assert seen == [(instance.number, -1, 1 << 40, 0.25, os.getpid())]


def test_a_function_of_the_client_sees_memory_and_heap(shared_runtime: Runtime, load: Load, heap: SharedHeap) -> None:
    told: list[bytes] = []
    callers: list[Caller] = []

    def tell(caller: Caller, address: int, size: int) -> None:
        callers.append(caller)
        view = caller.view(address, size)
        told.append(bytes(view))
        view[:1] = b"F"
        assert len(caller.memory) == 1 << 16

    with shared_runtime.spawn(load(tell=on_client(tell)), shared_heap=heap) as instance:
        instance.call("tell")
        instance.call("tell")
        block = heap.malloc(5)
        block.view[:] = b"hello"
        instance.call("tell_at", block, 5)
        assert told == [b"from the guest", b"From the guest", b"hello"]
        assert bytes(block.view) == b"Fello"
        with pytest.raises(errors.HostFunctionError, match="lie neither"):
            instance.call("tell_at", 65530, 100)
        with pytest.raises(errors.ClosedError):
            _ = callers[0].memory


def test_an_exception_in_a_host_function_traps_the_guest_and_names_itself(shared_runtime: Runtime, load: Load) -> None:
    def host(_caller: Caller, *_arguments: float) -> int:
        raise KeyError("no such colour")

    with shared_runtime.spawn(load(host=on_client(host))) as instance:
        with pytest.raises(errors.HostFunctionError, match="no such colour") as caught:
            instance.call("host", 1, 2, 3)
        assert caught.value.exception == "KeyError"
        assert caught.value.export == "host"
        assert "raise KeyError" in caught.value.details
        assert instance.call("alive") == 1


@pytest.mark.parametrize("returned", [None, "x", 0.5, 1 << 32, (1, 2)])
def test_a_result_that_does_not_fit_traps_the_guest(shared_runtime: Runtime, load: Load, returned: object) -> None:
    with shared_runtime.spawn(load(host=on_client(lambda _caller, *_arguments: returned))) as instance:
        with pytest.raises(errors.WorkerTrapError):
            instance.call("host", 1, 2, 3)
        assert instance.call("alive") == 1


def test_an_importable_function_runs_in_the_worker(shared_runtime: Runtime) -> None:
    module = shared_runtime.load(
        """(module (import "env" "number" (func $number (result i32)))
             (func (export "run") (result i32) (call $number)))""",
        imports={"env": {"number": operator.attrgetter("instance")}},
    )
    with shared_runtime.spawn(module) as instance:
        assert instance.call("run") == instance.number


def test_a_function_that_cannot_be_pickled_must_run_on_the_client(load: Load, shared_runtime: Runtime) -> None:
    module = load(host=lambda _caller: 1)
    with pytest.raises(errors.ArgumentError, match=r"env\.host.*on_client"):
        shared_runtime.spawn(module)


def test_imports_that_cannot_be_are_refused(shared_runtime: Runtime, calling_text: str, load: Load) -> None:
    with pytest.raises(errors.ModuleError, match=r"env\.host"):
        shared_runtime.load(calling_text)
    with pytest.raises(errors.ModuleError, match=r"env\.unknown"):
        load(unknown=operator.add)
    with pytest.raises(errors.ArgumentError, match=r"env\.host"):
        load(host=5)
    with pytest.raises(errors.ArgumentError, match="shared_heap_malloc"):
        load(shared_heap_malloc=operator.add)
    with pytest.raises(errors.ArgumentError, match="env"):
        shared_runtime.load(calling_text, imports={"env": 5})


def test_a_host_function_may_call_another_instance(shared_runtime: Runtime, load: Load, echo_module: Module) -> None:
    with shared_runtime.spawn(echo_module) as other:
        module = load(host=on_client(lambda _caller, *_arguments: other.call("add", 40, 2)))
        with shared_runtime.spawn(module) as instance:
            assert instance.call("host", 1, 2, 3) == 42


HELLO = """(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (import "wasi_snapshot_preview1" "fd_prestat_get" (func $prestat (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "hello\\0a")
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 16)) (i32.store (i32.const 4) (i32.const 6))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
  (func (export "arguments") (result i32)
    (drop (call $args (i32.const 0) (i32.const 4))) (i32.load (i32.const 0)))
  (func (export "prestat") (result i32) (call $prestat (i32.const 3) (i32.const 0)))
  (func (export "exit") (param i32) (call $exit (local.get 0))))"""


def test_wasi_grants_what_is_given_and_nothing_else(shared_runtime: Runtime, tmp_path: Path) -> None:
    module = shared_runtime.load(HELLO)
    assert module.is_wasi_command
    output = tmp_path / "output"
    options = WasiOptions(args=["a", "b", "c"], stdout=output, preopens={tmp_path: "/data"})
    with shared_runtime.spawn(module, wasi=options) as instance:
        instance.call("_start")
        assert instance.call("arguments") == 3
        assert instance.call("prestat") == 0
    assert output.read_text() == "hello\n"
    with shared_runtime.spawn(module) as instance:
        instance.call("_start")
        assert instance.call("arguments") == 0
        assert instance.call("prestat") != 0


def test_a_guest_that_exits_ends_its_call(shared_runtime: Runtime) -> None:
    with shared_runtime.spawn(shared_runtime.load(HELLO)) as instance:
        assert instance.call("exit", 0) is None
        with pytest.raises(errors.GuestExitError, match="exited with code 3") as caught:
            instance.call("exit", 3)
        assert caught.value.exit_code == 3
        assert instance.call("arguments") == 0


def test_wasi_options_that_cannot_be_granted_are_named(shared_runtime: Runtime) -> None:
    module = shared_runtime.load(HELLO)
    with pytest.raises(errors.ShmwasmError, match="/does/not/exist"):
        shared_runtime.spawn(module, wasi=WasiOptions(preopens={"/does/not/exist": "/data"}))


SIGNALS: list[int] = []


def ring_often(caller: Caller) -> None:
    """What a guest calls: has this process signalled again and again."""
    signal.signal(signal.SIGALRM, lambda number, _: SIGNALS.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)


def rung(caller: Caller) -> int:
    return len(SIGNALS)


def children_mask(caller: Caller) -> int:
    """What a guest calls: returns how many signals a program that is started here would not hear."""
    text = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True, check=True).stdout
    return int(next(line for line in text.splitlines() if line.startswith("SigBlk")).split()[1], 16).bit_count()


@pytest.mark.usefixtures("importable_tests")
def test_a_host_function_may_handle_signals_which_end_neither_the_workers_sleep_nor_the_worker(shared_runtime: Runtime) -> None:
    text = """(module
      (import "env" "ring_often" (func $often)) (import "env" "rung" (func $rung (result i32)))
      (import "env" "children_mask" (func $mask (result i32)))
      (func (export "often") (call $often)) (func (export "rung") (result i32) (call $rung))
      (func (export "mask") (result i32) (call $mask))
      (func (export "spin") (loop $again (br $again))))"""
    imports = {"env": {"ring_often": ring_often, "rung": rung, "children_mask": children_mask}}
    with shared_runtime.load(text, imports=imports) as module, shared_runtime.spawn(module) as instance:
        instance.call("often")
        counted = [instance.call("rung")]
        deadline = time.monotonic() + 30
        while len(counted) < 20 and time.monotonic() < deadline:  # each time it has slept, and was signalled, before
            threading.Event().wait(0.005)
            counted.append(instance.call("rung"))
        assert counted == sorted(counted)
        assert counted[-1] >= 10
        with pytest.raises(errors.CallTimeoutError):
            instance.call("spin", timeout=0.05)
        assert instance.call("mask") == 0
