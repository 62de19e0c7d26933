"""A pool of instances of one module, as an executor."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, wait
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from shmwasm.client.arguments import Value
from shmwasm.client.asynchronous_maps import AsyncResults
from shmwasm.client.background import in_background
from shmwasm.client.closing import done_in_background
from shmwasm.client.columns import Source
from shmwasm.client.futures import ReceivedFuture
from shmwasm.client.instances import Instance
from shmwasm.client.map_options import MapOptions, wishes_of
from shmwasm.client.mapping import Mapping
from shmwasm.client.modules import Module
from shmwasm.client.pool_dispatch import Dispatcher
from shmwasm.client.pool_exports import PoolExport, Request
from shmwasm.client.pool_life import PoolOptions
from shmwasm.client.pool_lines import Job
from shmwasm.client.pool_members import Spawn
from shmwasm.client.pool_statistics import PoolStatistics
from shmwasm.client.receiving import Receiver
from shmwasm.posix.reentry import afterwards, on_top_of_lock, refuse_on_top
from shmwasm.posix.signals import interrupts_put_off

if TYPE_CHECKING:
    from types import TracebackType


class PoolFuture(ReceivedFuture[Any]):
    """The future of a call of a pool; `cancel` succeeds until an instance has begun it."""

    def __init__(self, dispatcher: Dispatcher, check_may_block: Callable[[], None]) -> None:
        super().__init__(check_may_block)
        self._dispatcher = dispatcher
        self.job: weakref.ref[Job]
        """What the pool holds until it has ended."""

    def cancel(self) -> bool:
        """Cancel the call if it has not begun; return whether it is cancelled."""
        if on_top_of_lock():
            return self.cancelled()
        with interrupts_put_off():
            job = self.job()
            if self.done() or job is None or not self._dispatcher.withdraw(job):
                return self.cancelled()
            return super().cancel() and not self.set_running_or_notify_cancel()


class InstancePool(Executor):
    """Instances of one module, each in its own worker process; made by `Runtime.pool`.

    An executor whose functions are the guest's: `submit` and `map` take an export's name. Several threads and event loops may use
    it at once. Callbacks of its futures run in a thread that all calls share, and must neither block nor wait for a call; they
    may submit more.

    Args:
        module: The module.
        instances: The first instances.
        spawn: Begins to make one more.
        options: How it is to be.
        receiver: The thread that completes futures.
        kept: The dispatchers of the runtime's pools, this one's among them until it has ended. A pool that nobody holds is
            collected, with a `ResourceWarning` unless it was shut down; what it runs goes on.
    """

    def __init__(
        self,
        module: Module,
        instances: list[Instance],
        *,
        spawn: Spawn,
        options: PoolOptions,
        receiver: Receiver,
        kept: set[Dispatcher],
    ) -> None:
        self._module = module
        self._options = options
        self._receiver = receiver
        self._kept = kept
        self._dispatcher = Dispatcher(repr(self), instances, spawn, options, receiver)
        kept.add(self._dispatcher)
        self._exports: dict[str, PoolExport] = {}

    @property
    def size(self) -> int:
        """How many instances the pool keeps: of a pool that grows and shrinks, how many there are now, or soon."""
        return self._dispatcher.size

    @property
    def instances(self) -> list[Instance]:
        """The instances that are there now; one that was just lost is missing until it is replaced."""
        return self._dispatcher.instances

    def statistics(self) -> PoolStatistics:
        """Return what the pool did so far, and what it has now."""
        return self._dispatcher.statistics()

    def submit(self, fn: str, /, *args: Value, timeout: float | None = None, fuel: int | None = None) -> Future[Any]:  # type: ignore[override]
        """Call the export `fn` on some instance; return the future of its result, which ends as `Instance.call` does.

        Args:
            fn: The exported function's name.
            args: Its arguments, as `Instance.call` takes them.
            timeout: Seconds that the call may run, not counting the time in the queue; by default the pool's.
            fuel: Units of fuel that it may use, if the module is metered; by default the pool's.

        Raises:
            UnknownExportError: The module exports no such function.
            ArgumentError: The arguments do not fit the function's type, or a limit cannot be.
            UnsupportedError: There is a limit of fuel, and the module is not metered, or the function takes or returns something
                that is not a number.
            ClosedError: The pool was shut down.
        """
        job = self._job(self._request(fn, args, timeout, fuel))
        self._dispatcher.submit(job)
        return job.future

    def submit_to_all(self, fn: str, /, *args: Value, timeout: float | None = None, fuel: int | None = None) -> list[Future[Any]]:
        """Call the export `fn` once on each instance that is there now; return the futures of the results.

        Instances that come later, also in place of these, are not called: what each one needs is for `init`. The future of an
        instance that is lost before its call has begun ends with `WorkerLostError`. Takes and raises what `submit` does.
        """
        request = self._request(fn, args, timeout, fuel)

        def make() -> Job:
            job = self._job(request)
            job.only_there = True
            return job

        return [job.future for job in self._dispatcher.submit_to_all(make)]

    def broadcast(self, fn: str, /, *args: Value, timeout: float | None = None, fuel: int | None = None) -> list[Any]:
        """Call the export `fn` once on each instance, and wait; return the results.

        It waits for instances that are just being replaced; a pool that grows calls those that are there. If Ctrl-C ends the
        wait, the calls end, too.

        Raises:
            ShmwasmError: What `submit` raises; or what the first of the calls raised that did not return. All of them have ended.
        """
        self._receiver.check_may_block()
        self._dispatcher.wait_complete()
        futures = self.submit_to_all(fn, *args, timeout=timeout, fuel=fuel)
        try:
            wait(futures)
        except BaseException:
            with interrupts_put_off():
                self._end_early(futures)
            raise
        return [future.result() for future in futures]

    async def call_async(
        self,
        fn: str,
        /,
        *args: Value,
        timeout: float | None = None,  # noqa: ASYNC109  for the call, not for the await
        fuel: int | None = None,
    ) -> Any:
        """Call the export `fn` on some instance, and await its result; takes and raises what `submit` does.

        If the task is cancelled, so is the call if it has not begun; otherwise it is interrupted.
        """
        import asyncio  # noqa: PLC0415  whoever gets here has it; others need not wait for it

        job = self._job(self._request(fn, args, timeout, fuel))
        self._dispatcher.submit(job)
        try:
            return await asyncio.wrap_future(job.future)
        except asyncio.CancelledError:
            if not job.future.cancel():
                self._dispatcher.interrupt(job)
            raise

    def map(  # type: ignore[override]
        self,
        fn: str,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        call_timeout: float | None = None,
        fuel: int | None = None,
        ordered: bool = True,
        return_exceptions: bool = False,
        progress: Callable[[int, int | None], object] | None = None,
        out: Any = None,
    ) -> Any:
        """Call the export `fn` once for each tuple of arguments; return an iterator over the results, in order.

        The calls start at once, and go to the instances in lots, whose sizes follow from how long the calls take; so what follows
        a slow call may wait for it. Arguments that are numpy arrays, or lists, tuples or ranges of plain numbers, are packed
        without Python for each call. An array must not be changed until the results are there.

        The first call that fails ends the map: the error is raised when its turn comes, after the results before it. What is
        after it and has not begun by then is dropped, as it is where the iterator is closed.

        Args:
            fn: The exported function's name.
            iterables: One for each parameter; the shortest ends the calls. A structured array stands for as many parameters as it
                has fields. Lists, tuples, ranges and arrays are run to their ends whether or not somebody takes the results (up
                to 2 million calls ahead). Whatever else there is is read as the results are taken, in the same thread.
            timeout: Seconds to wait for all results, counted from now.
            chunksize: How many calls a lot has at most. With 1 no call waits for another of its lot.
            buffersize: How many calls may run ahead of the results that were taken.
            call_timeout: Seconds that each call may run, counted for itself also within a lot; by default the pool's. Fresh calls
                with a limit go to the instances singly.
            fuel: Units of fuel that each call may use, if the module is metered; by default the pool's.
            ordered: Whether the results come in order. Otherwise they come as the calls end.
            return_exceptions: Whether errors are given in the place of results, and all calls run, whatever fails.
            progress: Called, in the thread that takes the results, with how many calls have ended, and how many there are or None
                if nobody knows yet, whenever that has changed.
            out: A numpy array for the results, of one dimension, with a field for each result if there are several. Then this
                waits until all are in, and returns the array, or the part of it that was filled. Of iterables whose number nobody
                knows as many are called as there is room for.

        Raises:
            UnknownExportError: The module exports no such function.
            ArgumentError: An option cannot be, or there is not one iterable for each parameter; the message names it.
            UnsupportedError: There is a limit of fuel, and the module is not metered, or the function takes or returns something
                that is not a number.
            ClosedError: The pool was shut down.
            TimeoutError: A result was not there in time. What runs then is interrupted, as it is by whatever else comes from
                outside of the calls: Ctrl-C, or what an iterable raises.
        """
        options = MapOptions(
            timeout=timeout,
            chunksize=chunksize,
            buffersize=buffersize,
            call_timeout=call_timeout,
            fuel=fuel,
            ordered=ordered,
            return_exceptions=return_exceptions,
            progress=progress,
            out=out,
        )
        if out is not None:
            self._receiver.check_may_block()
        mapping = self._begin_map(fn, iterables, options)
        try:
            mapping.feed()
            return mapping.results() if out is None else mapping.fill()
        except BaseException as error:
            mapping.leave(error)
            raise

    def map_async(
        self,
        fn: str,
        *iterables: Iterable[Any],
        timeout: float | None = None,  # for all of them, from the first await on
        chunksize: int | None = None,
        buffersize: int | None = None,
        call_timeout: float | None = None,
        fuel: int | None = None,
        ordered: bool = True,
        return_exceptions: bool = False,
        progress: Callable[[int, int | None], object] | None = None,
        out: Any = None,
    ) -> AsyncResults:
        """Call the export `fn` once for each tuple of arguments; return the results for coroutines.

        `await` gives a list of all, or the array `out`; `async for` gives them one by one. Nothing happens before: then it takes
        and raises what `map` does, and its calls go to the instances as those of `map` do. Arguments that somebody's code gives
        are read in the event loop, for at most 2 ms at a time unless one takes longer.

        If the task that awaits is cancelled, or the iterator is closed or dropped, what has not begun is dropped. Cancelling
        interrupts what runs, too.
        """
        options = MapOptions(
            timeout=timeout,
            chunksize=chunksize,
            buffersize=buffersize,
            call_timeout=call_timeout,
            fuel=fuel,
            ordered=ordered,
            return_exceptions=return_exceptions,
            progress=progress,
            out=out,
        )
        return AsyncResults(lambda: self._begin_map(fn, iterables, options), into_array=out is not None)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002  the executor's signature
        """Take no more calls, and end the instances when those under way are done. Twice is fine.

        Maps whose arguments must be asked for, or whose results are too far behind, end where they are: whoever takes their
        results gets those that there are, and then `ClosedError`.

        Args:
            wait: Whether to return only when every instance is gone.
            cancel_futures: Whether to cancel the calls that have not begun.

        Raises:
            UnsupportedError: It would wait in a future's callback, in a host function that one of the instances waits for, or in
                a signal's handler or finalizer that runs on top of what has to end first. Nothing changed.
        """
        if not wait and on_top_of_lock():
            afterwards(partial(self.shutdown, wait=False, cancel_futures=cancel_futures))
            return
        if wait:
            self._receiver.check_may_block()
            for instance in self._dispatcher.instances:
                instance.check_may_close()
        self._dispatcher.shut(cancel=cancel_futures)
        if wait:
            self._finish()
        else:
            in_background(self._finish, "shmwasm-pool-shutdown")

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> bool | None:
        if kind is not None and not issubclass(kind, Exception):  # Ctrl-C, or the like
            self._dispatcher.shut(cancel=True)
            self._dispatcher.interrupt_all()
        self.shutdown(wait=True, cancel_futures=kind is not None)
        return None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._dispatcher.shut(cancel=kind is not None)
        await done_in_background(self._finish, "shmwasm-pool-shutdown")

    def __repr__(self) -> str:
        return f"<pool of {self._options.least} instances>"

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        # Nothing else is done: a finalizer may run at any moment, with any lock held.
        dispatcher = getattr(self, "_dispatcher", None)
        if dispatcher is not None and not dispatcher.is_shut:
            _warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)

    def _end_early(self, futures: list[Future[Any]]) -> None:
        """Cancel calls, or interrupt them."""
        for future in futures:
            if not future.cancel() and isinstance(future, PoolFuture) and (job := future.job()) is not None:
                self._dispatcher.interrupt(job)

    def _finish(self) -> None:
        ending = self._dispatcher.wait_done()
        for instance in list(ending):
            instance.close()
        ending.clear()
        self._kept.discard(self._dispatcher)

    def _export(self, fn: str) -> PoolExport:
        """Return an export, or raise unless it can be called."""
        try:
            return self._exports[fn]
        except (KeyError, TypeError):
            # Another thread may make it at the same time: one is as good as the other.
            return self._exports.setdefault(fn, PoolExport(self._module, fn, self._dispatcher.address_of))

    def _request(self, fn: str, args: tuple[Value, ...], timeout: float | None, fuel: int | None) -> Request:
        return self._export(fn).request(args, self._options.timeout if timeout is None else timeout, fuel)

    def _job(self, request: Request) -> Job:
        future = PoolFuture(self._dispatcher, self._receiver.check_may_block)
        job = Job(request, future)
        future.job = weakref.ref(job)
        return job

    def _begin_map(self, fn: str, iterables: tuple[Iterable[Any], ...], options: MapOptions) -> Mapping:
        refuse_on_top("a map")
        export = self._export(fn)
        source = Source(iterables)
        export.check_columns(source.columns)
        mapping = Mapping(
            fn,
            source,
            wishes_of(options, export, self._options, source.total),
            instances=lambda: self._dispatcher.usable,
            more=self._dispatcher.go_on,
            check_may_block=self._receiver.check_is_another,
        )
        try:
            self._dispatcher.go_on(mapping)
        except BaseException as error:
            mapping.leave(error)
            raise
        return mapping
