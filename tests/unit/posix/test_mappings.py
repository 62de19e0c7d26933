from __future__ import annotations

import ctypes
import gc
import mmap
import os
import tempfile
from pathlib import Path

import pytest

from shmwasm.addresses import OS_PAGE, NativeAddress
from shmwasm.errors import ArgumentError, ClosedError
from shmwasm.posix.mappings import clear_fixed, is_reserved, map_anywhere, map_fixed, open_fixed, reserve_fixed, unmap_fixed
from shmwasm.posix.segments import Segment

SIZE = 4 * OS_PAGE
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


@pytest.fixture
def segment():
    with Segment.create(SIZE, name_for_errors="test") as made:
        yield made


@pytest.fixture
def room():
    """Addresses that nothing else uses."""
    memory = mmap.mmap(-1, SIZE)
    yield NativeAddress(ctypes.addressof(ctypes.c_char.from_buffer(memory)))
    gc.collect()
    memory.close()


def test_fixed_mapping_shows_the_segment_at_the_address(segment, room):
    map_fixed(room, SIZE, segment.descriptor, writable=True)
    os.pwrite(segment.descriptor, b"from the file", OS_PAGE)
    assert ctypes.string_at(room + OS_PAGE, 13) == b"from the file"
    ctypes.memmove(room, b"from memory", 11)
    assert os.pread(segment.descriptor, 11, 0) == b"from memory"


def test_fixed_mapping_starts_at_the_offset(segment, room):
    os.pwrite(segment.descriptor, b"second page", OS_PAGE)
    map_fixed(room, OS_PAGE, segment.descriptor, OS_PAGE, writable=False, prefault=True)
    assert ctypes.string_at(room, 11) == b"second page"


def test_unmapped_range_is_reserved_and_inaccessible(segment, room):
    map_fixed(room, SIZE, segment.descriptor, writable=True)
    assert not is_reserved(room, SIZE)
    unmap_fixed(room, SIZE)
    assert is_reserved(room, SIZE)


def test_reserved_range_is_told_beside_a_mapped_file_whose_name_is_no_text(segment, room, tmp_path):
    with Path(tmp_path, os.fsdecode(b"\xff")).open("w+b") as file:
        file.truncate(SIZE)
        with map_anywhere(file.fileno(), SIZE, writable=False):
            unmap_fixed(room, SIZE)
            assert is_reserved(room, SIZE)


def test_cleared_range_holds_zeros_that_can_be_written_and_the_file_is_as_it_was(segment, room):
    map_fixed(room, SIZE, segment.descriptor, writable=True)
    ctypes.memset(room, 1, SIZE)
    clear_fixed(NativeAddress(room + OS_PAGE), OS_PAGE)
    assert ctypes.string_at(room + OS_PAGE - 1, 2) == b"\1\0"
    assert ctypes.string_at(room + 2 * OS_PAGE - 1, 2) == b"\0\1"
    ctypes.memset(room + OS_PAGE, 2, OS_PAGE)
    assert os.pread(segment.descriptor, SIZE, 0) == b"\1" * SIZE


def test_opened_range_holds_zeros_or_the_files_bytes(segment, room):
    map_fixed(room, SIZE, segment.descriptor, writable=True)
    ctypes.memset(room, 1, SIZE)
    unmap_fixed(room, SIZE)
    open_fixed(room, OS_PAGE)
    assert ctypes.string_at(room, OS_PAGE) == bytes(OS_PAGE)
    assert is_reserved(NativeAddress(room + OS_PAGE), SIZE - OS_PAGE)
    reserve_fixed(room, SIZE, segment.descriptor, 0)
    open_fixed(room, OS_PAGE)
    ctypes.memset(room, 2, 1)
    assert os.pread(segment.descriptor, 2, 0) == b"\2\1"
    with pytest.raises(ArgumentError, match="whole pages"):
        open_fixed(room, 1)


def test_failed_fixed_mapping_leaves_no_gap_in_the_address_space(segment, room):
    read_only = segment.read_only_descriptor()
    try:
        with pytest.raises(ArgumentError, match="cannot be mapped writable"):
            map_fixed(room, SIZE, read_only, writable=True)
    finally:
        os.close(read_only)
    assert is_reserved(room, SIZE)


