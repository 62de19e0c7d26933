"""Gathers what `shmwasm doctor` decides about; changes nothing, but makes the module cache's directory if it is missing."""

from __future__ import annotations

import errno
import os
import platform
import resource
import socket
import stat
import tempfile
from collections.abc import Iterator
from importlib import metadata
from itertools import pairwise
from pathlib import Path

import psutil

from shmwasm import errors
from shmwasm.cli.findings import Machine, Process
from shmwasm.engine.cache import Cache
from shmwasm.posix.segments import NAME_PREFIX, SHARED_MEMORY_DIRECTORY

_ROLES = ("coordinator", "launcher", "worker")
_ENGINE_LIBRARY = "wasmtime"


def gather() -> Machine:
    """Look at the machine as this process sees it."""
    size, available = _shared_memory()
    mode, commit_left = _overcommit()
    directory, failure = _cache()
    modules = _modules(directory)
    return Machine(
        shared_memory_size=size,
        shared_memory_available=available,
        overcommit_mode=mode,
        commit_left=commit_left,
        address_space_limit=_limit(resource.RLIMIT_AS),
        descriptor_limit=_limit(resource.RLIMIT_NOFILE),
        locked_memory_limit=_limit(resource.RLIMIT_MEMLOCK),
        system=platform.system(),
        kernel=platform.release(),
        architecture=platform.machine(),
        python=platform.python_version(),
        implementation=platform.python_implementation(),
        engine=_engine_version(),
        self_test_failure=_self_test_failure(),
        cache_directory=directory,
        cache_failure=failure,
        cache_writable=directory is not None and os.access(directory, os.W_OK | os.X_OK),
        cache_modules=len(modules),
        cache_size=sum(modules),
        processes=list(_processes()),
        stale_sockets=_stale_sockets(),
        segments=_segments(),
    )


def _shared_memory() -> tuple[int | None, int]:
    try:
        status = os.statvfs(SHARED_MEMORY_DIRECTORY)
    except OSError:
        return None, 0
    return status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize


def _overcommit() -> tuple[int | None, int]:
    """Return the mode, and how many bytes may still be committed (meaningful in mode 2)."""
    try:
        mode = int(Path("/proc/sys/vm/overcommit_memory").read_text())
        lines = Path("/proc/meminfo").read_text().splitlines()
    except (OSError, ValueError):
        return None, 0
    kilobytes = {key: int(value.split()[0]) for key, _, value in (line.partition(":") for line in lines) if value.strip()}
    return mode, (kilobytes.get("CommitLimit", 0) - kilobytes.get("Committed_AS", 0)) * 1024


def _limit(kind: int) -> int | None:
    soft = resource.getrlimit(kind)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def _engine_version() -> str | None:
    try:
        return metadata.version("wasmtime")
    except metadata.PackageNotFoundError:
        return None


def _self_test_failure() -> str | None:
    try:
        # Here and not above: where the engine cannot be imported, everything else can still be looked at.
        from shmwasm.engine.config import new_engine  # noqa: PLC0415
        from shmwasm.engine.selftest import check_mapping  # noqa: PLC0415

        check_mapping(new_engine(parallel_compilation=False))
    except (errors.ShmwasmError, ImportError) as error:
        return str(error)
    return None


def _cache() -> tuple[Path | None, str | None]:
    """Return where the cache is, and why it is not used."""
    cache = Cache.default()
    try:
        descriptor = cache.find("0" * 64)
    except errors.UnsupportedError as error:
        return cache.directory, str(error)
    if descriptor is not None:
        os.close(descriptor)
    return cache.directory, None


def _modules(directory: Path | None) -> list[int]:
    """Return the size of every file in the cache."""
    if directory is None:
        return []
    try:
        return [entry.stat(follow_symlinks=False).st_size for entry in os.scandir(directory)]
    except OSError:
        return []


def _processes() -> Iterator[Process]:
    """Yield the processes of this user that run a program of this project.

    A worker is forked from its launcher and has the same command line; it is told by its parent.
    """
    programs: dict[int, tuple[str, psutil.Process, list[str]]] = {}
    for process in psutil.process_iter(["cmdline", "uids"]):
        command = process.info["cmdline"] or []
        uids = process.info["uids"]
        role = role_of(command)
        if role is not None and uids is not None and uids.real == os.getuid():
            programs[process.pid] = role, process, command
    for pid, (role, process, command) in programs.items():
        try:
            parent = process.ppid()
        except psutil.Error:
            continue  # it ended meanwhile
        is_forked = role == "launcher" and programs.get(parent, ("",))[0] == "launcher"
        yield Process(
            pid,
            "worker" if is_forked else role,
            parent,
            parent_is_client=_has_engine(parent),
            shared=any(word.partition("=")[0] == "--socket" for word in command),
        )


def role_of(command: list[str]) -> str | None:
    """Return which program of the project a command line runs, if any."""
    for first, second in pairwise(command):
        module = second.removeprefix("shmwasm.")
        if first == "-m" and module != second and module in _ROLES:
            return module
        if Path(first).name == "shmwasm" and second == "coordinator":
            return "coordinator"
    return None


def _has_engine(pid: int) -> bool:
    """Whether the process has the engine's library mapped; one that may not be looked at is given the benefit of the doubt."""
    try:
        return _ENGINE_LIBRARY in Path(f"/proc/{pid}/maps").read_text(errors="replace")
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _stale_sockets() -> list[Path]:
    """Return the socket files in the usual places that are named after this project and that nobody listens at."""
    places = {Path(tempfile.gettempdir()), Path(f"/run/user/{os.getuid()}"), Path(os.environ.get("XDG_RUNTIME_DIR", "/run"))}
    return sorted(path for place in places for path in place.glob("shmwasm*.sock") if is_stale(path))


def is_stale(path: Path) -> bool:
    """Whether the path is a socket file at which nobody listens."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return False
    except OSError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as probe:
        return probe.connect_ex(str(path)) == errno.ECONNREFUSED


def _segments() -> list[str]:
    try:
        return sorted(path.name for path in Path(SHARED_MEMORY_DIRECTORY).glob(NAME_PREFIX.removeprefix("/") + "*"))
    except OSError:
        return []
