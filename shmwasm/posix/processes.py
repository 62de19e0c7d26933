"""Other processes: is one gone, end it, and what became of it.

Theory
------
A process id names whatever process has it now. A pidfd names one process for ever, and becomes readable when that process is
gone; so whoever must act on a death or send a signal holds a pidfd. All of them here are close-on-exec, and the caller's to
close.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Final, NamedTuple

from shmwasm.errors import UnsupportedError
from shmwasm.posix.channels import peer_credentials

_SO_PEERPIDFD: Final = 77
_PR_SET_PDEATHSIG: Final = 1
_MACHINES: Final = ("x86_64", "aarch64")

_libc = ctypes.CDLL(None, use_errno=True)
_prctl = _libc.prctl
_prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]


class ExitStatus(NamedTuple):
    """How a process ended: killed by `signal`, or exited with `exit_code`. One of the two is `None`."""

    signal: int | None
    exit_code: int | None

    @classmethod
    def from_wait(cls, status: int) -> ExitStatus:
        """Decode the status that `os.wait` and its like give."""
        code = os.waitstatus_to_exitcode(status)
        return cls(-code, None) if code < 0 else cls(None, code)


def open_pidfd(pid: int) -> int | None:
    """Return a pidfd of the process that has `pid` now, or `None` if none has it.

    Only the parent may rely on which process that is, since nobody else keeps the id from being used again.

    Raises:
        UnsupportedError: The kernel has no pidfds, or this process has too many open files.
    """
    try:
        return os.pidfd_open(pid)
    except OSError as failure:
        if failure.errno == errno.ESRCH:
            return None
        raise UnsupportedError("watching a process", f"{failure.strerror}; Linux 5.4 or newer is needed") from None


def peer_pidfd(connection: socket.socket) -> int | None:
    """Return a pidfd of the process that made the other end of `connection`, or `None` if it is gone.

    From Linux 6.5 on the kernel says exactly which process that was. Before, it says the process id, which another process may
    have by now if the peer is gone.

    Raises:
        UnsupportedError: The peer cannot be seen from here (it lives in another PID namespace, and the kernel is older), or this
            process has too many open files.
    """
    try:
        pidfd = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError as failure:
        if failure.errno == errno.ESRCH:
            return None
        if failure.errno not in {errno.ENOPROTOOPT, errno.EINVAL, errno.ENODATA, errno.EOPNOTSUPP}:
            raise UnsupportedError("watching a peer", str(failure)) from None
    else:
        os.set_inheritable(pidfd, False)
        return pidfd
    pid = peer_credentials(connection).pid
    if pid <= 0:
        raise UnsupportedError("a peer in another PID namespace", "its process cannot be watched; Linux 6.5 or newer can")
    return open_pidfd(pid)


def send_signal(pidfd: int, signal_number: int) -> bool:
    """Send a signal; return whether the process was still there."""
    try:
        signal.pidfd_send_signal(pidfd, signal_number)
    except ProcessLookupError:
        return False
    return True


def is_gone(pidfd: int) -> bool:
    """Return whether the process has ended (its parent need not have reaped it)."""
    return wait_gone(pidfd, 0)


def wait_gone(pidfd: int, timeout: float | None = None) -> bool:
    """Wait up to `timeout` seconds (`None`: for ever) until the process has ended; return whether it has."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(None if timeout is None else timeout * 1000))


def reap(pidfd: int) -> ExitStatus | None:
    """Return how the child ended, and let the kernel forget it; `None` if it still runs, or is no child of this process."""
    try:
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return None
    if result is None:
        return None
    if result.si_code == os.CLD_EXITED:
        return ExitStatus(None, result.si_status)
    return ExitStatus(result.si_status, None)


def set_parent_death_signal(signal_number: int, *, parent: int) -> bool:
    """Ask for a signal when the thread that forked this process ends; return whether process `parent` was still there.

    If it was not, the signal will never come, and the caller should exit.

    Raises:
        UnsupportedError: The kernel refused.
    """
    if _prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0) != 0:
        raise UnsupportedError("a parent-death signal", os.strerror(ctypes.get_errno()))
    return os.getppid() == parent


def check_platform() -> None:
    """Check that this machine is one where the library works.

    Raises:
        UnsupportedError: It is not, and why.
    """
    if sys.platform != "linux":
        raise UnsupportedError(f"the system {sys.platform!r}", "shared heaps are mapped as only Linux allows")
    if platform.machine() not in _MACHINES or sys.maxsize < 1 << 32:
        raise UnsupportedError(f"the machine {platform.machine()!r}", f"64-bit {' and '.join(_MACHINES)} are")
    if not Path("/proc/self/fd").is_dir():
        raise UnsupportedError("a system without /proc", "descriptors are reopened through it; mount it")
    pidfd = open_pidfd(os.getpid())
    if pidfd is not None:
        os.close(pidfd)
