"""How calls reach an instance: through a ring in shared memory, and a socket for what is seldom.

Theory
------
An instance runs one call at a time, in the order in which they were submitted. There are two kinds of calls. One that somebody
waits for is made by a function that `ClientRing` makes: with a worker that polls it is over after one look into the core, and
no thread or lock was involved; if not, the caller waits here, first looking, then asleep on the call's slot. An *asynchronous*
one is collected by the receiver thread, and its `ended` is called there. Either kind ends exactly once, with what the ring says
if it ended there, or with the worker's end.

Running calls are ended early by the receiver thread only, as it gets no signals: between a call's new state and the interrupt
that it announces nothing may come.

Locking
-------
`_lock` guards what is under way: an asynchronous call is submitted and noted down under it, so that its end finds it. Nobody
waits for room in the ring while holding it. Calls are ended outside of it, as their callbacks may start more.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from typing import Any, Literal

from shmwasm import errors
from shmwasm.client import checks
from shmwasm.client.asynchronous import Call, Target
from shmwasm.client.clocks import Clock
from shmwasm.client.receiving import Receiver
from shmwasm.client.side_channel import HostFunction, MemoryAnswered, Number, SideChannel
from shmwasm.client.sleeping import Sleepers
from shmwasm.client.spinning import pollers
from shmwasm.core import layout
from shmwasm.core.allocator import Core
from shmwasm.core.dispatching import Signature, cells_of, dispatched
from shmwasm.core.requests import EndedCall, Request, results_format, waited_for
from shmwasm.core.rings import ClientRing, no_room
from shmwasm.posix.channels import Channel
from shmwasm.posix.conditions import Condition
from shmwasm.posix.signals import interrupts_let_through, interrupts_put_off
from shmwasm.protocol import messages

WhenFull = Literal["wait", "queue", "raise"]

GRACE = 5.0
"""Seconds that a worker gets to come back by itself after a call's time limit."""

ROOM_STEP = 0.001
"""Seconds after which whoever waits for room in the ring looks again: not everybody who makes room says so."""

CLOSING_PATIENCE = 1.0
"""Seconds that whoever waits for calls gets to leave, with the results of those that have ended, before their ring is gone."""

_SEQUENCES = 1 << 32
_RUN = frozenset({layout.CALL_RUNNING, layout.CALL_INTERRUPTING})
_HAS_ENDED = frozenset({layout.CALL_EMPTY, layout.CALL_ENDED})


def new_clock(timeout: object) -> Clock | None:
    """Return the clock of a call that may run for so many seconds; None for no limit.

    Raises:
        ArgumentError: That is no time limit.
    """
    limit = checks.time_limit(timeout)
    return Clock(limit, GRACE) if limit else None


