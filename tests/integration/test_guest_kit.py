"""The guest kit between real instances, each in its own process: C and Zig, 32 and 64 bits, and kill -9 wherever it hurts."""

from __future__ import annotations

import signal
import time
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, wait
from pathlib import Path

import pytest

from shmwasm.errors import CallTimeoutError, WorkerLostError
from waiting import PATIENCE, eventually

GUESTS = Path(__file__).parent / "guests"
LANGUAGES = ["kit", "kit_zig"]
ALL_LANGUAGES = ["kit", "kit_cpp", "kit_zig"]
OK, AGAIN, TIMED_OUT, CLOSED, OWNER_DIED, NOT_RECOVERABLE, DEADLOCK, NOT_OWNER, INVALID = range(9)
"""shmwasm_status."""
FOREVER = -1

OPERATIONS = 10_000_000
"""Of four processes together, on a queue, and on a mutex: pushes and pops, locks and unlocks."""


@pytest.fixture
def heap(shared_runtime):
    with shared_runtime.create_shared_heap(4 << 20) as made:
        yield made


@pytest.fixture
def spawn(shared_runtime, heap):
    """Spawn instances of the guests, attached to the heap; they end with the test."""
    spawned = []

    def start(name="kit"):
        with shared_runtime.load(GUESTS / f"{name}.wasm") as module:
            spawned.append(shared_runtime.spawn(module, shared_heap=heap))
        return spawned[-1]

    yield start
    for instance in spawned:
        instance.close()


@pytest.fixture
def instance(spawn):
    return spawn()


def words(block):
    return block.view.cast("I")


def results(*futures):
    """Return the results of calls that need each other, and raise what the first to fail raised."""
    done, running = wait(futures, PATIENCE, return_when=FIRST_EXCEPTION)
    for future in done:
        future.result()
    assert not running, "they wait for each other"
    return [future.result() for future in futures]


def kill_once_there(victim, export, address, here):
    """Kill an instance in the middle of a call that says in the first word of `here` where it is."""
    staying = victim.submit(export, address, here)
    deadline = time.monotonic() + PATIENCE
    with words(here) as cells:
        while not cells[0]:
            assert time.monotonic() < deadline
            assert not staying.done(), staying.result()
        cells[0] = 0
    victim.kill()
    with pytest.raises(WorkerLostError) as lost:
        staying.result(PATIENCE)
    assert lost.value.signal == signal.SIGKILL


class TestFourProcesses:
    def test_ten_million_queue_operations_lose_double_and_reorder_nothing(self, heap, spawn):
        producers, consumers = [spawn(name) for name in LANGUAGES], [spawn(name) for name in LANGUAGES]
        count = OPERATIONS // 4
        queue = producers[0].call("new_queue", 1024)
        with heap.calloc(8) as first, heap.calloc(8) as second:
            receiving = [
                one.submit("queue_pop_all", queue, received, 2) for one, received in zip(consumers, (first, second), strict=True)
            ]
            sending = [one.submit("queue_push_many", queue, number, count) for number, one in enumerate(producers)]
            assert results(*sending) == [count, count]
            producers[0].call("queue_close", queue)
            assert sum(results(*receiving)) == 2 * count
            with words(first) as one, words(second) as other:
                assert [a + b for a, b in zip(one, other, strict=True)][:2] == [count, count]
        heap.free(queue)

    def test_ten_million_mutex_operations_lose_and_double_nothing(self, heap, spawn):
        instances = [spawn(name) for name in LANGUAGES * 2]
        count = OPERATIONS // 8
        with heap.calloc(4) as mutex, heap.calloc(16) as counters:
            assert results(*[one.submit("add_under_mutex", mutex, counters, count) for one in instances]) == [0] * 4
            assert counters.view.cast("Q").tolist() == [4 * count] * 2
            assert words(mutex)[0] == 0


class TestRing:
    @pytest.mark.parametrize("sender", LANGUAGES)
    @pytest.mark.parametrize("receiver", LANGUAGES)
    def test_messages_arrive_once_and_in_order_in_either_language(self, heap, spawn, sender, receiver):
        producer, consumer = spawn(sender), spawn(receiver)
        ring = producer.call("new_ring", 64)
        calls = consumer.submit("ring_pop_all", ring), producer.submit("ring_push_many", ring, 50_000)
        assert results(*calls) == [50_000, 50_000]
        heap.free(ring)


