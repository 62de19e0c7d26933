"""A stand-in that plays the coordinator and the client for a real launcher and its real workers."""

from __future__ import annotations

import itertools
import os
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from shmwasm import errors
from shmwasm.addresses import SLAB_SIZE, WINDOW_END, AppAddress
from shmwasm.core import CORE_MODULE, Core, HeapAuthority, HeapSlot, layout, metadata_size
from shmwasm.core.dispatching import cells_of, dispatched, dispatcher_text
from shmwasm.core.requests import CELL, SIGNED_CELLS, Request
from shmwasm.core.rings import ClientRing
from shmwasm.engine.cache import Cache
from shmwasm.engine.compiling import CompiledModule, compile_companion, compile_module
from shmwasm.engine.config import new_engine
from shmwasm.engine.modules import FunctionType, deserialize
from shmwasm.engine.nests import new_store
from shmwasm.engine.wasi import compile_adapters
from shmwasm.posix import bells
from shmwasm.posix.channels import Channel
from shmwasm.posix.programs import start_program
from shmwasm.posix.segments import Segment
from shmwasm.protocol import codec, messages
from shmwasm.protocol.messages import COORDINATOR
from waiting import PATIENCE


class WorkerHandle:
    """A forked worker, as its coordinator and its client see it.

    As its client it never sleeps but in `hear` and `answer`: it looks at the ring until a call has ended.
    """

    def __init__(self, number: int, control: Channel, calls: Channel, core: Core, functions: dict[str, FunctionType]) -> None:
        self.number = number
        self.control = control
        self.calls = calls
        self.pid = 0
        self.pidfd = -1
        self.completion, self.interrupts = (os.eventfd(0) for _ in range(2))
        self.ring = ClientRing(core, cells_of(functions))
        self._functions = functions
        self._numbers = {name: number for number, name in enumerate(dispatched(functions))}
        self._open = True

    def open_ring(self) -> None:
        """Say the first thing that a client says."""
        self.ask(messages.OpenRing(), [self.ring.descriptor, self.completion, self.interrupts])

    def hear(self) -> Any:
        """Return what the worker says to its coordinator next; None at the end."""
        packet = self.control.receive(timeout=PATIENCE)
        return packet and codec.worker_messages.decode(packet[0])

    def tell(self, message: messages.CoordinatorToWorker, descriptors: Sequence[int] = ()) -> None:
        """Say something as the coordinator."""
        self.control.send(codec.encode(message), descriptors)

    def ask(self, message: messages.CallMessage, descriptors: Sequence[int] = ()) -> None:
        """Say something as the client."""
        self.calls.send(codec.encode(message), descriptors)
        self.ring.call_attention()

    def answer(self) -> Any:
        """Return what the worker says to its client next; None at the end."""
        return self.answer_with_descriptors()[0]

    def answer_with_descriptors(self) -> tuple[Any, list[int]]:
        """Return what the worker says to its client next, and the descriptors that came with it."""
        packet = self.calls.receive(timeout=PATIENCE)
        return (codec.call_replies.decode(packet[0]), packet[1]) if packet else (None, [])

    def prepare(self, export: str, *arguments: float) -> Request:
        """Return a request for a call, to be submitted."""
        request = self.ring.request(self._numbers[export], self._functions[export])
        assert request.pack(arguments)
        return request

    def submit(self, request: Request, flags: int = 0) -> None:
        """Submit it, and wake the worker if that must be."""
        answer = self.ring.submit(request, flags)
        assert answer & ~layout.RING_DOORBELL == layout.RING_PENDING
        if answer & layout.RING_DOORBELL:
            bells.ring(self.ring.worker_bell)

    def start_call(self, export: str, *arguments: float) -> Request:
        """Start a call."""
        request = self.prepare(export, *arguments)
        self.submit(request)
        return request

    def start_batch(self, export: str, rows: Sequence[Sequence[float]]) -> tuple[Request, Callable[[], list[tuple[float, ...]]]]:
        """Start a call for each row of arguments; return the request, and what gives the results, one row for each call."""
        kind = self._functions[export]
        buffers = [self.ring.batch_buffer(0), self.ring.batch_buffer(1)]
        for column, kind_in in enumerate(kind.parameters):
            for row, arguments in enumerate(rows):
                struct.pack_into(SIGNED_CELLS[kind_in], buffers[0], CELL * (len(rows) * column + row), arguments[column])
        request = self.ring.batch_request(self._numbers[export], len(rows), 0, layout.RING_BATCH_SIZE)
        self.submit(request)

        def results() -> list[tuple[float, ...]]:
            columns = [
                [
                    struct.unpack_from(SIGNED_CELLS[kind_out], buffers[1], CELL * (len(rows) * column + row))[0]
                    for row in range(len(rows))
                ]
                for column, kind_out in enumerate(kind.results)
            ]
            return list(zip(*columns, strict=True))

        return request, results

    def wait(self, request: Request, timeout: float = 0.0) -> int:
        """Look until a call has ended, and return its answer; interrupt it after `timeout` seconds, if that is set."""
        began = time.monotonic()
        due = began + timeout if timeout else None
        while (answer := self.ring.wait(request, 100)) == layout.RING_PENDING:
            now = time.monotonic()
            assert now < began + PATIENCE, "the call does not end"
            if due is not None and now >= due and self.interrupt(request.sequence) != layout.CALL_RUNNING:
                due = None
        return answer

    def interrupt(self, sequence: int) -> int:
        """End a call early if possible; return in what state it was found (see `ClientRing.end_early`)."""
        found = self.ring.end_early(sequence)
        if found == layout.CALL_INTERRUPTING:
            os.eventfd_write(self.interrupts, 1)
        return found

    def end_call(self, request: Request, timeout: float = 0.0) -> list[int | float]:
        """Return the results of a call, or raise what it raised."""
        answer = self.wait(request, timeout)
        if answer == layout.RING_DONE:
            return list(request.results())
        assert answer == layout.RING_FAILED
        if request.status == layout.CALL_TRAPPED:
            raised = self.answer()
            assert isinstance(raised, messages.Raised)
            assert raised.request == request.sequence
            raise errors.from_wire(raised.code, raised.facts)
        assert request.status == layout.CALL_OVERDUE
        raise errors.CallTimeoutError(self.number, "", timeout)

    def call(self, export: str, *arguments: float, timeout: float = 0.0) -> list[int | float]:
        """Call, and return the results, or raise what it raised."""
        request = self.start_call(export, *arguments)
        try:
            return self.end_call(request, timeout)
        finally:
            self.ring.give(request)

    def close(self) -> None:
        """Close both channels, and the ring."""
        self.control.close()
        self.calls.close()
        if self._open:
            self._open = False
            self.ring.close()
            for descriptor in (self.completion, self.interrupts):
                os.close(descriptor)
        if self.pidfd >= 0:
            os.close(self.pidfd)


