"""Both ends of a call ring through their Python bindings, in one process: the client's call, then the worker's turn."""

import fcntl
import gc
import mmap
import os
import signal
import struct
import threading
import time
from contextlib import contextmanager

import pytest
import wasmtime
from hypothesis import given, settings
from hypothesis import strategies as st

from processes import descriptors_of
from shmwasm.core import layout
from shmwasm.core.requests import EndedCall
from shmwasm.core.rings import ClientRing, new_sealed_memory
from shmwasm.core.worker_ring import WorkerRing
from shmwasm.engine.modules import FunctionType
from shmwasm.errors import ArgumentError, ClosedError, ProtocolError
from shmwasm.posix import bells
from waiting import PATIENCE, eventually

ADD = FunctionType(("i32", "i32"), ("i32",))
SWAP = FunctionType(("i64", "f64"), ("f64", "i64"))
NOTHING = FunctionType((), ())
FUNCTIONS = {"add": ADD, "swap": SWAP, "nothing": NOTHING}
GUEST = """(module
  (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))
  (func (export "swap") (param i64 f64) (result f64 i64) (local.get 1) (local.get 0))
  (func (export "nothing")))"""


class FinishedError(Exception):
    """What `finish` raises here, with the answer that it got."""


@pytest.fixture
def pair(new_pair):
    with new_pair(GUEST, FUNCTIONS) as made:
        yield made


def hot(pair, name, **options):
    """Return a hot function whose calls the worker, if it is not at work, runs when the core has looked for their end in vain."""
    worker = threading.Lock()

    def finish(request, answer):
        while answer == layout.RING_FULL:
            time.sleep(0)  # until the thread whose call is in the way has collected it
            answer = pair.client.submit(request)
        if request is None or answer & ~layout.RING_DOORBELL != layout.RING_PENDING:
            raise FinishedError(answer)
        with worker:
            while pair.run() != layout.RING_PARK:
                pass
        answer = pair.client.wait(request)
        if answer != layout.RING_DONE:
            raise FinishedError(answer)
        results = request.results()
        return results[0] if len(results) == 1 else list(results) or None

    def convert(arguments):
        if len(arguments) != len(FUNCTIONS[name].parameters):
            raise ArgumentError(f"{len(arguments)} arguments")
        return [int(argument) & 0xFFFF_FFFF for argument in arguments]

    def sleep():
        raise AssertionError("the worker is awake")

    return pair.client.call_function(list(FUNCTIONS).index(name), FUNCTIONS[name], convert, sleep, finish, **options)


def test_hot_function_takes_integers_signed_or_not_and_returns_them_signed(pair):
    add = hot(pair, "add")
    assert [add(2, 3), add(-2, -3), add(0xFFFF_FFFF, 0), add(-1, 0xFFFF_FFFF), add(1 << 31, 0)] == [5, -5, -1, -2, -(1 << 31)]


def test_hot_function_returns_all_results_or_none(pair):
    assert hot(pair, "swap")(-7, 2.5) == [2.5, -7]
    assert hot(pair, "nothing")() is None


@pytest.mark.parametrize("arguments", [(), (1,), (1, 2, 3)])
def test_hot_function_leaves_a_wrong_number_of_arguments_to_its_converter(pair, arguments):
    with pytest.raises(ArgumentError, match=f"{len(arguments)} arguments"):
        hot(pair, "add")(*arguments)
    assert pair.run() == layout.RING_PARK


def test_hot_function_leaves_what_is_no_number_to_its_converter(pair):
    class Odd:
        def __index__(self):
            raise KeyError("odd")

        def __int__(self):
            return 40

    assert hot(pair, "add")(Odd(), 2) == 42


@given(st.lists(st.integers(-(1 << 31), (1 << 32) - 1), min_size=2, max_size=2))
@settings(max_examples=50, deadline=None)
def test_hot_function_adds_like_wasm(new_pair, numbers):
    with new_pair(GUEST, FUNCTIONS) as pair:
        low = sum(numbers) & 0xFFFF_FFFF
        assert hot(pair, "add")(*numbers) == low - (low >> 31 << 32)