class TestMutex:
    @pytest.fixture
    def mutex(self, heap):
        with heap.calloc(4) as made:
            yield made

    @pytest.fixture
    def here(self, heap):
        with heap.calloc(4) as made:
            yield made

    def test_locking_and_unlocking_touch_nothing_but_the_word(self, instance, mutex):
        number = instance.call("self")
        assert instance.call("mutex_lock", mutex) == OK
        assert words(mutex)[0] == number
        assert instance.call("mutex_is_mine", mutex)
        assert instance.call("mutex_unlock", mutex) == OK
        assert words(mutex)[0] == 0

    def test_wrong_use_is_told_and_changes_nothing(self, instance, spawn, mutex):
        other = spawn()
        assert instance.call("mutex_unlock", mutex) == NOT_OWNER
        assert instance.call("mutex_consistent", mutex) == NOT_OWNER
        assert instance.call("mutex_lock", mutex) == OK
        before = words(mutex)[0]
        assert instance.call("mutex_lock", mutex) == DEADLOCK
        assert other.call("mutex_trylock", mutex) == AGAIN
        assert other.call("mutex_timedlock", mutex, 0) == TIMED_OUT
        assert other.call("mutex_unlock", mutex) == NOT_OWNER
        assert words(mutex)[0] == before
        assert other.call("mutex_timedlock", mutex, 5_000_000) == TIMED_OUT
        assert instance.call("mutex_unlock", mutex) == OK

    def test_kill_of_the_holder_is_reported_to_one_waiter_and_the_others_get_the_mutex_after_it(self, spawn, mutex, here):
        holder, waiters = spawn(), [spawn() for _ in range(3)]
        staying = holder.submit("mutex_lock_and_stay", mutex, here)
        eventually(lambda: words(here)[0])
        waiting = {one.submit("mutex_lock", mutex): one for one in waiters}
        holder.kill()
        with pytest.raises(WorkerLostError):
            staying.result(PATIENCE)
        statuses = []
        while waiting:
            done, _ = wait(waiting, timeout=PATIENCE, return_when=FIRST_COMPLETED)
            (future,) = done  # one holds it, so no other can have it
            owner = waiting.pop(future)
            statuses.append(future.result())
            if statuses[-1] == OWNER_DIED:
                assert owner.call("mutex_consistent", mutex) == OK
            assert owner.call("mutex_unlock", mutex) == OK
        assert statuses == [OWNER_DIED, OK, OK]
        assert words(mutex)[0] == 0

    def test_an_heir_that_repairs_nothing_leaves_a_mutex_that_nobody_can_lock(self, spawn, mutex, here):
        heir, waiter = spawn(), spawn()
        kill_once_there(spawn(), "mutex_lock_and_stay", mutex, here)
        assert heir.call("mutex_trylock", mutex) == AGAIN
        assert heir.call("mutex_timedlock", mutex, 0) == OWNER_DIED
        waiting = waiter.submit("mutex_lock", mutex)
        assert heir.call("mutex_unlock", mutex) == OK
        assert waiting.result(PATIENCE) == NOT_RECOVERABLE
        assert heir.call("mutex_trylock", mutex) == NOT_RECOVERABLE

    def test_an_heir_that_dies_too_is_inherited_from(self, spawn, mutex, here):
        first, second, third = spawn(), spawn(), spawn()
        kill_once_there(first, "mutex_lock_and_stay", mutex, here)
        assert second.call("mutex_lock", mutex) == OWNER_DIED
        second.kill()
        assert third.call("mutex_lock", mutex) == OWNER_DIED
        assert third.call("mutex_consistent", mutex) == OK
        assert third.call("mutex_unlock", mutex) == OK

    @pytest.mark.parametrize("name", ALL_LANGUAGES)
    def test_what_a_dead_holder_left_half_done_is_repaired_in_either_language(self, heap, spawn, mutex, here, name):
        kill_once_there(spawn(), "mutex_lock_and_stay", mutex, here)
        with heap.calloc(16) as counters:
            counters.view.cast("Q")[0] = 1
            assert spawn(name).call("add_under_mutex", mutex, counters, 10) == 1
            assert counters.view.cast("Q").tolist() == [11, 11]

    def test_a_call_that_ran_out_of_time_with_the_mutex_can_be_cleaned_up_after(self, instance, mutex, here):
        with pytest.raises(CallTimeoutError):
            instance.call("mutex_lock_and_stay", mutex, here, timeout=0.05)
        assert instance.call("mutex_is_mine", mutex)
        assert instance.call("mutex_unlock", mutex) == OK


