"""The worker's loop: calls from the client's ring, and between them what came over the channels.

Theory
------
The calls are the dispatcher's affair. It comes back for whatever is not a call, and when there is none: then the worker sleeps
until somebody rings the doorbell or sends a message. What the coordinator sent comes first, as it may have waited for many calls;
only `Stop` waits for the calls that the client made before it asked for it.

A client may keep the ring full. So the dispatcher comes back after some calls in any case; how many follows from how long the
last ones took, so that the coordinator waits for some milliseconds, or for one call.
"""

from __future__ import annotations

import select
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NoReturn

from shmwasm.core import layout
from shmwasm.errors import ProtocolError, ShmwasmError, to_wire
from shmwasm.protocol import messages
from shmwasm.worker.links import give_up, leave

if TYPE_CHECKING:
    from shmwasm.worker.calls import RingCalls
    from shmwasm.worker.instance import Instance
    from shmwasm.worker.links import ControlLink


MOST_CALLS: Final = 256
"""How many calls are run, at most, before the channels are looked at: many enough to make the look cost nothing."""

PATIENCE: Final = 0.005
"""Seconds that the coordinator may wait for a look, unless a single call takes longer."""


def serve(instance: Instance, control: ControlLink) -> NoReturn:
    """Serve until either channel ends or the coordinator says `Stop`; then exit with code 0."""
    service = Service(instance, control)
    try:
        while True:
            service.step()
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
        self._allowed = 1
        self._looked = time.monotonic()
        self._poll = select.poll()
        self._poll.register(self._control_number, select.POLLIN)
        self._poll.register(self._client_number, select.POLLIN)

    def step(self) -> None:
        """Run calls until the dispatcher asks for something, and do that: at the latest sleep, and do what woke us.

        Raises:
            ProtocolError: A message is out of place.
        """
        calls = self._instance.calls
        if calls is None:
            self._handle(self._wait())
            return
        match calls.run():
            case layout.RING_ATTENTION:
                calls.attend()
                while self._client_number in (ready := self._ready(0)):
                    self._handle(ready)
            case layout.RING_WATCH:
                calls.watch()
            case layout.RING_PAUSE:
                self._handle(self._ready(0))
                self._set_pace(calls)
            case _:
                self._park(calls)

    def _set_pace(self, calls: RingCalls) -> None:
        """Allow as many calls as will take half of the time that the last ones should have taken, or at most twice as many."""
        now = time.monotonic()
        fitting = self._allowed * PATIENCE / 2 / max(now - self._looked, 1e-9)
        self._allowed = max(1, min(int(fitting), 2 * self._allowed, MOST_CALLS))
        self._looked = now
        calls.allow(self._allowed)

    def _park(self, calls: RingCalls) -> None:
        if not calls.park():
            return
        ready = self._wait()
        calls.unpark(rung=calls.doorbell in ready)
        self._handle(ready)
        self._looked = time.monotonic()
        calls.allow(self._allowed)

    def _wait(self) -> set[int]:
        """Wait until something can be read, and return what; where there is nothing left to do, exit."""
        ready = self._ready(0 if self._stopping or self._control.has_put_off else None)
        if self._stopping and not ready - {self._control_number} and not self._control.has_put_off:
            leave()
        return ready

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
                assert self._instance.calls is not None
                self._instance.calls.allow(self._allowed)
                self._poll.register(self._instance.calls.doorbell, select.POLLIN)

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
