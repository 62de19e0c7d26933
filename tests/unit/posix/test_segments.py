from __future__ import annotations

import fcntl
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
from multiprocessing.shared_memory import SharedMemory

import posix_ipc
import pytest

from shmwasm.addresses import OS_PAGE
from shmwasm.errors import ArgumentError, ClosedError, HeapNoSpaceError
from shmwasm.posix import segments
from shmwasm.posix.mappings import map_anywhere
from shmwasm.posix.segments import NAME_PREFIX, Segment, available_shared_memory

SIZE = 4 * OS_PAGE


def _own_names() -> set[str]:
    return {entry.name for entry in pathlib.Path("/dev/shm").iterdir() if entry.name.startswith(NAME_PREFIX[1:])}


@pytest.fixture(params=["without a name", "with a name for a moment"])
def each_way(request, monkeypatch):
    """Segments are made in each of the two ways."""
    if request.param == "with a name for a moment":
        monkeypatch.setattr(segments, "_create_nameless", segments._create_and_unlink)


@pytest.mark.usefixtures("each_way")
def test_new_segment_is_zero_nameless_reserved_private_and_not_inherited():
    with Segment.create(SIZE, name_for_errors="test") as segment:
        status = os.fstat(segment.descriptor)
        assert status.st_nlink == 0
        assert status.st_size == segment.size == SIZE
        assert status.st_blocks * 512 >= SIZE
        assert status.st_mode & 0o777 == 0o600
        assert not os.get_inheritable(segment.descriptor)
        assert os.pread(segment.descriptor, SIZE, 0) == bytes(SIZE)


def test_sparse_segment_holds_no_memory_until_it_is_reserved():
    with Segment.create(1 << 30, name_for_errors="test", reserve=False) as segment:
        assert os.fstat(segment.descriptor).st_blocks == 0
        segment.reserve(1 << 20, OS_PAGE)
        assert 0 < os.fstat(segment.descriptor).st_blocks * 512 <= 1 << 21


def test_closing_twice_is_fine_and_a_closed_segment_says_so():
    segment = Segment.create(SIZE, name_for_errors="frames")
    segment.close()
    segment.close()
    with pytest.raises(ClosedError, match="frames"):
        _ = segment.descriptor
    with pytest.raises(ClosedError, match="frames"):
        segment.read_only_descriptor()


def test_read_only_descriptor_cannot_be_written_or_mapped_writable():
    with Segment.create(SIZE, name_for_errors="test") as segment:
        descriptor = segment.read_only_descriptor()
        try:
            assert fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
            assert not os.get_inheritable(descriptor)
            with pytest.raises(ArgumentError, match="reading only"):
                map_anywhere(descriptor, SIZE, writable=True)
        finally:
            os.close(descriptor)


@pytest.mark.parametrize("size", [0, -1, 1 << 63, 1 << 70])
def test_sizes_that_are_no_sizes_are_refused(size):
    with pytest.raises(ArgumentError, match="bytes was asked for"):
        Segment.create(size, name_for_errors="test")


def test_more_than_shared_memory_holds_is_an_error_with_the_sizes():
    requested = available_shared_memory() + (1 << 40)
    with pytest.raises(HeapNoSpaceError) as caught:
        Segment.create(requested, name_for_errors="frames")
    assert caught.value.heap == "frames"
    assert caught.value.requested == requested
    assert 0 < caught.value.available < requested


def _run(script: str, *prefix: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*prefix, sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)


def test_file_size_limit_is_no_space_and_leaves_nothing():
    script = """if True:
        import os, resource
        from shmwasm.errors import HeapNoSpaceError
        from shmwasm.posix.segments import Segment
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        before = os.listdir("/proc/self/fd")
        try:
            Segment.create(2 << 20, name_for_errors="frames")
        except HeapNoSpaceError as error:
            print(error.requested, error.available, os.listdir("/proc/self/fd") == before)
    """
    finished = _run(script)
    assert finished.stdout.split() == [str(2 << 20), str(1 << 20), "True"], finished.stderr


_SMALL_SHM = """if True:
    import os, subprocess
    from shmwasm.errors import HeapNoSpaceError
    from shmwasm.posix.segments import Segment, available_shared_memory
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/dev/shm"], stderr=subprocess.DEVNULL).returncode:
        print("cannot mount")
        raise SystemExit
    room = available_shared_memory()
    assert room == 1 << 20, room
    for attempt in range(2):
        try:
            Segment.create(room + 4096, name_for_errors="known in advance")
        except HeapNoSpaceError as error:
            assert error.available == room, error
        else:
            raise SystemExit("more than there is was given")
    with Segment.create(room * 2, name_for_errors="found by the kernel", reserve=False) as sparse:
        try:
            sparse.reserve(0, room * 2)
        except HeapNoSpaceError as error:
            assert error.requested == room * 2, error
        else:
            raise SystemExit("more than there is was reserved")
    with Segment.create(room, name_for_errors="exactly"):
        pass
    assert available_shared_memory() == room and not os.listdir("/dev/shm")
    print("fine")
"""


