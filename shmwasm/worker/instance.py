"""The worker's one instance: made from a plan, attached, looked at, and called through a ring.

A guest lives as long as the instance, or, where calls are to be fresh, for one call; the instance is the same all the time: what
is attached, and what it allocated in shared heaps, stays.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from shmwasm.addresses import WINDOW_END
from shmwasm.engine.callers import Caller, Views
from shmwasm.engine.guests import Guest
from shmwasm.engine.heap_memory import check_memories, is_wide
from shmwasm.engine.nests import Nest
from shmwasm.engine.traps import GuestTrapError
from shmwasm.errors import InstantiationError, ProtocolError, ShmwasmError, UnsupportedError, WorkerTrapError, to_wire
from shmwasm.protocol import messages
from shmwasm.worker.calls import INITIALIZE, DispatchedCalls, RingCalls, error_of
from shmwasm.worker.fresh import FreshCalls
from shmwasm.worker.hosting import HostFunctions
from shmwasm.worker.leaving import leave
from shmwasm.worker.links import ClientLink
from shmwasm.worker.waiting import Waiting

if TYPE_CHECKING:
    import wasmtime

    from shmwasm.engine.modules import ModuleDescription
    from shmwasm.posix.channels import Channel
    from shmwasm.posix.futexes import Alarm
    from shmwasm.worker.attachment import Attachment
    from shmwasm.worker.links import ControlLink


class Ground(NamedTuple):
    """What an instance is made from, all of it there before the fork; `attachment` is the core in `nest`."""

    nest: Nest
    attachment: Attachment
    code: wasmtime.Module
    description: ModuleDescription
    dispatcher: wasmtime.Module


class Instance:
    """An instance with the core beside it in one store.

    Args:
        message: What was asked for.
        ground: What was there before the fork.
        granted: The descriptors of the message's grants, which are taken over.
        control: To the coordinator.
        calls: To the client.

    Raises:
        ShmwasmError: The instance cannot be made.
    """

    def __init__(
        self,
        message: messages.Fork,
        ground: Ground,
        *,
        granted: Sequence[int],
        control: ControlLink,
        calls: Channel,
    ) -> None:
        plan = message.plan
        self.number = message.worker
        self.client = ClientLink(calls, self.share_memory)
        self._memory_was_sent = False
        self._is_64 = is_wide(ground.description)
        self._ground = ground
        self.calls: RingCalls | None = None
        """What runs the client's calls, once the client has sent a ring."""
        self._host = HostFunctions(self.number, self.client, self._new_caller)
        self._enter(plan.working_directory)
        functions = self._host.load(plan, ground.description)
        self.attachment = ground.attachment
        self.attachment.belong_to(self.number, control)
        start = min((grant.start for grant in message.grants), default=WINDOW_END)
        if message.grants:
            check_memories(ground.description, start, heap=message.grants[0].name)
        self._fresh = plan.fresh
        self._views = Views()
        self._new_guest = partial(
            Guest,
            self.number,
            ground.nest,
            ground.code,
            ground.description,
            name=plan.module_name,
            functions=functions,
            wasi=plan.wasi,
            numbers={(given.module, given.name): given.number for given in plan.numbers},
            futexes=Waiting(self._alarm),
            outputs=None if plan.fresh is None else {},
            memory_limit=plan.memory_limit,
        )
        self._guest: Guest | None = None  # host functions that the start function calls look for it
        self._guest = self._new_guest(start=start)
        self.attachment.use(self._guest.window, ground.description)
        if message.grants:
            self.attachment.attach(message.grants, granted)
        self.initialize()

    def open_ring(self, descriptors: Sequence[int]) -> None:
        """Serve calls through the ring that came with these descriptors, which are taken over.

        Raises:
            ProtocolError: There is none, or a second one.
        """
        if self.calls is not None:
            raise ProtocolError("the client sent a second call ring")
        if self._fresh is None:
            self.calls = DispatchedCalls(self.number, self._running_guest(), self._ground, self.client, descriptors)
        else:
            self.calls = FreshCalls(self, self._running_guest(), self._ground, descriptors, self._fresh)
        self._host.calls = self.calls

    def retire(self) -> None:
        """Give the guest's memory back; nothing of the guest runs from now on. May be called twice.

        Raises:
            UnsupportedError: The kernel has no room for that.
        """
        self.attachment.leave()
        guest, self._guest = self._guest, None
        if guest is not None:
            self._views.end()
            guest.vacate(viewed=self._views.were_lent)
            self._views = Views()

    def renew(self) -> Guest:
        """Make another guest, all but attached to the chain, in place of one that was retired.

        Raises:
            InstantiationError: wasmtime refused, or the start function stopped.
            ArgumentError: A WASI option cannot be granted any more.
        """
        self._memory_was_sent = False
        self._guest = self._new_guest(start=self.attachment.start)
        return self._guest

    def share_memory(self, request: messages.ShareMemory) -> tuple[messages.CallReply, Sequence[int]]:
        """Return the answer to a client that wants to see the linear memory, and the descriptors that travel with it."""
        try:
            shared = self._running_guest().share_memory()
        except ShmwasmError as error:
            code, facts = to_wire(error)
            answer = messages.Raised(request=request.request, code=code, facts=facts)
            if self._guest is not None and self._guest.window is not None:
                self.client.send(answer)
                leave(os.EX_OSERR)  # half of the memory may have moved: the guest must not run on it
            return answer, ()
        descriptors = () if self._memory_was_sent else (shared.descriptor,)
        self._memory_was_sent = True
        return messages.MemoryShared(request=request.request, size=shared.size, capacity=shared.capacity), descriptors

    def _alarm(self) -> Alarm | None:
        return None if self.calls is None else self.calls.watcher.alarm

    def initialize(self) -> None:
        """Do for the guest what a WASI reactor wants to be done before all else.

        Raises:
            InstantiationError: Its function stopped.
        """
        guest = self._running_guest()
        if guest.exports(INITIALIZE):
            try:
                guest.function(INITIALIZE).call(())
            except GuestTrapError as stopped:
                error = error_of(self.number, INITIALIZE, stopped)
                reason = error.trap if isinstance(error, WorkerTrapError) else error
                raise InstantiationError(self.number, f"its function {INITIALIZE!r} stopped: {reason}") from None

    def _enter(self, directory: str) -> None:
        if directory:
            try:
                os.chdir(directory)
            except OSError as failure:
                raise InstantiationError(self.number, f"the client's working directory cannot be entered: {failure}") from None

    def _new_caller(self) -> Caller:
        return Caller(
            self.number,
            memory=lambda: self._running_guest().memory(),
            heaps=self.attachment.regions,
            is_64=self._is_64,
            lend=None if self._fresh is None else self._views.lend,
        )

    def _running_guest(self) -> Guest:
        if self._guest is None:
            raise UnsupportedError("using an instance from its start function", "it does not exist yet")
        return self._guest
