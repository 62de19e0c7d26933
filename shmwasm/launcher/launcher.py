"""The launcher's loop: fork on request, reap, report.

Theory
------
A worker starts in a few milliseconds because it is forked from a process in which everything slow is done: the interpreter runs,
the engine exists, the core is instantiated, the guests' modules are mapped. That is safe only under three rules. The launcher
never has a second thread, so that no lock is held by nobody in a child; that is checked before each fork. It never compiles but
for the engine's self-test, and on one thread, as a child forked after a parallel compilation hangs at its own. And it never runs
a guest.

What is forked is shared until it is written, and CPython's garbage collector writes to every object that it looks at. Everything
that exists is therefore moved out of its sight (`gc.freeze`) before the first fork, and the launcher itself collects no more. For
the same reason it imports neither `threading` nor `random`, nor what imports them: each has a function called in every forked
child, and that costs a worker 300 KiB. (A host function may import them: that is the worker's own affair.)

A worker's death is what the kernel says: its pidfd becomes readable. When the coordinator is gone, every worker is killed; should
the launcher itself be killed, the kernel kills them (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import gc
import os
import select
import signal
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from shmwasm.errors import ClosedError, ShmwasmError, UnsupportedError
from shmwasm.launcher.modules import ModuleCache, ReadyModule
from shmwasm.posix.processes import open_pidfd, reap, send_signal, wait_gone
from shmwasm.protocol import codec, messages
from shmwasm.worker.instance import Ground
from shmwasm.worker.leaving import leave
from shmwasm.worker.main import run_worker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shmwasm.engine.nests import Nest
    from shmwasm.posix.channels import Channel
    from shmwasm.worker.attachment import Attachment


@dataclass(frozen=True)
class _Child:
    worker: int
    pid: int
    pidfd: int


class Launcher:
    """Forks workers for the coordinator at the other end of `channel`.

    Args:
        channel: To the coordinator.
        nest: Where instances are made; each worker gets a copy.
        attachment: The core in the same store, with nothing attached.
        problem: Why no instance can run on this machine, if so; every `Fork` is then refused with it.
    """

    def __init__(self, channel: Channel, nest: Nest, attachment: Attachment, *, problem: str | None = None) -> None:
        self._channel = channel
        self._nest = nest
        self._attachment = attachment
        self._problem = problem
        self._modules = ModuleCache(nest.store.engine)
        self._children: dict[int, _Child] = {}
        self._poll = select.poll()
        self._poll.register(channel.fileno(), select.POLLIN)

    def run(self) -> None:
        """Serve until the coordinator is gone; no worker is left then."""
        gc.disable()
        gc.freeze()
        try:
            while self._serve_once():
                pass
        except ClosedError:
            pass  # the coordinator went between two messages
        finally:
            self._kill_all()
            self._modules.close()

    def _serve_once(self) -> bool:
        """Handle what has arrived; return whether the coordinator is still there."""
        for descriptor, _ in self._poll.poll():
            if descriptor != self._channel.fileno():
                self._reap(self._children[descriptor])
                continue
            packet = self._channel.receive()
            if packet is None:
                return False
            message = codec.to_launcher.decode(packet[0])
            if isinstance(message, messages.Fork):
                self._fork(message, packet[1])
        return True

    def _fork(self, message: messages.Fork, descriptors: Sequence[int]) -> None:
        try:
            module = self._load(message, descriptors)
            launcher = os.getpid()
            pid = os.fork()
            if pid == 0:
                self._become_worker(launcher, message, descriptors, module)
            child = _Child(message.worker, pid, _watch(pid))
        except (ShmwasmError, OSError) as error:
            self._channel.send(codec.encode(messages.ForkFailed(worker=message.worker, reason=str(error))))
            return
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self._children[child.pidfd] = child
        self._poll.register(child.pidfd, select.POLLIN)
        self._channel.send(codec.encode(messages.Forked(worker=child.worker, pid=pid)), [child.pidfd])

    def _become_worker(self, launcher: int, message: messages.Fork, descriptors: Sequence[int], module: ReadyModule) -> NoReturn:
        """Turn the forked child into a worker. Nothing of the launcher's runs in it any more."""
        try:
            # What is the launcher's own goes. The engine's descriptors stay: it maps data segments out of the modules' files.
            for descriptor in (*descriptors[:2], self._channel.fileno(), *self._children):
                os.close(descriptor)
            run_worker(launcher, message, descriptors, Ground(self._nest, self._attachment, *module))
        except BaseException:  # noqa: BLE001 - whatever it is, it ends with this process and not in the launcher's code
            traceback.print_exc()
        leave(os.EX_SOFTWARE)

    def _load(self, message: messages.Fork, descriptors: Sequence[int]) -> ReadyModule:
        """Return the module to fork with, having checked that a fork is safe.

        Raises:
            ShmwasmError: No worker can be forked, or not for this module.
        """
        if self._problem is not None:
            raise UnsupportedError("running instances on this machine", self._problem)
        module = self._modules.load(message.plan.module_key, *descriptors[:2])
        # A link for each thread, and two of every directory's. (What the launcher writes to between two forks, were it only to
        # count references, the older worker then has alone: a Path here would cost each worker 120 KiB.)
        threads = os.stat("/proc/self/task").st_nlink - 2  # noqa: PTH116
        if threads != 1:
            raise UnsupportedError("forking a worker", f"the launcher has {threads} threads, and a fork is safe only from one")
        return module

    def _reap(self, child: _Child) -> None:
        status = reap(child.pidfd)
        if status is None:
            return
        self._forget(child)
        self._channel.send(
            codec.encode(messages.Exited(worker=child.worker, pid=child.pid, signal=status.signal, exit_code=status.exit_code))
        )

    def _kill_all(self) -> None:
        children = list(self._children.values())
        for child in children:
            send_signal(child.pidfd, signal.SIGKILL)
        for child in children:
            wait_gone(child.pidfd)
            reap(child.pidfd)
            self._forget(child)

    def _forget(self, child: _Child) -> None:
        del self._children[child.pidfd]
        self._poll.unregister(child.pidfd)
        os.close(child.pidfd)


def _watch(pid: int) -> int:
    """Return a pidfd of our child `pid`; if there can be none, the child is ended.

    Raises:
        UnsupportedError: The kernel gave no descriptor.
    """
    try:
        pidfd = open_pidfd(pid)
    except UnsupportedError:
        # Nobody has reaped it, so the number is still our child's.
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    assert pidfd is not None, "a child that was not reaped has a pidfd"
    return pidfd
