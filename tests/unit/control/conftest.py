"""A shell without a kernel: it performs the mind's actions on plain Python values, and keeps what was sent."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Any, TypeVar

import pytest

from shmwasm.control import actions, events
from shmwasm.control.deadlines import Deadline, RecallDeadline
from shmwasm.control.mind import Coordinator
from shmwasm.control.slabs import slabs_of
from shmwasm.errors import HeapNoSpaceError, ShmwasmError, from_wire
from shmwasm.protocol import messages
from shmwasm.protocol.messages import NOBODY
from shmwasm.testing.storage import FakeHeap, FakeStorage

R = TypeVar("R")

SLAB = 1 << 16


DESCRIPTORS = {messages.CreateHeap: 1, messages.Spawn: 2}
"""How many come with a message."""


class FakeShell:
    """Feeds a real mind, performs its actions at once, and checks what every action promises."""

    def __init__(self, *, private: bool = False) -> None:
        tokens = itertools.count(1)
        self.mind = Coordinator(new_token=lambda: f"token-{next(tokens)}", address="here", private=private)
        self.storage = FakeStorage()
        self.sent: dict[int, list[messages.Message]] = defaultdict(list)
        self.descriptors: dict[int, list[tuple[actions.Descriptor, ...]]] = defaultdict(list)
        self.forked: list[actions.ForkWorker] = []
        self.killed: set[int] = set()
        self.disconnected: dict[int, str] = {}
        self.forgotten: set[int] = set()
        self.deadlines: list[Deadline] = []
        self.asking_again: list[int] = []
        self.exited = False
        self.storage_error: ShmwasmError | None = None
        self._admitted: dict[int, int] = {}
        self._requests = itertools.count(1)

    @property
    def heaps(self) -> dict[int, FakeHeap]:
        return self.storage.heaps

    # ------------------------------------------------------------ what happens

    def feed(self, event: events.Event) -> None:
        for action in self.mind.handle(event):
            answer = self._perform(action)
            if answer is not None:
                self.feed(answer)

    def connect(self, quota: int = 0) -> int:
        connection = len(self._admitted)
        self.feed(events.ClientConnected(connection))
        peer = self._admitted[connection]
        answer = self.ask(peer, messages.Hello, version=messages.VERSION, quota=quota)
        assert answer.peer == peer
        return peer

    def tell(self, peer: int, message: Any, descriptors: int = 0) -> None:
        self.feed(events.MessageReceived(peer, message, descriptors))

    def begin(self, peer: int, kind: Any, **fields: Any) -> int:
        """Send a request, with the descriptor it needs; return its number."""
        number = next(self._requests)
        self.tell(peer, kind(request=number, **fields), DESCRIPTORS.get(kind, 0))
        return number

    def answers(self, peer: int, number: int) -> list[Any]:
        """Return every answer that a request has had."""
        return [message for message in self.sent[peer] if getattr(message, "request", None) == number]

    def ask(self, peer: int, kind: Any, **fields: Any) -> Any:
        """Send a request and return its only answer; raise the error that it was refused with."""
        return self.only_answer(peer, self.begin(peer, kind, **fields))

    def only_answer(self, peer: int, number: int) -> Any:
        (answer,) = self.answers(peer, number)
        if isinstance(answer, messages.Failed):
            raise from_wire(answer.code, answer.facts)
        return answer

    def create(self, peer: int, slabs: int = 8, **options: Any) -> int:
        """Create a heap, managed unless told otherwise; return its number."""
        fields = {"name": "", "size": slabs * SLAB, "managed": True, **options}
        return int(self.ask(peer, messages.CreateHeap, **fields).heap.heap)

    def chain(self, peer: int, head: int, body: int) -> Any:
        return self.ask(peer, messages.ChainHeaps, head=head, body=body)

    def lease(self, peer: int, heap: int, size_class: int = 1, slabs: int = 1) -> Any:
        return self.ask(peer, messages.Lease, heap=heap, size_class=size_class, slabs=slabs)

    def begin_spawn(self, client: int, heap: int = 0, **options: Any) -> tuple[int, int]:
        """Return a worker that is being forked, and the request's number."""
        plan = messages.SpawnPlan(module_key="key", module_name="module")
        number = self.begin(client, messages.Spawn, plan=plan, chain_head=heap, **options)
        if self.answers(client, number):
            self.only_answer(client, number)
        return self.forked[-1].worker, number

    def spawn(self, client: int, heap: int = 0, **options: Any) -> int:
        """Return a running instance."""
        worker, number = self.begin_spawn(client, heap, **options)
        self.feed(events.LauncherSpoke(messages.Forked(worker=worker, pid=1000 + worker)))
        self.tell(worker, messages.Ready())
        assert self.only_answer(client, number) == messages.Spawned(request=number, instance=worker, pid=1000 + worker)
        return worker

    def answer_last(self, worker: int) -> None:
        """Have the worker do what it was asked last."""
        asked = self.sent[worker][-1]
        assert isinstance(asked, messages.MapChain | messages.UnmapChain)
        self.tell(worker, messages.Done(request=asked.request))

    def attach(self, client: int, instance: int, heap: int, *, read_only: bool = False) -> int:
        """Attach, and have the worker do it."""
        number = self.begin(client, messages.Attach, instance=instance, chain_head=heap, read_only=read_only)
        if not self.answers(client, number):
            self.answer_last(instance)
        self.only_answer(client, number)
        return number

    def detach(self, client: int, instance: int) -> None:
        """Detach, and have the worker do it."""
        number = self.begin(client, messages.Detach, instance=instance)
        if not self.answers(client, number):
            self.answer_last(instance)
        self.only_answer(client, number)

    def end_worker(self, worker: int, signal: int | None = 9, exit_code: int | None = None) -> None:
        """The worker's process ends, and is reaped."""
        self.feed(events.ConnectionClosed(worker))
        self.feed(events.ProcessGone(worker))
        exited = messages.Exited(worker=worker, pid=1000 + worker, signal=signal, exit_code=exit_code)
        self.feed(events.LauncherSpoke(exited))

    def kill_client(self, client: int) -> None:
        self.feed(events.ConnectionClosed(client))
        self.feed(events.ProcessGone(client))

    def time_passes(self) -> None:
        """Every recall's deadline passes."""
        passed = [deadline for deadline in self.deadlines if isinstance(deadline, RecallDeadline)]
        self.deadlines = [deadline for deadline in self.deadlines if deadline not in passed]
        for deadline in passed:
            self.feed(events.DeadlinePassed(deadline))

    def last(self, peer: int, kind: type[R]) -> R:
        """Return the last message of that kind."""
        return [message for message in self.sent[peer] if isinstance(message, kind)][-1]

    def received(self, peer: int, kind: type[R]) -> list[R]:
        return [message for message in self.sent[peer] if isinstance(message, kind)]

    # ------------------------------------------------------------ what is done about it

    def _perform(self, action: actions.Action) -> events.Event | None:
        match action:
            case actions.Admit(connection, peer):
                self._admitted[connection] = peer
            case actions.Send(peer, message, descriptors):
                assert peer not in self.disconnected
                assert peer not in self.forgotten
                self.sent[peer].append(message)
                self.descriptors[peer].append(descriptors)
                for wanted in descriptors:
                    assert isinstance(wanted, actions.CallChannel) or wanted.heap in self.heaps
            case actions.Disconnect(peer, problem):
                self.disconnected[peer] = problem
            case actions.Forget(peer):
                assert peer not in self.forgotten
                self.forgotten.add(peer)
            case actions.KillWorker(worker):
                self.killed.add(worker)
            case actions.ForkWorker(descriptors=descriptors):
                self.forked.append(action)
                assert all(wanted.heap in self.heaps for wanted in descriptors)
            case actions.StartDeadline(deadline):
                self.deadlines.append(deadline)
            case actions.Exit():
                self.exited = True
            case _:
                return self._perform_on_heap(action)
        return None

    def _perform_on_heap(self, action: actions.HeapAction) -> events.Event | None:
        if isinstance(action, actions.StoreHeap):
            if self.storage_error is not None:
                return events.HeapNotStored(action.heap, self.storage_error)
            return events.HeapStored(action.heap, self.storage.store(action))
        if isinstance(action, actions.VerifyHeaps):
            return events.HeapsVerified(action.verification, next(filter(None, map(self.storage.verify, action.heaps)), None))
        match action:
            case actions.DropHeap(heap):
                self.storage.drop(heap)
            case actions.FindAdopted(lease, heap, size_class):
                return events.AdoptedFound(lease, self.storage.find_adopted(heap, size_class))
            case actions.WriteOwners(lease, heap, ranges, owner):
                return events.OwnersWritten(lease, self.storage.write_owners(heap, ranges, owner))
            case actions.LetAskAgain(heap):
                assert heap in self.heaps
                self.asking_again.append(heap)
            case actions.ReleaseSlabs(heap, ranges):
                return events.SlabsReclaimed(heap, NOBODY, *self.storage.release(heap, ranges))
            case actions.Reclaim(heap, owner, ranges, free_live):
                assert all(self.heaps[heap].owners[slab] == owner for slab in slabs_of(ranges))
                return events.SlabsReclaimed(heap, owner, *self.storage.reclaim(heap, ranges, free_live=free_live))
            case actions.ResetMetadata(heap, used):
                self.storage.reset(heap, used)
            case _:
                raise AssertionError(action)
        return None


@pytest.fixture
def new_shell() -> type[FakeShell]:
    return FakeShell


@pytest.fixture
def shell(new_shell) -> FakeShell:
    fake: FakeShell = new_shell()
    return fake


@pytest.fixture
def client(shell) -> int:
    return int(shell.connect())


@pytest.fixture
def no_space() -> HeapNoSpaceError:
    return HeapNoSpaceError("frames", 1 << 20, 4096)
