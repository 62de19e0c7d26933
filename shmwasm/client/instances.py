"""One instance in a worker process of its own, as the user holds it."""

from __future__ import annotations

import contextlib
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, NoReturn

from shmwasm import errors
from shmwasm.addresses import AppAddress, address64
from shmwasm.client import checks
from shmwasm.client.arguments import Value
from shmwasm.client.blocks import Block
from shmwasm.client.calls import GRACE, RingCallPath
from shmwasm.client.closing import AsyncClosing
from shmwasm.client.connection import Connection, Reply, close_descriptors
from shmwasm.client.exports import BoundExport, Exports, MeteredExport, calls_here
from shmwasm.client.futures import SafeFuture
from shmwasm.client.heaps import SharedHeap
from shmwasm.client.receiving import Receiver
from shmwasm.client.side_channel import Number
from shmwasm.client.spawn_options import SpawnOptions
from shmwasm.core.allocator import Core
from shmwasm.engine.callbacks import converted_results
from shmwasm.engine.callers import Caller, Region
from shmwasm.engine.traps import HOST_FUNCTION
from shmwasm.posix.channels import Channel
from shmwasm.posix.conditions import Event
from shmwasm.posix.mappings import Mapping, map_anywhere
from shmwasm.posix.reentry import afterwards, on_top_of_lock
from shmwasm.posix.signals import interrupts_let_through, interrupts_put_off
from shmwasm.protocol import messages