class RingCallPath:
    """Calls through a ring.

    Args:
        instance: The instance's number, for errors.
        worker: Its worker's process id, which may be that of another process, or none, where it is seen from here.
        core: This process's core.
        functions: The types of the module's exported functions.
        channel: The client's end of the call channel.
        receiver: The thread that collects.
        host_function: Runs the client's host function of that index; called in a thread of its own.
        kill: Called when the worker does not come back from a call within its time limit and `GRACE`, or cannot be understood.
        translate: Called with each error that the worker sent.
        preparation: Seconds that the worker may need before each call; they do not count for a call's time limit.

    Attributes:
        check_may_block: Raises where nobody may wait for a call (see `Receiver`).
        when_ended: Called in the receiver thread for each asynchronous call that has ended, with the times (`time.monotonic_ns`)
            at which it was submitted and found to have ended.
    """

    def __init__(
        self,
        instance: int,
        *,
        worker: int,
        core: Core,
        functions: Mapping[str, Signature],
        channel: Channel,
        receiver: Receiver,
        host_function: HostFunction,
        kill: Callable[[], None],
        translate: Callable[[BaseException], None] = lambda _error: None,
        preparation: float = 0.0,
    ) -> None:
        self._instance = instance
        self._functions = functions
        self._names = dispatched(functions)
        self._receiver = receiver
        self.check_may_block = receiver.check_may_block
        self._kill = kill
        self._translate = translate
        self._preparation = preparation
        self._lock = self._room = Condition()
        self._pending: dict[int, Call] = {}
        self._timed: deque[Call] = deque()
        self._unsent: deque[Call] = deque()
        self._overdue: deque[int] = deque()
        self._lost: Callable[[str | None], errors.ShmwasmError] | None = None
        self._running: str | None = None
        self._calls_before = 0
        self._closing = False
        self._closed = False
        self.when_ended: Callable[[int, int], None] | None = None
        self._ring = ClientRing(core, cells_of({name: functions[name] for name in self._names}))
        self._sleepers = Sleepers(self._ring, worker)
        self._ring.left_running = self._end_soon
        self._events: list[int] = []
        try:
            # The completion is looked at before it is read, but the interrupt has a thread that waits for it.
            for flags in (os.EFD_NONBLOCK, 0):
                self._events.append(os.eventfd(0, os.EFD_CLOEXEC | flags))
            self._completion, self._interrupt = self._events
            self._side = SideChannel(channel, receiver, host_function, kill)
            self._ring.ask()
            receiver.add(self)
            self._side.open(messages.OpenRing(), [self._ring.descriptor, *self._events])
        except BaseException as failure:
            receiver.remove(self)
            self._release()
            if isinstance(failure, OSError):
                raise no_room(failure) from None
            raise

    @property
    def calls(self) -> int:
        """How many calls were submitted so far, modulo 2**32."""
        return self._ring.submitted

    def target(self, name: str) -> Target:
        """Return an exported function whose values are numbers."""
        kind = self._functions[name]
        return Target(name, self._names.index(name), kind, struct.Struct("<" + results_format(kind)).unpack_from)

    def function(self, target: Target, convert: Callable[[Sequence[Any]], Sequence[Number]]) -> Callable[..., object]:
        """Return the function that calls `target` and waits for its end (see `ClientRing.call_function`)."""

        def finish(request: Request | None, answer: int) -> object:
            return self._settle(target, request, answer, None)

        return self._ring.call_function(target.number, target.kind, convert, self._sleepers.wake_worker_and_sleep, finish)

    def call(self, target: Target, arguments: Sequence[Number], clock: Clock | None) -> object:
        """Call `target` and wait for its end; takes what `Call` takes."""
        try:
            request = self._ring.request(target.number, target.kind)
        except errors.ClosedError:
            raise self._refusal() from None
        packed = request.pack(arguments)
        assert packed, "numbers were converted wrongly"

        def work() -> object:
            return self._settle(target, request, self._ring.submit(request), clock)

        return waited_for(work, request, self._ring.withdraw, self._ring.give)

    def start(self, call: Call, when_full: WhenFull = "queue") -> None:
        """Start an asynchronous call. Where the ring is full, it waits for room there, or here, or raises.

        Raises:
            BusyError: The ring is full, and `when_full` is "raise".
        """
        while True:
            with self._lock:
                refused = self._refusal() if self._lost or self._closing or self._closed else None
                if refused is not None:
                    break
                if not self._unsent and self._submit(call):
                    if call.clock is not None:
                        self._receiver.mind(self, time.monotonic() + call.clock.limit / 8)
                    return
                if when_full == "raise":
                    raise errors.BusyError(self._instance, layout.RING_SLOTS)
                if when_full == "queue":
                    self._unsent.append(call)
                    self._receiver.mind(self, time.monotonic() + ROOM_STEP)
                    return
                self._room.wait(ROOM_STEP)
        call.ended(None, refused)

    def cancel(self, call: Call) -> bool:
        """Cancel a call unless it has begun; return whether it will not begin. One that found no room yet is just forgotten."""
        with self._lock:
            if call.sequence is None:
                with contextlib.suppress(ValueError):
                    self._unsent.remove(call)
                    self._room.notify_all()
                    return True
                return False
        return self._ring.end_early(call.sequence, only_waiting=True) == layout.CALL_CANCELLED

    def withdraw(self, call: Call) -> None:
        """Cancel a call, or interrupt it."""
        with interrupts_put_off():
            if not self.cancel(call) and call.sequence is not None and not call.done:
                self._end_soon(call.sequence)

    def is_running(self, call: Call) -> bool:
        """Return whether the worker has taken a call that has not ended."""
        return call.sequence is not None and not call.done and self._ring.state(call.sequence) in _RUN

    def reached(self, call: Call) -> int | None:
        """Return how many calls of a batch had returned when the worker was lost; None if it was not what the worker ran."""
        return None if call.sequence is None else self._progress(call.sequence)

    def batch_buffer(self, index: int) -> memoryview:
        """Return one of the ring's buffers for batches (see `ClientRing.batch_buffer`)."""
        return self._ring.batch_buffer(index)

    def share_memory(self, answered: MemoryAnswered) -> None:
        """Ask for the guest's linear memory; it comes when the instance is between calls, or waits for a host function."""
        self._side.share_memory(answered)
        self._ring.call_attention()

    def take_no_more(self) -> None:
        """Refuse every further call; those that were started end as ever."""
        with self._lock:
            self._closing = True
            self._ring.take_no_more()
            self._room.notify_all()

    def wait_sent(self) -> None:
        """Wait until all that was started has reached the ring, or will not any more."""
        with self._lock:
            self._room.wait_for(lambda: not self._unsent)

    def lose(self, build: Callable[[str | None], errors.ShmwasmError]) -> None:
        """Fail all that is under way, but for what ended before: the worker is gone.

        Args:
            build: Makes the error, given the export that was running.
        """
        self._side.drain()
        self._collect()
        with self._lock:
            if self._lost is not None or self._closed:
                return
            running = self._ring.running()
            self._running = None if running is None else self._names[running.export]
            self._calls_before = self._ring.submitted
            self._lost = build
            calls = self._take_all()
        self._side.lose(build(self._running))
        self._sleepers.end()
        for call in calls:
            call.ended(None, self._fate(call.target, call.clock, call.sequence))

    def close(self) -> None:
        """Release what the path holds; calls that are under way and have not ended fail. Twice is fine."""
        with interrupts_put_off():
            with self._lock:
                if self._closed:
                    return
                self._closed = True
            self._side.close()
            if self._lost is None:
                self._send_away()
            try:
                self._wait_for_sleepers()
            finally:
                self._let_go()

    def _let_go(self) -> None:
        """Release everything, and end what has not ended."""
        self._collect()
        self._side.lose(self._refusal())
        with self._lock:
            calls = self._take_all()
        pollers.forget(self._ring)
        self._receiver.remove(self)
        with self._lock:
            self._release()
        for call in calls:
            call.ended(None, self._refusal())

    def abandon(self, reason: str) -> None:
        """Take the path away from a forked child, whose parent still uses it."""
        if not self._closed:
            self._closed = True
            self._lock = self._room = Condition()  # another thread may have held it
            self._side.abandon()
            self._ring.abandon(reason)
            self._close_events()

    # ------------------------------------------------------------ the receiver's side (see `Receiving`)

    def fileno(self) -> int:
        """Return the descriptor that says that an asynchronous call has ended."""
        return self._completion

    def handle_readable(self) -> bool:
        """Collect what has ended, and ask to be told of the next."""
        with self._lock, contextlib.suppress(BlockingIOError):
            if self._closed:
                return False
            os.eventfd_read(self._completion)
        self._collect()
        self._ring.ask()
        while self._collect():
            pass
        return True

    def next_deadline(self) -> float | None:
        """Return when to look at a timed call, or at what waits for room; now if a call must be ended early."""
        now = time.monotonic()
        with self._lock:
            if self._overdue:
                return 0.0
            while self._timed and self._timed[0].done:
                self._timed.popleft()
            deadlines = [now + ROOM_STEP] if self._unsent else []
            # The worker runs them in this order: only the first may be late.
            first = self._timed[0] if self._timed else None
        if first is not None and first.clock is not None and first.sequence is not None:
            due = self._look_at(first.clock, first.sequence, now)
            deadlines += [] if due is None else [due]
        return min(deadlines, default=None)

    def handle_deadline(self) -> None:
        """End calls early whose time has passed, or the worker."""
        while self._overdue:
            self._end_early(self._overdue.popleft())
        with self._lock:
            self._send_unsent()
            first = self._timed[0] if self._timed else None
        if first is not None and not first.done and first.clock is not None and first.sequence is not None:
            self._enforce(first.clock, first.sequence, self._end_early)

    def fail(self) -> None:
        """End the worker: what waits for it fails once the coordinator says that it is gone."""
        self._kill()

    # ------------------------------------------------------------

    def _submit(self, call: Call) -> bool:
        """Submit a call and note it down; return whether there was room. The lock is held."""
        request = call.request(self._ring)
        try:
            answer = self._ring.submit(request, call.flags, time.monotonic_ns())
            if answer == layout.RING_FULL:
                return False
            call.sequence = request.sequence
            self._pending[call.sequence] = call
            if call.clock is not None:
                self._timed.append(call)
        finally:
            self._ring.give(request)
        if answer & layout.RING_DOORBELL:
            self._wake_worker()
        return True

    def _send_unsent(self) -> None:
        """Submit what there is room for. The lock is held."""
        while self._unsent and self._lost is None and not self._closed and self._submit(self._unsent[0]):
            self._unsent.popleft()
        self._room.notify_all()

    def _take_all(self) -> list[Call]:
        """Take all calls that are under way. The lock is held."""
        calls = [*self._pending.values(), *self._unsent]
        self._pending.clear()
        self._unsent.clear()
        self._timed.clear()
        self._room.notify_all()
        for call in calls:
            call.done = True
        return calls

    def _wake_worker(self) -> None:
        """Wake a worker that sleeps. The lock is held, so that the path is not closed."""
        if not self._closed:
            self._sleepers.wake_worker()

    def _collect(self) -> bool:
        """End the asynchronous calls that have ended in the ring; return whether there were any."""
        found = self._ring.collect()
        if not found:
            return False
        # In the order in which they were submitted, all of them less than a round of the ring apart.
        earliest = found[0].sequence - layout.RING_SLOTS
        found.sort(key=lambda one: (one.sequence - earliest) % _SEQUENCES)
        with self._lock:
            ended = [(self._pending.pop(one.sequence, None), one) for one in found]
            for call, _ in ended:
                if call is not None:
                    call.done = True
            self._send_unsent()
        for call, one in ended:
            if call is not None:
                self._end(call, one)
            elif one.status == layout.CALL_TRAPPED:  # a call that somebody has left
                self._side.take_facts(one.sequence)
        return True

    def _end(self, call: Call, one: EndedCall) -> None:
        if self.when_ended is not None:
            self.when_ended(one.when, time.monotonic_ns())
        if one.status == layout.CALL_RETURNED:
            call.ended(call.results(one), None)
        elif one.status == layout.CALL_TRAPPED:
            call.ended(call.results(one), self._translated(self._side.take_facts(one.sequence)))
        elif call.clock is not None and one.progress > (call.clock.progress or 0):
            call.ended(call.results(one), None)  # of a batch: the call whose time was over has just returned
        else:
            call.ended(call.results(one), self._stopped(call.target, call.clock))

    def _settle(self, target: Target, request: Request | None, answer: int, clock: Clock | None) -> object:
        """Wait for a call that was to be submitted with that answer; return its results, or raise."""
        if request is None:
            raise self._refusal()
        if answer == layout.RING_FULL:
            answer = self._submit_when_there_is_room(request)
        if answer == layout.RING_CLOSING:
            raise self._refusal()
        if answer & layout.RING_DOORBELL:
            answer = self._sleepers.wake_worker_and_wait(request, lambda: self._look(request, clock))
        elif answer == layout.RING_PENDING:
            answer = self._sleepers.wait(request, lambda: self._look(request, clock))
        if self._unsent:
            with self._lock:
                self._send_unsent()
        if answer == layout.RING_DONE:
            results = request.results()
            return results[0] if len(results) == 1 else list(results) or None
        if answer != layout.RING_FAILED:
            raise self._fate(target, clock, request.sequence)
        if request.status == layout.CALL_TRAPPED:
            raise self._translated(self._side.await_facts(request.sequence))
        raise self._stopped(target, clock)

    def _submit_when_there_is_room(self, request: Request) -> int:
        while True:
            with self._lock:
                if self._lost:
                    raise self._refusal()
                answer = self._ring.submit(request)
                if answer != layout.RING_FULL:
                    return answer
                self._room.wait(ROOM_STEP)

    def _look(self, request: Request, clock: Clock | None) -> float | None:
        """Do what is due for a call that somebody waits for; return when to look again."""
        if clock is None:
            return None
        self._enforce(clock, request.sequence, self._end_soon)
        return self._look_at(clock, request.sequence, time.monotonic())

    def _enforce(self, clock: Clock, sequence: int, end_early: Callable[[int], None]) -> None:
        """Do what is due by the clock of a call that has not ended."""
        now = time.monotonic()
        due = self._look_at(clock, sequence, now)
        if due is None or due > now or clock.began is None:
            return
        if clock.ended_early:
            clock.hopeless = True
            self._kill()
            return
        clock.ended_early = True
        if clock.progress is None:
            end_early(sequence)
        elif not self._end_batch_early(sequence, clock.progress):
            clock.ended_early = False  # its time was over, but it has returned, and another one runs

    def _look_at(self, clock: Clock, sequence: int, now: float) -> float | None:
        """Look at a call that has not ended: it runs, could run as nothing is before it, or waits. Return when to look again."""
        if self._ring.state(sequence) != layout.CALL_SUBMITTED:
            progress = None if clock.progress is None else self._progress(sequence)
            return clock.look(now, has_begun=True, progress=progress or clock.progress or 0)
        has_begun = self._ring.state((sequence - 1) % _SEQUENCES) in _HAS_ENDED
        return clock.look(now, has_begun=has_begun, preparation=self._preparation)

    def _progress(self, sequence: int) -> int | None:
        """Return how many calls of a batch have returned; None if it is not what the worker runs."""
        running = self._ring.running()
        return running.progress if running is not None and running.sequence == sequence else None

    def _end_soon(self, sequence: int) -> None:
        """Have the receiver end a call early."""
        self._overdue.append(sequence)
        self._receiver.mind(self, 0.0)

    def _end_early(self, sequence: int) -> None:
        with self._lock:
            if not self._closed and self._ring.end_early(sequence) == layout.CALL_INTERRUPTING:
                os.eventfd_write(self._interrupt, 1)

    def _end_batch_early(self, sequence: int, progress: int) -> bool:
        """End a batch early because of the call that comes after `progress` others; return False if that has returned."""
        with self._lock:
            answer = layout.CALL_EMPTY if self._closed else self._ring.end_at(sequence, progress)
            if answer == layout.CALL_INTERRUPTING:
                os.eventfd_write(self._interrupt, 1)
        return answer != layout.CALL_RUNNING

    def _fate(self, target: Target, clock: Clock | None, sequence: int | None) -> errors.ShmwasmError:
        """Return the error of a call that has not ended when the worker went or the path was closed."""
        if self._lost is None:
            return self._refusal()
        if clock is not None and clock.ended_early:
            return errors.CallTimeoutError(self._instance, target.name, clock.limit)
        came_later = sequence is not None and (sequence - self._calls_before) % _SEQUENCES < _SEQUENCES // 2
        return self._lost(None if came_later else self._running)

    def _stopped(self, target: Target, clock: Clock | None) -> BaseException:
        """Return the error of a call that was ended early."""
        if clock is not None and clock.ended_early:
            return errors.CallTimeoutError(self._instance, target.name, clock.limit)
        return CancelledError()

    def _refusal(self) -> errors.ShmwasmError:
        """Return why there is nobody to call."""
        if self._closing or self._closed or self._lost is None:
            return errors.ClosedError(f"instance {self._instance}")
        return self._lost(None)

    def _translated(self, error: errors.ShmwasmError) -> errors.ShmwasmError:
        self._translate(error)
        return error

    def _wait_for_sleepers(self) -> None:
        """Wait until those who wait for calls have taken their results, or know that there are none.

        Not for ever: one may be the calling thread's own, or of one whose signal handler waits for this.
        """
        self._sleepers.end()
        patience = time.monotonic() + CLOSING_PATIENCE
        while (self._sleepers.elsewhere() or self._has_uncollected()) and time.monotonic() < patience:
            self._sleepers.wake()
            with interrupts_let_through():
                time.sleep(ROOM_STEP)

    def _send_away(self) -> None:
        """Make a worker that lives see that it is not wanted any more."""
        self._ring.call_attention()
        running = self._ring.running()
        if running is not None and self._ring.end_early(running.sequence) == layout.CALL_INTERRUPTING:
            os.eventfd_write(self._interrupt, 1)

    def _has_uncollected(self) -> bool:
        """Return whether a call has ended whose caller does not know yet."""
        self._collect()
        last = self._ring.submitted
        return any(self._ring.state((last - back) % _SEQUENCES) == layout.CALL_ENDED for back in range(1, layout.RING_SLOTS + 1))

    def _release(self) -> None:
        self._ring.retire()
        self._sleepers.release(self._ring.close)
        self._close_events()

    def _close_events(self) -> None:
        for event in self._events:
            os.close(event)
        self._events.clear()
