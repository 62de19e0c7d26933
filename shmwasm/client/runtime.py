"""The runtime: a connection to a coordinator, and all that is made through it."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import subprocess
import threading
import warnings
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from shmwasm import errors
from shmwasm.addresses import HeapOffset
from shmwasm.client import checks
from shmwasm.client.allocator import ClientAllocator
from shmwasm.client.blocks import Block
from shmwasm.client.closing import AsyncClosing
from shmwasm.client.connection import Connection, Reply
from shmwasm.client.futures import SafeFuture
from shmwasm.client.heap_book import LONGEST_NAME, HeapBook
from shmwasm.client.heaps import OnDeath, SharedHeap
from shmwasm.client.instances import Instance, kill_soon
from shmwasm.client.modules import Imports, Module
from shmwasm.client.pool_dispatch import Dispatcher
from shmwasm.client.pool_life import OnTrap, pool_options
from shmwasm.client.pool_lines import prepared
from shmwasm.client.pools import InstancePool
from shmwasm.client.receiving import Receiver
from shmwasm.client.spawn_options import SpawnOptions, spawn_options
from shmwasm.client.starting import start_private_coordinator
from shmwasm.posix.channels import Channel
from shmwasm.posix.conditions import Lock
from shmwasm.posix.listening import connect as connect_to
from shmwasm.posix.processes import check_platform
from shmwasm.posix.processors import usable_processors
from shmwasm.posix.reentry import refuse_on_top
from shmwasm.posix.segments import Source
from shmwasm.posix.signals import interrupts_let_through, interrupts_put_off
from shmwasm.protocol import messages

ENDING_PATIENCE = 1.0
"""Seconds that a close waits for the private coordinator to end. It goes on while another process, such as one that unpickled a
block, is its client; then it is reaped later."""

_log = logging.getLogger("shmwasm")

_runtimes: weakref.WeakSet[Runtime] = weakref.WeakSet()
_runtimes_lock = Lock()


class Runtime(AsyncClosing):
    """A connection to a coordinator: makes heaps, loads modules, spawns instances.

    Args:
        connect: Where a shared coordinator listens (`shmwasm coordinator --socket PATH`). By default a private coordinator is
            started, which ends, with everything made through it, when its last client goes, however that goes.
        quota: Bytes of managed heaps that this process may hold in all; 0 for no limit.

    Raises:
        UnsupportedError: This machine or the installed engine cannot do it; the reason is named.
        CoordinatorLostError: No coordinator listens there, or it could not be started.
        PeerRefusedError: The coordinator there belongs to another user.

    Calling its methods from several threads at once is safe. It must not be used in a forked child.
    """

    _closed: str | None = "was not opened"

    def __init__(self, *, connect: str | os.PathLike[str] | None = None, quota: int = 0) -> None:
        refuse_on_top("a new runtime")
        allowed = checks.whole_number(quota, "a quota of bytes")
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = Lock()
        self._instances: dict[int, Instance] = {}
        self._pools: set[Dispatcher] = set()
        self._modules: weakref.WeakSet[Module] = weakref.WeakSet()
        try:
            with interrupts_put_off():  # else a process, a thread or a descriptor is left that nobody ends
                check_platform()
                self._open(connect, allowed)
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        """Where other processes of this user can connect to the same coordinator (`Runtime(connect=...)`)."""
        return self._welcome.address

    def create_shared_heap(
        self,
        size: int | None = None,
        *,
        pre_allocated: Source | None = None,
        name: str | None = None,
        read_only: bool = False,
        on_death: OnDeath = "keep",
        scrub: bool = False,
        remote_free: bool = True,
        reserve: bool = True,
        prefault: bool = False,
    ) -> SharedHeap:
        """Create a managed heap of `size` bytes, or make one of memory that exists already.

        Args:
            size: Bytes. A managed heap's are rounded up to 64 KiB; of preallocated memory it is how much to use, a multiple of
                the OS page, by default all of it (rounded up to an OS page).
            pre_allocated: The memory: a `multiprocessing.shared_memory.SharedMemory`, a `posix_ipc.SharedMemory`, a descriptor,
                a file, or a path. It must not be truncated while it is a heap.
            name: For people, and for `open_shared_heap` in other processes; unique in the coordinator. By default one is made up.
            read_only: Nobody may write to it (preallocated memory only).
            on_death: What becomes of the live blocks of a process that dies: "keep" or "free".
            scrub: Zero every block when it is freed.
            remote_free: Whether a block may be freed by another process than the one that allocated it.
            reserve: Reserve the memory now, so that a full /dev/shm is an error here, and not the death of whoever touches it
                first.
            prefault: Map all pages at once wherever the heap is attached, instead of at their first touch.

        Raises:
            HeapNoSpaceError: /dev/shm has too little room.
            ArgumentError: A value that cannot be; the message names it.
        """
        self._require_open()
        return self._heaps.create(
            size,
            pre_allocated,
            name=name,
            read_only=read_only,
            on_death=on_death,
            scrub=scrub,
            remote_free=remote_free,
            reserve=reserve,
            prefault=prefault,
        )

    def open_shared_heap(self, name: str) -> SharedHeap:
        """Open a heap that some client of the same coordinator created under that name; the same heap object every time.

        Raises:
            UnknownHeapError: There is none.
        """
        self._require_open()
        return self._heaps.open(name=checks.text(name, "a heap's name", longest=LONGEST_NAME))

    def chain_shared_heaps(self, head: SharedHeap, body: SharedHeap) -> SharedHeap:
        """Put `head` directly below `body` (and the chain that it heads); return the head of the new chain.

        Raises:
            ChainError: A heap is attached, `body` is a body already, `head` is a body or heads a chain, or both together do not
                fit into a window. Nothing changed.
        """
        self._require_open()
        return self._heaps.chain(head, body)

    def unchain_shared_heaps(self, head: SharedHeap, *, entire_chain: bool = False) -> SharedHeap:
        """Take the first heap off a chain, or all apart.

        Returns:
            The head of the rest; with `entire_chain`, the heap that was the last.

        Raises:
            ChainError: `head` heads no chain, or a heap of the chain is attached. Nothing changed.
        """
        self._require_open()
        return self._heaps.unchain(head, entire_chain=checks.flag(entire_chain, "entire_chain"))

    def reset_shared_heap_chain(self, head: SharedHeap) -> None:
        """Free everything in a chain: managed heaps become empty, preallocated ones zero.

        Raises:
            ChainError: See `SharedHeap.reset`.
        """
        self._require_open()
        self._heaps.reset(head)

    def chain_of(self, head: SharedHeap) -> Sequence[SharedHeap]:
        """Return the heaps of the chain that `head` heads, as far as they are open here, from the head to the last body."""
        return self._heaps.chain_of(head)

    def load(
        self,
        source: str | bytes | os.PathLike[str],
        *,
        imports: Imports | None = None,
        name: str | None = None,
        metered: bool = False,
    ) -> Module:
        """Load a module: compile it, or take it from the cache.

        Args:
            source: A path, the bytes of a module, or WAT text.
            imports: Host functions by module and name. Each is called as `function(caller, *arguments)`, in the worker, for
                which it must be importable or picklable; wrap it in `on_client` to have it run in this process. A global that
                the module imports is given as a number.
            name: What to call it in messages; by default its path.
            metered: Whether its calls use up *fuel*, of which they can be given an amount: see `Instance.call`. One unit is about
                one instruction. A call with the same arguments, on an instance with the same memory, uses the same amount on
                every machine.

        Raises:
            ModuleError: It is no module, the file cannot be read, or it imports what was not given.
            ArgumentError: An import cannot be called or pickled, or is no number that fits.
            UnsupportedError: It exports a name that is reserved, imports what cannot be given, or others can write to the cache.
        """
        self._require_open()
        refuse_on_top("loading a module")
        label = None if name is None else checks.text(name, "a module's name", longest=LONGEST_NAME)
        try:
            compiled = self._allocator.compile(source, metered=checks.flag(metered, "metered"))
        except errors.ModuleError as failure:
            raise errors.ModuleError(label or failure.module, failure.reason) from None
        try:
            module = Module(label or compiled.name, compiled, self._allocator.compile_dispatcher(compiled), imports)
        except BaseException:
            compiled.close()
            raise
        self._modules.add(module)
        return module

    def spawn(
        self,
        module: Module,
        *,
        shared_heap: SharedHeap | None = None,
        read_only: bool = False,
        quota: int = 0,
        memory_limit: int | None = None,
        fuel: int | None = None,
        wasi: messages.WasiOptions | None = None,
        start_timeout: float | None = None,
    ) -> Instance:
        """Make an instance in a worker process of its own.

        Args:
            module: What `load` returned.
            shared_heap: The head of the chain to attach; None for nothing.
            read_only: Attach it so that stores trap.
            quota: Bytes of managed heaps that the instance may hold in all; 0 for no limit.
            memory_limit: Bytes that the guest's own memory may have at most: `memory.grow` beyond answers -1. Where there are
                several memories, each may have an equal share of what the maxima of smaller ones leave.
            fuel: What each call may use that says nothing else, if the module was loaded as a metered one; None for no limit.
            wasi: What WASI preview 1 grants the guest, if it imports that; by default nothing.
            start_timeout: Seconds until the instance must be ready, with its start function and `_initialize`; None for no limit.

        Raises:
            ArgumentError: The module starts with more memory than `memory_limit`, or it is shared and may grow beyond.
            InstantiationError: The instance could not be made, its start function trapped, or it was not ready in time.
            AttachError: The chain cannot be attached to it.
        """
        self._receiver.check_may_block()
        self._check_module(module)
        options = spawn_options(
            module,
            shared_heap=shared_heap,
            read_only=read_only,
            quota=quota,
            memory_limit=memory_limit,
            fuel=fuel,
            wasi=wasi,
            start_timeout=start_timeout,
        )
        return _await_instances(iter([self._begin_spawn(options)]))[0]

    def pool(
        self,
        module: Module,
        *,
        size: int | None = None,
        min_size: int | None = None,
        max_size: int | None = None,
        idle_timeout: float | None = 30.0,
        shared_heap: SharedHeap | None = None,
        read_only: bool = False,
        quota: int = 0,
        memory_limit: int | None = None,
        fuel: int | None = None,
        wasi: messages.WasiOptions | None = None,
        timeout: float | None = None,
        start_timeout: float | None = None,
        on_trap: OnTrap = "keep",
        recycle_after: int | None = None,
        init: str | tuple[Any, ...] | None = None,
        fresh: bool = False,
    ) -> InstancePool:
        """Make a pool of instances, all alike.

        Args:
            module: What `load` returned.
            size: How many instances; by default as many as this process may use processors.
            min_size: Instead of `size`: how many instances there are at least; 0 is possible, and 1 the default with `max_size`.
            max_size: How many there are at most, while calls have to wait; by default as many as processors.
            idle_timeout: Seconds after which an instance beyond `min_size` that has nothing to do is let go; None for never.
            shared_heap: The head of the chain to attach; None for nothing.
            read_only: Attach it so that stores trap.
            quota: Bytes of managed heaps that each instance may hold in all; 0 for no limit.
            memory_limit: Bytes that each guest's own memory may have at most.
            fuel: What each call may use that says nothing else, if the module was loaded as a metered one; None for no limit.
            wasi: What WASI preview 1 grants the guests.
            timeout: Seconds that each call may run that says nothing else; None for no limit.
            start_timeout: Seconds until each instance must be ready (see `spawn`), and as many for `init`; None for no limit, but
                that `timeout` is the one of `init`.
            on_trap: What becomes of an instance that trapped or was interrupted: "keep" it, its private memory as that left it,
                or "replace" it by a new one before anything else is called.
            recycle_after: How many calls an instance runs before it is replaced by a new one; None for no limit.
            init: An export to be called once on each new instance before anything else, or a tuple of its name and its arguments.
            fresh: Whether each call runs in an instance that no call ran in before: its private memory, globals, tables and WASI
                state are as they are after instantiation, start function, `_initialize` and `init`, all of which are repeated for
                each call, before it comes if there is time. Such a preparation fails the call that it was for, with
                `InstantiationError`; `start_timeout` is its limit, or else `timeout`. What is shared stays: heaps, and whatever
                blocks a call leaves behind in them. (Worker processes run many calls, and are replaced now and then.)

        Raises:
            ArgumentError: The options do not fit together.
            InstantiationError: See `spawn`; also whatever the call of `init` raised.
        """
        self._receiver.check_may_block()
        options = pool_options(
            size=size,
            min_size=min_size,
            max_size=max_size,
            usable=usable_processors(),
            timeout=timeout,
            start_timeout=start_timeout,
            idle_timeout=idle_timeout,
            recycle_after=recycle_after,
            on_trap=on_trap,
            init=init,
            fresh=fresh,
        )
        self._check_module(module)
        calls = messages.FreshCalls(init=init is not None, time_limit=options.preparation_timeout) if options.fresh else None
        each = spawn_options(
            module,
            shared_heap=shared_heap,
            read_only=read_only,
            quota=quota,
            memory_limit=memory_limit,
            fuel=fuel,
            wasi=wasi,
            start_timeout=options.start_timeout,
            fresh=calls,
        )

        def spawn() -> Future[Instance]:
            return prepared(self._begin_spawn(each), options)

        return InstancePool(
            module,
            _await_instances(spawn() for _ in range(options.least)),
            spawn=spawn,
            options=options,
            receiver=self._receiver,
            kept=self._pools,
        )

    def verify(self) -> int:
        """Have the coordinator check every invariant of all its heaps; return how many were checked.

        Raises:
            HeapCorruptError: One does not hold.
        """
        self._require_open()
        return self._connection.request(messages.Verified, lambda number: messages.Verify(request=number))[0].heaps

    def status(self) -> dict[str, Any]:
        """Return what the coordinator holds: the number of clients, and a dictionary for each heap and each worker."""
        self._require_open()
        report = self._connection.request(messages.StatusReport, lambda number: messages.Status(request=number))[0]
        return {"clients": report.clients, "heaps": report.heaps, "workers": report.workers}

    def close(self) -> None:
        """End all instances at once, let go of all heaps, and leave the coordinator. Twice is fine; views stay valid.

        Calls under way fail with `WorkerLostError`, waiting ones are cancelled.
        """
        if self._closed is not None:
            return
        self._receiver.check_may_block()
        with interrupts_put_off(), contextlib.ExitStack() as ending:  # all of it is done, also if an interrupt ends a wait
            with self._lock:
                if self._closed is not None:
                    return
                self._closed = "is closed"
            for pool in list(self._pools):
                pool.abort()
            ending.callback(self._shut_down)
            ending.callback(self._leave)
            ending.callback(self._allocator.close)
            for module in list(self._modules):
                ending.callback(module.close)
            ending.callback(self._heaps.release)
            for instance in list(self._instances.values()):
                ending.callback(instance.discard)
                ending.callback(instance.kill)

    def open_by_token(self, token: str) -> SharedHeap:
        """Open a heap by its capability's token; the same heap object every time."""
        self._require_open()
        return self._heaps.open(token=token)

    @property
    def usable(self) -> bool:
        """Whether this runtime is open, and belongs to this process."""
        return self._closed is None and not self._connection.lost

    def abandon(self) -> None:
        """Make this runtime unusable in a forked child, without a word to the coordinator, whose client is the parent."""
        if self._closed is not None:
            return  # it holds nothing any more, and its descriptors' numbers may be others' by now
        self._closed = f"belongs to process {os.getppid()}, and cannot be used in a forked child"
        self._lock = Lock()  # another thread may have held it
        self._allocator.abandon(self._closed)
        self._connection.abandon()
        for instance in self._instances.values():
            instance.abandon()
        for pool in self._pools:
            pool.abandon(self._closed)
        self._heaps.abandon()
        self._receiver.abandon()
        if self._process is not None:
            # The child is not its parent: it must neither wait for it nor complain.
            self._process.returncode = 0

    def _open(self, connect: str | os.PathLike[str] | None, quota: int) -> None:
        if connect is None:
            channel, self._process = start_private_coordinator()
        else:
            channel = connect_to(connect)
        self._receiver = Receiver()
        self._connection = Connection(channel, self._receiver, self._handle_event)
        try:
            self._welcome = self._connection.request(
                messages.Welcome, lambda number: messages.Hello(request=number, version=messages.VERSION, quota=quota)
            )[0]
            self._allocator = ClientAllocator(self._welcome.peer, self._connection)
            self._heaps = HeapBook(self._welcome.address, self._connection, self._allocator)
        except BaseException:
            self._shut_down()
            raise
        self._closed = None
        with _runtimes_lock:
            _runtimes.add(self)

    def _begin_spawn(self, options: SpawnOptions) -> Future[Instance]:
        self._require_open()
        chain_head = 0 if options.shared_heap is None else self._heaps.number_of(options.shared_heap)
        plan = options.plan()
        self._allocator.core()  # made here, as the receiver, which will need it, should not take so long
        spawned: Future[Instance] = SafeFuture()

        def finish(answer: Future[Reply]) -> None:
            failure = answer.exception()
            if failure is not None:
                options.module.translate(failure)
                # Not raised here: its traceback would keep this function, and with it the module, until the next collection.
                spawned.set_exception(failure)
                return
            try:
                reply, descriptors = answer.result()
                assert isinstance(reply, messages.Spawned)
                spawned.set_result(self._add_instance(reply, descriptors[0], options))
            except BaseException as error:  # noqa: BLE001  it belongs to whoever waits
                spawned.set_exception(error)

        self._connection.begin(
            lambda number: messages.Spawn(
                request=number,
                plan=plan,
                chain_head=chain_head,
                read_only=options.read_only,
                quota=options.quota,
                time_limit=options.time_limit,
            ),
            [options.module.compiled.descriptor, options.module.dispatcher.descriptor],
            then=finish,
        )
        return spawned

    def _check_module(self, module: Module) -> None:
        self._require_open()
        if not isinstance(module, Module):
            raise errors.ArgumentError(f"{errors.shown(module)} is not a module")
        if module not in self._modules:
            raise errors.ArgumentError(f"{errors.shown(module)} is not a module that this runtime loaded")

    def _add_instance(self, spawned: messages.Spawned, descriptor: int, options: SpawnOptions) -> Instance:
        channel = Channel.from_descriptor(descriptor)
        try:
            instance = Instance(
                spawned,
                channel,
                options,
                core=self._allocator.core(),
                connection=self._connection,
                receiver=self._receiver,
                heaps_of=self._heaps.chain_of,
                number_of=self._heaps.number_of,
                forget=self._forget_instance,
            )
        except BaseException:
            channel.close()
            kill_soon(self._connection, spawned.instance)
            raise
        with self._lock:
            self._instances[instance.number] = instance
        return instance

    def _forget_instance(self, instance: Instance) -> None:
        self._instances.pop(instance.number, None)

    def _handle_event(self, message: messages.CoordinatorToClient) -> None:
        """Handle what the coordinator says of its own accord; runs in the receiver thread."""
        match message:
            case messages.InstanceExited(instance=number, signal=exit_signal, exit_code=exit_code):
                instance = self._instances.get(number)
                if instance is not None:
                    _note_exit(instance, exit_signal, exit_code)
            case messages.ChainMoved(chains=chains) | messages.ChainLaidOut(chains=chains):
                self._heaps.lay_out(chains)
            case messages.HeapOpened(chain=chain):
                self._heaps.lay_out([chain])
            case messages.Recall(heap=number):
                with contextlib.suppress(errors.CoordinatorLostError, errors.ClosedError):  # then there is nobody to give it to
                    self._heaps.give_back(number)
                    self._connection.send(messages.Recalled(heap=number))
            case messages.Failed():
                for instance in list(self._instances.values()):
                    _note_exit(instance, None, None)

    def _require_open(self) -> None:
        if self._closed is not None:
            raise errors.ClosedError("this runtime", self._closed)

    def _leave(self) -> None:
        with interrupts_let_through():  # the coordinator may be stopped
            self._connection.leave()

    def _shut_down(self) -> None:
        self._connection.close()
        self._receiver.stop()
        if self._process is not None:
            try:
                self._process.wait(ENDING_PATIENCE)
            except subprocess.TimeoutExpired:
                threading.Thread(target=self._process.wait, name="shmwasm-coordinator-end", daemon=True).start()


