"""How wasmtime is configured: the layout of memories that everything else rests on.

Theory
------
Every linear memory is reserved whole, 4 GiB and a guard, and never moves, so that a heap mapped at `base + app address` is
reached by the guest's own loads and stores with no bounds check in between; an access to anything else in the reservation traps.
The guard catches what a 32-bit address plus a static offset reaches beyond. A 64-bit memory that takes a chain is declared with
all of its range and so reserved as far; the engine compares each of its addresses with that size.

Instances are allocated on demand. The pooling allocator would hand a dropped instance's memory, with a heap still mapped in it,
to the next instance. Compilation settings are one table, from which engines and the fingerprint of compiled code are made.
"""

from __future__ import annotations

import functools
import hashlib
import platform
import re
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import wasmtime

from shmwasm.addresses import WINDOW_END

if TYPE_CHECKING:
    from collections.abc import Mapping

GUARD_SIZE: Final = 32 << 20
"""Inaccessible bytes after each memory's 4 GiB. Static offsets up to this need no check of their own."""

SETTINGS: Final[Mapping[str, bool | int | str]] = MappingProxyType(
    {
        "strategy": "cranelift",
        "cranelift_opt_level": "speed",
        "memory_reservation": WINDOW_END,
        "memory_guard_size": GUARD_SIZE,
        "memory_may_move": False,
        "epoch_interruption": True,
        "signals_based_traps": True,
        "shared_memory": True,
        "wasm_threads": True,
        "wasm_simd": True,
        "wasm_relaxed_simd": True,
        "wasm_bulk_memory": True,
        "wasm_multi_value": True,
        "wasm_multi_memory": True,
        "wasm_memory64": True,
        "wasm_reference_types": True,
        "wasm_function_references": True,
        "wasm_tail_call": True,
        "wasm_exceptions": True,
        "wasm_gc": True,
        "wasm_wide_arithmetic": True,
    }
)
"""What every engine has in common; code compiled by one runs in the others.

Every proposal that the engine can be told to accept is on, but for those whose memories have pages of another size, and for those
that are unfinished. (What it accepts without being told, such as extended constants, has no name here; exceptions as they were
before the standard it does not know.)
"""


def new_engine(*, parallel_compilation: bool) -> wasmtime.Engine:
    """Return a new engine.

    Args:
        parallel_compilation: Whether to compile on several threads. A process that has done so must never fork: the child would
            wait for threads that it does not have.
    """
    config = wasmtime.Config()
    for name, value in SETTINGS.items():
        setattr(config, name, value)
    config.parallel_compilation = parallel_compilation
    return wasmtime.Engine(config)


@functools.cache
def fingerprint() -> str:
    """Return a digest of all that decides whether code compiled elsewhere can run here: versions, processor, settings."""
    facts = [
        _version("wasmtime"),
        _own_version(),
        platform.system(),
        platform.machine(),
        _processor_features(),
        *(f"{name}={value}" for name, value in sorted(SETTINGS.items())),
    ]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def _processor_features() -> str:
    """Return the kernel's list of the processor's features, which the engine makes use of; empty where there is none."""
    try:
        with Path("/proc/cpuinfo").open("rb") as file:
            start = file.read(1 << 14)  # of the first processor; where there are many, reading all takes long
    except OSError:
        return ""
    found = re.search(rb"^(?:flags|Features)\s*:.*$", start, re.MULTILINE)
    return "" if found is None else found[0].decode(errors="replace")


def _own_version() -> str:
    try:
        return _version("shmwasm")
    except ImportError:  # run from a checkout
        return "checkout"


def _version(package: str) -> str:
    """Return the version of an installed package; raises `ImportError` if it is none."""
    from importlib import metadata  # noqa: PLC0415  it brings modules that the launcher does without (see there)

    return metadata.version(package)
