"""Ctrl-C at any step of what a user does: everything goes on being usable in the same process."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, as_completed, wait
from types import FrameType

import pytest

import steps
from shmwasm import Runtime, errors
from shmwasm.client.instances import Instance
from shmwasm.client.pools import InstancePool
from shmwasm.core import layout
from waiting import PATIENCE, eventually

STEPS = 40
"""At how many steps, chosen at random, each kind of work is interrupted."""

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # Ctrl-C in a finalizer is lost
]


class Bench:
    """What there is to work with."""

    def __init__(self, runtime: Runtime, text: str) -> None:
        self.runtime = runtime
        self.module = runtime.load(text)
        self.heap = runtime.create_shared_heap(1 << 20)
        self.instance: Instance = runtime.spawn(self.module)
        self.pool: InstancePool = runtime.pool(self.module, size=2)

    def check(self) -> None:
        """The instance, the pool and the heap answer."""
        assert self.instance.call("add", 1, 2, timeout=PATIENCE) == 3
        numbers = range(4)
        assert [one.result(PATIENCE) for one in [self.pool.submit("i32", number) for number in numbers]] == list(numbers)
        self.heap.malloc(100).free()

    def check_that_nothing_is_lost(self) -> None:
        """All slots of the ring are there, and the heap is sound."""
        futures = [self.instance.submit("i32", number) for number in range(2 * layout.RING_SLOTS)]
        assert [one.result(PATIENCE) for one in futures] == list(range(2 * layout.RING_SLOTS))
        self.runtime.verify()
        self.pool.shutdown()
        self.instance.close()


@pytest.fixture(scope="module")
def bench(echo_text: str) -> Iterator[Bench]:
    with Runtime() as runtime:
        one = Bench(runtime, echo_text)
        yield one
        one.check_that_nothing_is_lost()


@pytest.fixture
def own_bench(runtime: Runtime, echo_text: str) -> Bench:
    """One for what may leave an instance that nobody was given: it ends with the runtime."""
    return Bench(runtime, echo_text)


def call(bench: Bench) -> None:
    bench.instance.call("i32", 7)


def call_with_limit(bench: Bench) -> None:
    bench.instance.call("i32", 7, timeout=PATIENCE)


def trap(bench: Bench) -> None:
    with pytest.raises(errors.WorkerTrapError):
        bench.instance.call("divide", 1, 0)


def submit(bench: Bench) -> None:
    bench.instance.submit("i32", 7, timeout=PATIENCE).result(PATIENCE)


def submit_more_than_there_is_room_for(bench: Bench) -> None:
    for future in [bench.instance.submit("i32", 7) for _ in range(layout.RING_SLOTS + 2)]:
        future.result(PATIENCE)


def submit_to_pool(bench: Bench) -> None:
    bench.pool.submit("i32", 7).result(PATIENCE)


def cancel(bench: Bench) -> None:
    for future in [bench.pool.submit("i32", number) for number in range(5)][::-1]:
        future.cancel()


def map_over_lists(bench: Bench) -> None:
    assert list(bench.pool.map("i32", range(50), chunksize=5)) == list(range(50))


def map_over_what_is_read(bench: Bench) -> None:
    assert list(bench.pool.map("i32", iter(range(20)), timeout=PATIENCE)) == list(range(20))


def wait_for_all(bench: Bench) -> None:
    wait([bench.pool.submit("i32", number) for number in range(3)], PATIENCE)


def take_as_completed(bench: Bench) -> None:
    list(as_completed([bench.instance.submit("i32", number) for number in range(3)], PATIENCE))


def read_memory(bench: Bench) -> None:
    bytes(bench.instance.memory[:4])


def allocate(bench: Bench) -> None:
    bench.heap.malloc(40_000).free()


def create_a_heap(bench: Bench) -> None:
    bench.runtime.create_shared_heap(1).close()


def attach(bench: Bench) -> None:
    # What was interrupted may still be under way.
    with contextlib.suppress(errors.AttachError):
        bench.instance.attach_shared_heap(bench.heap)
    with contextlib.suppress(errors.AttachError):
        bench.instance.detach_shared_heap()


def spawn(bench: Bench) -> None:
    with bench.runtime.spawn(bench.module) as instance:
        instance.call("nothing")


def make_a_pool(bench: Bench) -> None:
    with bench.runtime.pool(bench.module, size=1) as pool:
        pool.submit("nothing").result(PATIENCE)


WORKS = [
    call,
    call_with_limit,
    trap,
    submit,
    submit_more_than_there_is_room_for,
    submit_to_pool,
    cancel,
    map_over_lists,
    map_over_what_is_read,
    wait_for_all,
    take_as_completed,
    read_memory,
    allocate,
    attach,
]


@pytest.mark.parametrize("work", WORKS)
def test_everything_goes_on_whichever_step_ctrl_c_ended(bench: Bench, work: Callable[[Bench], None]) -> None:
    for _ in steps.chosen(lambda: work(bench), STEPS):
        bench.check()


@pytest.mark.parametrize("work", [create_a_heap, spawn, make_a_pool])
def test_more_can_be_made_whichever_step_ctrl_c_ended(own_bench: Bench, work: Callable[[Bench], None]) -> None:
    for _ in steps.chosen(lambda: work(own_bench), STEPS):
        own_bench.check()
    own_bench.check_that_nothing_is_lost()


def test_no_descriptor_is_left_whichever_step_of_a_vain_connection_ctrl_c_ended() -> None:
    """The watch over all tests looks for one."""

    def connect() -> None:
        with contextlib.suppress(errors.CoordinatorLostError):
            Runtime(connect="\0shmwasm-nobody-listens-here")

    for _ in steps.chosen(connect, 1 << 30):
        pass


class Number:
    """A number whose own code runs."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