def test_call_that_raises_is_withdrawn_and_its_request_used_again(pair):
    def finish(request, answer):
        seen.append(request)
        raise FinishedError(answer)

    seen = []
    call = pair.client.call_function(0, ADD, list, None, finish)
    for _ in range(3):
        with pytest.raises(FinishedError):
            call(1, 2)
    assert len(set(map(id, seen))) == 1
    assert pair.run() == layout.RING_PARK
    assert [ended.status for ended in pair.client.collect()] == [layout.CALL_WITHDRAWN] * 3


def test_handler_of_a_signal_that_raises_leaves_no_call_that_nobody_collects(pair):
    """The signal comes while the core looks for the end of the call, and is handled right after."""

    def handle(_number, _frame):
        raise InterruptedError

    before = signal.signal(signal.SIGALRM, handle)
    pair.client.set_patience(1 << 28)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(InterruptedError):
            hot(pair, "add")(1, 2)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    pair.client.set_patience(0)
    assert pair.run() == layout.RING_PARK
    assert [ended.status for ended in pair.client.collect()] == [layout.CALL_WITHDRAWN]


def test_full_ring_refuses_calls_until_one_was_collected(pair):
    requests = [pair.submit(0, ADD, [index, 1]) for index in range(layout.RING_SLOTS)]
    one_more = pair.client.request(0, ADD)
    assert one_more.pack((7, 7))
    assert pair.client.submit(one_more) == layout.RING_FULL
    assert pair.run() == layout.RING_PARK
    assert pair.client.submit(one_more) == layout.RING_FULL
    assert pair.client.wait(requests[0]) == layout.RING_DONE
    assert pair.client.submit(one_more) == layout.RING_PENDING
    assert pair.run() == layout.RING_PARK
    for request in (*requests[1:], one_more):
        assert pair.client.wait(request) == layout.RING_DONE
    assert [request.results()[0] for request in requests] == list(range(1, layout.RING_SLOTS + 1))
    assert one_more.results() == (14,)


def test_asynchronous_calls_are_collected_with_what_they_were_submitted_with(pair):
    request = pair.submit(1, SWAP, [5, 1.5], layout.CALL_ASYNCHRONOUS)
    sequence = request.sequence
    pair.client.give(request)
    assert pair.client.collect() == []
    pair.client.ask()
    pair.run()
    assert pair.hooks.woken == [0]
    assert pair.client.collect() == [EndedCall(sequence, layout.CALL_RETURNED, 0, struct.pack("<dq", 1.5, 5), 0)]
    assert pair.client.state(sequence) == layout.CALL_EMPTY


def test_clock_of_a_submission_comes_back_with_the_call(pair):
    request = pair.client.request(2, NOTHING)
    request.pack(())
    pair.client.submit(request, layout.CALL_ASYNCHRONOUS, when=(1 << 63) + 5)
    pair.run()
    assert pair.client.collect()[0].when == (1 << 63) + 5


def test_only_who_dozes_is_woken_at_the_slot_that_it_sleeps_on(pair):
    first, second = pair.submit(0, ADD, [1, 2]), pair.submit(0, ADD, [3, 4])
    futex, expected = pair.client.doze(second, layout.RING_FUTEX)
    assert expected == layout.CALL_SUBMITTED
    pair.run()
    assert [pair.worker.sleeper(slot) for slot in pair.hooks.woken] != [futex]  # another process, another address
    assert pair.hooks.woken == [pair.worker.slot()]
    assert pair.client.doze(second) is None
    assert (pair.client.wait(first), pair.client.wait(second)) == (layout.RING_DONE, layout.RING_DONE)
    assert pair.client.wait(second) == layout.RING_LOST
    assert pair.client.doze(second) is None


@contextmanager
def sleeping_worker(pair):
    """Have the worker run calls in a thread, and sleep."""

    def work():
        while pair.run(may_sleep=True) != layout.RING_ATTENTION:
            pass

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        pair.client.call_attention()
        bells.ring(pair.client.worker_bell)
        thread.join()


def test_worker_that_may_sleep_wakes_at_its_bell_and_rings_for_who_sleeps_at_the_other_one(pair):
    with sleeping_worker(pair):
        for number in range(200):
            request = pair.client.request(0, ADD)
            request.pack((number, 1))
            if pair.client.submit(request) & layout.RING_DOORBELL:
                bells.ring(pair.client.worker_bell)
            while pair.client.doze(request):
                assert bells.wait(pair.client.end_bell, PATIENCE)
            assert pair.client.wait(request) == layout.RING_DONE
            assert request.results() == (number + 1,)
            pair.client.give(request)
    assert pair.hooks.woken == []


