"""The thread that reads for a runtime: what runs in it, and that nothing ends it."""

from __future__ import annotations

import operator
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future

import pytest

from shmwasm import Instance, Module, Runtime, SharedHeap, errors, on_client
from shmwasm.client.receiving import Receiver


def read_what_is_not_unicode(_: object) -> None:
    raise ValueError("\udc80")


@pytest.fixture
def in_callback(instance: Instance) -> Callable[[Callable[[], object]], BaseException | None]:
    """Run something in the callback of a call; return what it raised."""

    def run(action: Callable[[], object]) -> BaseException | None:
        outcome: Future[BaseException | None] = Future()

        def callback(_: object) -> None:
            try:
                action()
            except BaseException as error:  # noqa: BLE001
                outcome.set_result(error)
            else:
                outcome.set_result(None)

        # A call that runs for a while, so that the callback is there before it ends.
        instance.submit("spin", timeout=0.1).add_done_callback(callback)
        return outcome.result(timeout=20)

    return run


@pytest.mark.parametrize("wait", [operator.methodcaller("result"), operator.methodcaller("exception")])
def test_a_call_that_is_waited_for_in_a_callback_is_refused_and_ends(
    in_callback: Callable[[Callable[[], object]], BaseException | None],
    instance: Instance,
    shared_runtime: Runtime,
    echo_module: Module,
    wait: Callable[[Future[object]], object],
) -> None:
    with shared_runtime.pool(echo_module, size=1) as pool:
        for submit in (instance.submit, pool.submit):
            submitted: list[Future[object]] = []

            def call(submit=submit, submitted=submitted) -> None:
                submitted.append(submit("add", 1, 2))
                wait(submitted[0])

            error = in_callback(call)
            assert error is None or isinstance(error, errors.UnsupportedError)  # it may have ended before
            assert submitted[0].result(timeout=20) == 3


def test_a_callback_that_exits_ends_neither_the_receiver_nor_other_calls(
    instance: Instance, shared_runtime: Runtime, echo_module: Module, caplog: pytest.LogCaptureFixture
) -> None:
    slow = [instance.submit("spin", timeout=0.1) for _ in range(2)]
    slow[0].add_done_callback(lambda _: sys.exit("from a callback"))
    assert isinstance(slow[1].exception(timeout=20), errors.CallTimeoutError)
    assert instance.submit("add", 1, 2).result(timeout=20) == 3
    with shared_runtime.pool(echo_module, size=1) as pool:
        calls = [pool.submit("spin", timeout=0.1), pool.submit("add", 1, 2)]
        calls[0].add_done_callback(lambda _: sys.exit("from a callback"))
        assert calls[1].result(timeout=20) == 3
    assert "SystemExit: from a callback" in caplog.text


def test_nothing_that_would_wait_for_the_receiver_waits_in_a_callback(
    instance: Instance,
    in_callback: Callable[[Callable[[], object]], BaseException | None],
    shared_runtime: Runtime,
    echo_module: Module,
    heap: SharedHeap,
) -> None:
    pool = shared_runtime.pool(echo_module, size=1)
    other = shared_runtime.spawn(echo_module, shared_heap=heap)
    spare = shared_runtime.create_shared_heap(1 << 16)
    export = other.exports["nothing"]
    blocking: list[Callable[[], object]] = [
        export,
        lambda: other.call("nothing"),
        lambda: other.memory,
        other.close,
        other.kill,
        other.detach_shared_heap,
        spare.close,
        pool.shutdown,
        lambda: pool.__exit__(None, None, None),
        lambda: shared_runtime.spawn(echo_module),
        lambda: shared_runtime.pool(echo_module, size=1),
        lambda: shared_runtime.create_shared_heap(1 << 16),
        shared_runtime.verify,
        shared_runtime.close,
    ]
    for action in blocking:
        assert isinstance(in_callback(action), errors.UnsupportedError)
    # Nothing of that had an effect.
    assert other.call("add", 1, 2) == 3
    spare.malloc(16).free()
    assert pool.submit("add", 1, 2).result(timeout=20) == 3
    pool.shutdown()
    other.close()
    spare.close()


def test_a_pool_whose_module_was_closed_fails_what_waits_and_hurts_nobody_else(
    shared_runtime: Runtime, echo_text: str, instance: Instance
) -> None:
    module = shared_runtime.load(echo_text)
    pool = shared_runtime.pool(module, size=1)
    running, waiting = pool.submit("spin"), pool.submit("add", 1, 2)
    module.close()
    os.kill(pool.instances[0].pid, signal.SIGKILL)
    assert isinstance(running.exception(timeout=20), errors.WorkerLostError)
    assert isinstance(waiting.exception(timeout=20), errors.ClosedError)
    assert isinstance(pool.submit("add", 1, 2).exception(timeout=20), errors.ClosedError)
    assert instance.submit("add", 1, 2).result(timeout=20) == 3
    pool.shutdown()