class Instance(AsyncClosing):
    """An instance of a module, in a worker process; made by `Runtime.spawn`.

    It runs one call at a time; further calls wait in line. Calling its methods from several threads at once is safe.

    After a trap (`WorkerTrapError`) or a time limit (`CallTimeoutError`) the instance lives on, its private memory as the trap
    left it.

    Attributes:
        module: The module that it is an instance of.
        number: Its number, unique in its coordinator.
        fuel: What a call may use that says nothing else; None for no limit.
        fresh: Whether each call runs in private memory, globals and tables that no call has used before (see `Runtime.pool`).
        pid: Its worker's process id, as the coordinator's launcher sees it.
        when_gone: Called, in the receiver thread, once the worker is gone.
    """

    def __init__(
        self,
        spawned: messages.Spawned,
        channel: Channel,
        options: SpawnOptions,
        *,
        core: Core,
        connection: Connection,
        receiver: Receiver,
        heaps_of: Callable[[SharedHeap], Sequence[SharedHeap]],
        number_of: Callable[[SharedHeap], int],
        forget: Callable[[Instance], None],
    ) -> None:
        self.module = options.module
        self.number = spawned.instance
        self.pid = spawned.pid
        self.fuel = options.fuel
        self.fresh = options.fresh is not None
        self._shared_heap = options.shared_heap
        self._connection = connection
        self._receiver = receiver
        self._heaps_of = heaps_of
        self._number_of = number_of
        self._forget = forget
        self._channel = channel
        self.when_gone: Callable[[], None] | None = None
        self._gone = Event()
        self._exited = False
        self._exit: tuple[int | None, int | None] = (None, None)
        self._closed = False
        self._memory: Mapping | None = None
        self._bases = self._attached_heaps()
        self._barred = {receiver.identity}  # threads that must not wait for calls; see `check_may_wait`
        self._path = RingCallPath(
            spawned.instance,
            worker=spawned.pid,
            core=core,
            functions=self.module.signatures,
            channel=channel,
            receiver=receiver,
            host_function=self._run_host_function,
            kill=partial(kill_soon, connection, spawned.instance),
            translate=self.module.translate,
            # A worker that does not come back from preparing ends itself after the same grace.
            preparation=0.0 if options.fresh is None else (options.fresh.time_limit or 0.0) + GRACE,
        )
        self.exports = Exports(self.module, self.number, self._bind)

    @property
    def alive(self) -> bool:
        """Whether the worker process is there, as far as this process has been told."""
        return not self._exited and not self._closed

    @property
    def path(self) -> RingCallPath:
        """How calls reach it."""
        return self._path

    @property
    def shared_heap(self) -> SharedHeap | None:
        """The head of the chain that the instance is attached to, or None."""
        return self._shared_heap

    @property
    def memory(self) -> memoryview:
        """The guest's linear memory as large as it is now, shared and writable: not a copy.

        The first use turns the worker's private memory into shared memory, which costs one copy there. Taking it waits until the
        instance is between calls, or waits for a host function of this process. After `memory.grow`, take it again.

        Raises:
            WorkerLostError: The worker is gone.
            UnsupportedError: The module exports no memory, or the instance has another one for each call.
            ClosedError: The instance was closed.
        """
        if self.fresh:
            raise errors.UnsupportedError(f"a view of the memory of {self!r}", "each of its calls has a memory of its own")
        return self._view_memory()

    def _view_memory(self) -> memoryview:
        """Return the memory of the guest that is there now."""
        self._receiver.check_may_block()
        self.require_open()
        answered: Future[memoryview] = SafeFuture()

        def ended(message: messages.MemoryShared | None, descriptors: list[int], error: BaseException | None) -> None:
            # The descriptor comes once, with the first of several answers: it is mapped where they arrive in order.
            try:
                if message is None:
                    answered.set_exception(error)
                else:
                    answered.set_result(self._memory_as_of(message, descriptors))
            except errors.ShmwasmError as failure:
                answered.set_exception(failure)
            finally:
                close_descriptors(descriptors)

        self._path.share_memory(ended)
        return answered.result()

    def call(self, export: str, *arguments: Value, timeout: float | None = None, fuel: int | None = None) -> Any:
        """Call an exported function and wait for its result.

        Args:
            export: The function's name.
            arguments: Numbers; a `Block` passes as the address at which the instance sees it. Integers may be signed or unsigned.
            timeout: Seconds that the call may run; None for no limit.
            fuel: Units of fuel that the call may use, if the module was loaded as a metered one; by default what `Runtime.spawn`
                was given. One unit is about one instruction.

        Returns:
            None, a number, or a list of numbers, as the function has none, one, or more results. Integers are signed. (The type
            is `Any` as it depends on the guest's function.)

        Raises:
            UnknownExportError: The module exports no such function.
            ArgumentError: The arguments do not fit the function's type; nothing was called.
            WorkerTrapError: The guest trapped.
            FuelExhaustedError: The fuel was used up.
            UnsupportedError: There is a limit of fuel, and the module is not metered.
            CallTimeoutError: The time limit passed.
            WorkerLostError: The worker died before or during the call.
            ClosedError: The instance was closed.
        """
        if timeout is None and fuel is None:
            return self.exports[export](*arguments)  # what a call that says nothing takes is part of what it costs
        return self.exports[export](*arguments, timeout=timeout, fuel=fuel)

    def submit(
        self, export: str, *arguments: Value, timeout: float | None = None, fuel: int | None = None, wait: bool = True
    ) -> Future[Any]:
        """Start a call and return the future of its result.

        Its `cancel` succeeds until the worker takes the call, and its `running` tells whether it has. Callbacks run in a thread
        that all calls share, and must neither block nor wait for a call; they may submit more.

        Args:
            export: As in `call`, like the arguments.
            arguments: See there.
            timeout: See there.
            fuel: See there.
            wait: Whether to wait where as many calls are under way as there is room for. (A callback never waits.)

        Raises:
            UnknownExportError: The module exports no such function.
            ArgumentError: The arguments do not fit the function's type; nothing was called.
            BusyError: There is no room, and `wait` is false; nothing was called.
            ClosedError: The instance was closed.
        """
        return self.exports[export].submit(*arguments, timeout=timeout, fuel=fuel, wait=wait)

    async def call_async(
        self,
        export: str,
        *arguments: Value,
        timeout: float | None = None,  # noqa: ASYNC109  for the call, not for the await
        fuel: int | None = None,
    ) -> Any:
        """Call an exported function and await its result; takes, returns and raises what `call` does.

        It may be awaited in several event loops at once, and costs no thread. Where there is no room for more calls, it waits for
        some without blocking the loop. If the task is cancelled, so is the call if it has not begun; otherwise it is interrupted,
        and the instance's private memory is as that left it.
        """
        return await self.exports[export].call_async(*arguments, timeout=timeout, fuel=fuel)

    def attach_shared_heap(self, shared_heap: SharedHeap, *, read_only: bool = False) -> None:
        """Map a chain into the instance's memory, once it is between calls.

        Args:
            shared_heap: The head of the chain.
            read_only: Whether stores into it trap. Stores into a heap that was made `read_only` always do.

        Raises:
            AttachError: Something is attached already, linear memory reaches the window, or the heap is no head. Nothing changed.
        """
        self.require_open()
        checks.flag(read_only, "read_only")
        chain_head = self._number_of(shared_heap)
        self._connection.request(
            messages.Done,
            lambda number: messages.Attach(request=number, instance=self.number, chain_head=chain_head, read_only=read_only),
            then=lambda answer: self._note_chain(shared_heap, answer),
        )
        self._note_chain(shared_heap)

    def detach_shared_heap(self) -> None:
        """Take the chain out of the instance's memory, once it is between calls; the very next access traps.

        Raises:
            AttachError: Nothing is attached.
        """
        self.require_open()
        self._connection.request(
            messages.Done,
            lambda number: messages.Detach(request=number, instance=self.number),
            then=lambda answer: self._note_chain(None, answer),
        )
        self._note_chain(None)

    def kill(self) -> None:
        """End the worker with SIGKILL, whatever it does; calls under way fail with `WorkerLostError`. Twice is fine.

        It waits until the worker is gone, but for a finalizer or a signal's handler that interrupts the library's own work.
        """
        if not self.alive:
            return
        if on_top_of_lock():
            afterwards(partial(kill_soon, self._connection, self.number))
        else:
            with contextlib.suppress(errors.CoordinatorLostError, errors.ClosedError):  # then the worker ends in any case
                self._connection.request(messages.Done, lambda number: messages.Kill(request=number, instance=self.number))
            with interrupts_let_through():
                self._gone.wait()

    def close(self) -> None:
        """End the worker once the calls under way are done, and wait until it is gone. Twice is fine.

        Raises:
            UnsupportedError: It would wait for ever: in a future's callback, in a host function that the instance waits for, or
                in a signal's handler or finalizer that runs on top of a call of it, or of what the library does with a lock.
                Nothing changed. (`kill` works there.)
        """
        if self._closed:
            return
        self.check_may_close()
        with interrupts_put_off():
            if self._closed:
                return
            self._closed = True
            try:
                if not self._gone.is_set():
                    self._wait_closed()
            finally:
                # Also when an interrupt ends the wait: a worker that nobody can call any more leaves.
                self._release()

    def dismiss(self) -> None:
        """End the worker and let go of the instance without waiting for either: nobody holds it."""
        self.when_gone = self.discard
        kill_soon(self._connection, self.number)

    def loss(self) -> errors.WorkerLostError:
        """Return what a call ends with that will not begin: the worker is gone, or is let go of."""
        return errors.WorkerLostError(self.number, self.pid, *self._exit)

    def exited(self, exit_signal: int | None, exit_code: int | None) -> None:
        """Take note that the worker is gone: everything under way fails."""
        self._exit = exit_signal, exit_code  # first: who sees that the worker is gone may ask how
        self._exited = True
        try:
            self._path.lose(partial(errors.WorkerLostError, self.number, self.pid, exit_signal, exit_code))
        finally:
            self._gone.set()  # whoever waits for it may release the path
            if self.when_gone is not None:
                self.when_gone()

    def discard(self) -> None:
        """Release what this process holds of an instance whose worker is gone."""
        self._closed = True
        self._release()

    def abandon(self) -> None:
        """Take the instance away from a forked child."""
        self._closed = True
        self._path.abandon("belongs to the parent process")

    def __repr__(self) -> str:
        return f"<instance {self.number} of {self.module.name!r} in process {self.pid}>"

    def require_open(self) -> None:
        """Raise unless the instance is open.

        Raises:
            ClosedError: It was closed, or belongs to another process.
        """
        if self._closed:
            raise errors.ClosedError(repr(self))

    def check_may_wait(self) -> None:
        """Raise unless a call of this instance can end while this thread waits for it.

        Raises:
            UnsupportedError: The thread completes futures, runs a host function that this instance waits for, or holds a lock.
        """
        self._receiver.check_may_block()
        if threading.get_ident() in self._barred:
            raise errors.UnsupportedError(
                "calling the instance that called this host function", "it runs one call at a time, and waits for the function"
            )

    def check_may_close(self) -> None:
        """Raise if this thread cannot wait for the calls under way, one of which waits for it.

        Raises:
            UnsupportedError: See `close`.
        """
        self._receiver.check_may_block()
        if self._closed or self._gone.is_set():
            return
        if threading.get_ident() in self._barred:
            raise errors.UnsupportedError(
                "closing the instance that called this host function", "its call has to end first, and waits for the function"
            )
        if calls_here(self._path):
            raise errors.UnsupportedError(
                f"closing {self!r} on top of a call of it", "the call has to end first, and waits for this handler or finalizer"
            )

    def address_of(self, block: Block) -> AppAddress:
        """Return where this instance sees a block.

        Raises:
            ArgumentError: The block was freed, or its heap is not in the attached chain.
            ClosedError: The instance was closed.
        """
        heap = block.heap
        base = self._bases.get(heap)
        if base is None or block.freed or heap.closed or self._closed:
            base = self._checked_base(block)
        return AppAddress(base + block.offset)

    def guest_address(self, address: AppAddress) -> AppAddress:
        """Return where this instance sees what a 32-bit guest sees at `address`, in a chain."""
        return address64(address) if self.module.is_64 else address

    def _note_chain(self, shared_heap: SharedHeap | None, answer: Future[Reply] | None = None) -> None:
        """Take note of what is attached now, unless the answer is an error; it may come to a thread that waits for it no more."""
        if answer is None or answer.exception() is None:
            self._shared_heap = shared_heap
            self._bases = self._attached_heaps()

    def _wait_closed(self) -> None:
        """Wait until all that was started has ended, and so has the worker; interrupts end the wait even if they are put off."""
        self._path.take_no_more()
        with interrupts_let_through():
            self._path.wait_sent()
        with contextlib.suppress(errors.CoordinatorLostError, errors.ClosedError):  # then the worker ends in any case
            self._connection.request(messages.Done, lambda number: messages.CloseInstance(request=number, instance=self.number))

    def _release(self) -> None:
        """Let go of everything, also of what refers to the instance: else it would stay until the garbage collector comes."""
        with interrupts_put_off():
            self._path.close()
            if self._memory is not None:
                self._memory.close()
            self._forget(self)
            self.when_gone = None
            self.exports = Exports(self.module, self.number, partial(_refuse, self.number))

    def _bind(self, export: str) -> BoundExport:
        kind = MeteredExport if self.module.metered else BoundExport
        return kind(self, self._path, export, self._barred)

    def _memory_as_of(self, message: messages.MemoryShared, descriptors: list[int]) -> memoryview:
        if descriptors:
            if self._memory is not None:
                self._memory.close()  # of another guest, which is done with
            self._memory = map_anywhere(descriptors[0], message.capacity, writable=True)
        if self._memory is None:
            raise errors.ProtocolError("the worker shared its memory without a descriptor")
        return self._memory.view[: message.size]

    def _run_host_function(self, index: int, arguments: list[Number]) -> list[Number]:
        self._barred.add(threading.get_ident())
        try:
            function = self.module.client_function(index)
            kinds = self.module.import_type(index).results
            is_64 = self.module.is_64
            with Caller(self.number, memory=self._view_memory, heaps=self._regions, is_64=is_64) as caller:
                converted = converted_results(kinds, function(caller, *arguments))
        except BaseException as error:  # noqa: BLE001  whatever it is traps the guest, which would wait for ever otherwise
            name, details = type(error).__name__, traceback.format_exc()
            trap = f"a host function raised {name}: {error}"
            raise errors.HostFunctionError(self.number, "", trap, HOST_FUNCTION, [], name, details) from None
        finally:
            self._barred.discard(threading.get_ident())
        return [] if not kinds else [converted] if len(kinds) == 1 else converted

    def _checked_base(self, block: Block) -> AppAddress:
        """Return where this instance sees a block's heap, or raise as `address_of` does."""
        self.require_open()
        if block.freed:
            raise errors.ArgumentError(f"{block!r} cannot be passed to {self!r}: it was freed")
        self._bases = self._attached_heaps()  # another heap of the chain may have been opened since
        if block.heap not in self._bases:
            twin = any(heap.capability() == block.heap.capability() for heap in self._bases)
            why = "was opened by another runtime" if twin else "is not attached there"
            raise errors.ArgumentError(f"{block!r} cannot be passed to {self!r}: its heap {why}")
        return self._bases[block.heap]

    def _attached_heaps(self) -> dict[SharedHeap, AppAddress]:
        """Return where this instance sees the heaps of its chain, which stay there as long as it is attached."""
        if self._shared_heap is None:
            return {}
        return {heap: self.guest_address(heap.start) for heap in self._heaps_of(self._shared_heap)}

    def _regions(self) -> list[Region]:
        if self._shared_heap is None:
            return []
        return [Region(self.guest_address(heap.start), heap.view) for heap in self._heaps_of(self._shared_heap)]


def kill_soon(connection: Connection, instance: int) -> None:
    """Have a worker killed without waiting for it: the receiver thread cannot."""
    connection.begin(lambda number: messages.Kill(request=number, instance=instance))


def _refuse(instance: int, _export: str) -> NoReturn:
    """Bind no export any more."""
    raise errors.ClosedError(f"instance {instance}")
