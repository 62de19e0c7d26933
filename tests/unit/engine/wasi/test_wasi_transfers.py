"""Calls that take several buffers, large ones, and ones at the seam of private memory and the chain."""

from __future__ import annotations

import itertools
import os
import random
import struct

import pytest

from shmwasm.addresses import WASM_PAGE, WINDOW_END
from shmwasm.rewrite.seam import ALIAS_CHAIN

READ_ONLY = WINDOW_END - 3 * WASM_PAGE
LOWER = READ_ONLY + WASM_PAGE
UPPER = LOWER + WASM_PAGE
"""Where the heaps of the fixture `heaps` start."""

LARGE = ALIAS_CHAIN
"""Where the one of `large_heap` starts: all below can become private memory."""

FILE = 4
NO_MEMORY = 48


def transfer(machine, name, buffers, *, array=0x100, result=0x80):
    """Call as a C library does, until all is transferred or the file ends; return how much was."""
    total = 0
    left = list(buffers)
    while True:
        machine.fill(array, b"".join(struct.pack("<II", *buffer) for buffer in left))
        assert machine.call(name, FILE, array, len(left), result) == 0
        done = machine.read_number(result)
        if not done:
            return total
        total += done
        while left and left[0][1] <= done:
            done -= left.pop(0)[1]
        if left:
            left[0] = (left[0][0] + done, left[0][1] - done)


def scattered(*, written):
    """Buffers in all places, in a random order."""
    places = [(0x1000, 10), (0x2000, 0), (0x3000, 5000), (LOWER, 7), (LOWER + 100, 3000), (UPPER - 50, 100)]
    places += [(LOWER + 0x8000, 0), (0x2_0000, 1), (WINDOW_END - 77, 77), (0x4_0000 - 20, 20)]
    if not written:
        places += [(READ_ONLY, 300), (LOWER - 5, 5)]
    return random.sample(places, len(places))


@pytest.mark.parametrize("array", [0x100, LOWER + 0xF000])
@pytest.mark.parametrize("result", [0x80, UPPER + 0x4000])
@pytest.mark.parametrize("memory", ["usual", "shared"])
def test_mixed_buffers_are_written_in_their_order(apart, start, heaps, tree, array, result, memory):
    @apart
    def check():
        machine = start(heaps, memory=memory)
        buffers = scattered(written=False)
        contents = [os.urandom(size) for _, size in buffers]
        for (address, _), content in zip(buffers, contents, strict=True):
            machine.fill(address, content)
        total = transfer(machine, "fd_write", buffers, array=array, result=result)
        assert total == sum(map(len, contents))
        assert tree.file.read_bytes()[:total] == b"".join(contents)


@pytest.mark.parametrize("array", [0x100, LOWER + 0xF000, READ_ONLY + 8])
@pytest.mark.parametrize("result", [0x80, UPPER + 0x4000])
@pytest.mark.parametrize("memory", ["usual", "shared"])
def test_mixed_buffers_are_filled_in_their_order(apart, start, heaps, tree, array, result, memory):
    @apart
    def check():
        machine = start(heaps, memory=memory)
        buffers = scattered(written=True)
        content = os.urandom(sum(size for _, size in buffers))
        tree.file.write_bytes(content)
        assert transfer(machine, "fd_read", buffers, array=array, result=result) == len(content)
        assert b"".join(machine.read(*buffer) for buffer in buffers) == content


@pytest.mark.parametrize("array", [0x100, LOWER])
def test_what_a_short_read_leaves_keeps_its_content(apart, start, heaps, array):
    @apart
    def check():
        machine = start(heaps)
        for buffer in (0x1000, UPPER):
            machine.fill(buffer, b"x" * 100)
            machine.fill(array, struct.pack("<II", buffer, 100))
            assert machine.call("fd_pread", FILE, array, 1, 30, 0x80) == 0
            assert machine.read_number(0x80) == 10
            assert machine.read(buffer, 100) == b"0123456789" + b"x" * 90


