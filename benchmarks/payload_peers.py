"""Who else takes a payload to some code, and its result back. Each does the work of the guest's `ends`."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import AbstractContextManager
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import wasmtime

from benchmarks.answering import answer_ends, ends
from benchmarks.context import guest

Bytes = npt.NDArray[np.uint8]
Prepare = Callable[[Bytes], Callable[[], int]]
"""Makes of an array the call that takes it there; what can be done once for many calls with one array is done here."""


class Peer(NamedTuple):
    """One who is compared with."""

    name: str
    prepare: Prepare


Start = Callable[[int], AbstractContextManager[list[Peer]]]
"""Gives peers that take payloads of so many bytes at most, until the context ends; raises what keeps them from running here."""


@contextlib.contextmanager
def _multiprocessing(_largest: int) -> Iterator[list[Peer]]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        yield [Peer("multiprocessing.Pool", lambda array: functools.partial(pool.apply, ends, (array,)))]


@contextlib.contextmanager
def _concurrent_futures(_largest: int) -> Iterator[list[Peer]]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        yield [Peer("concurrent.futures", _submitting(executor))]


@contextlib.contextmanager
def _loky(_largest: int) -> Iterator[list[Peer]]:
    import loky  # noqa: PLC0415 - what need not be installed is imported where it is used

    with loky.ProcessPoolExecutor(1) as executor:
        yield [Peer("loky", _submitting(executor))]


def _submitting(executor: Executor) -> Prepare:
    return lambda array: lambda: executor.submit(ends, array).result()


@contextlib.contextmanager
def _ray(largest: int) -> Iterator[list[Peer]]:
    # Before it is imported: it takes note of what the environment says then.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # or it would keep a token in the user's home
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray  # noqa: PLC0415 - see above

    def read(array: Bytes) -> int:
        # Not the function above: Ray's workers would have to find its module.
        return int(array[0]) + int(array[-1]) if array.size else 0

    class Reader:
        def read(self, array: Bytes) -> int:
            return read(array)

    def by_reference(array: Bytes) -> Callable[[], int]:
        reference = ray.put(array)
        return lambda: int(ray.get(actor.read.remote(reference)))

    # It does not remove its files.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as directory:
        ray.init(
            address="local",
            num_cpus=2,  # one for the tasks, one for the actor
            include_dashboard=False,
            configure_logging=False,
            log_to_driver=False,
            object_store_memory=8 * largest,
            _temp_dir=directory,
        )
        try:
            task = ray.remote(read)
            actor = ray.remote(Reader).remote()
            yield [
                Peer("Ray task", lambda array: lambda: int(ray.get(task.remote(array)))),
                Peer("Ray actor", lambda array: lambda: int(ray.get(actor.read.remote(array)))),
                Peer("Ray actor, array in its store", by_reference),
            ]
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _wasmtime(largest: int) -> Iterator[list[Peer]]:
    """In this process: the payload is copied into the guest's memory."""
    store = wasmtime.Store()
    instance = wasmtime.Instance(store, wasmtime.Module.from_file(store.engine, str(guest("calls"))), [])
    exports = instance.exports(store)
    memory, function = exports["memory"], exports["ends"]
    assert isinstance(memory, wasmtime.Memory)
    assert isinstance(function, wasmtime.Func)
    address = memory.data_len(store)
    memory.grow(store, largest // memory.type(store).page_size)

    def prepare(array: Bytes) -> Callable[[], int]:
        data = array.tobytes()

        def call() -> int:
            memory.write(store, data, address)
            return int(function(store, address, len(data)))

        return call

    yield [Peer("wasmtime-py, Memory.write", prepare)]
    store.close()


@contextlib.contextmanager
def _extism(largest: int) -> Iterator[list[Peer]]:
    import extism  # noqa: PLC0415 - see above

    pages = 2 * largest // wasmtime.MemoryType(wasmtime.Limits(0, None)).page_size
    manifest = {"wasm": [{"data": bytes(wasmtime.wat2wasm(_EXTISM_GUEST))}], "memory": {"max_pages": pages}}
    with extism.Plugin(manifest) as plugin:

        def prepare(array: Bytes) -> Callable[[], int]:
            data = array.tobytes()
            return lambda: int.from_bytes(plugin.call("ends", data), "little")

        yield [Peer("Extism", prepare)]


_EXTISM_GUEST: Final = """(module
  (import "extism:host/env" "input_length" (func $length (result i64)))
  (import "extism:host/env" "input_load_u8" (func $load (param i64) (result i32)))
  (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
  (import "extism:host/env" "store_u64" (func $store (param i64 i64)))
  (import "extism:host/env" "output_set" (func $output (param i64 i64)))
  (func (export "ends") (result i32) (local $sum i32) (local $at i64)
    (if (i64.ne (call $length) (i64.const 0)) (then
      (local.set $sum (i32.add
        (call $load (i64.const 0))
        (call $load (i64.sub (call $length) (i64.const 1)))))))
    (local.set $at (call $alloc (i64.const 8)))
    (call $store (local.get $at) (i64.extend_i32_u (local.get $sum)))
    (call $output (local.get $at) (i64.const 8))
    (i32.const 0)))"""


@contextlib.contextmanager
def _zmq(_largest: int) -> Iterator[list[Peer]]:
    import zmq  # noqa: PLC0415 - see above

    with tempfile.TemporaryDirectory() as directory, zmq.Context() as context, context.socket(zmq.REQ) as socket:
        address = f"ipc://{directory}/socket"
        socket.bind(address)
        process = multiprocessing.get_context("spawn").Process(target=answer_ends, args=(address,), daemon=True)
        process.start()

        def prepare(array: Bytes) -> Callable[[], int]:
            def call() -> int:
                socket.send(array, copy=False)
                return int(socket.recv())

            return call

        try:
            yield [Peer("pyzmq", prepare)]
        finally:
            socket.send_multipart([b"", b"the end"])
            socket.recv()
            process.join()


PEERS: Final[dict[str, Start]] = {
    "multiprocessing.Pool": _multiprocessing,
    "concurrent.futures": _concurrent_futures,
    "loky": _loky,
    "Ray": _ray,
    "wasmtime-py": _wasmtime,
    "Extism": _extism,
    "pyzmq": _zmq,
}
