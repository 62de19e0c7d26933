"""Ctrl-C at any step of what a user does: everything goes on being usable in the same process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import as_completed, wait

import pytest

from shmwasm import Runtime, errors
from shmwasm.client.instances import Instance
from shmwasm.client.pools import InstancePool
from shmwasm.core import layout

PATIENCE = 30.0
STEPS = 60
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


@pytest.fixture
def bench(runtime: Runtime, echo_text: str) -> Iterator[Bench]:
    one = Bench(runtime, echo_text)
    yield one
    one.check_that_nothing_is_lost()


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
    create_a_heap,
    attach,
    spawn,
    make_a_pool,
]


@pytest.mark.parametrize("work", WORKS)
def test_everything_goes_on_whichever_step_ctrl_c_ended(bench: Bench, steps, work: Callable[[Bench], None]) -> None:
    for _ in steps.chosen(lambda: work(bench), STEPS):
        bench.check()
