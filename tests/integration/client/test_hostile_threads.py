"""Closing under running calls, and signals in the middle of waits; each in its own process, as a crash must not take ours."""

from __future__ import annotations

import subprocess
import sys

import pytest

PRELUDE = """
import faulthandler, gc, random, signal, sys, threading, time
from shmwasm import Runtime, errors
faulthandler.enable()
faulthandler.dump_traceback_later(40, exit=True)
GUEST = '''(module (memory (export "memory") 1)
  (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))
  (func (export "spin") (loop $forever (br $forever))))'''
ENDLESS = '(module (func $s (loop $forever (br $forever))) (start $s))'
"""

RACE = """
sys.setswitchinterval(1e-5)
for turn in range(4):
    runtime = Runtime()
    heap = runtime.create_shared_heap(16 << 20, scrub=bool(turn % 2))
    module = runtime.load(GUEST)
    closes = [runtime.close, heap.close] if CLOSE_HEAP else [runtime.close]

    def small():
        with heap.malloc(random.choice([16, 64, 5000])) as block:
            block.view[:4] = b"abcd"

    def addresses():
        heap.free_address(heap.malloc_address(64))

    def large():
        heap.realloc(heap.calloc(200_000), 10).free()

    def count():
        heap.statistics()
        heap.verify()

    def heaps():
        with runtime.create_shared_heap(1 << 20) as one:
            one.malloc(10)

    def instances():
        with runtime.spawn(module, shared_heap=heap) as one:
            one.call("add", 1, 2)

    def pools():
        with runtime.pool(module, size=2) as pool:
            list(pool.map("add", range(5), range(5)))

    def until_closed(action):
        try:
            while True:
                action()
        except (errors.ClosedError, errors.WorkerLostError) as error:
            pass
        except errors.ShmwasmError as error:
            # A closed heap heads no chain any more, and what runs in the moment of the close may be told that.
            problems.extend([] if runtime._closed or CLOSE_HEAP else [error])
        except BaseException as error:
            if not isinstance(error, futures.CancelledError):
                problems.append(error)

    from concurrent import futures
    problems = []
    actions = [small, addresses, large, count] if CLOSE_HEAP else [small, large, count, heaps, instances, pools]
    threads = [threading.Thread(target=until_closed, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    time.sleep(random.uniform(0, 0.1))
    closing = [threading.Thread(target=close) for close in closes * 3]
    for thread in closing:
        thread.start()
    for thread in (*closing, *threads):
        thread.join()
    assert not problems, problems
"""

INTERRUPTED = """
waits = False

def handle(*_):
    if waits:
        raise KeyboardInterrupt

signal.signal(signal.SIGINT, handle)

def interrupted(wait):
    global waits
    ended = threading.Event()

    def interrupt():
        # Again and again: Python loses an exception that a handler raises in a finalizer.
        while not ended.wait(0.1):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    waits = True
    try:
        wait()
        raise AssertionError("the wait ended by itself")
    except KeyboardInterrupt:
        waits = False
    ended.set()
    interrupting.join()

def create_many():
    while True:
        runtime.create_shared_heap(1 << 20).close()

with Runtime() as runtime:
    endless, module = runtime.load(ENDLESS), runtime.load(GUEST)
    heap = runtime.create_shared_heap(1 << 20)
    instance = runtime.spawn(module)
    interrupted(lambda: runtime.spawn(endless))
    interrupted(lambda: runtime.pool(endless, size=2))
    interrupted(lambda: instance.call("spin"))
    busy = instance.submit("spin")
    while not busy.running():
        time.sleep(0.001)
    interrupted(lambda: instance.memory)
    interrupted(instance.close)
    instance.kill()
    assert isinstance(busy.exception(20), errors.ShmwasmError)
    for _ in range(3):
        interrupted(create_many)
    heap.malloc(5).free()
    runtime.verify()
    with runtime.spawn(module, shared_heap=heap) as other:
        assert other.call("add", 1, 2) == 3
"""

FORGOTTEN = """
for _ in range(2):
    runtime = Runtime()
    heap = runtime.create_shared_heap(1 << 20)
    instance = runtime.spawn(runtime.load(GUEST), shared_heap=heap)
    future, block = instance.submit("spin"), heap.malloc(5)
    pool = runtime.pool(instance.module, size=1)
    pool.submit("spin")
    del runtime, heap, instance, future, block, pool
    gc.collect()
"""


@pytest.mark.parametrize(
    "script",
    [RACE.replace("CLOSE_HEAP", "True"), RACE.replace("CLOSE_HEAP", "False"), INTERRUPTED, FORGOTTEN],
    ids=["closing a heap", "closing a runtime", "interrupted", "never closed"],
)
def test_a_program_that_closes_interrupts_or_forgets_ends_well(script: str) -> None:
    """What it leaves behind, the fixture of all tests sees."""
    ended = subprocess.run([sys.executable, "-c", PRELUDE + script], capture_output=True, text=True, timeout=55, check=False)
    assert ended.returncode == 0, ended.stderr
