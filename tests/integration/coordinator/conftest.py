"""Coordinator processes, and clients that say exactly what they are told to."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from processes import children_of, descriptors_of
from shmwasm import errors
from shmwasm.addresses import SLAB_SIZE
from shmwasm.core.dispatching import dispatcher_text, purpose
from shmwasm.engine.compiling import CompiledModule, compile_companion, compile_module
from shmwasm.posix.channels import Channel
from shmwasm.posix.listening import connect
from shmwasm.posix.programs import start_program
from shmwasm.posix.segments import Segment
from shmwasm.protocol import codec, messages
from shmwasm.protocol.messages import SlabRange
from waiting import PATIENCE, eventually

MODULE = '(module (memory (export "memory") 1) (func (export "answer") (result i32) i32.const 42))'


class RawClient:
    """A client that says exactly what it is told to."""

    def __init__(self, channel: Channel, *, quota: int = 0, greet: bool = True) -> None:
        self.channel = channel
        self.events: list[Any] = []
        self.descriptors: list[int] = []
        self._numbers = itertools.count(1)
        if greet:
            self.welcome = self.ask(messages.Hello, version=messages.VERSION, quota=quota)
            self.peer = self.welcome.peer

    def tell(self, message: messages.Message, *descriptors: int) -> None:
        self.channel.send(codec.encode(message), descriptors, timeout=PATIENCE)

    def begin(self, kind: Any, *descriptors: int, **fields: Any) -> int:
        number = next(self._numbers)
        self.tell(kind(request=number, **fields), *descriptors)
        return number

    def hear(self) -> Any:
        """Return the next message; None at the end. Its descriptors are kept in `descriptors`, until the next."""
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors = []
        packet = self.channel.receive(timeout=PATIENCE)
        if packet is None:
            return None
        self.descriptors = packet[1]
        return codec.to_client.decode(packet[0])

    def answer(self, number: int) -> Any:
        while getattr(message := self.hear(), "request", None) != number:
            assert message is not None, "the connection is closed"
            self.events.append(message)
        if isinstance(message, messages.Failed):
            raise errors.from_wire(message.code, message.facts)
        return message

    def ask(self, kind: Any, *descriptors: int, **fields: Any) -> Any:
        return self.answer(self.begin(kind, *descriptors, **fields))

    def event(self, kind: type[Any]) -> Any:
        """Return the next event of that kind."""
        while not (found := [event for event in self.events if isinstance(event, kind)]):
            message = self.hear()
            assert message is not None, "the connection is closed"
            self.events.append(message)
        self.events.remove(found[0])
        return found[0]

    def create(self, slabs: int = 8, **options: Any) -> int:
        with Segment.create(slabs * SLAB_SIZE, name_for_errors="test") as segment:
            fields = {"name": "", "size": slabs * SLAB_SIZE, "managed": True, **options}
            return int(self.ask(messages.CreateHeap, segment.descriptor, **fields).heap.heap)

    def lease(self, heap: int, size_class: int = 1, slabs: int = 1) -> list[SlabRange]:
        return list(self.ask(messages.Lease, heap=heap, size_class=size_class, slabs=slabs).ranges)

    def spawn(self, module: CompiledModule, heap: int = 0, **options: Any) -> tuple[Any, Channel]:
        plan = messages.SpawnPlan(module_key=module.key, module_name=module.name)
        with compile_companion(module, purpose(), lambda: dispatcher_text(module.functions)) as dispatcher:
            descriptors = module.descriptor, dispatcher.descriptor
            spawned = self.ask(messages.Spawn, *descriptors, plan=plan, chain_head=heap, **options)
        return spawned, Channel.from_descriptor(self.descriptors.pop())

    def heap_report(self, heap: int) -> dict[str, Any]:
        reports = [report for report in self.ask(messages.Status).heaps if report["heap"] == heap]
        return reports[0] if reports else {}

    def is_cut_off(self) -> bool:
        """Whether the coordinator closed the connection, having answered nothing more."""
        with contextlib.suppress(errors.ClosedError):
            return self.hear() is None
        return True

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors = []
        self.channel.close()


class Served:
    """A coordinator process, and the clients of a test."""

    def __init__(self, process: subprocess.Popen[bytes], address: str) -> None:
        self.process = process
        self.address = address
        self.clients: list[RawClient] = []

    def client(self, **options: Any) -> RawClient:
        self.clients.append(RawClient(connect(self.address), **options))
        return self.clients[-1]

    def children(self) -> list[int]:
        return children_of(self.process.pid)

    def descriptors(self) -> int:
        return descriptors_of(self.process.pid)

    def close_clients(self) -> None:
        for client in self.clients:
            client.close()


@contextlib.contextmanager
def private_coordinator() -> Iterator[Served]:
    ours, theirs = Channel.pair()
    with theirs:
        process = start_program("shmwasm.coordinator", ["--socket-fd", str(theirs.fileno())], [theirs.fileno()])
    first = RawClient(ours)
    served = Served(process, first.welcome.address)
    served.clients.append(first)
    try:
        yield served
    finally:
        served.close_clients()
        assert process.wait(PATIENCE) == 0


SERVE = "import sys; from shmwasm.coordinator import serve; serve(sys.argv[1], ready=lambda: print('ready', flush=True))"


@contextlib.contextmanager
def shared_coordinator(path: Path, prefix: Sequence[str] = ()) -> Iterator[Served]:
    process = subprocess.Popen([*prefix, sys.executable, "-c", SERVE, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"ready\n"
    served = Served(process, str(path))
    try:
        yield served
    finally:
        served.close_clients()
        process.terminate()
        assert process.wait(PATIENCE) in {0, -signal.SIGKILL}


@pytest.fixture(scope="module")
def socket_path(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("coordinator") / "socket"


@pytest.fixture(scope="module")
def long_lived(socket_path) -> Iterator[Served]:
    """One shared coordinator for the tests that leave it alive."""
    with shared_coordinator(socket_path) as served:
        yield served


@pytest.fixture
def served(long_lived) -> Iterator[Served]:
    """The shared coordinator, from which the test's clients go, and with them all that they made."""
    here = Served(long_lived.process, long_lived.address)
    yield here
    for client in here.clients:
        with contextlib.suppress(errors.ClosedError):
            client.tell(messages.Goodbye())
    here.close_clients()
    watcher = RawClient(connect(long_lived.address))
    eventually(lambda: not watcher.ask(messages.Status).heaps and not watcher.ask(messages.Status).workers)
    watcher.tell(messages.Goodbye())
    watcher.close()