@pytest.mark.parametrize("array", [0x100, LARGE + (64 << 20)], ids=["private", "chain"])
@pytest.mark.parametrize("buffer", [0x1_0000, LARGE + 0x1_0000, LARGE - (4 << 20)], ids=["private", "chain", "seam"])
def test_megabytes_go_both_ways(apart, start, large_heap, tree, array, buffer):
    @apart
    def check():
        machine = start(large_heap)
        machine.memory.grow(machine.store, LARGE // WASM_PAGE - 4)
        content = random.randbytes(8 << 20)
        tree.file.write_bytes(content)
        size = min(len(content), LARGE - buffer) if buffer < 1 << 20 else len(content)
        assert transfer(machine, "fd_read", [(buffer, size)], array=array) == size
        assert machine.read(buffer, size) == content[:size]
        assert machine.call("fd_seek", FILE, 0, 0, 0x80) == 0
        machine.fill(buffer, content[::-1][:size])
        assert transfer(machine, "fd_write", [(buffer, size)], array=array) == size
        assert tree.file.read_bytes()[:size] == content[::-1][:size]


def test_more_than_the_scratch_area_holds_goes_in_parts_or_is_refused(apart, start, large_heap, tree):
    @apart
    def check():
        machine = start(large_heap)
        machine.memory.grow(machine.store, LARGE // WASM_PAGE - 4)
        size = LARGE - 0x1000
        content = random.randbytes(size)
        tree.file.write_bytes(content)
        array = LARGE + 0x100
        machine.fill(array, struct.pack("<II", 0x1000, size))
        assert machine.call("fd_pread", FILE, array, 1, 0, 0x80) == 0
        assert 0 < machine.read_number(0x80) < size
        assert transfer(machine, "fd_read", [(0x1000, size)], array=array) == size
        assert machine.read(0x1000, size) == content
        assert machine.call("fd_readdir", 3, 0x1000, size, 0, LARGE) == NO_MEMORY
        assert machine.call("fd_readdir", 3, 0x1000, size, 0, 0x80) == 0


def test_a_range_over_the_seam_of_private_memory_and_chain_is_good_once_they_adjoin(apart, start, large_heap, tree):
    @apart
    def check():
        machine = start(large_heap)
        machine.fill(0x1000, b"new")
        before = machine.call("random_get", LARGE - 8, 16)
        assert "out of bounds" in before
        machine.memory.grow(machine.store, LARGE // WASM_PAGE - 4)
        assert machine.call("random_get", LARGE - 8, 16) == 0
        assert machine.read(LARGE - 8, 16) != bytes(16)
        machine.fill(LARGE - 2, b"made")
        assert machine.call("path_create_directory", 3, LARGE - 2, 4) == 0
        assert (tree.file.parent / "made").is_dir()
        assert machine.call("args_get", LARGE - 4, LARGE - 17) == 0
        assert struct.unpack("<II", machine.read(LARGE - 4, 8)) == (LARGE - 17, LARGE - 9)
        assert machine.call("args_get", 0x1000, LARGE - 6) == 0
        assert struct.unpack("<II", machine.read(0x1000, 8)) == (LARGE - 6, LARGE + 2)
        assert machine.read(LARGE - 6, 12) == b"program\0arg\0"
        machine.fill(LARGE - 12, struct.pack("<IIII", 0x1000, 0, LARGE - 30, 4))
        machine.fill(LARGE - 30, b"abcd")
        assert machine.call("fd_pwrite", FILE, LARGE - 12, 2, 0, 0x80) == 0
        assert tree.file.read_bytes()[:4] == b"abcd"


def test_a_chain_without_read_only_heaps_ends_where_it_ends(apart, start, heaps):
    @apart
    def check():
        machine = start(heaps[1:])
        assert machine.call("random_get", LOWER, 2 * WASM_PAGE) == 0
        for start_address, size in [(LOWER, 2 * WASM_PAGE + 1), (LOWER - 1, 2), (UPPER, WASM_PAGE + 1)]:
            assert "out of bounds" in machine.call("random_get", start_address, size)


def test_pointers_into_the_window_are_good_as_long_as_a_chain_is_attached(apart, start, heaps):
    @apart
    def check():
        machine = start([])
        for attached in itertools.islice(itertools.cycle([False, True]), 5):
            if attached:
                machine.window.attach(heaps)
            answer = machine.call("random_get", LOWER, 8)
            assert answer == 0 if attached else "out of bounds" in answer
            assert machine.call("random_get", 0x1000, 8) == 0
            machine.window.detach()


def test_a_chain_too_long_for_a_second_mapping_is_attached_all_the_same(apart, start, heaps, oversized_heap):
    @apart
    def check():
        machine = start(oversized_heap)
        assert "out of bounds" in machine.call("random_get", LOWER, 8)
        assert machine.call("random_get", 0x1000, 8) == 0
        machine.window.detach()
        machine.window.attach(heaps)
        assert machine.call("random_get", LOWER, 8) == 0


def test_nothing_but_the_guest_is_in_a_backtrace(apart, start, heaps):
    @apart
    def check():
        machine = start(heaps)
        for trap in (machine.call("random_get", READ_ONLY, 8), machine.call("proc_exit", 3)):
            assert "guest!" in trap
            assert "shmwasm" not in trap