def test_read_only_descriptor_survives_mprotect(segment, room):
    read_only = segment.read_only_descriptor()
    map_fixed(room, SIZE, read_only, writable=False)
    os.close(read_only)
    assert _libc.mprotect(room, SIZE, mmap.PROT_READ | mmap.PROT_WRITE) == -1


def test_read_only_mapping_of_a_writable_descriptor_would_not_survive_mprotect(segment, room):
    map_fixed(room, SIZE, segment.descriptor, writable=False)
    assert _libc.mprotect(room, SIZE, mmap.PROT_READ | mmap.PROT_WRITE) == 0


def test_reserved_file_pages_become_shared_memory_when_they_are_made_accessible(segment, room):
    reserve_fixed(room, SIZE, segment.descriptor, 0)
    assert is_reserved(room, SIZE)
    assert _libc.mprotect(room, OS_PAGE, mmap.PROT_READ | mmap.PROT_WRITE) == 0
    ctypes.memmove(room, b"shared", 6)
    assert os.pread(segment.descriptor, 6, 0) == b"shared"


@pytest.mark.parametrize(("address", "length", "offset"), [(1, OS_PAGE, 0), (0, 0, 0), (0, OS_PAGE + 1, 0), (0, OS_PAGE, 7)])
def test_ranges_that_are_not_whole_pages_are_refused(segment, room, address, length, offset):
    with pytest.raises(ArgumentError, match="whole pages"):
        map_fixed(NativeAddress(room + address), length, segment.descriptor, offset, writable=True)


def test_mapping_beyond_the_file_is_refused_instead_of_killing_who_touches_it(room):
    with tempfile.TemporaryFile() as short:
        short.truncate(OS_PAGE + 1)
        map_fixed(room, 2 * OS_PAGE, short.fileno(), writable=True)
        with pytest.raises(ArgumentError, match="fewer than"):
            map_fixed(room, 3 * OS_PAGE, short.fileno(), writable=True)
        with pytest.raises(ArgumentError, match="fewer than"):
            map_anywhere(short.fileno(), 3 * OS_PAGE, writable=True)


def test_views_outlive_the_closed_mapping_and_the_closed_segment():
    with (
        Segment.create(SIZE, name_for_errors="test") as segment,
        map_anywhere(segment.descriptor, SIZE, writable=True) as mapping,
    ):
        view = mapping.view[10:20]
        mapping.close()
        mapping.close()
    view[:3] = b"abc"
    assert bytes(view[:4]) == b"abc\0"


def test_memory_is_given_back_when_the_last_view_is_gone(segment):
    mapping = map_anywhere(segment.descriptor, SIZE, writable=True)
    view, address = mapping.view, mapping.address
    mapping.close()
    start = f"{address:x}-"

    def mapped() -> bool:
        with Path("/proc/self/maps").open(encoding="utf-8") as areas:
            return any(line.startswith(start) and "/dev/shm/" in line for line in areas)

    assert mapped()
    del view
    assert not mapped()


def test_closed_mapping_says_that_it_is_closed(segment):
    mapping = map_anywhere(segment.descriptor, SIZE, writable=True)
    mapping.close()
    with pytest.raises(ClosedError):
        _ = mapping.view
    with pytest.raises(ClosedError):
        _ = mapping.address


@pytest.mark.parametrize("writable", [True, False])
def test_address_is_where_the_view_is(segment, writable):
    os.pwrite(segment.descriptor, b"here", 0)
    with map_anywhere(segment.descriptor, SIZE, writable=writable) as mapping:
        assert ctypes.string_at(mapping.address, 4) == b"here"
        assert mapping.view.readonly is not writable


@pytest.mark.parametrize("length", [0, -1])
def test_empty_mappings_are_refused(segment, length):
    with pytest.raises(ArgumentError, match="at least 1"):
        map_anywhere(segment.descriptor, length, writable=True)


def test_descriptor_that_is_not_open_is_refused(room):
    with pytest.raises(ArgumentError, match="descriptor -1"):
        map_anywhere(-1, SIZE, writable=True)
    with pytest.raises(ArgumentError, match="descriptor -1"):
        map_fixed(room, SIZE, -1, writable=True)
