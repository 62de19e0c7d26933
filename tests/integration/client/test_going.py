"""What was closed or has ended goes at once: it does not wait for the garbage collector, whose full runs are seldom."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator

import pytest

from processes import descriptors_of
from shmwasm import Instance, Module, Runtime, errors
from waiting import eventually


def wait_until_gone(reference: Callable[[], object]) -> None:
    """Wait until the object is gone that a reference is to: other threads may still hold it for a moment."""
    eventually(lambda: reference() is None)


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def _trap(instance: Instance) -> None:
    with pytest.raises(errors.WorkerTrapError):
        instance.call("divide", 1, 0)


USES: dict[str, Callable[[Instance], object]] = {
    "unused": lambda _instance: None,
    "called": lambda instance: instance.call("nothing"),
    "called_through_an_export": lambda instance: instance.exports.add(1, 2),
    "submitted_to": lambda instance: instance.submit("add", 1, 2, timeout=60).result(60),
    "looked_into": lambda instance: instance.memory.release(),
    "killed": lambda instance: instance.kill(),
    "dismissed": lambda instance: instance.dismiss(),
    "trapped": _trap,
}


@pytest.mark.parametrize("use", USES)
def test_instance_goes_when_it_is_closed(shared_runtime: Runtime, echo_module: Module, use: str) -> None:
    instance = shared_runtime.spawn(echo_module)
    USES[use](instance)
    instance.close()
    gone = weakref.ref(instance)
    del instance
    wait_until_gone(gone)


@pytest.mark.parametrize("of", ["spawn", "pool"])
def test_future_goes_when_its_call_has_ended(shared_runtime: Runtime, echo_module: Module, of: str) -> None:
    with shared_runtime.spawn(echo_module) if of == "spawn" else shared_runtime.pool(echo_module, size=1) as called:
        future = called.submit("add", 1, 2)
        assert future.result(60) == 3
        gone = weakref.ref(future)
        del future
        wait_until_gone(gone)


def test_instance_goes_when_its_pool_has_replaced_it(shared_runtime: Runtime, echo_module: Module) -> None:
    with shared_runtime.pool(echo_module, size=1, recycle_after=1) as pool:
        gone = weakref.ref(pool.instances[0])
        pool.submit("nothing").result(60)
        wait_until_gone(gone)


def test_heap_goes_when_it_is_closed(shared_runtime: Runtime) -> None:
    heap = shared_runtime.create_shared_heap(1 << 20)
    heap.malloc(16)
    gone = weakref.ref(heap)
    heap.close()
    del heap
    wait_until_gone(gone)


def test_runtime_goes_with_all_its_descriptors_when_it_is_closed(echo_text: str) -> None:
    before = descriptors_of()
    with Runtime() as runtime:
        heap = runtime.create_shared_heap(1 << 20)
        heap.malloc(16)
        with runtime.spawn(runtime.load(echo_text), shared_heap=heap) as instance:
            instance.call("nothing")
    gone = weakref.ref(runtime)
    del runtime, heap, instance
    wait_until_gone(gone)
    assert descriptors_of() == before


def test_export_that_was_kept_outlives_its_instance(shared_runtime: Runtime, echo_module: Module) -> None:
    with shared_runtime.spawn(echo_module) as instance:
        kept, exports = instance.exports.add, instance.exports
    with pytest.raises(errors.ClosedError):
        kept(1, 2)
    with pytest.raises(errors.ClosedError):
        exports.count()
    with pytest.raises(errors.ClosedError):
        instance.call("count")