def test_hot_function_sleeps_without_another_look_where_its_worker_sleeps(pair):
    def sleep():
        bells.ring(pair.client.worker_bell)
        slept.append(bells.wait(pair.client.end_bell, PATIENCE))

    def finish(request, answer):
        raise FinishedError(answer)

    slept = []
    swap, nothing = (pair.client.call_function(number, kind, list, sleep, finish) for number, kind in ((1, SWAP), (2, NOTHING)))
    with sleeping_worker(pair):
        for number in range(100):
            eventually(pair.client.is_parked)
            assert swap(number, 0.5) == [0.5, number]
            eventually(pair.client.is_parked)
            assert nothing() is None
    assert slept == [True] * 200


def test_the_bell_is_one_callers_until_its_call_was_collected(pair):
    first, second = pair.submit(0, ADD, [1, 2]), pair.submit(0, ADD, [3, 4])
    bell = pair.client.end_bell
    assert pair.client.doze(first)[0] == bell
    assert pair.client.doze(second)[0] != bell
    pair.run()
    third = pair.submit(0, ADD, [5, 6])
    assert pair.client.doze(third)[0] != bell
    assert pair.client.doze(first) is None
    assert pair.client.wait(first) == layout.RING_DONE
    assert pair.client.doze(third)[0] == bell
    assert pair.client.doze(third)[0] == bell


def test_hot_function_does_not_sleep_at_a_bell_that_is_another_callers(pair):
    def finish(_request, answer):
        raise FinishedError(answer)

    assert pair.worker.park()
    assert pair.client.doze(pair.submit(0, ADD, [1, 2]))[0] == pair.client.end_bell
    with pytest.raises(FinishedError) as raised:
        pair.client.call_function(0, ADD, list, None, finish)(1, 2)
    assert raised.value.args == (layout.RING_PENDING | layout.RING_DOORBELL,)


def test_submission_to_a_parked_worker_asks_for_the_bell(pair):
    assert pair.run() == layout.RING_PARK
    assert pair.worker.park()
    request = pair.client.request(0, ADD)
    request.pack((1, 2))
    assert pair.client.submit(request) == layout.RING_PENDING | layout.RING_DOORBELL
    pair.worker.unpark()
    assert not pair.worker.park(), "there is a call to run"
    pair.run()
    assert pair.client.wait(request) == layout.RING_DONE
    pair.client.call_attention()
    assert not pair.worker.park(), "there is a message to read"
    pair.worker.attend()
    assert pair.worker.park()


def test_worker_knows_the_call_that_it_runs(pair):
    pair.submit(0, ADD, [1, 2])
    request = pair.submit(1, SWAP, [1, 2.0])
    next_call = pair.worker.imports()["ring_next"]
    store = pair.store
    slots = [next_call(store, pair.worker.address) for _ in range(2)]
    assert pair.worker.slot() == slots[1]
    call = pair.worker.call_of(slots[1])
    assert (call.sequence, call.export, call.flags, call.calls) == (request.sequence, 1, 0, 0)


def test_call_that_has_not_begun_is_withdrawn_and_does_not_run(pair):
    request = pair.submit(0, ADD, [1, 2])
    assert pair.client.end_early(request.sequence) == layout.CALL_CANCELLED
    assert pair.client.end_early(request.sequence) == layout.CALL_EMPTY
    assert pair.client.wait(request) == layout.RING_PENDING
    pair.run()
    assert pair.client.wait(request) == layout.RING_FAILED
    assert request.status == layout.CALL_WITHDRAWN


def begin(pair):
    """Submit a call, and let the worker take it and no more."""
    request = pair.submit(0, ADD, [1, 2])
    take = pair.worker.imports()["ring_next"]
    slot = take(pair.store, pair.worker.address)
    return request, slot


def test_running_call_is_interrupted_once_and_ends_once(pair):
    request, slot = begin(pair)
    assert pair.client.end_early(request.sequence, only_waiting=True) == layout.CALL_RUNNING
    assert pair.client.end_early(request.sequence) == layout.CALL_INTERRUPTING
    assert pair.client.end_early(request.sequence) == layout.CALL_EMPTY
    pair.worker.end(slot, layout.CALL_OVERDUE, interrupted=True)
    pair.worker.end(slot, layout.CALL_RETURNED)
    assert pair.client.wait(request) == layout.RING_FAILED
    assert (request.status, pair.hooks.absorbed) == (layout.CALL_OVERDUE, 0)


