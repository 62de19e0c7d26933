"""What a client sees of its instance: calls, traps, host functions, WASI, a view of memory."""

import mmap
import os
import pickle
import sys
from pathlib import Path

import pytest

from shmwasm import errors
from shmwasm.core import layout
from shmwasm.protocol import messages

GUEST = """(module
  (memory (export "memory") 1 4)
  (global $count (mut i32) (i32.const 0))
  (func (export "add") (param i32 i64 f32 f64) (result i32 i64 f32 f64)
    (i32.add (local.get 0) (i32.const 1)) (i64.add (local.get 1) (i64.const 1))
    (f32.add (local.get 2) (f32.const 0.5)) (f64.add (local.get 3) (f64.const 0.5)))
  (func (export "count") (result i32)
    (global.set $count (i32.add (global.get $count) (i32.const 1))) (global.get $count))
  (func (export "load") (param i32) (result i32) (i32.load (local.get 0)))
  (func (export "store") (param i32 i32) (i32.store (local.get 0) (local.get 1)))
  (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
  (func (export "divide") (param i32 i32) (result i32) (i32.div_s (local.get 0) (local.get 1)))
  (func $deep (export "recurse") (call $deep))
)"""


@pytest.fixture
def worker(launcher):
    return launcher.fork(GUEST)


def pickled(name, *, module="env"):
    import worker_host_functions  # noqa: PLC0415 - on the path only while `hosting` lasts

    return messages.HostImport(
        module=module, name=name, on_client=False, pickled=pickle.dumps(getattr(worker_host_functions, name))
    )


@pytest.fixture
def hosting(launcher, monkeypatch):
    """Return a function that forks a guest which imports host functions and exports one caller of each."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def fork(*functions, **plan):
        """Take pairs of a function's name and its type in the text format."""
        lines = ['(memory (export "memory") 1)']
        for name, kind in functions:
            parameters = kind.split("(result")[0].count("i32")
            arguments = " ".join(f"(local.get {index})" for index in range(parameters))
            lines.insert(0, f'(import "env" "{name}" (func ${name} {kind}))')
            lines.append(f'(func (export "{name}") {kind} (call ${name} {arguments}))')
        imports = [pickled(name) for name, _ in functions]
        return launcher.fork("(module " + " ".join(lines) + ")", imports=imports, search_path=list(sys.path), **plan)

    return fork


def test_every_numeric_type_goes_in_and_comes_out(worker):
    assert worker.call("add", 1, 2**40, 1.5, 2.5) == [2, 2**40 + 1, 2.0, 3.0]


def test_integers_go_in_unsigned_and_come_out_signed(worker):
    assert worker.call("add", 2**32 - 2, 2**64 - 2, 0, 0) == [-1, -1, 0.5, 0.5]


def test_a_trap_has_code_message_and_backtrace_and_the_instance_lives_on(worker):
    assert worker.call("count") == [1]
    with pytest.raises(errors.WorkerTrapError) as caught:
        worker.call("divide", 1, 0)
    assert caught.value.code == "integer_division_by_zero"
    assert caught.value.export == "divide"
    assert caught.value.instance == worker.number
    assert caught.value.backtrace
    assert worker.call("count") == [2]


def test_an_exhausted_stack_is_a_trap(worker):
    with pytest.raises(errors.WorkerTrapError) as caught:
        worker.call("recurse")
    assert caught.value.code == "stack_overflow"
    assert worker.call("count") == [1]


def test_calls_that_were_started_at_once_are_answered_in_order(worker):
    requests = [worker.start_call("count") for _ in range(5)]
    assert [worker.end_call(request) for request in requests] == [[1], [2], [3], [4], [5]]


def test_a_batch_is_many_calls_whose_arguments_and_results_are_columns(worker):
    request, results = worker.start_batch("add", [(n, n, 1.5, 2.5) for n in range(1000)])
    assert worker.wait(request) == layout.RING_DONE
    assert request.progress == 1000
    assert results() == [(n + 1, n + 1, 2.0, 3.0) for n in range(1000)]


def test_a_trap_ends_a_batch_at_the_call_that_trapped(worker):
    request, results = worker.start_batch("divide", [(6, 1), (6, 2), (6, 0), (6, 3)])
    assert worker.wait(request) == layout.RING_FAILED
    assert (request.status, request.progress) == (layout.CALL_TRAPPED, 2)
    raised = worker.answer()
    assert (raised.request, raised.facts["code"]) == (request.sequence, "integer_division_by_zero")
    assert results()[:2] == [(6,), (3,)]
    assert worker.call("count") == [1]


