"""Instances: one worker each, from the request to spawn it until the kernel says that its process is gone."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, assert_never

from shmwasm import errors
from shmwasm.control.actions import CallChannel, Forget, ForkWorker, KillWorker, StartDeadline
from shmwasm.control.deadlines import SpawnDeadline
from shmwasm.control.heaps import grants
from shmwasm.control.peers import Worker
from shmwasm.control.workers import ATTACHMENT, LIFE, Attachment, AttachmentInput, Life, LifeInput, step
from shmwasm.protocol import messages

if TYPE_CHECKING:
    from shmwasm.control.heaps import Heap
    from shmwasm.control.leases import LeaseDesk
    from shmwasm.control.peers import Client
    from shmwasm.control.state import State

_WHY_NOT_ATTACH = {
    Attachment.ATTACHING: "is being attached",
    Attachment.ATTACHED: "is attached already",
    Attachment.DETACHING: "is being detached",
}
_WHY_NOT_DETACH = {
    Attachment.DETACHED: "is attached to nothing",
    Attachment.ATTACHING: "is being attached",
    Attachment.DETACHING: "is being detached already",
}


class InstanceDesk:
    """Moves workers through their two state machines."""

    def __init__(self, state: State, leases: LeaseDesk) -> None:
        self._state = state
        self._leases = leases

    # ------------------------------------------------------------ what clients ask

    def spawn(self, client: Client, message: messages.Spawn) -> None:
        """Have a worker forked; the client is answered when its instance is ready.

        Raises:
            InstantiationError: There is no launcher any more.
            UnknownHeapError: The client has no such heap.
            AttachError: The chain cannot be attached.
        """
        if message.quota < 0:
            raise errors.ArgumentError(f"quota {message.quota} is negative")
        if message.time_limit is not None and not message.time_limit > 0:
            raise errors.ArgumentError(f"a time limit of {message.time_limit} s is not above 0")
        chain = self._attachable(client, message.chain_head) if message.chain_head else []
        number = self._state.number_peer()
        if not self._state.launcher_alive:
            raise errors.InstantiationError(number, "the launcher process is gone")
        worker = Worker(
            number, message.quota, client=client.number, module=message.plan.module_name, spawn_request=message.request
        )
        self._state.workers[number] = worker
        client.workers.add(number)
        if chain:
            self._bind(worker, chain, read_only=message.read_only)
            worker.attachment = Attachment.ATTACHED
        granted, descriptors = grants(chain, read_only=message.read_only) if chain else ((), ())
        self._state.emit(ForkWorker(number, message.plan, granted, descriptors))
        if message.time_limit is not None:
            self._state.emit(StartDeadline(SpawnDeadline(number, message.time_limit), message.time_limit))

    def deadline_passed(self, deadline: SpawnDeadline) -> None:
        """End the worker if its instance is still being made; the client is answered when it is gone."""
        worker = self._state.workers.get(deadline.worker)
        if worker is not None and worker.spawn_request is not None and not worker.doomed:
            worker.missed = deadline.seconds
            self.doom(worker)

    def attach(self, client: Client, message: messages.Attach) -> None:
        """Have the worker map a chain; the client is answered when it has.

        Raises:
            ArgumentError: The client has no such instance.
            UnknownHeapError: The client has no such heap.
            AttachError: The chain cannot be attached, or the instance is attached.
            WorkerLostError: The instance is gone.
        """
        worker = self._running(client, message.instance)
        chain = self._attachable(client, message.chain_head)
        following = step(ATTACHMENT, worker.attachment, AttachmentInput.ATTACH)
        if following is None:
            raise errors.AttachError(worker.chain[0].name, f"instance {worker.number} {_WHY_NOT_ATTACH[worker.attachment]}")
        worker.attachment = following
        worker.attach_request = message.request
        worker.asked += 1
        self._bind(worker, chain, read_only=message.read_only)
        granted, descriptors = grants(chain, read_only=message.read_only)
        self._state.send(worker.number, messages.MapChain(request=worker.asked, grants=list(granted)), descriptors)

    def detach(self, client: Client, message: messages.Detach) -> None:
        """Have the worker unmap its chain; the client is answered when it has.

        Raises:
            ArgumentError: The client has no such instance.
            AttachError: The instance is not attached.
            WorkerLostError: The instance is gone.
        """
        worker = self._running(client, message.instance)
        following = step(ATTACHMENT, worker.attachment, AttachmentInput.DETACH)
        if following is None:
            name = worker.chain[0].name if worker.chain else ""
            raise errors.AttachError(name, f"instance {worker.number} {_WHY_NOT_DETACH[worker.attachment]}")
        worker.attachment = following
        worker.attach_request = message.request
        worker.asked += 1
        self._state.send(worker.number, messages.UnmapChain(request=worker.asked))

    def kill(self, client: Client, message: messages.Kill) -> None:
        """End the worker's process now. An instance that is gone already is fine.

        Raises:
            ArgumentError: The client has no such instance.
        """
        worker = self._own(client, message.instance)
        self._state.send(client.number, messages.Done(request=message.request))
        if worker is not None:
            self.doom(worker)

    def close(self, client: Client, message: messages.CloseInstance) -> None:
        """End the worker between calls; the client is answered when it is gone. One that is gone already is fine.

        Raises:
            ArgumentError: The client has no such instance.
        """
        worker = self._own(client, message.instance)
        if worker is None:
            self._state.send(client.number, messages.Done(request=message.request))
            return
        worker.close_requests.append(message.request)
        following = step(LIFE, worker.life, LifeInput.STOP)
        if following is not None:  # else it is ending already
            worker.life = following
            self._state.send(worker.number, messages.Stop())

    def _own(self, client: Client, instance: int) -> Worker | None:
        """Return the client's worker, or None if the instance is gone."""
        worker = self._state.workers.get(instance)
        if worker is None and 0 < instance < self._state.next_peer and instance not in self._state.clients:
            return None
        if worker is None or worker.client != client.number or worker.spawn_request is not None:
            raise errors.ArgumentError(f"instance {instance} is none of this client's")
        return worker

    def _running(self, client: Client, instance: int) -> Worker:
        worker = self._own(client, instance)
        if worker is None or worker.process_gone or worker.doomed:
            raise errors.WorkerLostError(instance, 0 if worker is None else worker.pid)
        if worker.life is not Life.RUNNING:
            raise errors.ClosedError(f"instance {instance}")
        return worker

    def _attachable(self, client: Client, head: int) -> list[Heap]:
        heap = self._state.heaps.opened(head, client.number)
        if heap.below is not None:
            raise errors.AttachError(heap.name, "it is a body, not the head of its chain")
        return heap.chain()

    @staticmethod
    def _bind(worker: Worker, chain: list[Heap], *, read_only: bool) -> None:
        worker.chain = chain
        worker.writable = not read_only
        for heap in chain:
            heap.attached.add(worker.number)

    def _unbind(self, worker: Worker, *, dead: bool) -> None:
        """The worker reaches its chain no more: take its leases back."""
        chain, worker.chain = worker.chain, []
        for heap in chain:
            self._leases.surrender(worker, heap, free_live=dead and heap.free_on_death)
        for heap in chain:
            heap.attached.discard(worker.number)
        self._state.collect(chain)

    # ------------------------------------------------------------ what workers say

    def hear(self, worker: Worker, message: messages.WorkerMessage) -> None:
        """Handle a worker's message.

        Raises:
            ProtocolError: It may not say that now.
        """
        match message:
            case messages.Lease():
                self._leases.ask(worker, self._writable_heap(worker, message.heap), message)
            case messages.Ready():
                self._live(worker, LifeInput.READY)
                self._announce(worker)
            case messages.StartFailed(code=code, facts=facts):
                self._live(worker, LifeInput.START_FAILED)
                self._answer_spawn(worker, messages.Failed(request=worker.spawn_request or 0, code=code, facts=facts))
            case messages.Done(request=request):
                self._answered(worker, request, AttachmentInput.DONE)
            case messages.Failed(request=request, code=code, facts=facts):
                self._answered(worker, request, AttachmentInput.FAILED)
                self._state.send(worker.client, messages.Failed(request=worker.attach_request, code=code, facts=facts))
            case messages.Release(heap=heap, ranges=ranges):
                self._leases.release(worker, self._writable_heap(worker, heap), ranges)
            case messages.Recalled(heap=heap):
                self._leases.recalled(worker, heap)
            case messages.IsAlive(request=request, number=number):
                self._state.send(worker.number, messages.Alive(request=request, alive=self._state.is_alive(number)))
            case _:
                assert_never(message)

    @staticmethod
    def _live(worker: Worker, given: LifeInput) -> None:
        following = step(LIFE, worker.life, given)
        if following is None:
            raise errors.ProtocolError(f"a worker sent {given.name} while {worker.life.name}")
        worker.life = following

    @staticmethod
    def _writable_heap(worker: Worker, number: int) -> Heap:
        for heap in worker.chain:
            if heap.number == number and worker.writable:
                return heap
        raise errors.ProtocolError(f"a worker leases in heap {number}, which was not granted to it for writing")

    def _answered(self, worker: Worker, request: int, given: AttachmentInput) -> None:
        following = step(ATTACHMENT, worker.attachment, given)
        if following is None or request != worker.asked:
            raise errors.ProtocolError(f"a worker answered request {request} with {given.name} while {worker.attachment.name}")
        worker.attachment = following
        if following is Attachment.DETACHED:
            self._unbind(worker, dead=False)
        if given is AttachmentInput.DONE:
            self._state.send(worker.client, messages.Done(request=worker.attach_request))

    def _announce(self, worker: Worker) -> None:
        """Tell the client of a worker that is running since now, unless its end is decided already."""
        if worker.life is Life.RUNNING and not worker.doomed:
            answer = messages.Spawned(request=worker.spawn_request or 0, instance=worker.number, pid=worker.pid)
            worker.spawn_request = None
            self._state.send(worker.client, answer, (CallChannel(worker.number),))

    def _answer_spawn(self, worker: Worker, answer: messages.Failed) -> None:
        worker.spawn_request = None
        self._state.send(worker.client, answer)

    # ------------------------------------------------------------ what the launcher and the kernel say

    def hear_launcher(self, message: messages.LauncherMessage) -> None:
        """Handle a report about a worker; one that is forgotten already is ignored."""
        worker = self._state.workers.get(message.worker)
        if worker is None:
            return
        match message:
            case messages.Forked(pid=pid):
                if worker.pid:
                    return
                worker.pid = pid
                worker.life = LIFE[worker.life, LifeInput.FORKED]
                if worker.doomed:
                    self._state.emit(KillWorker(worker.number))
                self._announce(worker)
            case messages.ForkFailed(reason=reason):
                self._end(worker, errors.InstantiationError(worker.number, reason), None)
            case messages.Exited(pid=pid, signal=number, exit_code=exit_code):
                self._lost(worker, pid, number, exit_code)
            case _:
                assert_never(message)

    def connection_closed(self, worker: Worker) -> None:
        """The worker cannot be talked to: end it. Its process may still run."""
        worker.connected = False
        self._leases.silence(worker)
        if not worker.pid and not self._state.launcher_alive:
            self._lost(worker, 0, signal.SIGKILL, None)  # only its process had the other end
        else:
            self.doom(worker)

    def process_gone(self, worker: Worker) -> None:
        """The process touches nothing any more. How it ended, the launcher tells, if it can."""
        worker.process_gone = True
        worker.connected = False
        self._unbind(worker, dead=True)
        if not self._state.launcher_alive:
            self._lost(worker, worker.pid, signal.SIGKILL, None)

    def launcher_gone(self) -> None:
        """The kernel kills every worker; what was not heard of will not be heard of."""
        self._state.launcher_alive = False
        for worker in list(self._state.workers.values()):
            if worker.process_gone or not (worker.pid or worker.connected):
                self._lost(worker, worker.pid, signal.SIGKILL, None)

    def doom(self, worker: Worker, problem: str = "") -> None:
        """Kill the worker's process, as soon as it is known."""
        if not worker.doomed:
            worker.doomed = True
            if worker.pid:
                self._state.emit(KillWorker(worker.number, problem))

    def _lost(self, worker: Worker, pid: int, number: int | None, exit_code: int | None) -> None:
        """Forget a worker whose process is gone."""
        known = worker.spawn_request is None and worker.life is not Life.FAILED
        error: errors.InstanceError = errors.WorkerLostError(worker.number, pid, number, exit_code)
        if worker.missed is not None:
            error = errors.InstantiationError(worker.number, f"it was not ready within {worker.missed} s")
        farewell = messages.InstanceExited(instance=worker.number, pid=pid, signal=number, exit_code=exit_code)
        self._end(worker, error, farewell if known else None)

    def _end(self, worker: Worker, error: errors.ShmwasmError, farewell: messages.InstanceExited | None) -> None:
        self._unbind(worker, dead=True)
        pending = worker.attachment in (Attachment.ATTACHING, Attachment.DETACHING)
        if worker.spawn_request is not None:
            self._state.refuse(worker.client, worker.spawn_request, error)
        if pending:
            self._state.refuse(worker.client, worker.attach_request, error)
        if farewell is not None:
            self._state.send(worker.client, farewell)
        for request in worker.close_requests:
            self._state.send(worker.client, messages.Done(request=request))
        self._state.emit(Forget(worker.number))
        del self._state.workers[worker.number]
        client = self._state.clients.get(worker.client)
        if client is not None:
            client.workers.discard(worker.number)

    # ------------------------------------------------------------ consistency

    def verify(self) -> None:
        """Check that the heaps' attachments are those of the workers.

        Raises:
            HeapCorruptError: They are not.
        """
        for heap in self._state.heaps:
            attached = {worker.number for worker in self._state.workers.values() if heap in worker.chain}
            if heap.attached != attached:
                raise errors.HeapCorruptError(heap.name, f"the workers {sorted(attached)} are attached", 0)
        for worker in self._state.workers.values():
            if (worker.attachment is Attachment.DETACHED or worker.process_gone) != (not worker.chain):
                raise errors.HeapCorruptError("", f"worker {worker.number} has a chain if and only if it may be attached", 0)
