"""The client's end of a call ring, which submits calls and waits for them.

Theory
------
`ring.h` is the specification, `ring.c` does the work on both sides; the worker's is in `worker_ring`. `ClientRing.call_function`
makes what is called most: it enters the core once, which submits the call and looks for its end, and leaves whatever does not go
so smoothly to its caller.

The ring holds two bells, where the worker and one thread of the client sleep. What else the two sides tell each other beside it
(completion, interrupt) is up to the callers.

Locking
-------
What the client's side of the core does in one call is atomic (see `calls`), and a `Request`, where arguments and results pass,
belongs to one thread from `request` to `give`. Requests are core memory, which is never given back: a closed ring leaves them to
the next. By then they name no ring, so that a function that somebody has kept for longer reaches none.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING, Final, Self

from shmwasm.addresses import NativeAddress
from shmwasm.core import layout
from shmwasm.core.calls import one_at_a_time
from shmwasm.core.requests import EndedCall, NoKind, Request, Steps, hot_function
from shmwasm.core.worker_ring import SEALS, RunningCall, call_in
from shmwasm.errors import ArgumentError, ClosedError, UnsupportedError
from shmwasm.posix import bells
from shmwasm.posix.mappings import map_anywhere
from shmwasm.posix.signals import interrupts_put_off

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from shmwasm.core.allocator import Core
    from shmwasm.core.dispatching import Signature

_BUFFERS_SIZE: Final = layout.RING_BATCH_BUFFERS * layout.RING_BATCH_SIZE
_NO_KIND: Final = NoKind()
_SUBMITTED: Final = 64 // 4
_CLOSING: Final = 76 // 4
_PARKED: Final = 192 // 4
"""Where these are in a ring, in words."""


class ClientRing:
    """The client's end of a new ring, through which it calls the functions of one worker.

    Where a method returns an answer, it is one of `layout.RING_DONE` and its neighbours; `RING_DOORBELL` may be added to
    `RING_PENDING`: the worker sleeps, and the caller must ring its bell. One thread of the client at a time sleeps at the other
    bell: whose call has dozed there, until that call was waited for.

    Args:
        core: The client's core.
        cells: How many cells a call has at most: see `dispatching.cells_of`.

    Attributes:
        descriptor: The segment, to be sent to the worker. The ring's, until `close`.
        worker_bell: What wakes a worker that sleeps; valid while the ring is open.
        end_bell: Where to sleep after `doze`; likewise.
        left_running: Called with the number of a call that was withdrawn while it ran.

    Raises:
        ArgumentError: So many cells no function has.
        UnsupportedError: There is no room, in memory or in the core's address space.
    """

    def __init__(self, core: Core, cells: int) -> None:
        if not 0 <= cells <= layout.RING_MAXIMUM_CELLS:
            raise ArgumentError(f"a ring for calls of {cells} values was asked for; they have 0 to {layout.RING_MAXIMUM_CELLS}")
        self._core = core
        self._cells = cells
        self._closed: str | None = None
        self._made: list[Request] = []
        self._pools: dict[int, list[Request]] = {}
        self._hot_pools: list[list[Request]] = []
        self._batches: list[Request] = []
        self.left_running: Callable[[int], None] = _nothing
        self.descriptor = new_sealed_memory("shmwasm-calls", layout.RING_SIZE)
        try:
            self._buffers = map_anywhere(self.descriptor, _BUFFERS_SIZE, writable=True, offset=layout.RING_BATCHES)
            self.address = core.map_segment(self.descriptor, layout.RING_SIZE)
        except BaseException:
            os.close(self.descriptor)
            raise
        core.call("ring_format", self.address, cells)
        self.worker_bell = core.native_address(self.address + layout.RING_WORKER_BELL)
        self.end_bell = core.native_address(self.address + layout.RING_END_BELL)
        for bell in (self.worker_bell, self.end_bell):
            bells.make(bell)
        self._header = core.view(self.address, layout.RING_FIRST_SLOT).cast("I")
        self._collector = self._new_request(0, _NO_KIND, [], cells)

    def call_function(
        self,
        number: int,
        kind: Signature,
        convert: Callable[[tuple[object, ...]], Sequence[int | float]],
        sleep: Callable[[], object],
        finish: Callable[[Request | None, int], object],
    ) -> Callable[..., object]:
        """Return the function that calls one of the worker's, as quickly as it can be done.

        It takes the arguments by position, and returns None, the result, or a list of the results. Whenever it ends by an
        exception, a call of it that has not ended is withdrawn or left to `collect`.

        Args:
            number: Which one: its place in `dispatching.dispatched`.
            kind: Its type.
            convert: Makes of the arguments numbers in the ranges of their types, integers all unsigned or all signed; raises
                unless they are as many as the parameters, and all numbers that fit. Called where packing them as they are failed.
            sleep: Rings for the worker, which sleeps, and sleeps once at the other bell, where the caller has dozed.
            finish: Returns what the call is to return, or raises; called with the request and the answer, other than RING_DONE,
                that `submit` and one or the other look at the ring gave. The request is None if there is no ring any more. It
                must not `give` the request.
        """
        pool: list[Request] = []
        self._hot_pools.append(pool)

        def new() -> Request | None:
            if self._closed is not None:
                return None
            return self._new_request(number, kind, pool)

        steps = Steps(new, convert, sleep, finish, self.withdraw)
        call, look = self._core.function("ring_call"), self._core.function("ring_look")
        return one_at_a_time(hot_function(call, look, kind, pool, steps), self._core.lock)

    def request(self, number: int, kind: Signature) -> Request:
        """Return a request for a single call of that function, to be packed, submitted, and given back.

        Raises:
            ClosedError: The ring is closed.
            UnsupportedError: The core's memory cannot grow.
        """
        pool = self._pools.setdefault(number, [])
        try:
            return pool.pop()
        except IndexError:
            return self._new_request(number, kind, pool)

    def batch_request(self, number: int, count: int, arguments: int, results: int) -> Request:
        """Return a request for `count` calls, at least 1, whose columns start at these offsets in the ring's batch buffers.

        Raises:
            ClosedError: The ring is closed.
            UnsupportedError: The core's memory cannot grow.
        """
        try:
            request = self._batches.pop()
        except IndexError:
            request = self._new_request(number, _NO_KIND, self._batches)
        else:
            request.name(number)
        request.prepare_batch(count, layout.RING_BATCHES + arguments, layout.RING_BATCHES + results)
        return request

    def give(self, request: Request) -> None:
        """Give back a request that is no longer needed: its call was waited for, left, or submitted as an asynchronous one."""
        request.pool.append(request)

    def submit(self, request: Request, flags: int = 0, when: int = 0) -> int:
        """Submit a call: RING_PENDING, with or without RING_DOORBELL; or RING_FULL, RING_CLOSING, or RING_LOST for a closed ring.

        Args:
            request: What to call, and with what; afterwards its `sequence` is the call's number.
            flags: `layout.CALL_ASYNCHRONOUS`: `collect` finds it. `layout.CALL_STOPPABLE`, of a batch: see `end_at`.
            when: Any number, for `EndedCall.when`.
        """
        request.prepare(flags, when)
        return self._core.call("ring_submit", request.place)

    def wait(self, request: Request, looks: int = 0) -> int:
        """Look whether a call has ended, `looks` times more than once: RING_DONE, RING_FAILED, RING_PENDING, or RING_LOST."""
        return self._core.call("ring_wait", request.place, looks)

    def doze(self, request: Request, how: int = layout.RING_BELL) -> tuple[NativeAddress, int] | None:
        """Prepare to sleep until a call ends.

        Args:
            request: The call.
            how: `layout.RING_BELL`: at `end_bell`, unless another thread does; or `layout.RING_FUTEX`.

        Returns:
            Where to sleep, `end_bell` or a futex, and what the latter holds until the call ends; None if there is no need to.
        """
        place = self._core.call("ring_doze", request.place, how)
        return (self._core.native_address(place), request.status) if place else None

    def ask(self) -> None:
        """Ask for a wake-up at the next end of an asynchronous call; then `collect` once more before you sleep."""
        self._call("ring_ask")

    def collect(self) -> list[EndedCall]:
        """Take all asynchronous calls that have ended, and make room for others."""
        ended: list[EndedCall] = []
        found = -1
        with self._core.lock:  # the collector is one for all threads, and another ring's once this one is closed
            if self._closed is not None:
                return ended
            while (found := self._core.call("ring_collect", self._collector.place, found + 1)) != layout.RING_SLOTS:
                ended.append(self._collector.ended())
        return ended

    def leave(self, sequence: int) -> bool:
        """Leave a call that somebody waited for to `collect`; return whether it has ended: then call `collect` at once."""
        return bool(self._call("ring_leave", sequence))

    def withdraw(self, request: Request) -> None:
        """Give up a call that nobody waits for any more, unless it has ended."""
        with interrupts_put_off():  # half of it would leave a call in the ring that nobody collects
            if self.end_early(request.sequence, only_waiting=True) == layout.CALL_RUNNING:
                self.left_running(request.sequence)
            if self.state(request.sequence) != layout.CALL_EMPTY and self.leave(request.sequence):
                self.wait(request)  # it has ended, and the receiver may not know
            request.forget()

    def end_early(self, sequence: int, *, only_waiting: bool = False) -> int:
        """End a call early, or only if it has not begun.

        Returns:
            CALL_CANCELLED: It will not begin. It ends as CALL_WITHDRAWN when its turn comes.
            CALL_INTERRUPTING: It runs, and the worker waits for one interrupt, which the caller must send.
            CALL_RUNNING: It runs, and was only to be cancelled.
            CALL_EMPTY: It has ended.
        """
        return self._call("ring_end_early", sequence, int(only_waiting))

    def end_at(self, sequence: int, progress: int) -> int:
        """End a stoppable batch early, but only if it runs the call that comes after `progress` others.

        Returns:
            What `end_early` does, but CALL_RUNNING if that call has returned: then the batch goes on, or ends after another one.
        """
        return self._call("ring_end_at", sequence, progress)

    def state(self, sequence: int) -> int:
        """Return the state of a call: CALL_EMPTY once it was collected."""
        return self._call("ring_state", sequence)

    @property
    def submitted(self) -> int:
        """How many calls were submitted so far, modulo 2**32."""
        with self._core.lock:
            return self._header[_SUBMITTED] if self._closed is None else 0

    def is_parked(self) -> bool:
        """Return whether the worker sleeps, or is about to."""
        with self._core.lock:
            return self._closed is None and bool(self._header[_PARKED])

    def running(self) -> RunningCall | None:
        """Return the call that the worker runs, or ran when it died."""
        with self._core.lock:
            if self._closed is not None:
                return None
            slot = self._core.call("ring_running", self.address)
            words = self._core.view(slot, layout.RING_SLOT_HEADER).cast("I")
            return call_in(words) if words[0] in {layout.CALL_RUNNING, layout.CALL_INTERRUPTING} else None

    def call_attention(self) -> None:
        """Make the worker read its messages before its next call; to be called when one was sent."""
        self._call("ring_call_attention")

    def set_spin(self, looks: int) -> None:
        """Set how often the worker looks for a call before it parks."""
        self._call("ring_set_spin", looks)

    def set_patience(self, looks: int) -> None:
        """Set how often a call looks for its end before it goes on more slowly."""
        self._call("ring_set_patience", looks)

    def batch_buffer(self, index: int) -> memoryview:
        """Return one of the buffers for batches; it stays valid, without effect, when the ring is closed."""
        return self._buffers.view[index * layout.RING_BATCH_SIZE : (index + 1) * layout.RING_BATCH_SIZE]

    def take_no_more(self) -> None:
        """Answer RING_CLOSING to every submission from now on, but for asynchronous calls."""
        with self._core.lock:
            if self._closed is None:
                self._header[_CLOSING] = 1

    def retire(self) -> None:
        """Make every later use find no ring; it stays mapped until `close`."""
        with self._core.lock:  # a request that is just being made would belong to it for ever
            self._retire("is closed")

    def abandon(self, reason: str) -> None:
        """Take the ring away from a forked child, whose parent still uses it."""
        self._retire(reason)
        self._close_descriptor()

    def close(self) -> None:
        """Drop the ring. Calls that have not ended are lost. May be called twice."""
        with self._core.lock:
            self._retire("is closed")
            if self.descriptor < 0:
                return
            self._core.unmap_segment(self.address)
            self._buffers.close()
            self._close_descriptor()
            for pool in (*self._hot_pools, *self._pools.values(), self._batches, [self._collector]):
                self._release(pool)

    def _retire(self, reason: str) -> None:
        self._closed = self._closed or reason
        self.left_running = _nothing
        for request in self._made:
            request.belong(0)

    def _close_descriptor(self) -> None:
        os.close(self.descriptor)
        self.descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _call(self, name: str, *arguments: int) -> int:
        with self._core.lock:  # between the check and the call the place must not become another ring's
            if self._closed is not None:
                return layout.CALL_EMPTY
            return self._core.call(name, self.address, *arguments)

    def _new_request(self, number: int, kind: Signature, pool: list[Request], cells: int = 0) -> Request:
        """Make a request with room for its type, or for `cells` cells, in memory that another ring has left if there is some."""
        cells = max(len(kind.parameters), len(kind.results), cells)
        capacity = min(1 << max(cells - 1, 1).bit_length(), layout.RING_MAXIMUM_CELLS)
        with self._core.lock:
            if self._closed is not None:
                raise ClosedError("the call ring", self._closed)
            left = self._core.requests.setdefault(capacity, [])
            place = left.pop() if left else self._core.call("ring_new_request", capacity)
            if place == 0:
                raise UnsupportedError("one more call at a time", "the memory for their arguments and results cannot grow")
            request = Request(self._core, place, capacity, kind, pool)
            request.name(number)
            request.belong(self.address)
            self._made.append(request)
        return request

    def _release(self, pool: list[Request]) -> None:
        """Leave the requests of a pool to other rings; one that is in use stays with its user."""
        while True:
            try:
                request = pool.pop()
            except IndexError:
                return
            self._core.requests[request.capacity].append(request.place)


def _nothing(_sequence: int) -> None:
    """Do nothing about a call that was left running."""


def new_sealed_memory(name: str, size: int) -> int:
    """Return the descriptor of new memory whose size nobody can change.

    Raises:
        UnsupportedError: There is no room.
    """
    try:
        descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, size)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)
        except BaseException:
            os.close(descriptor)
            raise
    except OSError as failure:
        raise no_room(failure) from None
    return descriptor


def no_room(failure: OSError) -> UnsupportedError:
    """Return the error for a ring, or what belongs to it, that the kernel refused."""
    return UnsupportedError("one more instance", f"{failure.strerror}; see the limits on open files, on file sizes and on memory")
