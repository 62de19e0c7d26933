import socket

import pytest

from shmwasm.cli.machine import is_stale, role_of


@pytest.mark.parametrize(
    ("command", "role"),
    [
        (["python", "-P", "-m", "shmwasm.coordinator", "--socket-fd", "5"], "coordinator"),
        (["/usr/bin/python3", "-m", "shmwasm.launcher", "--socket-fd", "4"], "launcher"),
        (["python3", "/usr/local/bin/shmwasm", "coordinator", "--socket", "x.sock"], "coordinator"),
        (["python3", "-m", "shmwasm", "coordinator", "--socket", "x.sock"], "coordinator"),
        (["python3", "-m", "shmwasm", "demo"], None),
        (["grep", "shmwasm.coordinator"], None),
        (["python3", "-m", "coordinator"], None),
        (["python3", "-m", "shmwasm.cli"], None),
        (["-m"], None),
        ([], None),
    ],
)
def test_a_program_is_known_by_its_command_line(command, role):
    assert role_of(command) == role


def test_a_socket_file_is_stale_exactly_when_nobody_listens(tmp_path):
    path = tmp_path / "shmwasm.sock"
    assert not is_stale(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()
        assert not is_stale(path)
    assert is_stale(path)


def test_what_is_no_socket_is_never_stale(tmp_path):
    path = tmp_path / "shmwasm.sock"
    path.write_text("")
    assert not is_stale(path)