def _note_exit(instance: Instance, exit_signal: int | None, exit_code: int | None) -> None:
    """Tell an instance that its worker is gone. If that fails, which only a bug can, all others and the connection go on."""
    try:
        instance.exited(exit_signal, exit_code)
    except BaseException:  # noqa: BLE001  this is the receiver thread: see `receiving`
        _log.critical("the end of %r could not be handled", instance, exc_info=True)


def _await_instances(starts: Iterator[Future[Instance]]) -> list[Instance]:
    """Begin all, and return the instances once they are there. If one fails, or the wait is interrupted, each is ended."""
    starting: list[Future[Instance]] = []
    try:
        with interrupts_put_off():  # none is to be begun and not known
            starting.extend(starts)
        return [future.result() for future in starting]
    except BaseException:
        # Not waited for: a start function need not come back.
        for future in starting:
            future.add_done_callback(_dismiss)
        raise


def _dismiss(started: Future[Instance]) -> None:
    if started.exception() is None:
        started.result().dismiss()


def attach_block(address: str, token: str, offset: HeapOffset, size: int) -> Block:
    """Return a block that another process of this user pickled; this process joins its coordinator if it has not yet."""
    refuse_on_top("unpickling a block")
    with _runtimes_lock:
        runtime = next((one for one in _runtimes if one.usable and one.address == address), None)
    if runtime is None:
        runtime = Runtime(connect=address)
        _joined.append(runtime)
    return Block(runtime.open_by_token(token), offset, size)


_joined: list[Runtime] = []
"""Runtimes that unpickling made; they live as long as the process."""


def _warn_of_unclosed() -> None:
    """Warn of runtimes that somebody forgot, when the interpreter ends: no other moment comes, as their threads keep them."""
    for runtime in list(_runtimes):
        if runtime.usable and runtime not in _joined:
            warnings.warn(f"unclosed {runtime!r}", ResourceWarning, stacklevel=2, source=runtime)


atexit.register(_warn_of_unclosed)


def _abandon_in_child() -> None:
    for runtime in list(_runtimes):
        runtime.abandon()
    _joined.clear()


os.register_at_fork(after_in_child=_abandon_in_child)
