"""A pool of instances of one module, as an executor.

Each instance is given one call at a time; the others wait in one queue for all, so that a slow call holds nobody up. An instance
whose worker dies is replaced: its running call fails with `WorkerLostError`, the waiting ones never notice.

Locking: `_lock` guards the queue and the sets of instances. Futures are completed outside of it, as their callbacks may submit
more.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shmwasm import errors
from shmwasm.client import checks
from shmwasm.client.arguments import Value
from shmwasm.client.connection import complete
from shmwasm.client.instances import Instance

if TYPE_CHECKING:
    from types import TracebackType


@dataclass(slots=True, eq=False)
class _Work:
    """A call that waits for an instance, or runs on one."""

    export: str
    arguments: tuple[Value, ...]
    timeout: float | None
    future: Future[Any]


class InstancePool(Executor):
    """Instances of one module, each in its own worker process; made by `Runtime.pool`.

    An executor whose functions are the guest's: `submit` and `map` take an export's name.

    Args:
        instances: The first instances.
        spawn: Begins to make one more.
        check_may_block: Raises where waiting would be for ever: in the callback of a future.
        forget: Called once the pool has ended.
    """

    def __init__(
        self,
        instances: list[Instance],
        *,
        spawn: Callable[[], Future[Instance]],
        check_may_block: Callable[[], None],
        forget: Callable[[InstancePool], None],
    ) -> None:
        self._spawn = spawn
        self._check_may_block = check_may_block
        self._forget = forget
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._queue: deque[_Work] = deque()
        self._idle: list[Instance] = []
        self._busy: dict[Instance, _Work] = {}
        self._starting = 0
        self._size = len(instances)
        self._start_failure: BaseException | None = None
        self._shut = False
        self._released = False
        for instance in instances:
            self._adopt(instance)

    @property
    def size(self) -> int:
        """How many instances the pool keeps."""
        return self._size

    @property
    def instances(self) -> list[Instance]:
        """The instances that are there now; one that was just lost is missing until it is replaced."""
        with self._lock:
            return [*self._idle, *self._busy]

    def submit(self, fn: str, /, *args: Value, timeout: float | None = None) -> Future[Any]:  # type: ignore[override]
        """Call the export `fn` on some instance; return the future of its result, which ends as `Instance.call` does.

        Args:
            fn: The exported function's name.
            args: Its arguments, as `Instance.call` takes them.
            timeout: Seconds that the call may run, not counting the time in the queue.

        Raises:
            ClosedError: The pool was shut down.
        """
        work = _Work(fn, args, timeout, Future())
        with self._lock:
            if self._shut:
                raise errors.ClosedError(repr(self), "was shut down")
            self._queue.append(work)
            self._start_failure = None
        self._dispatch()
        return work.future

    def map(  # type: ignore[override]
        self, fn: str, *iterables: Iterable[Value], timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[Any]:
        """Call the export `fn` once for each tuple of arguments; yield the results in order.

        Args:
            fn: The exported function's name.
            iterables: One for each parameter; the shortest ends the calls. They are read at once.
            timeout: Seconds to wait for all results, counted from now.
            chunksize: Has no effect: calls are not sent in chunks.

        Raises:
            ArgumentError: `timeout` is no number of seconds.
            TimeoutError: A result was not there in time.
        """
        if timeout is not None:
            timeout = checks.seconds(timeout, "a time limit")
        return super().map(fn, *iterables, timeout=timeout, chunksize=chunksize)  # type: ignore[arg-type]

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002  the executor's signature
        """Take no more calls, and end the instances when those under way are done. Twice is fine.

        Args:
            wait: Whether to return only when every instance is gone.
            cancel_futures: Whether to cancel the calls that still wait.

        Raises:
            UnsupportedError: It would wait in a future's callback. Nothing changed.
        """
        if wait:
            self._check_may_block()
        with self._lock:
            self._shut = True
            cancelled = list(self._queue) if cancel_futures else []
            if cancel_futures:
                self._queue.clear()
        for work in cancelled:
            work.future.cancel()
        if wait:
            self._finish()
        else:
            threading.Thread(target=self._finish, name="shmwasm-pool-shutdown", daemon=True).start()

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> bool | None:
        self.shutdown(wait=True, cancel_futures=kind is not None)
        return None

    def __repr__(self) -> str:
        return f"<pool of {self._size} instances>"

    def abort(self) -> None:
        """Take no more calls and fail the waiting ones: the runtime closes."""
        with self._lock:
            self._shut = True
            waiting = list(self._queue)
            self._queue.clear()
            self._changed.notify_all()
        for work in waiting:
            work.future.cancel()

    def _finish(self) -> None:
        with self._lock:
            self._changed.wait_for(lambda: not self._queue and not self._busy and not self._starting)
            instances, self._idle = self._idle, []
            released, self._released = self._released, True
        for instance in instances:
            instance.close()
        if not released:
            self._forget(self)

    def _dispatch(self) -> None:
        """Give waiting calls to idle instances, and have lost instances replaced, as far as possible."""
        while True:
            with self._lock:
                lost = [instance for instance in self._idle if not instance.alive]
                self._idle = [instance for instance in self._idle if instance.alive]
                missing = self._missing()
                self._starting += missing
                assigned = self._assign()
                failure, failed = self._start_failure, self._take_hopeless()
                self._changed.notify_all()
            for work in failed:
                if work.future.set_running_or_notify_cancel():
                    complete(work.future, None, failure)
            for instance in lost:
                instance.discard()
            for _ in range(missing):
                self._start()
            if assigned is None:
                return
            self._run(*assigned)

    def _missing(self) -> int:
        """Return how many instances to start now. The lock is held."""
        if self._start_failure is not None or (self._shut and not self._queue):
            return 0
        return self._size - len(self._idle) - len(self._busy) - self._starting

    def _take_hopeless(self) -> list[_Work]:
        """Take the calls for which no instance is there, nor will be. The lock is held."""
        if self._start_failure is None or self._idle or self._busy or self._starting:
            return []
        hopeless = list(self._queue)
        self._queue.clear()
        return hopeless

    def _assign(self) -> tuple[Instance, _Work] | None:
        """Take the next call that still waits and an idle instance for it. The lock is held."""
        while self._queue and self._idle:
            work = self._queue.popleft()
            if work.future.set_running_or_notify_cancel():
                instance = self._idle.pop()
                self._busy[instance] = work
                return instance, work
        return None

    def _start(self) -> None:
        """Begin to make an instance, which `_missing` has counted."""
        try:
            starting = self._spawn()
        except Exception as error:  # noqa: BLE001  it belongs to whoever waits for the instance
            starting = Future()
            starting.set_exception(error)
        starting.add_done_callback(self._started)

    def _run(self, instance: Instance, work: _Work) -> None:
        try:
            running = instance.submit(work.export, *work.arguments, timeout=work.timeout)
        except Exception as error:  # noqa: BLE001  whatever it is belongs to the future
            self._return(instance)
            complete(work.future, None, error)
            return
        running.add_done_callback(lambda done: self._ended(instance, work, done))

    def _ended(self, instance: Instance, work: _Work, done: Future[Any]) -> None:
        self._return(instance)
        error = done.exception()
        complete(work.future, None if error is not None else done.result(), error)
        self._dispatch()

    def _return(self, instance: Instance) -> None:
        with self._lock:
            del self._busy[instance]
            self._idle.append(instance)

    def _started(self, spawned: Future[Instance]) -> None:
        error = spawned.exception()
        with self._lock:
            self._starting -= 1
            # After a failure nothing is started until somebody submits again: a module that cannot start must not spin.
            self._start_failure = error
            if error is None:
                self._adopt(spawned.result())
        self._dispatch()

    def _adopt(self, instance: Instance) -> None:
        self._idle.append(instance)
        instance.when_gone = self._dispatch
