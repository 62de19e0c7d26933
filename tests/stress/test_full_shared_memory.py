"""A full /dev/shm is an error with sizes, never a signal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

IN_A_SMALL_ONE = 'mount -t tmpfs -o size=8m none /dev/shm && exec "$@"'
CROWDED = Path(__file__).parent / "programs" / "crowded.py"


def in_a_small_shared_memory(*command):
    return ["unshare", "--mount", "sh", "-c", IN_A_SMALL_ONE, "sh", *map(str, command)]


@pytest.fixture
def _own_mounts():
    try:
        allowed = subprocess.run(in_a_small_shared_memory("true"), capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no unshare here")
    if allowed.returncode:
        pytest.skip(f"this user may not mount: {allowed.stderr.decode().strip()}")


@pytest.mark.usefixtures("_own_mounts")
def test_a_full_shared_memory_refuses_by_name_changes_nothing_and_is_usable_once_there_is_room(guest_path, program_environment):
    done = subprocess.run(
        in_a_small_shared_memory(sys.executable, CROWDED, guest_path),
        capture_output=True,
        check=False,
        env=program_environment,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, b"null\n"), done.stderr.decode()