class LauncherHandle:
    """A launcher, and the workers that it was asked for."""

    def __init__(self, core: CompiledModule, wasi: int) -> None:
        self.channel, theirs = Channel.pair()
        with theirs:
            arguments = ["--socket-fd", str(theirs.fileno()), "--core-fd", str(core.descriptor), "--wasi-fd", str(wasi)]
            self.process = start_program("shmwasm.launcher", arguments, [theirs.fileno(), core.descriptor, wasi])
        self.workers: list[WorkerHandle] = []
        self._numbers = itertools.count(2)
        self._modules: list[CompiledModule] = []
        self._dispatchers: dict[str, CompiledModule] = {}
        self._exited: set[int] = set()
        self._engine = new_engine(parallel_compilation=False)
        self._core = Core(new_store(self._engine), deserialize(self._engine, core.descriptor), owner=1000, hooks=NoHooks())

    def hear(self) -> Any:
        """Return what the launcher says next, having kept the pidfd of a `Forked`."""
        packet = self.channel.receive(timeout=PATIENCE)
        assert packet is not None, "the launcher is gone"
        message = codec.launcher_messages.decode(packet[0])
        if isinstance(message, messages.Forked):
            worker = next(worker for worker in self.workers if worker.number == message.worker)
            worker.pid, worker.pidfd = message.pid, packet[1][0]
        if isinstance(message, messages.Exited):
            self._exited.add(message.worker)
        return message

    def compile(self, text: str) -> CompiledModule:
        """Return a compiled module, closed with this handle."""
        self._modules.append(compile_module(text, engine=self._engine))
        return self._modules[-1]

    def dispatcher(self, module: CompiledModule) -> CompiledModule:
        """Return a module's dispatcher, closed with this handle."""
        found = self._dispatchers.get(module.key)
        if found is None:
            text = dispatcher_text(module.functions)
            found = self._dispatchers[module.key] = compile_companion(module, "test", lambda: text, engine=self._engine)
        return found

    def start_fork(
        self,
        module: CompiledModule,
        *,
        grants: Sequence[messages.Grant] = (),
        descriptors: Sequence[int] = (),
        with_ring: bool = True,
        **plan: Any,
    ) -> WorkerHandle:
        """Ask for a worker."""
        control, their_control = Channel.pair()
        calls, their_calls = Channel.pair()
        worker = WorkerHandle(next(self._numbers), control, calls, self._core, module.functions)
        self.workers.append(worker)
        spawn_plan = messages.SpawnPlan(module_key=module.key, module_name=module.name, **plan)
        with their_control, their_calls:
            if with_ring:
                worker.open_ring()
            self.channel.send(
                codec.encode(messages.Fork(worker=worker.number, plan=spawn_plan, grants=list(grants))),
                [
                    module.descriptor,
                    self.dispatcher(module).descriptor,
                    their_control.fileno(),
                    their_calls.fileno(),
                    *descriptors,
                ],
            )
        return worker

    def fork(self, module: CompiledModule | str, **options: Any) -> WorkerHandle:
        """Ask for a worker, and wait until its instance is ready; raise why it could not be made."""
        worker = self.start_fork(self.compile(module) if isinstance(module, str) else module, **options)
        assert isinstance(self.hear(), messages.Forked)
        message = worker.hear()
        if isinstance(message, messages.StartFailed):
            assert isinstance(self.hear(), messages.Exited)
            raise errors.from_wire(message.code, message.facts)
        assert message == messages.Ready()
        return worker

    def release(self) -> None:
        """Go as the client of every worker goes, and wait until they are gone."""
        living = {worker.number for worker in self.workers if worker.pid}
        for worker in self.workers:
            worker.close()
        while living - self._exited:
            self.hear()
        self.workers.clear()
        self._close_modules()

    def close(self) -> None:
        """Go as a coordinator goes, and wait for the launcher to end."""
        self.channel.close()
        try:
            if self.process.poll() is None:
                assert self.process.wait(PATIENCE) == 0
        finally:
            self.process.kill()
            self.process.wait()
            for worker in self.workers:
                worker.close()
            self._close_modules()

    def _close_modules(self) -> None:
        for module in (*self._modules, *self._dispatchers.values()):
            module.close()
        self._modules.clear()
        self._dispatchers.clear()


