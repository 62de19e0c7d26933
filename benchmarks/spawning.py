"""Starting an instance, beside starting a process of multiprocessing; and what a hundred of them keep in memory."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkContext, SpawnContext
from typing import Final

import psutil

from benchmarks.answering import answer
from benchmarks.context import MIB, Context, guest
from benchmarks.measuring import elapsed, interleave
from benchmarks.rows import Row, at_most, compare
from shmwasm import Instance, Runtime

TOPIC: Final = "spawning"
MANY: Final = 100
WHAT: Final = "spawn, attach, first call"


def rows(context: Context) -> Iterator[Row]:
    """Yield the time that an instance takes to start, alone and with a hundred alive, and the memory of each."""
    with Runtime() as runtime:
        module = runtime.load(guest("calls"))
        heap = runtime.create_shared_heap(64 * MIB)
        block = heap.malloc(16).address

        def spawn() -> float:
            with contextlib.ExitStack() as stack:
                return elapsed(lambda: _first_call(stack.enter_context(runtime.spawn(module, shared_heap=heap)), block))

        rounds = 2 * context.rounds
        ours, forked, spawned = interleave(
            spawn, _process(multiprocessing.get_context("fork")), _process(multiprocessing.get_context("spawn")), rounds=rounds
        )
        yield compare(TOPIC, WHAT, ours, "multiprocessing, fork", forked, budget=at_most(5e-3))
        yield compare(TOPIC, WHAT, ours, "multiprocessing, spawn", spawned)

        instances = [runtime.spawn(module, shared_heap=heap) for _ in range(MANY)]
        for instance in instances:
            _first_call(instance, block)
        memory = [float(psutil.Process(instance.pid).memory_full_info().uss) for instance in instances]
        yield compare(TOPIC, f"USS of an idle worker, {MANY} alive", memory, budget=at_most(3 * MIB), unit="B")
        (crowded,) = interleave(spawn, rounds=rounds)
        yield compare(TOPIC, f"{WHAT}, {MANY} alive", crowded, "none alive", ours, budget=at_most(5e-3))


def _first_call(instance: Instance, block: int) -> None:
    instance.call("touch", block, 1)


def _process(context: ForkContext | SpawnContext) -> Callable[[], float]:
    """Return a subject: the time until a new process of multiprocessing has answered."""

    def start() -> float:
        ours, theirs = context.Pipe()
        process = context.Process(target=answer, args=(theirs,))

        def first_call() -> None:
            process.start()
            theirs.close()  # so that a process that dies is the end of the pipe, and not a wait for ever
            ours.send(b"")
            ours.recv()

        with ours, theirs:
            taken = elapsed(first_call)
        process.join()
        return taken

    return start
