"""A client that has too many files open for a moment; in its own process, as the limit is one of the whole process."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import gc, os, resource, sys, time
from shmwasm import Runtime, errors

def descriptors():
    gc.collect()
    return len(os.listdir("/proc/self/fd"))

def with_room_for(room, action):
    most = max(map(int, os.listdir("/proc/self/fd")[:-1])) + 1
    fillers = []
    while len(fillers) < 1000 and (not fillers or fillers[-1] < most):
        fillers.append(os.dup(0))
    most = fillers[-1] + 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (most + room, hard))
    try:
        return action()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for filler in fillers:
            os.close(filler)

soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
with Runtime() as runtime:
    module = runtime.load('(module (func (export "f") (param i32) (result i32) (local.get 0)))')
    with runtime.spawn(module) as instance:
        heap = runtime.create_shared_heap(1 << 16)
        before, refused, room, workers = descriptors(), 0, 0, len(runtime.status()["workers"])
        while True:
            try:
                with_room_for(room, MAKE).close()
                break
            except (errors.UnsupportedError, errors.HeapNoSpaceError) as error:
                refused += 1
                assert "open" in str(error), error
            room += 1
        assert refused > 1, "there was room"
        assert instance.call("f", 7) == 7
        deadline = time.monotonic() + 20
        while descriptors() != before or len(runtime.status()["workers"]) != workers:
            assert time.monotonic() < deadline, (descriptors(), before, runtime.status())
            time.sleep(0.01)
        with runtime.spawn(module) as another:
            assert another.call("f", 8) == 8
"""


@pytest.mark.parametrize("make", ["runtime.spawn(module)", "runtime.create_shared_heap(1 << 16)"])
def test_a_request_that_finds_no_descriptor_fails_and_no_other_does(make: str) -> None:
    program = PROGRAM.replace("MAKE", f"lambda: {make}")
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr


def test_a_pool_refills_once_there_are_descriptors_again() -> None:
    program = """
import os, resource, signal, time
from shmwasm import Runtime, errors
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
with Runtime() as runtime:
    module = runtime.load('(module (func (export "f") (param i32) (result i32) (local.get 0)))')
    pool = runtime.pool(module, size=1)
    assert pool.submit("f", 1).result(20) == 1
    fillers = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        while True:
            fillers.append(os.dup(0))
    except OSError:
        pass
    os.kill(pool.instances[0].pid, signal.SIGKILL)
    for filler in fillers:
        os.close(filler)
        try:
            pool.submit("f", 2).result(20)
        except errors.ShmwasmError as error:
            assert not isinstance(error, errors.CoordinatorLostError), error
    assert pool.submit("f", 3).result(20) == 3
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