class ManagedHeap:
    """A managed heap and its authority, as a coordinator has them; leases are granted slab by slab, from the first."""

    NAME = "frames"
    NUMBER = 5

    def __init__(self, core: CompiledModule, *, slabs: int, scrub: bool = False) -> None:
        engine = new_engine(parallel_compilation=False)
        self._store = new_store(engine)
        self._code = deserialize(engine, core.descriptor)
        self.core = Core(self._store, self._code, owner=COORDINATOR, hooks=NoHooks())
        self.segment = Segment.create(slabs * SLAB_SIZE, name_for_errors=self.NAME)
        self.metadata = Segment.create(metadata_size(slabs), name_for_errors=self.NAME)
        self.authority = HeapAuthority.create(
            self.core, self.metadata.descriptor, slabs=slabs, identity=self.NUMBER, name=self.NAME, scrub=scrub
        )
        self.grant = messages.Grant(
            heap=self.NUMBER,
            name=self.NAME,
            start=WINDOW_END - self.segment.size,
            size=self.segment.size,
            writable=True,
            managed=True,
            metadata_size=self.metadata.size,
            scrub=scrub,
        )
        self.descriptors = [self.segment.descriptor, self.metadata.descriptor]
        self._next = 0

    def grant_lease(self, worker: WorkerHandle, asked: messages.Lease) -> None:
        """Grant what the worker asked for."""
        self.authority.assign(self._next, asked.slabs, worker.number)
        granted = messages.SlabRange(self._next, asked.slabs)
        self._next += asked.slabs
        worker.tell(messages.Leased(request=asked.request, ranges=[granted]))

    def close(self) -> None:
        """Close the segments."""
        self.segment.close()
        self.metadata.close()
        self._store.close()
        self._code.close()


class NoHooks:
    def lease(self, slot: HeapSlot, size_class: int, slabs: int) -> Sequence[messages.SlabRange]:
        raise AssertionError

    def release(self, slot: HeapSlot, ranges: list[messages.SlabRange]) -> None:
        raise AssertionError

    def refuse(self, address: AppAddress, reason: str) -> None:
        raise AssertionError

    def scrub(self, address: AppAddress, size: int) -> None:
        raise AssertionError

    def wake(self, slot: int) -> None:
        raise AssertionError

    def absorb(self) -> None:
        raise AssertionError


@pytest.fixture(scope="session")
def compiled_core() -> Iterator[CompiledModule]:
    with compile_module(CORE_MODULE, own=True) as module:
        yield module


@pytest.fixture(scope="session")
def wasi_adapters() -> Iterator[int]:
    descriptor = compile_adapters(Cache(None))
    yield descriptor
    os.close(descriptor)


@pytest.fixture(scope="session")
def _lasting_launcher(compiled_core: CompiledModule, wasi_adapters: int) -> Iterator[LauncherHandle]:
    handle = LauncherHandle(compiled_core, wasi_adapters)
    yield handle
    handle.close()


@pytest.fixture
def launcher(_lasting_launcher: LauncherHandle) -> Iterator[LauncherHandle]:
    """A launcher for workers that end with the test; not to be ended itself."""
    yield _lasting_launcher
    _lasting_launcher.release()


@pytest.fixture
def own_launcher(compiled_core: CompiledModule, wasi_adapters: int) -> Iterator[LauncherHandle]:
    """A launcher of the test's own."""
    handle = LauncherHandle(compiled_core, wasi_adapters)
    yield handle
    handle.close()


@pytest.fixture
def heap(compiled_core: CompiledModule) -> Iterator[ManagedHeap]:
    made = ManagedHeap(compiled_core, slabs=16)
    yield made
    made.close()


@pytest.fixture
def scrubbed_heap(compiled_core: CompiledModule) -> Iterator[ManagedHeap]:
    made = ManagedHeap(compiled_core, slabs=16, scrub=True)
    yield made
    made.close()