class TestQueue:
    @pytest.fixture
    def queue(self, heap, instance):
        address = instance.call("new_queue", 4) & 0xFFFF_FFFF
        yield address
        heap.free(address)

    @pytest.fixture
    def here(self, heap):
        with heap.calloc(4) as made:
            yield made

    def test_full_empty_and_closed_are_told_apart(self, instance, queue):
        assert instance.call("queue_pop", queue, 0) == -TIMED_OUT
        assert [instance.call("queue_push", queue, 0, number, 0) for number in range(5)] == [OK] * 4 + [TIMED_OUT]
        instance.call("queue_close", queue)
        assert instance.call("queue_push", queue, 0, 5, 0) == CLOSED
        assert [instance.call("queue_pop", queue, 0) for _ in range(5)] == [0, 1, 2, 3, -CLOSED]

    def test_nobody_is_woken_where_nobody_waits(self, heap, instance, queue):
        for number in range(20):
            assert instance.call("queue_push", queue, 0, number, FOREVER) == OK
            assert instance.call("queue_pop", queue, FOREVER) == number
        filled, freed = heap.block_at(queue, 28).view.cast("I")[5:7]
        assert (filled, freed) == (0, 0)  # both count the wakes

    def test_who_waits_for_a_message_and_for_room_is_woken(self, instance, spawn, queue):
        other = spawn()
        waiting = other.submit("queue_pop", queue, FOREVER)
        assert instance.call("queue_push", queue, 0, 7, FOREVER) == OK
        assert waiting.result(PATIENCE) == 7
        for number in range(4):
            assert instance.call("queue_push", queue, 0, number, 0) == OK
        waiting = other.submit("queue_push", queue, 1, 8, FOREVER)
        assert instance.call("queue_pop", queue, 0) == 0
        assert waiting.result(PATIENCE) == OK

    def test_closing_wakes_everyone_who_waits(self, instance, spawn, queue):
        waiting = [spawn(name).submit("queue_pop", queue, FOREVER) for name in ("kit", "kit")]
        instance.call("queue_close", queue)
        assert [future.result(PATIENCE) for future in waiting] == [-CLOSED] * 2

    @pytest.mark.parametrize("name", ALL_LANGUAGES)
    def test_a_producer_killed_while_it_writes_holds_nobody_up(self, heap, instance, spawn, queue, here, name):
        kill_once_there(spawn(), "queue_claim_and_stay", queue, here)
        assert instance.call("queue_push", queue, 0, 7, 0) == OK
        instance.call("queue_close", queue)
        with heap.calloc(4) as received:
            assert spawn(name).call("queue_pop_all", queue, received, 1, timeout=PATIENCE) == 1
        assert instance.call("queue_voided", queue) == 1
        assert instance.call("queue_pop", queue, 0) == -CLOSED

    @pytest.mark.parametrize("name", ALL_LANGUAGES)
    def test_the_place_of_a_consumer_killed_while_it_reads_is_free_again(self, instance, spawn, queue, here, name):
        assert [instance.call("queue_push", queue, 0, number, 0) for number in range(4)] == [OK] * 4
        kill_once_there(spawn(), "queue_take_and_stay", queue, here)
        assert spawn(name).call("queue_push_many", queue, 1, 1, timeout=PATIENCE) == 1
        assert instance.call("queue_lost", queue) == 1
        assert [instance.call("queue_pop", queue, 0) for _ in range(5)] == [1, 2, 3, 0, -TIMED_OUT]

    def test_a_claim_of_an_instance_that_lives_is_not_taken_from_it(self, instance, spawn, queue, here):
        staying = spawn()
        with pytest.raises(CallTimeoutError):
            staying.call("queue_claim_and_stay", queue, here, timeout=0.05)
        assert instance.call("queue_push", queue, 0, 7, 0) == OK
        assert instance.call("queue_pop", queue, 100_000_000) == -TIMED_OUT
        assert instance.call("queue_recover", queue) == 0
        # It knows itself that its call is over.
        assert staying.call("queue_recover", queue) == 1
        assert instance.call("queue_pop", queue, 0) == 7

    def test_a_call_that_waits_ends_with_its_time_limit_and_harms_nobody(self, instance, queue):
        with pytest.raises(CallTimeoutError):
            instance.call("queue_pop", queue, FOREVER, timeout=0.05)
        assert instance.call("queue_push", queue, 0, 7, 0) == OK
        assert instance.call("queue_pop", queue, FOREVER) == 7


class TestAddressSizes:
    """One heap, seen through 32-bit and 64-bit memories."""

    @pytest.mark.parametrize("sender", ["kit", "kit64", "kit_cpp", "kit_zig", "kit_zig64"])
    @pytest.mark.parametrize("receiver", ["kit64", "kit_zig64"])
    def test_one_queue_serves_instances_of_both_sizes_and_languages(self, heap, spawn, sender, receiver):
        producer, consumer = spawn(sender), spawn(receiver)
        maker = spawn("kit")
        block = heap.block_at(maker.call("new_queue", 16))
        with heap.calloc(4) as received:
            receiving = consumer.submit("queue_pop_all", block, received, 1)
            assert producer.call("queue_push_many", block, 0, 10) == 10
            maker.call("queue_close", block)
            assert results(receiving) == [10]
        block.free()

    @pytest.mark.parametrize("name", ["kit", "kit64", "kit_zig", "kit_zig64"])
    def test_a_relative_pointer_means_the_same_in_both_sizes_and_languages(self, heap, spawn, name):
        cell = heap.block_at(spawn("kit").call("new_relative", 0x1234_5678_9ABC))
        assert spawn(name).call("relative_round_trip", cell) == 0x1234_5678_9ABC
        cell.free()
