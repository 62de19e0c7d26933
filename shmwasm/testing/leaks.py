"""Finding what a piece of code left behind: processes, descriptors, threads, names in /dev/shm.

Theory
------
A `Snapshot` is what there is before; `leftovers` says what is there since, and is still there after `PATIENCE`: the kernel ends
processes and closes their descriptors in its own time. Looking costs well below a millisecond, so every test can be watched.

*Processes.* `mark_descendants` puts a mark into this process's environment, which all that is started from now on inherits; a new
process is ours if its environment has the mark, though its parent died long ago, or if it is our child. Other processes that do
the same (the workers of pytest-xdist) have marks of their own, so that nobody is blamed for another's processes.

*Names in /dev/shm* have no author. A new one is left behind if no process that is not ours has it open or mapped.

*Descriptors* are counted by what they lead to: a number that was closed and opened again is no leak.
"""

from __future__ import annotations

import gc
import os
import secrets
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Final

PATIENCE = 30.0
"""Seconds that leftovers get to go away, on a machine however busy; waited in full only if some do not."""

MARK: Final = "SHMWASM_TEST_PROCESS"
"""The environment variable that marks descendants."""

_PAUSE: Final = 0.01
_SHARED_MEMORY: Final = "/dev/shm"  # noqa: S108  the kernel's place for it; it is only listed


def mark_descendants() -> str:
    """Mark every process that this one starts from now on, and return the mark.

    A process that inherited a mark extends it: its descendants are its ancestors' too.
    """
    mark = f"{os.environ.get(MARK, '')}/{os.getpid()}-{secrets.token_hex(4)}"
    os.environ[MARK] = mark
    return mark


class Snapshot:
    """What there is when it is made.

    Args:
        mark: What `mark_descendants` returned.
    """

    def __init__(self, mark: str) -> None:
        self._variable = f"{MARK}={mark}".encode()
        self._processes = frozenset(_process_ids())
        self._descriptors = _descriptors()
        self._threads = frozenset(threading.enumerate())
        self._names = frozenset(_shared_memory_names())

    def leftovers(self) -> list[str]:
        """Return a line for each thing that is there since the snapshot and does not go away; waits only if there is any."""
        found = self._look()
        if not found:
            return []
        deadline = time.monotonic() + PATIENCE
        gc.collect()
        while (found := self._look()) and time.monotonic() < deadline:
            time.sleep(_PAUSE)
        return found

    def _look(self) -> list[str]:
        processes = self._new_processes()
        found = [f"process {pid}: {_command(pid)}" for pid in processes]
        found += [f"descriptor of {target}" for target in (_descriptors() - self._descriptors).elements()]
        found += [f"thread {one.name!r}" for one in threading.enumerate() if one not in self._threads and one.is_alive()]
        names = [name for name in _shared_memory_names() if name not in self._names]
        if names:
            foreign = _held_names(frozenset(_process_ids()).difference(processes, [str(os.getpid())]))
            found += [f"{_SHARED_MEMORY}/{name}" for name in names if name not in foreign]
        return found

    def _new_processes(self) -> list[str]:
        return [pid for pid in _process_ids() if pid not in self._processes and (_is_child(pid) or self._is_marked(pid))]

    def _is_marked(self, pid: str) -> bool:
        with suppress(OSError):  # it is gone, or another user's
            return any(
                variable == self._variable or variable.startswith(self._variable + b"/")
                for variable in Path("/proc", pid, "environ").read_bytes().split(b"\0")
            )
        return False


def _process_ids() -> list[str]:
    return [name for name in _names_in("/proc") if name.isdecimal()]


def _is_child(pid: str) -> bool:
    with suppress(OSError):
        # The name, in parentheses, may hold anything; the state and the parent follow it.
        return int(Path("/proc", pid, "stat").read_bytes().rpartition(b")")[2].split()[1]) == os.getpid()
    return False


def _command(pid: str) -> str:
    with suppress(OSError):
        return Path("/proc", pid, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip() or "(not reaped)"
    return "(gone)"


def _descriptors(pid: str = "self") -> Counter[str]:
    """Return what the descriptors of a process lead to, and how many lead there; nothing if it is gone, or another user's."""
    directory = f"/proc/{pid}/fd"
    targets: Counter[str] = Counter()
    for number in _names_in(directory):
        with suppress(OSError):  # the one that lists the directory is closed by now
            targets[os.readlink(f"{directory}/{number}")] += 1  # noqa: PTH115  a Path for each would cost more than the call
    return targets


def _shared_memory_names() -> list[str]:
    return _names_in(_SHARED_MEMORY)


def _names_in(directory: str) -> list[str]:
    with suppress(OSError), os.scandir(directory) as entries:
        return [entry.name for entry in entries]
    return []


def _held_names(pids: frozenset[str]) -> frozenset[str]:
    """Return the names in /dev/shm that one of these processes has open or mapped."""
    prefix = f"{_SHARED_MEMORY}/"
    held: set[str] = set()
    for pid in pids:
        held.update(target.removeprefix(prefix) for target in _descriptors(pid) if target.startswith(prefix))
        with suppress(OSError):  # it is gone, or another user's
            lines = Path("/proc", pid, "maps").read_text(errors="replace").splitlines()
            held.update(line.partition(prefix)[2] for line in lines if prefix in line)
    return frozenset(held)
