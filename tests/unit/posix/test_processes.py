from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

from shmwasm.posix.processes import (
    ExitStatus,
    check_platform,
    is_gone,
    open_pidfd,
    peer_pidfd,
    reap,
    send_signal,
    set_parent_death_signal,
    wait_gone,
)


def _start_waiting() -> int:
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    return pid


def test_killed_child_is_seen_reaped_and_cannot_be_signalled_again():
    pidfd = open_pidfd(_start_waiting())
    assert pidfd is not None
    assert not os.get_inheritable(pidfd)
    assert not is_gone(pidfd)
    assert not wait_gone(pidfd, 0.01)
    assert reap(pidfd) is None
    assert send_signal(pidfd, signal.SIGKILL)
    assert wait_gone(pidfd, 10)
    assert reap(pidfd) == ExitStatus(signal.SIGKILL, None)
    assert reap(pidfd) is None
    assert not send_signal(pidfd, signal.SIGKILL)
    os.close(pidfd)


def test_exit_code_is_told_from_a_signal():
    pid = os.fork()
    if pid == 0:
        os._exit(9)
    pidfd = open_pidfd(pid)
    assert pidfd is not None
    assert wait_gone(pidfd, 10)
    assert reap(pidfd) == ExitStatus(None, 9)
    os.close(pidfd)
    assert ExitStatus.from_wait(9 << 8) == ExitStatus(None, 9)
    assert ExitStatus.from_wait(9) == ExitStatus(9, None)


def test_process_that_was_reaped_has_no_pidfd():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    assert open_pidfd(pid) is None


def test_peer_of_a_socket_is_watched():
    address = f"\0shmwasm-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(address)
        listening.listen()
        script = f"""if True:
            import socket, sys
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            connection.connect({address!r})
            sys.stdin.read()
        """
        with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE) as process:
            connection, _ = listening.accept()
            with connection:
                pidfd = peer_pidfd(connection)
            assert pidfd is not None
            assert not os.get_inheritable(pidfd)
            assert not is_gone(pidfd)
            process.kill()
            assert wait_gone(pidfd, 10)
            os.close(pidfd)


def test_child_dies_with_its_parent():
    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:
        parent = os.getpid()
        child = os.fork()
        if child == 0:
            present = set_parent_death_signal(signal.SIGKILL, parent=parent)
            os.write(writing, bytes([present]))
            signal.pause()
            os._exit(0)
        signal.pause()
        os._exit(0)
    os.close(writing)
    assert os.read(reading, 1) == b"\1"
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    assert os.read(reading, 1) == b"", "the child's end of the pipe closes with it"
    os.close(reading)


def test_child_learns_that_its_parent_was_gone_already():
    pid = os.fork()
    if pid == 0:
        os._exit(set_parent_death_signal(0, parent=os.getpid()))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_this_machine_is_supported():
    check_platform()


@pytest.mark.parametrize("timeout", [0, 0.01])
def test_waiting_for_a_living_process_ends_at_the_timeout(timeout):
    pidfd = open_pidfd(os.getpid())
    assert pidfd is not None
    assert not wait_gone(pidfd, timeout)
    os.close(pidfd)