def test_what_a_call_raised_is_told_before_it_ends(worker):
    """Whoever finds that a call has trapped finds out why at once."""
    for _ in range(100):
        request = worker.start_call("divide", 1, 0)
        assert worker.wait(request) == layout.RING_FAILED
        assert worker.calls.receive(timeout=0) is not None
        worker.ring.give(request)


def test_a_call_that_was_withdrawn_does_not_run(asking):
    running = asking.start_call("ask", 1)
    asking.answer()
    waiting = [asking.start_call("ask", 2), asking.start_call("number")]
    assert asking.interrupt(waiting[0].sequence) == layout.CALL_CANCELLED
    asking.ask(messages.HostReturn(results=[0]))
    assert asking.end_call(running) == [0]
    assert asking.wait(waiting[0]) == layout.RING_FAILED
    assert waiting[0].status == layout.CALL_WITHDRAWN
    assert asking.end_call(waiting[1]) == [7]


def test_a_host_function_in_the_worker_takes_and_returns_numbers(hosting):
    worker = hosting(("twice", "(param i32) (result i32)"), ("swap", "(param i32 i32) (result i32 i32)"))
    assert worker.call("twice", 21) == [42]
    assert worker.call("twice", 2**31 - 1) == [-2]
    assert worker.call("swap", 1, 2) == [2, 1]


def test_a_host_function_that_raises_traps_the_guest_with_its_traceback(hosting):
    worker = hosting(("raise_value_error", ""), ("number", "(result i32)"))
    with pytest.raises(errors.HostFunctionError) as caught:
        worker.call("raise_value_error")
    assert caught.value.exception == "ValueError"
    assert "no good" in caught.value.trap
    assert "worker_host_functions.py" in caught.value.details
    assert caught.value.export == "raise_value_error"
    assert caught.value.backtrace
    assert worker.call("number") == [worker.number]


@pytest.mark.parametrize(("function", "exception"), [("return_a_text", "ArgumentError"), ("ask_to_exit", "SystemExit")])
def test_a_host_function_that_misbehaves_traps_the_guest_and_ends_nothing(hosting, function, exception):
    worker = hosting((function, "(result i32)"), ("number", "(result i32)"))
    with pytest.raises(errors.HostFunctionError) as caught:
        worker.call(function)
    assert caught.value.exception == exception
    assert worker.call("number") == [worker.number]


def test_a_caller_shows_memory_and_is_of_no_use_after_its_function_returned(hosting):
    worker = hosting(("size_of_memory", "(result i32)"), ("keep_caller", ""), ("use_kept_caller", "(result i32)"))
    assert worker.call("size_of_memory") == [65536]
    worker.call("keep_caller")
    with pytest.raises(errors.HostFunctionError) as caught:
        worker.call("use_kept_caller")
    assert caught.value.exception == "ClosedError"


def test_a_host_function_outside_memory_and_heaps_gets_no_view(hosting):
    worker = hosting(("write_at", "(param i32 i32)"))
    worker.call("write_at", 65532, 7)
    with pytest.raises(errors.HostFunctionError, match="0xfffd"):
        worker.call("write_at", 65533, 7)


def test_a_host_function_that_cannot_be_unpickled_fails_the_start(launcher):
    broken = messages.HostImport(module="env", name="f", on_client=False, pickled=b"cnowhere\nf\n.")
    with pytest.raises(errors.InstantiationError, match=r"env\.f"):
        launcher.fork('(module (import "env" "f" (func)))', imports=[broken])


CLIENT_FUNCTION = messages.HostImport(module="env", name="ask", on_client=True)
ASKING_GUEST = """(module
  (import "env" "ask" (func $ask (param i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "ask") (param i32) (result i32) (call $ask (local.get 0)))
  (func (export "load") (param i32) (result i32) (i32.load (local.get 0)))
  (func (export "number") (result i32) (i32.const 7)))"""


@pytest.fixture
def asking(launcher):
    return launcher.fork(ASKING_GUEST, imports=[CLIENT_FUNCTION])


def test_a_host_function_of_the_client_runs_there(asking):
    assert asking.call("number") == [7]
    request = asking.start_call("ask", -1)
    assert asking.answer() == messages.HostCall(request=request.sequence, index=0, arguments=[-1])
    asking.ask(messages.HostReturn(results=[2**32 - 5]))
    assert asking.end_call(request) == [-5]


def test_a_host_function_of_the_client_that_raises_traps_the_guest(asking):
    request = asking.start_call("ask", 1)
    asking.answer()
    code, facts = errors.to_wire(errors.HostFunctionError(0, "", "it raised", "host_function", [], "KeyError", "a traceback"))
    asking.ask(messages.HostReturn(code=code, facts=facts))
    with pytest.raises(errors.HostFunctionError) as caught:
        asking.end_call(request)
    assert (caught.value.export, caught.value.exception, caught.value.details) == ("ask", "KeyError", "a traceback")
    assert caught.value.instance == asking.number
    assert asking.call("number") == [7]


