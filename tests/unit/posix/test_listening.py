from __future__ import annotations

import os
import secrets
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from shmwasm.errors import ArgumentError, ClosedError, CoordinatorLostError, PeerRefusedError
from shmwasm.posix.listening import connect, listen


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "socket")


def _talk(address: str) -> None:
    with listen(address) as listener, connect(address) as client, listener.accept() as server:
        client.send(b"hello")
        assert server.receive(timeout=5) == (b"hello", [])
        assert client.peer_credentials().pid == server.peer_credentials().pid == os.getpid()


def test_peers_meet_at_a_path(path):
    _talk(path)


def test_peers_meet_at_an_abstract_address():
    _talk(f"\0shmwasm-test-{secrets.token_hex(8)}")


def test_directories_may_be_deeper_than_a_socket_address(tmp_path):
    deep = tmp_path / ("d" * 120) / ("e" * 120)
    deep.mkdir(parents=True)
    _talk(str(deep / "socket"))


def test_relative_paths_are_relative_to_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _talk("socket")


def test_socket_file_is_private_whatever_the_umask(path):
    umask = os.umask(0)
    try:
        with listen(path):
            assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    finally:
        os.umask(umask)


def test_socket_file_goes_with_its_listener(path):
    listener = listen(path)
    listener.close()
    listener.close()
    assert not Path(path).exists()
    with pytest.raises(ClosedError):
        listener.accept()


def test_stale_socket_of_a_killed_listener_is_replaced(path):
    script = """if True:
        import sys
        from shmwasm.posix.listening import listen
        listener = listen(sys.argv[1])
        print("up", flush=True)
        sys.stdin.read()
    """
    with subprocess.Popen([sys.executable, "-c", script, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        with pytest.raises(ArgumentError, match="somebody listens"):
            listen(path)
        process.send_signal(signal.SIGKILL)
    assert Path(path).exists()
    with pytest.raises(CoordinatorLostError):
        connect(path)
    _talk(path)


def test_of_many_who_replace_a_stale_socket_at_once_exactly_one_listens(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stale:
        stale.bind(path)
    listeners, refused = [], []
    start = threading.Barrier(8)

    def try_listening() -> None:
        start.wait()
        try:
            listeners.append(listen(path))
        except ArgumentError as error:
            refused.append(error)

    threads = [threading.Thread(target=try_listening) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(listeners), len(refused)) == (1, 7)
    connect(path).close()
    listeners[0].close()


def test_old_listener_does_not_remove_the_socket_of_its_successor(path):
    old = listen(path)
    Path(path).unlink()
    with listen(path):
        old.close()
        connect(path).close()


def test_forked_child_does_not_remove_its_parents_socket(path):
    with listen(path) as listener:
        pid = os.fork()
        if pid == 0:
            listener.close()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        connect(path).close()


def test_living_abstract_address_is_not_taken_over():
    address = f"\0shmwasm-test-{secrets.token_hex(8)}"
    with listen(address), pytest.raises(ArgumentError, match="cannot listen"):
        listen(address)


@pytest.mark.parametrize("address", ["", "/", "/tmp/..", "\0", "/tmp/" + "n" * 200, "/tmp/a\0b", "\0" + "n" * 200])
def test_addresses_that_cannot_be_sockets_are_refused(address):
    for use in (listen, connect):
        with pytest.raises(ArgumentError, match="cannot name a socket"):
            use(address)


def test_other_files_are_neither_replaced_nor_connected_to(tmp_path):
    file = tmp_path / "file"
    file.write_text("precious")
    with pytest.raises(ArgumentError, match="something else"):
        listen(file)
    with pytest.raises(CoordinatorLostError):
        connect(file)
    assert file.read_text() == "precious"


def test_sockets_of_another_kind_are_no_coordinators(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        stream.bind(path)
        stream.listen()
        with pytest.raises(ArgumentError, match="no coordinator's socket"):
            connect(path)
        with pytest.raises(ArgumentError, match="somebody listens"):
            listen(path)


def test_absent_places_are_named(tmp_path):
    with pytest.raises(ArgumentError, match="absent"):
        listen(tmp_path / "absent" / "socket")
    with pytest.raises(CoordinatorLostError, match="absent"):
        connect(tmp_path / "absent" / "socket")


def test_peer_of_another_user_is_refused_on_both_sides():
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    address = f"\0shmwasm-test-{secrets.token_hex(8)}"
    with listen(address) as listener:
        pid = os.fork()
        if pid == 0:
            try:
                os.setuid(65534)
                connect(address)
            except PeerRefusedError:
                os._exit(7)
            os._exit(1)
        with pytest.raises(PeerRefusedError, match="user 65534"):
            listener.accept()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
