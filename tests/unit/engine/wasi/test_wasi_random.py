"""Calls with random arguments: whatever they do, the process that makes them lives on."""

from __future__ import annotations

import random
import struct

import pytest

from shmwasm.addresses import WASM_PAGE, WINDOW_END
from shmwasm.engine.wasi.functions import FUNCTIONS, value_types

READ_ONLY = WINDOW_END - 3 * WASM_PAGE
LOWER = READ_ONLY + WASM_PAGE
UPPER = LOWER + WASM_PAGE
EDGES = (0, WASM_PAGE, 4 * WASM_PAGE, READ_ONLY - WASM_PAGE, READ_ONLY, LOWER, UPPER, WINDOW_END)

ARRAYS = (0x100, READ_ONLY + 0x40, LOWER + 0x100, UPPER - 12)
NAMES = (0x400, LOWER + 0x400)
NOT_CALLED = {"proc_exit", "fd_close", "fd_renumber", "fd_allocate", "fd_filestat_set_size", "poll_oneoff", "path_rename"}
"""What ends the guest, leaves it nothing to work on, fills the disk, or waits."""

CALLS = 1500


def pointer():
    step = random.choice([0, -1, 1, -4, 4, -8, 8, -16, 16, -64, random.randrange(-300, 300), random.randrange(WASM_PAGE)])
    return (random.choice(EDGES) + step) % WINDOW_END


def number():
    return random.choice([0, 1, 2, 4, 5, 8, random.randrange(100), random.randrange(1 << 17), random.randrange(1 << 32)])


@pytest.mark.parametrize("memory", ["usual", "shared", "wide"])
def test_no_argument_ends_the_process(apart, start, heaps, memory):
    names = sorted(FUNCTIONS.keys() - NOT_CALLED)

    @apart
    def check():
        machine = start(heaps, memory=memory)
        answers = set()
        for _ in range(CALLS):
            machine.fill(random.choice(ARRAYS), b"".join(struct.pack("<II", pointer(), number()) for _ in range(4)))
            machine.fill(random.choice(NAMES), b"file")
            name = random.choice(names)
            arguments = [
                random.choice([3, 4, 1, pointer(), pointer(), number(), random.choice(ARRAYS + NAMES)])
                if kind == "i32"
                else random.randrange(100)
                for kind in value_types(FUNCTIONS[name])
            ]
            answers.add(type(machine.call(name, *arguments)))
        assert answers == {int, str}
