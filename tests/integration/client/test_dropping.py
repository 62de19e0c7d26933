"""What is dropped without being closed."""

from __future__ import annotations

import gc
import subprocess
import sys
import warnings

import pytest

from shmwasm import Module, Runtime, errors
from waiting import PATIENCE

FORGETFUL = """
from shmwasm import Runtime

Runtime().close()
with Runtime() as closed:
    pass
forgotten = Runtime()
"""

LATE = """
from shmwasm import Runtime, errors

class Late:
    def __del__(self):
        for wait in (pool.submit("add", 1, 2).result, lambda: list(pool.map("add", [1], [2])), pool.shutdown, runtime.close):
            try:
                wait()
            except errors.UnsupportedError:
                print("UnsupportedError")

runtime = Runtime()
text = '(module (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1))))'
pool = runtime.pool(runtime.load(text), size=1)
pool.submit("add", 1, 2).result()
late = Late()
"""


def test_a_pool_that_is_dropped_is_warned_of_and_what_it_runs_goes_on(runtime: Runtime, echo_text: str) -> None:
    module = runtime.load(echo_text)
    pool = runtime.pool(module, size=1)
    futures = [pool.submit("count") for _ in range(20)]
    with pytest.warns(ResourceWarning, match="unclosed <pool of 1 instances>"):
        del pool
    assert [future.result(PATIENCE) for future in futures] == list(range(1, 21))
    with pytest.warns(ResourceWarning):
        results = list(runtime.pool(module, size=1).map("i32", range(1000)))
    assert results == list(range(1000))


def test_pools_that_were_closed_are_not_warned_of(shared_runtime: Runtime, echo_module: Module, echo_text: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with shared_runtime.pool(echo_module, size=1) as pool:
            pool.submit("count")
        shared_runtime.pool(echo_module, size=1).shutdown()
        shared_runtime.pool(echo_module, size=1).shutdown(wait=False)
        with Runtime() as runtime:
            pool = runtime.pool(runtime.load(echo_text), size=1)
        with pytest.raises(errors.ArgumentError):
            shared_runtime.pool(echo_module, size=0)
        del pool
        gc.collect()
    assert [str(one.message) for one in caught] == []


@pytest.mark.parametrize("dev", [True, False])
def test_a_runtime_that_is_open_at_the_end_is_warned_of_to_who_wants_to_know(dev) -> None:
    options = ["-X", "dev"] if dev else []
    ended = subprocess.run([sys.executable, *options, "-c", FORGETFUL], capture_output=True, text=True, timeout=50, check=True)
    assert ended.stderr.count("ResourceWarning: unclosed <shmwasm.client.runtime.Runtime object") == dev
    assert dev or not ended.stderr


def test_a_finalizer_that_comes_when_the_interpreter_ends_is_told_that_it_cannot_wait() -> None:
    ended = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, timeout=50, check=True)
    assert ended.stdout.split() == ["UnsupportedError"] * 4
    assert not ended.stderr
