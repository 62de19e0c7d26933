"""What the programs of chaos share: the guests' answers, counting how calls end, and blows at workers."""

import asyncio
import collections
import concurrent.futures
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback

from shmwasm import Runtime
from shmwasm.client.calls import RingCallPath
from shmwasm.errors import WorkerLostError
from shmwasm.testing.leaks import Snapshot, mark_descendants

FACTOR, INCREMENT = 0x5851F42D4C957F2D, 0x14057B7EF767814F
LONGEST_PAUSE = 0.003
LONGEST_STOP = 0.02
CANCELLED = (concurrent.futures.CancelledError, asyncio.CancelledError)


def steps(rounds):
    """Return the factor and the increment of that many steps of the guests' generator, in as many squarings as it has bits."""
    whole, factor, increment = (1, 0), FACTOR, INCREMENT
    while rounds:
        if rounds & 1:
            whole = whole[0] * factor % (1 << 64), (whole[1] * factor + increment) % (1 << 64)
        factor, increment = factor * factor % (1 << 64), (factor + 1) * increment % (1 << 64)
        rounds >>= 1
    return whole


def woven(seed, rounds):
    """Return where the guests' generator is after so many steps from `seed` on, as they return it."""
    factor, increment = steps(rounds)
    value = (seed * factor + increment) % (1 << 64)
    return value - (1 << 64) if value >> 63 else value


class Tally:
    """How calls ended, and whatever should not have happened.

    Calls are counted where they are handed to the ring: a future hides it if its call ends twice.
    """

    def __init__(self):
        self.lock = threading.RLock()
        self.ended, self.problems = collections.Counter(), []
        self.struck = set()
        """The processes that were sent SIGKILL."""
        self._begun, self._ends, self._cancelled = 0, collections.Counter(), set()
        threading.excepthook = lambda raised: self.problem(f"{raised.exc_value!r} in {raised.thread}")
        sys.unraisablehook = lambda raised: self.problem(f"{raised.exc_value!r} in {raised.object!r}")
        handler = logging.Handler(logging.WARNING)
        handler.emit = lambda record: self.problem(logging.Formatter().format(record))
        logging.getLogger().addHandler(handler)

    def note(self, what, times=1):
        with self.lock:
            self.ended[what] += times

    def problem(self, text):
        with self.lock:
            self.problems.append(text)

    def unexpected(self, what, error):
        self.problem(f"{what} ended with {error!r}\n" + "".join(traceback.format_exception(error)))

    def was_killed(self, error):
        """Return whether an error says that a worker is gone which was sent SIGKILL."""
        return isinstance(error, WorkerLostError) and error.signal == signal.SIGKILL and error.pid in self.struck

    def watch_calls(self):
        """Count how often each asynchronous call ends."""
        start, cancel = RingCallPath.start, RingCallPath.cancel

        def counted(path, call, *rest):
            ended = call.ended
            with self.lock:
                number = self._begun
                self._begun += 1

            def note(results, error):
                with self.lock:
                    self._ends[number] += 1
                ended(results, error)

            note.number = number
            call.ended = note
            try:
                start(path, call, *rest)
            except BaseException:
                with self.lock:
                    self._ends[number] += 1  # it was refused
                raise

        def cancelled(path, call):
            number = getattr(call.ended, "number", None)
            gone = cancel(path, call)
            if gone and number is not None:
                with self.lock:
                    self._cancelled.add(number)
            return gone

        RingCallPath.start, RingCallPath.cancel = counted, cancelled

    def check_calls(self):
        """Take note of calls that did not end once. Whoever cancels one need not be told that it ended."""
        odd = [
            number
            for number in range(self._begun)
            if self._ends[number] != 1 and not (number in self._cancelled and self._ends[number] == 0)
        ]
        if odd:
            self.problem(f"{len(odd)} of {self._begun} calls ended {sorted({self._ends[number] for number in odd})} times")


def strike(tally, pid, is_there, rng):
    """Kill a process, or stop it for a moment, or kill it while it is stopped.

    Args:
        tally: Learns of it before the process is killed.
        pid: The process.
        is_there: Tells whether the process of that number is the one that is meant, or it and its number are gone.
        rng: Chooses.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if not is_there():
            return
        kills, stops = rng.choice([(True, False), (True, False), (False, True), (False, True), (True, True)])
        if stops:
            signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
            time.sleep(rng.random() * LONGEST_STOP)
        if kills:
            tally.struck.add(pid)
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        elif stops:
            signal.pidfd_send_signal(pidfd, signal.SIGCONT)
    except ProcessLookupError:
        return
    finally:
        os.close(pidfd)


def keep_striking(tally, over, choose, count, most, rng):
    """Strike one process after the other.

    Args:
        tally: See `strike`.
        over: The event that ends this.
        choose: Returns a process and how to know it again (see `strike`), or None if there is none now.
        count: Returns how many calls have ended.
        most: How many of them end at most between two blows.
        rng: Chooses.
    """
    due = 0
    while not over.wait(rng.random() * LONGEST_PAUSE):
        # By the calls that have ended, not by the clock: so there is time for some, however slow the machine is.
        ended = count()
        if ended >= due and (victim := choose()) is not None:
            due = ended + rng.randrange(most)
            strike(tally, *victim, rng)


def report(run, socket=None):
    """Have a tally made by `run`, given a runtime, and say it, with all that was left behind."""
    with Runtime() as first:  # what is made at the first use is nobody's leftover
        first.create_shared_heap(1).close()
    snapshot = Snapshot(mark_descendants())
    tally = _tally_of(run, socket)
    # Names in /dev/shm are looked at by the test: there they are told from other programs'.
    left = [one for one in snapshot.leftovers() if not one.startswith("/dev/shm/")]
    problems = tally.problems + [f"left behind: {one}" for one in left]
    print(json.dumps({"ended": tally.ended, "killed": len(tally.struck), "problems": problems}), flush=True)


def _tally_of(run, socket):
    with Runtime(connect=socket) as runtime:
        return run(runtime)