def test_memory_is_shared_while_the_client_runs_a_host_function_and_calls_wait(asking):
    request = asking.start_call("ask", 1)
    asking.answer()
    waiting = asking.start_call("number")
    asking.ask(messages.ShareMemory(request=99))
    shared, descriptors = asking.answer_with_descriptors()
    assert (shared.request, shared.size) == (99, 65536)
    with mmap.mmap(descriptors[0], shared.size) as view:
        view[0:4] = (1234).to_bytes(4, "little")
    os.close(descriptors[0])
    asking.ask(messages.HostReturn(results=[0]))
    assert asking.end_call(request) == [0]
    assert asking.end_call(waiting) == [7]
    assert asking.call("load", 0) == [1234]


def test_a_host_function_of_the_client_cannot_be_called_by_the_start_function(launcher):
    guest = '(module (import "env" "ask" (func $ask)) (start $ask))'
    with pytest.raises(errors.InstantiationError, match="before the instance exists"):
        launcher.fork(guest, imports=[CLIENT_FUNCTION])


def test_shared_memory_shows_what_the_guest_writes_and_how_it_grows(worker):
    worker.call("store", 8, 77)
    worker.ask(messages.ShareMemory(request=1))
    first, descriptors = worker.answer_with_descriptors()
    assert first.size == 65536
    with mmap.mmap(descriptors[0], 4 * 65536) as view:
        assert view[8] == 77
        assert worker.call("grow", 1) == [1]
        worker.call("store", 65536 + 4, 78)
        assert view[65536 + 4] == 78
    os.close(descriptors[0])
    worker.ask(messages.ShareMemory(request=2))
    assert worker.answer_with_descriptors() == (messages.MemoryShared(request=2, size=2 * 65536, capacity=first.capacity), [])


def test_a_guest_without_memory_has_none_to_share(launcher):
    worker = launcher.fork('(module (func (export "number") (result i32) (i32.const 7)))')
    worker.ask(messages.ShareMemory(request=1))
    raised = worker.answer()
    assert (raised.request, raised.code) == (1, "UnsupportedError")
    assert worker.call("number") == [7]


WASI_GUEST = """(module
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "hello")
  (func (export "hello") (result i32)
    (i32.store (i32.const 0) (i32.const 16)) (i32.store (i32.const 4) (i32.const 5))
    (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
  (func (export "exit") (param i32) (call $exit (local.get 0))))"""


def test_wasi_exit_code_0_is_a_return_and_another_one_a_trap(launcher):
    worker = launcher.fork(WASI_GUEST, wasi=messages.WasiOptions())
    assert worker.call("exit", 0) == []
    with pytest.raises(errors.WorkerTrapError, match="code 3") as caught:
        worker.call("exit", 3)
    assert caught.value.code == "exit"
    assert worker.call("exit", 0) == []
    request, _ = worker.start_batch("exit", [(0,), (0,)])
    assert worker.wait(request) == layout.RING_DONE
    assert request.progress == 1


def test_wasi_output_goes_where_it_was_granted(launcher, tmp_path):
    worker = launcher.fork(WASI_GUEST, wasi=messages.WasiOptions(stdout="out.txt"), working_directory=str(tmp_path))
    assert worker.call("hello") == [0]
    assert (tmp_path / "out.txt").read_text() == "hello"


def test_wasi_that_was_not_granted_is_named(launcher):
    with pytest.raises(errors.ModuleError, match=r"wasi_snapshot_preview1\.proc_exit, and WASI was not granted"):
        launcher.fork(WASI_GUEST)


def test_an_import_that_nobody_provides_is_named(launcher):
    with pytest.raises(errors.ModuleError, match=r"env\.missing"):
        launcher.fork('(module (import "env" "missing" (func)))')


def test_a_start_function_that_traps_fails_the_start(launcher):
    with pytest.raises(errors.InstantiationError, match="unreachable"):
        launcher.fork("(module (func $start unreachable) (start $start))")


def test_a_reactor_is_initialized_before_its_first_call(launcher):
    worker = launcher.fork("""(module (global $ready (mut i32) (i32.const 0))
      (func (export "_initialize") (global.set $ready (i32.const 1)))
      (func (export "ready") (result i32) (global.get $ready)))""")
    assert worker.call("ready") == [1]


def test_a_working_directory_that_is_gone_fails_the_start(launcher, tmp_path):
    with pytest.raises(errors.InstantiationError, match="working directory"):
        launcher.fork(GUEST, working_directory=str(tmp_path / "gone"))