class SlowError(Exception):
    """What the handler of a time limit raises: unlike Ctrl-C's it is an `Exception`, as an argument's own code may raise."""


@pytest.mark.parametrize("number", [7, -7, Number(7), Number(-7)], ids=["7", "-7", "own 7", "own -7"])
@pytest.mark.parametrize(
    "work",
    [
        lambda bench, number: bench.instance.call("i32", number),
        lambda bench, number: bench.instance.exports.i32(number),
        lambda bench, number: bench.instance.call("i32", number, timeout=PATIENCE),
        lambda bench, number: bench.instance.submit("i32", number).result(PATIENCE),
        lambda bench, number: bench.pool.submit("i32", number, timeout=abs(number.__index__())).result(PATIENCE),
        lambda bench, number: list(bench.pool.map("i32", [number], chunksize=number)) if number.__index__() > 0 else None,
    ],
    ids=["call by name", "call", "call with limit", "submit", "submit to pool", "map"],
)
def test_what_the_handler_of_a_time_limit_raises_passes_at_any_step(
    bench: Bench, work: Callable[[Bench, object], object], number: int
) -> None:
    lost: list[int] = []

    def interrupt(work_once: Callable[[], object], step: int) -> None:
        if not steps.passes(work_once, step, SlowError):
            lost.append(step)

    for _ in steps.chosen(lambda: work(bench, number), STEPS, interrupt):
        pass
    bench.check()
    assert not lost


@pytest.mark.parametrize("timeout", [PATIENCE, None])
def test_an_instance_closes_whichever_step_of_a_call_ctrl_c_ended(bench: Bench, timeout: float | None) -> None:
    instance = bench.runtime.spawn(bench.module)
    for _ in steps.chosen(lambda: instance.call("i32", 7, timeout=timeout), 1 << 30):
        eventually(instance.path._ring.is_parked)  # so that the next call wakes the worker
    instance.close()
    assert not instance.alive


def test_a_pool_can_be_shut_down_again_whichever_step_ctrl_c_ended(own_bench: Bench) -> None:
    def shut_down() -> None:
        with own_bench.runtime.pool(own_bench.module, size=2) as pool:
            pools.append(pool)

    pools: list[InstancePool] = []
    for _ in steps.chosen(shut_down, STEPS):
        pools[-1].shutdown()
        assert not any(instance.alive for instance in pools[-1].instances)


LOOPER = """(module (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))
  (func (export "loop") (param i32) (result i32) (loop $again (br $again)) (i32.const 0)))"""


@contextlib.contextmanager
def interrupted_once_all_run(pool: InstancePool) -> Iterator[None]:
    """Press Ctrl-C once all instances are busy with what is done here, which ends by that."""
    over = threading.Event()

    def interrupt() -> None:
        while pool.statistics().busy < pool.size and not over.wait(0.002):
            pass
        if not over.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize(
    "work",
    [
        pytest.param(lambda pool: list(pool.map("loop", range(3))), id="map"),
        pytest.param(lambda pool: list(pool.map("loop", range(3), ordered=False)), id="map, unordered"),
        pytest.param(lambda pool: list(pool.map("loop", range(100_000))), id="map, in lots"),
        pytest.param(lambda pool: pool.broadcast("loop", 1), id="broadcast"),
    ],
)
def test_ctrl_c_ends_the_calls_that_a_pool_is_waited_for(shared_runtime: Runtime, work: Callable[[InstancePool], object]) -> None:
    with shared_runtime.load(LOOPER) as module, shared_runtime.pool(module, size=2) as pool:
        with interrupted_once_all_run(pool):
            work(pool)
        assert pool.submit("add", 1, 2).result(PATIENCE) == 3
        assert list(pool.map("add", range(10), range(10))) == list(range(0, 20, 2))
        assert len(pool.broadcast("add", 1, 2)) == 2


