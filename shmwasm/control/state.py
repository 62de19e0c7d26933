"""What the parts of the mind share: who exists, and the actions decided so far."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shmwasm.control.actions import DropHeap, Send
from shmwasm.control.heaps import Heap, HeapRegistry
from shmwasm.errors import ShmwasmError, to_wire
from shmwasm.protocol import messages

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shmwasm.control.actions import Action, Descriptor
    from shmwasm.control.peers import Client, Peer, Worker

FIRST_PEER = messages.COORDINATOR + 1


class State:
    """Everything that exists. Peers' numbers rise and are never used twice."""

    def __init__(self) -> None:
        self.heaps = HeapRegistry()
        self.clients: dict[int, Client] = {}
        self.workers: dict[int, Worker] = {}
        self.launcher_alive = True
        self.next_peer = FIRST_PEER
        self._actions: list[Action] = []

    def number_peer(self) -> int:
        """Return a number for a new peer."""
        number = self.next_peer
        self.next_peer += 1
        return number

    def peer(self, number: int) -> Peer | None:
        """Return the client or worker of that number, if it exists."""
        return self.clients.get(number) or self.workers.get(number)

    def is_alive(self, number: int) -> bool:
        """Return whether the peer of that number exists, and its process may still touch heaps."""
        return number in self.clients or (number in self.workers and not self.workers[number].process_gone)

    def emit(self, action: Action) -> None:
        """Decide an action."""
        self._actions.append(action)

    def take_actions(self) -> list[Action]:
        """Return what was decided since the last call."""
        actions, self._actions = self._actions, []
        return actions

    def send(
        self,
        peer: int,
        message: messages.CoordinatorToClient | messages.CoordinatorToWorker,
        descriptors: tuple[Descriptor, ...] = (),
    ) -> None:
        """Send to a peer, if it still listens."""
        known = self.peer(peer)
        if known is not None and known.connected:
            self.emit(Send(peer, message, descriptors))

    def refuse(self, peer: int, request: int, error: ShmwasmError) -> None:
        """Answer a request with an error."""
        code, facts = to_wire(error)
        self.send(peer, messages.Failed(request=request, code=code, facts=facts))

    def collect(self, heaps: Iterable[Heap]) -> None:
        """Drop those of the heaps, with their chains, that nobody can reach any more."""
        for heap in heaps:
            chain = heap.chain()
            if heap.number not in self.heaps.heaps or any(member.opened or member.attached for member in chain):
                continue
            for member in chain:
                self.heaps.discard(member)
                self.emit(DropHeap(member.number))