def test_call_that_ends_while_it_is_interrupted_absorbs_the_tick(pair):
    request, slot = begin(pair)
    assert pair.client.end_early(request.sequence) == layout.CALL_INTERRUPTING
    pair.worker.end(slot, layout.CALL_RETURNED)
    assert pair.hooks.absorbed == 1
    assert pair.client.wait(request) == layout.RING_DONE


def test_batch_is_interrupted_only_in_the_call_that_it_was_seen_to_run(pair):
    pair.client.submit(pair.client.batch_request(0, 3, 0, 0), layout.CALL_ASYNCHRONOUS | layout.CALL_STOPPABLE)
    imports = pair.worker.imports()
    slot = imports["ring_next"](pair.store, pair.worker.address)
    assert imports["ring_advance"](pair.store, slot) == 0
    assert pair.client.end_at(0, 0) == layout.CALL_RUNNING
    assert imports["ring_advance"](pair.store, slot) == 0
    assert pair.client.end_at(0, 2) == layout.CALL_INTERRUPTING
    assert pair.client.end_at(0, 1) == layout.CALL_RUNNING
    assert imports["ring_advance"](pair.store, slot) == 1
    pair.worker.end(slot, layout.CALL_RETURNED)
    (ended,) = pair.client.collect()
    assert (ended.status, ended.progress, pair.hooks.absorbed) == (layout.CALL_RETURNED, 3, 1)
    assert pair.client.end_at(0, 3) == layout.CALL_EMPTY


def test_next_batch_in_a_slot_is_not_stopped_because_the_one_before_was(pair):
    imports = pair.worker.imports()
    stops = []
    for sequence in range(2 * layout.RING_SLOTS):
        pair.client.submit(pair.client.batch_request(0, 3, 0, 0), layout.CALL_ASYNCHRONOUS | layout.CALL_STOPPABLE)
        slot = imports["ring_next"](pair.store, pair.worker.address)
        if sequence == 0:
            pair.client.end_at(0, 0)
        stops.append(imports["ring_advance"](pair.store, slot))
        pair.worker.end(slot, layout.CALL_RETURNED)
        pair.client.collect()
    assert stops == [1] + [0] * (2 * layout.RING_SLOTS - 1)


def test_tick_at_the_end_of_a_call_is_the_workers_to_see(pair):
    _, slot = begin(pair)
    pair.store.set_epoch_deadline(0)
    with pytest.raises(wasmtime.Trap):
        pair.worker.end(slot, layout.CALL_TRAPPED)
    pair.store.set_epoch_deadline(1 << 40)
    pair.worker.end(slot, layout.CALL_TRAPPED, interrupted=True)


def test_call_that_was_left_is_collected_once(pair):
    request, slot = begin(pair)
    assert pair.client.leave(request.sequence) is False
    pair.client.ask()
    pair.worker.end(slot, layout.CALL_RETURNED)
    assert pair.hooks.woken == [0]
    assert pair.client.leave(request.sequence) is False, "it was left before"
    assert [ended.sequence for ended in pair.client.collect()] == [request.sequence]
    assert pair.client.wait(request) == layout.RING_LOST


def test_call_that_ended_before_it_was_left_is_the_leavers_to_collect(pair):
    request, slot = begin(pair)
    pair.worker.end(slot, layout.CALL_RETURNED)
    assert pair.client.leave(request.sequence) is True
    assert len(pair.client.collect()) == 1


def test_numbers_of_calls_wrap(pair):
    with mmap.mmap(pair.client.descriptor, layout.RING_SIZE) as memory:
        for field in (64, 128):  # submitted, taken
            struct.pack_into("<I", memory, field, 0xFFFF_FFFD)
    add = hot(pair, "add")
    assert [add(index, 1) for index in range(6)] == list(range(1, 7))


def test_functions_of_a_closed_ring_find_no_ring_not_even_a_new_one_at_its_place(pair):
    add = hot(pair, "add")
    assert add(1, 1) == 2
    request = pair.client.request(0, ADD)
    request.pack((1, 2))
    pair.client.close()
    with ClientRing(pair.client_core, 2) as other:
        assert other.address == pair.client.address
        with pytest.raises(FinishedError, match=str(layout.RING_LOST)):
            add(1, 1)
        assert pair.client.submit(request) == layout.RING_LOST
        assert pair.client.wait(request) == layout.RING_LOST
        with pytest.raises(ClosedError):
            pair.client.request(1, SWAP)
        assert pair.client.end_early(0) == layout.CALL_EMPTY
        assert pair.client.collect() == []
        assert other.state(0) == layout.CALL_EMPTY
    pair.client.close()


