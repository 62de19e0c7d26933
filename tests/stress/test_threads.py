"""Many threads on one runtime, callbacks that submit more, and forks in the middle."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from shmwasm.errors import ClosedError, HeapExhaustedError

THREADS = 8
ENTRIES = 64


def in_threads(count, work):
    """Run `work(number)` in so many threads at once; raise what one of them raises."""
    with ThreadPoolExecutor(count) as executor:
        return [future.result(120) for future in [executor.submit(work, number) for number in range(count)]]


def test_threads_that_allocate_and_free_at_once_get_blocks_of_their_own(runtime, rng, times, allocate_all):
    heap = runtime.create_shared_heap(64 << 20)
    seeds = [rng.random() for _ in range(THREADS)]
    exchange: list[int] = []  # blocks that one thread allocated and any may free; list.pop is atomic

    def work(number):
        mine, own, rng = bytes([number + 1]) * 8, [], random.Random(seeds[number])
        for _ in range(times(2500)):
            choice = rng.random()
            if choice < 0.4:
                try:
                    block = heap.malloc(rng.choice([8, 64, 700, 9000, 70_000]), alignment=rng.choice([16, 256]))
                except HeapExhaustedError:
                    continue
                block.view[:8] = mine
                own.append(block)
            elif choice < 0.5:
                exchange.append(heap.malloc_address(rng.choice([16, 300])))
            elif choice < 0.6 and exchange:
                try:
                    heap.free(exchange.pop())
                except IndexError:
                    continue
            elif own:
                block = own.pop(rng.randrange(len(own)))
                assert bytes(block.view[:8]) == mine
                block.free()
        for block in own:
            block.free()

    in_threads(THREADS, work)
    for address in exchange:
        heap.free(address)
    assert heap.statistics().live_blocks == 0
    heap.verify()
    runtime.verify()
    assert len(allocate_all(heap, 1 << 16)) == heap.size >> 16


def test_threads_share_pools_instances_and_the_runtime_itself(runtime, guest_path, rng, times, new_ledger):
    heap = runtime.create_shared_heap(8 << 20)
    counter = heap.calloc(1, 4)
    with (
        runtime.load(guest_path) as module,
        runtime.pool(module, size=2, shared_heap=heap) as pool,
        runtime.spawn(module, shared_heap=heap) as instance,
    ):
        seeds = [rng.random() for _ in range(THREADS)]

        def work(number):
            rng = random.Random(seeds[number])
            added = 0
            for _ in range(times(40)):
                amount = rng.randrange(100)
                added += amount
                where = rng.choice([pool, instance])
                where.submit("add", counter, amount).result(60)
                if rng.random() < 0.2:
                    with runtime.create_shared_heap(1 << 16) as other:
                        other.malloc(100).free()
                if rng.random() < 0.1:
                    with runtime.spawn(module, shared_heap=heap) as own:
                        ledger = new_ledger(heap)
                        own.call("churn", ledger.block, ENTRIES, 500, number + 1)
                        ledger.close()
            return added

        total = sum(in_threads(THREADS, work))
        assert int.from_bytes(counter.view, "little") == total
    counter.free()
    assert heap.statistics().live_blocks == 0
    runtime.verify()


def test_callbacks_that_submit_more_are_all_served(runtime, guest_path, times):
    heap = runtime.create_shared_heap(1 << 20)
    counter = heap.calloc(1, 4)
    wanted = times(400)
    done: Future[None] = Future()
    with runtime.load(guest_path) as module, runtime.pool(module, size=2, shared_heap=heap) as pool:

        def again(previous: Future) -> None:
            if previous.result() + 1 < wanted:
                pool.submit("add", counter, 1).add_done_callback(again)
            elif not done.done():
                done.set_result(None)

        pool.submit("add", counter, 1).add_done_callback(again)
        done.result(60)
    assert int.from_bytes(counter.view, "little") == wanted
    counter.free()


def test_callbacks_of_an_instance_submit_to_others_while_it_dies(runtime, guest_path, signal_worker, times):
    with runtime.load(guest_path) as module, runtime.pool(module, size=2) as pool:
        for _ in range(times(10)):
            with runtime.spawn(module) as dying:
                chained: Future[Future] = Future()
                dying.submit("spin").add_done_callback(lambda _, to=chained: to.set_result(pool.submit("nothing")))
                assert signal_worker(dying)
                assert chained.result(60).result(60) is None


def in_a_forked_child(check):
    """Fork, run `check` in the child, and return its exit code: 0 if it returned true."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(30)
            code = 0 if check() else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def refuses(use):
    try:
        use()
    except ClosedError:
        return True
    return False


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_is_refused_and_its_parent_notices_nothing(runtime, guest_path, new_ledger, rng, times, allocate_all):
    heap = runtime.create_shared_heap(4 << 20)
    with runtime.load(guest_path) as module, runtime.pool(module, size=2, shared_heap=heap) as pool:
        instance = runtime.spawn(module, shared_heap=heap)
        block = heap.malloc(100)
        uses = (
            lambda: heap.malloc(16),
            lambda: heap.malloc_address(16),
            lambda: heap.free(heap.start),
            block.free,
            heap.statistics,
            heap.verify,
            runtime.verify,
            lambda: runtime.create_shared_heap(1 << 16),
            lambda: runtime.spawn(module),
            lambda: instance.call("nothing"),
            lambda: instance.attach_shared_heap(heap),
            lambda: pool.submit("nothing"),
        )

        def check():
            return all(refuses(use) for use in uses) and (runtime.close(), instance.close(), heap.close()) and True

        for _ in range(times(5)):
            ledger = new_ledger(heap)
            running = pool.submit("churn", ledger.block, ENTRIES, 20_000, rng.randrange(1 << 31))
            assert in_a_forked_child(check) == 0
            assert running.result(60) > 0
            instance.call("nothing", timeout=30)
            ledger.close()
            heap.malloc(1000).free()
        block.free()
        instance.close()
    assert heap.statistics().live_blocks == 0
    runtime.verify()
    assert len(allocate_all(heap, 1 << 16)) == heap.size >> 16


def child_of_multiprocessing(block, start):
    block.view[:5] = b"child"
    found = bytes(block.view[5:10])
    block.free()
    assert found == b"there", (found, start)


@pytest.mark.usefixtures("importable_tests")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_process_of_multiprocessing_uses_and_frees_a_block(runtime, method):
    context = multiprocessing.get_context(method)
    heap = runtime.create_shared_heap(1 << 20)
    block = heap.malloc(10)
    block.view[5:] = b"there"
    child = context.Process(target=child_of_multiprocessing, args=(block, heap.start))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    child.close()
    assert bytes(heap.view[block.offset : block.offset + 5]) == b"child"
    assert heap.statistics().live_blocks == 0
    if method == "forkserver":
        multiprocessing.forkserver._forkserver._stop()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_that_is_forked_while_threads_use_a_pool_is_refused_and_shuts_it_down(runtime, guest_path, times):
    stopping = threading.Event()
    with runtime.load(guest_path) as module, runtime.pool(module, size=2) as pool:

        def keep_busy():
            while not stopping.is_set():
                pool.submit("nothing").result(60)

        def check():
            return refuses(lambda: pool.submit("nothing")) and pool.shutdown() is None

        with ThreadPoolExecutor(3) as threads:
            busy = [threads.submit(keep_busy) for _ in range(3)]
            try:
                for _ in range(times(20)):
                    assert in_a_forked_child(check) == 0
            finally:
                stopping.set()
        assert [one.result() for one in busy] == [None] * 3
