"""Instances in real workers, and how coordinators come and go."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys

import pytest

from shmwasm import errors
from shmwasm.posix.listening import connect
from shmwasm.posix.processes import is_gone, open_pidfd, wait_gone
from shmwasm.posix.segments import Segment
from shmwasm.protocol import codec, messages
from waiting import PATIENCE, eventually


def test_an_instance_answers_is_detached_attached_and_closed(client, module):
    heap = client.create()
    spawned, calls = client.spawn(module, heap)
    with calls:
        calls.send(codec.encode(messages.ShareMemory(request=1)))
        packet = calls.receive(timeout=PATIENCE)
        assert packet is not None
        assert isinstance(codec.call_replies.decode(packet[0]), messages.MemoryShared)
        os.close(packet[1][0])
        with pytest.raises(errors.ChainError, match="attached"):
            client.ask(messages.ResetChain, head=heap)
        client.ask(messages.Detach, instance=spawned.instance)
        client.ask(messages.ResetChain, head=heap)
        client.ask(messages.Attach, instance=spawned.instance, chain_head=heap, read_only=True)
        client.ask(messages.CloseInstance, instance=spawned.instance)
    exited = client.event(messages.InstanceExited)
    assert (exited.instance, exited.pid, exited.signal, exited.exit_code) == (spawned.instance, spawned.pid, None, 0)


def test_a_killed_worker_is_told_with_its_signal_and_detaches_its_heap(client, module):
    heap = client.create()
    spawned, calls = client.spawn(module, heap)
    with calls:
        os.kill(spawned.pid, signal.SIGKILL)
        exited = client.event(messages.InstanceExited)
    assert (exited.signal, exited.exit_code) == (signal.SIGKILL, None)
    client.ask(messages.ResetChain, head=heap)


def test_what_is_no_module_is_refused_when_it_is_spawned(client):
    with Segment.create(4096, name_for_errors="zeros") as segment:
        plan = messages.SpawnPlan(module_key="zeros", module_name="zeros")
        with pytest.raises(errors.InstantiationError):
            client.ask(messages.Spawn, segment.descriptor, segment.descriptor, plan=plan)


def test_a_client_s_end_ends_its_workers(served, client, module):
    other = served.client()
    spawned, calls = other.spawn(module)
    pidfd = open_pidfd(spawned.pid)
    with calls:
        other.tell(messages.Goodbye())
        assert pidfd is None or wait_gone(pidfd, PATIENCE)
    if pidfd is not None:
        os.close(pidfd)
    eventually(lambda: not client.ask(messages.Status).workers)


def test_without_its_launcher_a_coordinator_goes_on_and_refuses_to_spawn(module, private):
    with private() as served:
        client = served.clients[0]
        heap = client.create()
        spawned, calls = client.spawn(module, heap)
        with calls:
            (launcher,) = served.children()
            os.kill(launcher, signal.SIGKILL)
            assert client.event(messages.InstanceExited).instance == spawned.instance
        with pytest.raises(errors.InstantiationError, match="launcher"):
            client.spawn(module, heap)
        assert client.lease(heap)


# ---------------------------------------------------------------- coming and going


@pytest.mark.parametrize("how", ["goodbye", "closed"])
def test_a_private_coordinator_ends_with_its_last_client_and_leaves_nothing(module, how, private):
    with private() as served:
        first, second = served.clients[0], served.client()
        first.create()
        spawned, calls = first.spawn(module)
        pidfds = [open_pidfd(pid) for pid in (spawned.pid, *served.children())]
        first.tell(messages.Goodbye())
        assert first.is_cut_off()
        second.ask(messages.Status)
        if how == "goodbye":
            second.tell(messages.Goodbye())
        else:
            second.channel.close()
        assert served.process.wait(PATIENCE) == 0
        calls.close()
        assert all(pidfd is None or is_gone(pidfd) for pidfd in pidfds)
        for pidfd in pidfds:
            if pidfd is not None:
                os.close(pidfd)
        with pytest.raises(errors.CoordinatorLostError):
            connect(served.address)


def test_a_private_coordinator_is_in_a_session_of_its_own(private):
    with private() as served:
        assert os.getsid(served.process.pid) == served.process.pid


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_shared_coordinator_its_workers_and_its_socket(tmp_path, module, number, shared):
    path = tmp_path / "socket"
    with shared(path) as served:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        client = served.client()
        spawned, calls = client.spawn(module)
        pidfd = open_pidfd(spawned.pid)
        with calls:
            served.process.send_signal(number)
            assert served.process.wait(PATIENCE) == 0
        assert pidfd is None or is_gone(pidfd)
        if pidfd is not None:
            os.close(pidfd)
        assert not path.exists()
        assert client.is_cut_off()


def test_a_killed_coordinator_s_socket_is_replaced_and_a_live_one_s_is_not(tmp_path, shared):
    path = tmp_path / "socket"
    with shared(path) as first:
        first.process.kill()
        first.process.wait()
    assert path.exists()
    with shared(path) as second:
        script = "import sys; from shmwasm.coordinator import serve; serve(sys.argv[1])"
        refused = subprocess.run([sys.executable, "-c", script, str(path)], check=False, capture_output=True, timeout=PATIENCE)
        assert refused.returncode == 1
        assert b"somebody listens there already" in refused.stderr
        assert second.client().create()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_refused_before_a_word_is_said(private):
    script = (
        "import os, socket, sys; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); peer.connect(bytes.fromhex(sys.argv[1]))\n"
        "try: print(len(peer.recv(100)))\n"
        "except ConnectionResetError: print(0)\n"
    )
    with private() as served:
        stranger = subprocess.run(
            [sys.executable, "-c", script, served.address.encode().hex()], capture_output=True, check=True, timeout=PATIENCE
        )
        assert stranger.stdout == b"0\n"
        assert served.clients[0].ask(messages.Status).clients == 1
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as own:
            own.connect(served.address)
