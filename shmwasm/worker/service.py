"""The worker's loop: calls from the client's ring, and between them what came over the channels.

Theory
------
The calls are the dispatcher's affair: it runs them, and sleeps while there are none. It comes back before the next call when
there is a message, which is read then, as it may have waited for a long call; only `Stop` waits for the calls that the client
made before. That there is one is noticed by the watcher's thread.
"""

from __future__ import annotations

import select
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from shmwasm.core import layout
from shmwasm.errors import ProtocolError, ShmwasmError, to_wire
from shmwasm.protocol import messages
from shmwasm.worker.leaving import give_up, leave

if TYPE_CHECKING:
    from shmwasm.worker.calls import RingCalls
    from shmwasm.worker.instance import Instance
    from shmwasm.worker.links import ControlLink


def serve(instance: Instance, control: ControlLink) -> NoReturn:
    """Serve until either channel ends or the coordinator says `Stop`; then exit with code 0."""
    service = Service(instance, control)
    try:
        calls = service.wait_for_ring()
        service.watch(calls)
        while True:
            service.step(calls)
    except ProtocolError as violation:
        give_up(violation)


class Service:
    """Serves an instance step by step."""

    def __init__(self, instance: Instance, control: ControlLink) -> None:
        self._instance = instance
        self._control = control
        self._control_number = control.fileno()
        self._client_number = instance.client.fileno()
        self._stopping = False
        self._poll = select.poll()
        self._poll.register(self._control_number, select.POLLIN)
        self._poll.register(self._client_number, select.POLLIN)

    def wait_for_ring(self) -> RingCalls:
        """Do what is asked for until the client sends its ring; return what runs the calls.

        Raises:
            ProtocolError: A message is out of place.
        """
        while self._instance.calls is None:
            self._handle_last(0 if self._stopping else None)
        return self._instance.calls

    def watch(self, calls: RingCalls) -> None:
        """Let the watcher's thread notice messages from now on."""
        for link in (self._control, self._instance.client):
            link.watch(calls.watcher)
        calls.watcher.start([self._control_number, self._client_number])

    def step(self, calls: RingCalls) -> None:
        """Run calls until there is a message, or there are no more to wait for; handle what there is.

        Raises:
            ProtocolError: A message is out of place.
        """
        if calls.run(may_sleep=not self._stopping) != layout.RING_ATTENTION:
            self._handle_last(0)
            return
        calls.attend()
        while (ready := self._ready(0)) or self._control.has_put_off:
            self._handle(ready)
        calls.watcher.look_again([self._control_number, self._client_number])

    def _handle_last(self, timeout: float | None) -> None:
        """Wait for a message, so long or without end, and handle it; where there is nothing left to do, exit."""
        ready = self._ready(timeout)
        if self._stopping and not ready - {self._control_number} and not self._control.has_put_off:
            leave()
        self._handle(ready)

    def _ready(self, timeout: float | None) -> set[int]:
        return {number for number, _ in self._poll.poll(timeout)}

    def _handle(self, ready: set[int]) -> None:
        """Take one message from each channel that has some."""
        if self._control.has_put_off or self._control_number in ready:
            self._obey(*self._control.receive())
        if self._client_number in ready:
            descriptors = self._instance.client.serve()
            if descriptors is not None:
                self._instance.open_ring(descriptors)

    def _obey(self, message: messages.CoordinatorToWorker, descriptors: Sequence[int]) -> None:
        match message:
            case messages.MapChain(request=request, grants=grants):
                try:
                    self._instance.attachment.attach(grants, descriptors)
                except ShmwasmError as error:
                    code, facts = to_wire(error)
                    self._control.send(messages.Failed(request=request, code=code, facts=facts))
                else:
                    self._control.send(messages.Done(request=request))
            case messages.UnmapChain(request=request):
                self._instance.attachment.detach()
                self._control.send(messages.Done(request=request))
            case messages.Recall(heap=heap):
                self._instance.attachment.recall(heap)
                self._control.send(messages.Recalled(heap=heap))
            case messages.Stop():
                self._stopping = True
            case messages.Leased() | messages.Alive():
                raise ProtocolError(f"the coordinator sent {type(message).__name__}, which was not asked for")
