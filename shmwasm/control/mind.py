"""The coordinator's mind: `handle` takes an event and returns what is to be done.

Theory
------
A refusal is an exception that is raised before anything changes: a named error is the request's answer, and a `ProtocolError`
costs the peer its connection (a client) or its life (a worker). A client is gone when it said `Goodbye` or its process is gone;
one that only closed its connection may still write to its heaps, so its leases stay until the kernel says that it cannot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, assert_never

from shmwasm import errors
from shmwasm.control import events
from shmwasm.control.actions import (
    Admit,
    Disconnect,
    Exit,
    Forget,
    HeapOwners,
    MetadataDescriptor,
    SegmentDescriptor,
    StartDeadline,
    StoreHeap,
    VerifyHeaps,
)
from shmwasm.control.deadlines import HELLO_SECONDS, HelloDeadline, RecallDeadline, SpawnDeadline
from shmwasm.control.heaps import Heap, links
from shmwasm.control.instances import InstanceDesk
from shmwasm.control.leases import LeaseDesk
from shmwasm.control.peers import Client, Peer, Worker
from shmwasm.control.state import State
from shmwasm.protocol import messages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from shmwasm.control.actions import Action
    from shmwasm.control.deadlines import Deadline

_DESCRIPTORS = {messages.CreateHeap: 1, messages.Spawn: 2}
"""How many descriptors come with a message; with all others none."""


class Coordinator:
    """Decides. `new_token` gives an unguessable string at each call; `address` is where clients can connect.

    A `private` coordinator exits with its last client.
    """

    def __init__(self, *, new_token: Callable[[], str], address: str, private: bool) -> None:
        self._new_token = new_token
        self._address = address
        self._private = private
        self._state = State()
        self._leases = LeaseDesk(self._state)
        self._instances = InstanceDesk(self._state, self._leases)
        self._storing: dict[int, tuple[Client, int, Heap]] = {}
        self._verifying: dict[int, tuple[Client, int, int]] = {}
        self._next_verification = 1

    def handle(self, event: events.Event) -> list[Action]:
        """Return what is to be done about the event, in this order."""
        self._dispatch(event)
        return self._state.take_actions()

    def _dispatch(self, event: events.Event) -> None:
        match event:
            case events.MessageReceived(number, message, descriptors):
                self._receive(number, message, descriptors)
            case events.OwnersWritten():
                self._leases.owners_written(event)
            case events.ClientConnected(connection):
                self._connect(connection)
            case events.LauncherSpoke(message):
                self._instances.hear_launcher(message)
            case events.ConnectionClosed(number):
                self._connection_closed(number)
            case events.ProcessGone(number):
                self._process_gone(number)
            case events.LauncherGone():
                self._instances.launcher_gone()
            case events.HeapStored() | events.HeapNotStored():
                self._heap_stored(event)
            case events.AdoptedFound():
                self._leases.adopted_found(event)
            case events.SlabsReclaimed():
                self._leases.reclaimed(event)
            case events.HeapsVerified():
                self._heaps_verified(event)
            case events.DeadlinePassed(deadline):
                self._deadline_passed(deadline)
            case _:
                assert_never(event)

    # ------------------------------------------------------------ peers

    def _connect(self, connection: int) -> None:
        client = Client(self._state.number_peer(), quota=0)
        self._state.clients[client.number] = client
        self._state.emit(Admit(connection, client.number))
        self._state.emit(StartDeadline(HelloDeadline(client.number), HELLO_SECONDS))

    def _receive(self, number: int, message: messages.ClientMessage | messages.WorkerMessage, descriptors: int) -> None:
        peer = self._state.peer(number)
        if peer is None or not peer.connected:
            return
        try:
            self._hear(peer, message, descriptors)
        except errors.ProtocolError as violation:
            self._cut_off(peer, violation.reason)
        except errors.ShmwasmError as refusal:
            if isinstance(peer, Client) and isinstance(message, messages.Request):
                self._state.refuse(number, message.request, refusal)
            else:
                self._cut_off(peer, str(refusal))

    def _hear(self, peer: Peer, message: messages.ClientMessage | messages.WorkerMessage, descriptors: int) -> None:
        if descriptors != _DESCRIPTORS.get(type(message), 0):
            raise errors.ProtocolError(f"{type(message).__name__} with {descriptors} descriptors")
        if isinstance(peer, Client) and isinstance(message, messages.ClientMessage):
            self._hear_client(peer, message)
        elif isinstance(peer, Worker) and isinstance(message, messages.WorkerMessage):
            self._instances.hear(peer, message)
        else:
            raise errors.ProtocolError(f"{type(message).__name__} from the wrong kind of peer")

    def _cut_off(self, peer: Peer, problem: str) -> None:
        """End the connection of a peer that broke the protocol."""
        if isinstance(peer, Worker):
            peer.connected = False
            self._leases.silence(peer)
            self._instances.doom(peer, problem)
        else:
            self._state.emit(Disconnect(peer.number, problem))
            self._connection_closed(peer.number)

    def _connection_closed(self, number: int) -> None:
        peer = self._state.peer(number)
        if peer is None or not peer.connected:
            return
        if isinstance(peer, Worker):
            self._instances.connection_closed(peer)
        elif isinstance(peer, Client):
            self._hang_up(peer)

    def _hang_up(self, client: Client) -> None:
        """The client hears nothing any more: its instances end, and perhaps the coordinator."""
        client.connected = False
        self._leases.silence(client)
        for number in sorted(client.workers):
            self._instances.doom(self._state.workers[number])
        if self._private and not any(other.connected for other in self._state.clients.values()):
            self._state.emit(Exit())

    def _process_gone(self, number: int) -> None:
        peer = self._state.peer(number)
        if isinstance(peer, Worker):
            self._instances.process_gone(peer)
        elif isinstance(peer, Client):
            self._gone(peer)

    def _gone(self, client: Client) -> None:
        """The client touches no heap any more."""
        if client.connected:
            self._hang_up(client)
        held = [heap for heap in self._state.heaps if client.number in heap.opened]
        for heap in held:
            del heap.opened[client.number]
        self._state.collect(held)
        for heap in held:
            if heap.number in self._state.heaps.heaps:
                self._leases.surrender(client, heap, free_live=heap.free_on_death)
        del self._state.clients[client.number]
        self._state.emit(Forget(client.number))

    def _deadline_passed(self, deadline: Deadline) -> None:
        match deadline:
            case HelloDeadline(number):
                client = self._state.clients.get(number)
                if client is not None and client.connected and not client.greeted:
                    self._cut_off(client, "it did not say hello")
            case RecallDeadline():
                self._leases.deadline_passed(deadline)
            case SpawnDeadline():
                self._instances.deadline_passed(deadline)
            case _:
                assert_never(deadline)

    # ------------------------------------------------------------ what clients say

    def _hear_client(self, client: Client, message: messages.ClientMessage) -> None:
        if client.greeted == isinstance(message, messages.Hello):
            raise errors.ProtocolError(f"{type(message).__name__} {'twice' if client.greeted else 'before Hello'}")
        match message:
            # First, as it is the one that a malloc waits for.
            case messages.Lease(heap=number):
                self._leases.ask(client, self._opened(client, number), message)
            case messages.Hello():
                self._greet(client, message)
            case messages.CreateHeap():
                self._create_heap(client, message)
            case messages.OpenHeap(token=token, name=name):
                self._open_heap(client, message.request, self._state.heaps.find(token=token, name=name))
            case messages.CloseHeap(heap=number):
                self._close_heap(client, self._opened(client, number))
                self._done(client, message)
            case messages.ChainHeaps(head=head, body=body):
                lower = self._opened(client, head)
                chains = self._state.heaps.put_below(lower, self._opened(client, body))
                self._laid_out(client, message, lower, chains)
            case messages.UnchainHeaps(head=head, entire_chain=entire_chain):
                result, chains = self._state.heaps.take_apart(self._opened(client, head), entire_chain=entire_chain)
                self._laid_out(client, message, result, chains)
                self._state.collect(chain[0] for chain in chains)
            case messages.ResetChain(head=head):
                self._reset_chain(client, self._opened(client, head))
                self._done(client, message)
            case messages.Release(heap=number, ranges=ranges):
                self._leases.release(client, self._opened(client, number), ranges)
            case messages.Recalled(heap=number):
                self._leases.recalled(client, number)
            case messages.Spawn():
                self._instances.spawn(client, message)
            case messages.Attach():
                self._instances.attach(client, message)
            case messages.Detach():
                self._instances.detach(client, message)
            case messages.Kill():
                self._instances.kill(client, message)
            case messages.CloseInstance():
                self._instances.close(client, message)
            case messages.Verify():
                self._verify(client, message)
            case messages.Status():
                self._state.send(client.number, self._report(message))
            case messages.Goodbye():
                self._gone(client)
            case _:
                assert_never(message)

    def _opened(self, client: Client, number: int) -> Heap:
        return self._state.heaps.opened(number, client.number)

    def _done(self, client: Client, message: messages.Request) -> None:
        self._state.send(client.number, messages.Done(request=message.request))

    def _greet(self, client: Client, message: messages.Hello) -> None:
        if message.version != messages.VERSION:
            refusal = errors.PeerRefusedError(
                f"protocol version {message.version} is not the coordinator's version {messages.VERSION}"
            )
            self._state.refuse(client.number, message.request, refusal)
            raise errors.ProtocolError(refusal.reason)
        if message.quota < 0:
            raise errors.ProtocolError(f"quota {message.quota} is negative")
        client.greeted = True
        client.quota = message.quota
        welcome = messages.Welcome(
            request=message.request,
            peer=client.number,
            version=messages.VERSION,
            address=self._address,
            private=self._private,
        )
        self._state.send(client.number, welcome)

    # ------------------------------------------------------------ heaps

    def _create_heap(self, client: Client, message: messages.CreateHeap) -> None:
        heap = self._state.heaps.prepare(message, self._new_token())
        self._storing[heap.number] = client, message.request, heap
        self._state.emit(
            StoreHeap(heap.number, heap.name, heap.size, heap.managed, heap.read_only, heap.scrub, heap.owner_frees_only)
        )

    def _heap_stored(self, event: events.HeapStored | events.HeapNotStored) -> None:
        client, request, heap = self._storing.pop(event.heap)
        if isinstance(event, events.HeapNotStored):
            self._state.heaps.discard(heap)
            self._state.refuse(client.number, request, event.error)
            return
        heap.metadata_size = event.metadata_size
        heap.opened[client.number] = 1
        self._state.heaps.add(heap)
        answer = messages.HeapOpened(
            request=request, heap=heap.describe(), metadata_size=heap.metadata_size, chain=links(heap.chain())
        )
        self._state.send(client.number, answer, (MetadataDescriptor(heap.number),) if heap.managed else ())

    def _open_heap(self, client: Client, request: int, heap: Heap) -> None:
        heap.opened[client.number] = heap.opened.get(client.number, 0) + 1
        descriptors: list[SegmentDescriptor | MetadataDescriptor] = [SegmentDescriptor(heap.number, heap.read_only)]
        if heap.managed:
            descriptors.append(MetadataDescriptor(heap.number))
        answer = messages.HeapOpened(
            request=request, heap=heap.describe(), metadata_size=heap.metadata_size, chain=links(heap.chain())
        )
        self._state.send(client.number, answer, tuple(descriptors))

    def _close_heap(self, client: Client, heap: Heap) -> None:
        heap.opened[client.number] -= 1
        if heap.opened[client.number]:
            return
        del heap.opened[client.number]
        self._leases.surrender(client, heap, free_live=False)
        self._state.collect([heap])

    def _laid_out(
        self, client: Client, message: messages.ChainHeaps | messages.UnchainHeaps, result: Heap, chains: list[list[Heap]]
    ) -> None:
        laid_out = [links(chain) for chain in chains]
        self._state.send(client.number, messages.ChainLaidOut(request=message.request, result=result.number, chains=laid_out))
        others = {number for chain in chains for heap in chain for number in heap.opened} - {client.number}
        for number in sorted(others):
            self._state.send(number, messages.ChainMoved(chains=laid_out))

    def _reset_chain(self, client: Client, head: Heap) -> None:
        chain = self._state.heaps.check_head(head)
        self._state.heaps.check_detached(chain)
        for heap in chain:
            if heap.opened.keys() - {client.number}:
                raise errors.ChainError(heap.name, "another client has it open")
        for heap in chain:
            if heap.managed:
                self._leases.reset(heap)

    # ------------------------------------------------------------ verify, status

    def _verify(self, client: Client, message: messages.Verify) -> None:
        chosen: Iterable[Heap] = self._state.heaps if message.heap == 0 else [self._opened(client, message.heap)]
        self.invariants()
        managed = tuple(HeapOwners(heap.number, heap.name, heap.slabs.owners()) for heap in chosen if heap.managed)
        self._verifying[self._next_verification] = client, message.request, len(managed)
        self._state.emit(VerifyHeaps(self._next_verification, managed))
        self._next_verification += 1

    def _heaps_verified(self, event: events.HeapsVerified) -> None:
        client, request, heaps = self._verifying.pop(event.verification)
        if event.error is None:
            self._state.send(client.number, messages.Verified(request=request, heaps=heaps))
        else:
            self._state.refuse(client.number, request, event.error)

    def _report(self, message: messages.Status) -> messages.StatusReport:
        return messages.StatusReport(
            request=message.request,
            clients=sum(client.greeted and client.connected for client in self._state.clients.values()),
            heaps=[_heap_report(heap) for heap in self._state.heaps],
            workers=[_worker_report(worker) for worker in self._state.workers.values()],
        )

    def invariants(self) -> None:
        """Check that all that the mind knows is consistent.

        Raises:
            HeapCorruptError: It is not: a bug of ours.
        """
        self._state.heaps.verify()
        self._leases.verify()
        self._instances.verify()
        for heap in self._state.heaps:
            if not heap.opened.keys() <= self._state.clients.keys() or not all(count > 0 for count in heap.opened.values()):
                raise errors.HeapCorruptError(heap.name, "those who have a heap open exist", 0)
        for client in self._state.clients.values():
            own = {worker.number for worker in self._state.workers.values() if worker.client == client.number}
            if client.workers != own:
                raise errors.HeapCorruptError("", f"client {client.number} has the workers {sorted(own)}", 0)
        if self._storing:
            raise errors.HeapCorruptError("", "every heap that was being stored is stored", 0)


def _heap_report(heap: Heap) -> dict[str, Any]:
    return {
        "heap": heap.number,
        "name": heap.name,
        "size": heap.size,
        "managed": heap.managed,
        "read_only": heap.read_only,
        "start": heap.describe().start,
        "chain": [member.number for member in heap.chain()],
        "clients": len(heap.opened),
        "attached": len(heap.attached),
        "slabs": heap.slabs.count,
        "free_slabs": heap.slabs.free_count,
        "leased_slabs": {str(owner): len(heap.slabs.held_by(owner)) for owner in sorted(heap.slabs.holders())},
    }


def _worker_report(worker: Worker) -> dict[str, Any]:
    return {
        "instance": worker.number,
        "client": worker.client,
        "pid": worker.pid,
        "module": worker.module,
        "state": worker.life.name.lower(),
        "attachment": worker.attachment.name.lower(),
        "chain": [heap.number for heap in worker.chain],
        "leased": worker.leased,
    }