def test_full_shared_memory_is_an_error_at_creation_and_not_a_sigbus_later():
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare(1) to mount a small /dev/shm with")
    options = ["--mount"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--mount"]
    finished = _run(_SMALL_SHM, "unshare", *options)
    if "cannot mount" in finished.stdout or (finished.returncode == 1 and "unshare" in finished.stderr):
        pytest.skip("this user may not mount a small /dev/shm")
    assert finished.stdout.strip() == "fine", finished.stderr


def test_failed_creations_leave_no_descriptor_and_no_name():
    names = _own_names()
    for _ in range(3):
        with pytest.raises(HeapNoSpaceError):
            Segment.create(1 << 50, name_for_errors="test")
    assert _own_names() <= names


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(b"x" * (OS_PAGE + 5))
    return path


def _accesses(segment: Segment) -> int:
    return fcntl.fcntl(segment.descriptor, fcntl.F_GETFL) & os.O_ACCMODE


@pytest.mark.parametrize("read_only", [True, False])
@pytest.mark.parametrize("kind", ["path", "text", "file", "descriptor"])
def test_files_open_as_segments_of_their_size(file, kind, read_only):
    with file.open("r+b") as opened:
        source = {"path": file, "text": str(file), "file": opened, "descriptor": opened.fileno()}[kind]
        segment = Segment.open(source, read_only=read_only)
    with segment:
        assert segment.size == OS_PAGE + 5
        assert _accesses(segment) == (os.O_RDONLY if read_only else os.O_RDWR)
        assert not os.get_inheritable(segment.descriptor)
        assert os.pread(segment.descriptor, 1, 0) == b"x"


@pytest.mark.parametrize("read_only", [True, False])
def test_shared_memory_of_the_standard_library_opens_by_its_name(read_only):
    shared = SharedMemory(create=True, size=SIZE)
    try:
        shared.buf[:5] = b"hello"
        with Segment.open(shared, read_only=read_only) as segment:
            assert segment.size == SIZE
            assert os.pread(segment.descriptor, 5, 0) == b"hello"
            assert _accesses(segment) == (os.O_RDONLY if read_only else os.O_RDWR)
    finally:
        shared.close()
        shared.unlink()


@pytest.mark.parametrize("read_only", [True, False])
def test_shared_memory_of_posix_ipc_opens_by_its_descriptor(read_only):
    shared = posix_ipc.SharedMemory(None, posix_ipc.O_CREX, size=SIZE)
    posix_ipc.unlink_shared_memory(shared.name)
    try:
        with Segment.open(shared, read_only=read_only) as segment:
            assert segment.size == SIZE
            assert _accesses(segment) == (os.O_RDONLY if read_only else os.O_RDWR)
    finally:
        shared.close_fd()


def test_file_that_is_open_for_reading_only_needs_read_only(file):
    with file.open("rb") as opened:
        with pytest.raises(ArgumentError, match="read_only=True"):
            Segment.open(opened, read_only=False)
        Segment.open(opened, read_only=True).close()


def test_sealed_memory_needs_read_only():
    memory = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    try:
        os.truncate(memory, SIZE)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        with pytest.raises(ArgumentError, match="sealed"):
            Segment.open(memory, read_only=False)
        Segment.open(memory, read_only=True).close()
    finally:
        os.close(memory)


def test_what_cannot_be_a_heap_is_refused_by_name(tmp_path):
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    left, right = socket.socketpair()
    with left, right, tempfile.TemporaryFile("wb") as file:
        write_only = os.open(f"/proc/self/fd/{file.fileno()}", os.O_WRONLY)
        file.write(b"content")
        file.flush()
        sources = [
            tmp_path / "empty",
            tmp_path / "pipe",
            tmp_path / "absent",
            tmp_path,
            left,
            write_only,
            -1,
            1 << 40,
            True,
            None,
        ]
        sources += [3.5, "", b"bytes", "a\0b", object()]
        for source in sources:
            for read_only in (True, False):
                with pytest.raises(ArgumentError):
                    Segment.open(source, read_only=read_only)  # type: ignore[arg-type]
        os.close(write_only)