def test_a_host_function_of_the_client_that_exits_traps_the_guest(shared_runtime: Runtime) -> None:
    def leave(_: object) -> None:
        raise SystemExit(3)

    text = '(module (import "env" "leave" (func $leave)) (func (export "run") (call $leave)))'
    module = shared_runtime.load(text, imports={"env": {"leave": on_client(leave)}})
    with shared_runtime.spawn(module) as one, pytest.raises(errors.HostFunctionError, match="SystemExit"):
        one.submit("run").result(timeout=20)


@pytest.mark.usefixtures("importable_tests")
@pytest.mark.parametrize("where", [on_client, lambda function: function], ids=["in the client", "in the worker"])
def test_an_exception_whose_text_is_not_unicode_traps_the_guest(shared_runtime: Runtime, where: Callable) -> None:
    text = '(module (import "env" "read" (func $read)) (func (export "run") (call $read)))'
    module = shared_runtime.load(text, imports={"env": {"read": where(read_what_is_not_unicode)}})
    with shared_runtime.spawn(module) as one, pytest.raises(errors.HostFunctionError, match="dc80"):
        one.submit("run").result(timeout=20)


def test_a_runtime_closes_while_another_process_uses_its_coordinator() -> None:
    program = """
import sys
from shmwasm import Runtime
with Runtime(connect=bytes.fromhex(sys.argv[1]).decode()) as runtime:
    print("joined", flush=True)
    sys.stdin.read()
    runtime.create_shared_heap(1)
"""
    runtime = Runtime()
    arguments = [sys.executable, "-c", program, runtime.address.encode().hex()]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"joined\n"
        closing = threading.Thread(target=runtime.close)
        closing.start()
        closing.join(20)
        assert not closing.is_alive()
        other.communicate(timeout=20)
    assert other.returncode == 0


def test_truth_values_are_integers_to_a_guest_as_they_are_to_python(instance: Instance) -> None:
    assert instance.call("add", True, 2) == 3
    assert instance.call("i64", False) == 0
    assert instance.call("f64", True) == 1.0


def test_a_forked_child_is_refused_at_once_whatever_it_uses(echo_text: str) -> None:
    with Runtime() as runtime:
        module = runtime.load(echo_text)
        instance = runtime.spawn(module)
        pool = runtime.pool(module, size=1)
        actions: list[Callable[[], object]] = [
            lambda: instance.memory,
            lambda: instance.call("nothing"),
            lambda: pool.submit("nothing").result(timeout=5),
        ]
        for number, action in enumerate(actions):
            child = os.fork()
            if child == 0:
                signal.alarm(10)
                try:
                    action()
                except errors.ClosedError:
                    os._exit(0)
                finally:
                    os._exit(1)
            assert os.waitpid(child, 0)[1] == 0, number
        assert instance.call("add", 1, 2) == 3
        pool.shutdown()


def test_more_calls_may_be_started_than_fit_into_the_ring_even_in_a_callback(
    instance: Instance, in_callback: Callable[[Callable[[], object]], BaseException | None]
) -> None:
    calls: list[Future] = []
    assert in_callback(lambda: calls.extend(instance.submit("count") for _ in range(3000))) is None
    assert [call.result(timeout=20) for call in calls] == list(range(1, 3001))


def test_calls_started_by_many_threads_run_in_the_order_of_their_numbers(instance: Instance) -> None:
    barrier = threading.Barrier(4)
    results: list[list[Future]] = [[] for _ in range(4)]

    def start(mine: list[Future]) -> None:
        barrier.wait()
        mine += [instance.submit("count") for _ in range(200)]

    threads = [threading.Thread(target=start, args=(mine,)) for mine in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = [[call.result(timeout=20) for call in mine] for mine in results]
    assert all(mine == sorted(mine) for mine in counts)
    assert sorted(count for mine in counts for count in mine) == list(range(1, 801))


class Failing:
    """A source of the receiver whose handler raises."""

    def __init__(self) -> None:
        self.ours, self.theirs = os.pipe()
        self.failed = threading.Event()

    def fileno(self) -> int:
        return self.ours

    def handle_readable(self) -> bool:
        raise SystemExit("a bug")

    def next_deadline(self) -> float | None:
        return None

    def handle_deadline(self) -> None:
        raise AssertionError

    def fail(self) -> None:
        self.failed.set()

    def close(self) -> None:
        os.close(self.ours)
        os.close(self.theirs)


def test_a_source_whose_handler_raises_is_failed_and_the_others_are_read() -> None:
    receiver = Receiver()
    sources = [Failing(), Failing()]
    for source in sources:
        receiver.add(source)
        os.write(source.theirs, b"1")
        assert source.failed.wait(20)
    receiver.stop()
    for source in sources:
        source.close()


def test_a_receiver_that_has_stopped_touches_no_descriptor() -> None:
    receiver = Receiver()
    source = Failing()
    receiver.add(source)
    receiver.stop()
    # These numbers are what the receiver's own were.
    reused = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(4)]
    receiver.wake()
    receiver.remove(source)
    for descriptor in reused:
        with pytest.raises(BlockingIOError):
            os.eventfd_read(descriptor)
        os.close(descriptor)
    source.close()