@pytest.mark.parametrize("raised", [TimeoutError, ValueError, KeyboardInterrupt])
def test_whatever_an_alarms_handler_raises_ends_the_calls_of_the_map_that_is_waited_for(
    shared_runtime: Runtime, raised: type[BaseException]
) -> None:
    def ring(signal_number: int, frame: object) -> None:
        raise raised

    with shared_runtime.load(LOOPER) as module, shared_runtime.pool(module, size=1) as pool:
        usual = signal.signal(signal.SIGALRM, ring)
        try:
            results = pool.map("loop", [0, 1])
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(raised):
                list(results)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, usual)
        assert pool.submit("add", 1, 2).result(PATIENCE) == 3


def test_a_map_whose_time_has_passed_leaves_no_instance_busy(shared_runtime: Runtime) -> None:
    with shared_runtime.load(LOOPER) as module, shared_runtime.pool(module, size=1) as pool:
        with pytest.raises(TimeoutError):
            list(pool.map("loop", [0, 1], timeout=0.1))
        assert pool.submit("add", 1, 2).result(PATIENCE) == 3


def test_ctrl_c_in_a_pools_block_ends_what_runs_there(shared_runtime: Runtime, echo_text: str) -> None:
    with shared_runtime.load(echo_text) as module:
        pool = shared_runtime.pool(module, size=1)
        with interrupted_once_all_run(pool), pool:
            calls = [pool.submit("spin") for _ in range(3)]
            calls[0].result()
        assert isinstance(calls[0].exception(PATIENCE), CancelledError)
        assert all(call.cancelled() for call in calls[1:])


def test_a_broadcast_waits_for_an_instance_that_is_being_replaced(shared_runtime: Runtime, echo_text: str) -> None:
    with shared_runtime.load(echo_text) as module, shared_runtime.pool(module, size=2, recycle_after=2) as pool:
        for _ in range(10):
            assert pool.broadcast("add", 1, 2) == [3, 3]


def test_a_runtime_closes_whichever_step_of_opening_or_closing_it_ctrl_c_ended(shared_runtime: Runtime) -> None:
    """Its thread and its descriptors are looked for after each test."""

    class Kept(Runtime):
        def __init__(self) -> None:
            kept.append(self)  # or nobody would have one whose opening had just ended
            super().__init__(connect=shared_runtime.address)

    def come_and_go() -> None:
        with Kept() as runtime:
            runtime.create_shared_heap(1)

    kept: list[Runtime] = []
    for _ in steps.chosen(come_and_go, STEPS):
        while kept:
            kept.pop().close()
        eventually(lambda: shared_runtime.status()["clients"] == 1)


TOGETHER = (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGVTALRM, signal.SIGPROF, signal.SIGXCPU)
"""Not SIGALRM, with which a test that hangs is ended."""


@pytest.fixture
def handled() -> Iterator[list[int]]:
    """Have each of `TOGETHER` raise where it arrives within a call, and give a list of what has arrived."""
    arrived: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        arrived.append(number)
        while frame is not None:
            if frame.f_code is Instance.call.__code__:
                raise InterruptedError(number)
            frame = frame.f_back

    before = {number: signal.signal(number, handle) for number in TOGETHER}
    yield arrived
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("timeout", [None, PATIENCE])
def test_signals_that_come_together_leave_no_call_in_the_ring(
    shared_runtime: Runtime, echo_text: str, handled: list[int], timeout: float | None
) -> None:
    """The second is handled where the first has ended the wait, and the call is just to be withdrawn."""

    def send_all() -> None:
        time.sleep(0.001)  # or more, or less: it may come at any moment
        for number in TOGETHER:  # this thread goes on until all are sent
            os.kill(os.getpid(), number)

    with shared_runtime.load(echo_text) as module, shared_runtime.spawn(module) as instance:
        for _ in range(10):
            handled.clear()
            sending = threading.Thread(target=send_all)
            sending.start()
            while set(handled) != set(TOGETHER):
                with contextlib.suppress(InterruptedError):
                    instance.call("spin" if not handled else "nothing", timeout=timeout)
            sending.join()
        for number in range(2 * layout.RING_SLOTS):
            assert instance.submit("i32", number, wait=False).result(PATIENCE) == number
