"""The adapters' code (see `text`): compiled once, kept in the cache as one artifact, handed on as a descriptor."""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import wasmtime

from shmwasm.engine.config import fingerprint, new_engine
from shmwasm.errors import ModuleError

if TYPE_CHECKING:
    from shmwasm.engine.cache import Cache


class AdapterCode(NamedTuple):
    """The compiled adapters (see `text.adapters`)."""

    shim: wasmtime.Module
    private: wasmtime.Module
    window: wasmtime.Module
    private_shared: wasmtime.Module
    window_shared: wasmtime.Module
    private_wide: wasmtime.Module
    window_wide: wasmtime.Module


ADAPTERS: Final = {name: Path(__file__).with_name(f"{name}.wasm") for name in AdapterCode._fields}
"""The adapters as modules; `tools/build_wasi.py` makes them."""

_SIZES: Final = struct.Struct(f"<{len(ADAPTERS)}Q")
"""The head of an artifact: the sizes of the compiled modules that follow."""


def compile_adapters(cache: Cache) -> int:
    """Return a new read-only descriptor of the compiled adapters; the cache has them but for the first time.

    Raises:
        UnsupportedError: Others can write to the cache's directory.
    """
    modules = [path.read_bytes() for path in ADAPTERS.values()]
    key = hashlib.sha256(fingerprint().encode() + b"".join(modules)).hexdigest()
    artifact = _find(cache, key)
    if artifact is not None:
        return artifact
    with cache.making(key):
        artifact = _find(cache, key)  # another process may just have made it
        if artifact is not None:
            return artifact
        engine = new_engine(parallel_compilation=True)
        codes = [bytes(wasmtime.Module(engine, module).serialize()) for module in modules]
        return cache.keep(key, _SIZES.pack(*map(len, codes)) + b"".join(codes))


def _find(cache: Cache, key: str) -> int | None:
    artifact = cache.find(key)
    if artifact is not None:
        try:
            load_adapters(new_engine(parallel_compilation=False), artifact)
        except ModuleError:
            os.close(artifact)  # damaged: to be made anew
            return None
    return artifact


def load_adapters(engine: wasmtime.Engine, artifact: int) -> AdapterCode:
    """Return the adapters behind the descriptor `artifact`, which the caller keeps.

    The code is run as it is: it must come from a process of the same user.

    Raises:
        ModuleError: It is no such artifact, or not for this engine and processor.
    """
    content = memoryview(os.pread(artifact, os.fstat(artifact).st_size, 0))
    end = _SIZES.size
    modules = []
    try:
        for size in _SIZES.unpack_from(content):
            start, end = end, end + size
            modules.append(wasmtime.Module.deserialize(engine, bytes(content[start:end])))
    except (struct.error, wasmtime.WasmtimeError) as failure:
        raise ModuleError("the compiled adapters of WASI", str(failure).splitlines()[0]) from None
    return AdapterCode(*modules)
