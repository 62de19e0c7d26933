"""The facts that a measurement depends on."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import psutil

from benchmarks.context import compiler

PACKAGES = ("shmwasm", "wasmtime", "numpy", "msgspec", "psutil", "iceoryx2", "loky", "ray", "extism", "pyzmq")


def facts() -> dict[str, object]:
    """Return what machine this is, how busy, and with which versions of what is compared."""
    return {
        "processor": _processor(),
        "processors": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "load_average": os.getloadavg(),
        "system": platform.system(),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "huge_pages": _huge_pages(),
        "python": platform.python_version(),
        "c_library": " ".join(platform.libc_ver()),
        "c_compiler": _compiler_version(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _processor() -> str:
    for line in _lines(Path("/proc/cpuinfo")):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _huge_pages() -> dict[str, str]:
    """Return what the kernel does for private and for shared memory: the word in brackets."""
    settings = Path("/sys/kernel/mm/transparent_hugepage")
    return {name: " ".join(_lines(settings / name)) for name in ("enabled", "shmem_enabled")}


def _compiler_version() -> str | None:
    found = compiler()
    if found is None:
        return None
    shown = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout
    return shown.partition("\n")[0]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