def test_ring_that_takes_no_more_refuses_all_but_asynchronous_calls_and_ends_what_it_took(pair):
    taken, slot = begin(pair)
    pair.client.take_no_more()
    add, request = hot(pair, "add"), pair.client.request(0, ADD)
    request.pack((1, 2))
    with pytest.raises(FinishedError, match=str(layout.RING_CLOSING)):
        add(1, 1)
    assert pair.client.submit(request) == layout.RING_CLOSING
    assert pair.client.submit(request, layout.CALL_ASYNCHRONOUS) & layout.RING_PENDING
    pair.worker.end(slot, layout.CALL_RETURNED)
    assert pair.client.wait(taken) == layout.RING_DONE
    assert pair.client.submitted == 2


def test_view_of_a_batch_buffer_outlives_the_ring(pair):
    view = pair.client.batch_buffer(1)
    pair.client.close()
    view[:4] = b"abcd"
    assert len(view) == layout.RING_BATCH_SIZE
    assert bytes(view[:4]) == b"abcd"


def test_rings_that_come_and_go_take_no_more_memory_and_no_descriptors(engine, core_module, pair):
    core = pair.new_core(engine, core_module)

    def use_a_ring():
        with ClientRing(core, 3) as ring:
            for number, kind in enumerate(FUNCTIONS.values()):
                ring.give(ring.request(number, kind))
            ring.give(ring.batch_request(0, 5, 0, 0))
            with pytest.raises(FinishedError):
                ring.call_function(0, ADD, list, None, lambda _, answer: (_ for _ in ()).throw(FinishedError(answer)))(1, 2)

    use_a_ring()
    gc.collect()
    descriptors, end = descriptors_of(), core.call("ring_new_request", 2)
    for _ in range(20):
        use_a_ring()
    gc.collect()
    assert descriptors_of() == descriptors
    assert core.call("ring_new_request", 2) - end == 128


def test_calls_of_several_threads_do_not_mix(pair):
    add, wrong = hot(pair, "add"), []

    def call(number):
        wrong.extend(index for index in range(500) if add(number * 1000, index) != number * 1000 + index)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("cells", [-1, layout.RING_MAXIMUM_CELLS + 1])
def test_ring_for_more_values_than_wasm_has_is_refused(engine, core_module, pair, cells):
    with pytest.raises(ArgumentError, match=f"{cells} values"):
        ClientRing(pair.new_core(engine, core_module), cells)


def bad_segments():
    """Give descriptors that are no rings, each with what the error says."""
    yield new_sealed_memory("empty", layout.RING_SIZE), "another layout"
    yield new_sealed_memory("short", layout.RING_SIZE // 2), "cannot be mapped"
    unsealed = os.memfd_create("unsealed")
    os.ftruncate(unsealed, layout.RING_SIZE)
    yield unsealed, "not sealed"
    yield os.open("/dev/null", os.O_RDWR), "cannot be mapped"
    for field, value in ((0, 1), (8, layout.RING_VERSION + 1), (12, 65), (12, 0), (12, 1 << 20)):
        descriptor = new_sealed_memory("damaged", layout.RING_SIZE)
        with mmap.mmap(descriptor, layout.RING_SIZE) as memory:
            struct.pack_into("<QII", memory, 0, layout.RING_MAGIC, layout.RING_VERSION, 128)
            struct.pack_into("<I", memory, field, value)
        yield descriptor, "another layout"


def test_worker_refuses_every_segment_that_is_no_ring(engine, core_module, pair):
    core = pair.new_core(engine, core_module)
    for descriptor, reason in bad_segments():
        with pytest.raises(ProtocolError, match=reason):
            WorkerRing(core, descriptor)
        os.close(descriptor)
    WorkerRing(core, pair.client.descriptor).close()


def test_size_of_a_rings_segment_is_sealed(pair):
    with pytest.raises(PermissionError):
        os.ftruncate(pair.client.descriptor, 0)
    assert fcntl.fcntl(pair.client.descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SEAL