@pytest.fixture
def client(served) -> RawClient:
    first: RawClient = served.client()
    return first


CLIENT = """
import sys, time
from shmwasm.posix.listening import connect
from shmwasm.posix.mappings import map_anywhere
from shmwasm.core import layout, states_range
from shmwasm.protocol import codec, messages
channel = connect(sys.argv[1])
def ask(message):
    channel.send(codec.encode(message))
    packet = channel.receive()
    return codec.to_client.decode(packet[0]), packet[1]
ask(messages.Hello(request=1, version=messages.VERSION))
opened, (segment, metadata) = ask(messages.OpenHeap(request=2, name=sys.argv[2]))
slabs = opened.heap.size >> 16
for slab in range(3):
    ask(messages.Lease(request=3, heap=opened.heap.heap, size_class=0, slabs=1))
# A block of size class 1 lives in the middle one.
memory = map_anywhere(metadata, opened.metadata_size, writable=True)
words = memory.view.cast("I")
words[(layout.DESCRIPTORS_OFFSET + layout.DESCRIPTOR_SIZE) // 4 + 1] = 1
memory.view[states_range(slabs, 1, 1)[0]] = layout.STATE_LIVE
map_anywhere(segment, opened.heap.size, writable=True).view[1 << 16] = 77
print("leased", flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def other_process(served: Served, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """A client in a process of its own, which has leased three slabs; a block lives in the second."""
    process = subprocess.Popen([sys.executable, "-c", CLIENT, served.address, name], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        with process.stdout:
            assert process.stdout.readline() == b"leased\n"
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def private() -> Callable[[], contextlib.AbstractContextManager[Served]]:
    return private_coordinator


@pytest.fixture
def shared() -> Callable[..., contextlib.AbstractContextManager[Served]]:
    return shared_coordinator


@pytest.fixture
def lessee(served) -> Callable[[str], contextlib.AbstractContextManager[subprocess.Popen[bytes]]]:
    return functools.partial(other_process, served)


@pytest.fixture(scope="module")
def module() -> Iterator[CompiledModule]:
    with compile_module(MODULE) as compiled:
        yield compiled
