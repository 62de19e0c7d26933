"""What a user reads when something fails says where and why."""

import multiprocessing
import pickle

import pytest

from shmwasm import Runtime, errors, on_client

RAISING = """(module (import "host" "lookup" (func $lookup)) (func (export "run") (call $lookup)))"""


def test_a_trap_names_the_address_that_could_not_be_accessed(instance):
    with pytest.raises(errors.WorkerTrapError) as caught:
        instance.call("load", 0x1234_5678)
    assert caught.value.code == "memory_out_of_bounds"
    assert caught.value.trap.startswith("out of bounds memory access, ")
    assert "0x12345678" in caught.value.trap


def test_a_trap_without_an_address_is_named_alone(instance):
    with pytest.raises(errors.WorkerTrapError) as caught:
        instance.call("divide", 1, 0)
    assert caught.value.trap == "integer divide by zero"


def absent(caller):
    raise LookupError("no such key")


@pytest.mark.usefixtures("importable_tests")
@pytest.mark.parametrize("where", [on_client, lambda function: function], ids=["client", "worker"])
def test_a_host_functions_exception_is_named_wherever_it_ran(shared_runtime, where):
    with shared_runtime.load(RAISING, imports={"host": {"lookup": where(absent)}}) as module:  # noqa: SIM117
        with shared_runtime.spawn(module) as instance, pytest.raises(errors.HostFunctionError) as caught:
            instance.call("run")
    assert caught.value.trap.endswith("raised LookupError: no such key")
    assert caught.value.exception == "LookupError"


def _use_a_new_runtime(results):
    with Runtime() as runtime:
        results.put(len(runtime.create_shared_heap(1 << 16)))


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_runtime_that_was_closed_before_a_fork_is_left_alone_in_the_child(capfd):
    closed = Runtime()
    closed.close()
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    child = context.Process(target=_use_a_new_runtime, args=(results,))
    child.start()
    assert results.get() == 1 << 16
    child.join()
    assert child.exitcode == 0
    assert capfd.readouterr().err == ""
    child.close()
    results.close()
    assert not closed.usable


def test_a_mistake_in_a_modules_text_is_told_with_its_place(shared_runtime):
    with pytest.raises(errors.ModuleError) as caught:
        shared_runtime.load('(module\n  (func (export "run") (wrong)))', name="a plugin")
    assert caught.value.module == "a plugin"
    assert caught.value.reason.endswith("(line 2, column 25)")


def test_a_block_whose_heap_is_gone_says_so_when_it_is_unpickled(shared_runtime):
    with shared_runtime.create_shared_heap(1 << 16) as heap:
        pickled = pickle.dumps(heap.malloc(16))
    with pytest.raises(errors.UnknownHeapError, match="exists no more"):
        pickle.loads(pickled)


def test_a_host_function_that_calls_its_own_instance_is_refused_instead_of_waiting_for_ever(shared_runtime):
    spawned = []
    imports = {"host": {"lookup": on_client(lambda _caller: spawned[0].exports.run())}}
    with shared_runtime.load(RAISING, imports=imports) as module, shared_runtime.spawn(module) as instance:
        spawned.append(instance)
        with pytest.raises(errors.HostFunctionError, match="waits for the function") as caught:
            instance.call("run")
    assert caught.value.exception == "UnsupportedError"
    spawned.clear()


def test_a_host_function_may_call_another_instance(shared_runtime, instance):
    results = []
    imports = {"host": {"lookup": on_client(lambda _caller: results.append(instance.call("add", 1, 2)))}}
    with shared_runtime.load(RAISING, imports=imports) as module, shared_runtime.spawn(module) as calling:
        calling.call("run")
    assert results == [3]
