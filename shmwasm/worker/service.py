"""The worker's loop: calls from the client, and between them what the coordinator wants."""

from __future__ import annotations

import select
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from shmwasm.errors import ProtocolError, ShmwasmError, to_wire
from shmwasm.protocol import messages
from shmwasm.worker.links import leave

if TYPE_CHECKING:
    from shmwasm.worker.instance import Instance
    from shmwasm.worker.links import ControlLink


def serve(instance: Instance, control: ControlLink) -> NoReturn:
    """Serve until either channel ends or the coordinator says `Stop`; then exit with code 0.

    What the coordinator sent comes first: it may have waited for a whole call. Only `Stop` waits for the calls that the client
    made before it asked for it.
    """
    client = instance.client
    poll = select.poll()
    poll.register(control.fileno(), select.POLLIN)
    poll.register(client.fileno(), select.POLLIN)
    while True:
        ready = {descriptor for descriptor, _ in poll.poll(0 if control.has_put_off or client.has_put_off else None)}
        if control.has_put_off or control.fileno() in ready:
            _obey(instance, control, *control.receive())
        elif client.has_put_off or client.fileno() in ready:
            _serve_client(instance)


def _serve_client(instance: Instance) -> None:
    call = instance.client.receive_call()
    if call is not None:
        instance.client.send(instance.call(call))


def _finish_calls(instance: Instance) -> None:
    """Serve what the client has sent so far."""
    poll = select.poll()
    poll.register(instance.client.fileno(), select.POLLIN)
    while instance.client.has_put_off or poll.poll(0):
        _serve_client(instance)


def _obey(instance: Instance, control: ControlLink, message: messages.CoordinatorToWorker, descriptors: Sequence[int]) -> None:
    match message:
        case messages.MapChain(request=request, grants=grants):
            try:
                instance.attachment.attach(grants, descriptors)
            except ShmwasmError as error:
                code, facts = to_wire(error)
                control.send(messages.Failed(request=request, code=code, facts=facts))
            else:
                control.send(messages.Done(request=request))
        case messages.UnmapChain(request=request):
            instance.attachment.detach()
            control.send(messages.Done(request=request))
        case messages.Recall(heap=heap):
            instance.attachment.recall(heap)
            control.send(messages.Recalled(heap=heap))
        case messages.Stop():
            _finish_calls(instance)
            leave()
        case messages.Leased() | messages.Alive():
            raise ProtocolError(f"the coordinator sent {type(message).__name__}, which was not asked for")
