"""What `shmwasm doctor` thinks of a machine: facts in, findings out; nothing here looks at the machine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from shmwasm.cli.sizes import format_size

SHARED_MEMORY = "/dev/shm"  # noqa: S108  the kernel's place for it, as it is shown

MEMORY_RESERVATION = 4 << 30
"""The address space that one 32-bit memory reserves."""

MEMORIES_OF_A_WORKER = 2
"""The guest's and the allocator's."""

DESCRIPTORS_OF_AN_INSTANCE = 2
"""About what each instance takes in its client."""

MACHINES = frozenset({"x86_64", "aarch64"})
KERNEL_NEEDED = (5, 4)
KERNEL_WANTED = (6, 5)
PYTHON_NEEDED = (3, 11)
SHARED_MEMORY_NEEDED = 1 << 20
SHARED_MEMORY_WANTED = 256 << 20
DESCRIPTORS_NEEDED = 128
DESCRIPTORS_WANTED = 1024


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. Everything that is not ok has a remedy."""

    subject: str
    level: Level
    detail: str
    remedy: str | None = None


@dataclass(frozen=True)
class Process:
    """A process of this project. `role` is "coordinator", "launcher" or "worker".

    `parent_is_client` says whether its parent is a Python that has the engine loaded; `shared` whether it is a coordinator that
    serves a socket, and so needs no client.
    """

    pid: int
    role: str
    parent: int
    parent_is_client: bool = False
    shared: bool = False


@dataclass(frozen=True)
class Machine:
    """What `machine.gather` found. Sizes are bytes; a limit of None is no limit."""

    shared_memory_size: int | None  # None: there is no /dev/shm
    shared_memory_available: int
    overcommit_mode: int | None  # None: /proc does not say
    commit_left: int
    address_space_limit: int | None
    descriptor_limit: int | None
    locked_memory_limit: int | None
    system: str
    kernel: str
    architecture: str
    python: str
    implementation: str
    engine: str | None  # None: not installed
    self_test_failure: str | None
    cache_directory: Path | None
    cache_failure: str | None
    cache_writable: bool
    cache_modules: int
    cache_size: int
    processes: Sequence[Process]
    stale_sockets: Sequence[Path]
    segments: Sequence[str]


def diagnose(machine: Machine) -> list[Finding]:
    """Return a finding for everything that was looked at, in the order in which to read them."""
    return [
        shared_memory(machine.shared_memory_size, machine.shared_memory_available),
        overcommit(machine.overcommit_mode, machine.commit_left),
        address_space(machine.address_space_limit),
        open_files(machine.descriptor_limit),
        locked_memory(machine.locked_memory_limit),
        kernel(machine.system, machine.kernel),
        architecture(machine.architecture),
        python(machine.implementation, machine.python),
        engine(machine.engine, machine.self_test_failure),
        cache(machine),
        processes(machine.processes),
        sockets(machine.stale_sockets),
        segments(machine.segments),
    ]


def worst(findings: Sequence[Finding]) -> Level:
    """Return the worst level among the findings."""
    order = list(Level)
    return max((finding.level for finding in findings), key=order.index, default=Level.OK)


def shared_memory(size: int | None, available: int) -> Finding:
    """Heaps live in /dev/shm; there must be room for some."""
    subject = SHARED_MEMORY
    if size is None:
        return Finding(subject, Level.PROBLEM, "is missing", "mount it: mount -t tmpfs -o nosuid,nodev tmpfs /dev/shm")
    detail = f"{format_size(available)} available of {format_size(size)}"
    if available >= SHARED_MEMORY_WANTED:
        return Finding(subject, Level.OK, detail)
    level = Level.WARNING if available >= SHARED_MEMORY_NEEDED else Level.PROBLEM
    if size < SHARED_MEMORY_WANTED:
        remedy = "make it larger: mount -o remount,size=2G /dev/shm, or docker run --shm-size=2g"
    else:
        remedy = "free what fills it: see ls -l /dev/shm and lsof +L1 /dev/shm"
    return Finding(subject, level, detail, remedy)


def overcommit(mode: int | None, left: int) -> Finding:
    """Under strict accounting, shared memory counts against the commit limit, used or not."""
    subject = "overcommit"
    if mode is None:
        return Finding(subject, Level.WARNING, "cannot be read", "mount /proc")
    if mode != 2:
        return Finding(subject, Level.OK, f"mode {mode}: reserving address space costs nothing")
    detail = f"mode 2 (strict): heaps and engines may commit {format_size(max(left, 0))} more"
    remedy = "set it to 0 or 1, or raise the limit: sysctl vm.overcommit_memory=0, sysctl vm.overcommit_ratio=90"
    return Finding(subject, Level.PROBLEM if left < SHARED_MEMORY_NEEDED else Level.WARNING, detail, remedy)


def address_space(limit: int | None) -> Finding:
    """Each memory reserves 4 GiB of addresses, so that no load or store needs a check."""
    subject = "address space (RLIMIT_AS)"
    needed = (MEMORIES_OF_A_WORKER + 1) * MEMORY_RESERVATION
    if limit is None:
        return Finding(subject, Level.OK, "unlimited")
    detail = f"limited to {format_size(limit)}; a worker reserves {format_size(MEMORIES_OF_A_WORKER * MEMORY_RESERVATION)}"
    remedy = "lift the limit: ulimit -v unlimited (it counts addresses, not memory)"
    return Finding(subject, Level.PROBLEM if limit < needed else Level.WARNING, detail, remedy)


def open_files(limit: int | None) -> Finding:
    """Instances, heaps and clients are descriptors."""
    subject = "open files (RLIMIT_NOFILE)"
    if limit is None:
        return Finding(subject, Level.OK, "unlimited")
    detail = f"{limit}: enough for about {limit // DESCRIPTORS_OF_AN_INSTANCE} instances of one client"
    if limit >= DESCRIPTORS_WANTED:
        return Finding(subject, Level.OK, detail)
    return Finding(
        subject, Level.PROBLEM if limit < DESCRIPTORS_NEEDED else Level.WARNING, detail, "raise the limit: ulimit -n 4096"
    )


def locked_memory(limit: int | None) -> Finding:
    """Nothing is locked, so any limit will do; it is shown because other users of shared memory need one."""
    text = "unlimited" if limit is None else format_size(limit)
    return Finding("locked memory (RLIMIT_MEMLOCK)", Level.OK, f"{text}; none is needed")


def kernel(system: str, release: str) -> Finding:
    """The kernel must tell reliably whether a process is gone (pidfd)."""
    subject = "kernel"
    detail = f"{system} {release}"
    if system != "Linux":
        return Finding(subject, Level.PROBLEM, detail, "use Linux: in a virtual machine or a container elsewhere")
    version = _version(release)
    if version < KERNEL_NEEDED:
        return Finding(subject, Level.PROBLEM, f"{detail} cannot watch processes", f"use Linux {_dotted(KERNEL_NEEDED)} or newer")
    if version < KERNEL_WANTED:
        detail += " cannot watch clients in other PID namespaces"
        remedy = f"let containers that share heaps share a PID namespace, or use Linux {_dotted(KERNEL_WANTED)} or newer"
        return Finding(subject, Level.WARNING, detail, remedy)
    return Finding(subject, Level.OK, detail)


def architecture(machine: str) -> Finding:
    """The mapping is proven on two architectures."""
    if machine in MACHINES:
        return Finding("architecture", Level.OK, machine)
    return Finding("architecture", Level.PROBLEM, machine, f"use one of {', '.join(sorted(MACHINES))}")


def python(implementation: str, version: str) -> Finding:
    """Which Python runs this."""
    detail = f"{implementation} {version}"
    if implementation == "CPython" and _version(version) >= PYTHON_NEEDED:
        return Finding("Python", Level.OK, detail)
    return Finding("Python", Level.PROBLEM, detail, f"use CPython {_dotted(PYTHON_NEEDED)} or newer")


def engine(version: str | None, failure: str | None) -> Finding:
    """The engine must lay its memories out as the mapping expects."""
    remedy = "install the version that shmwasm asks for: pip install --force-reinstall shmwasm"
    if version is None:
        return Finding("wasmtime", Level.PROBLEM, "is not installed", remedy)
    if failure is not None:
        return Finding("wasmtime", Level.PROBLEM, f"{version}; the self-test of the mapping failed: {failure}", remedy)
    return Finding("wasmtime", Level.OK, f"{version}; the self-test of the mapping passed")


def cache(machine: Machine) -> Finding:
    """Compiled modules are code: nobody else may be able to write them."""
    subject = "module cache"
    directory = machine.cache_directory
    if directory is None:
        remedy = "set HOME, or SHMWASM_CACHE_DIR to a directory of your own"
        return Finding(subject, Level.WARNING, "there is none: every process compiles its modules anew", remedy)
    if machine.cache_failure is not None:
        remedy = f"make it yours alone: chmod 700 {directory}, or set SHMWASM_CACHE_DIR to another directory"
        return Finding(subject, Level.PROBLEM, machine.cache_failure, remedy)
    if not machine.cache_writable:
        remedy = "make it writable, or set SHMWASM_CACHE_DIR to another directory"
        return Finding(
            subject, Level.WARNING, f"{directory} cannot be written: modules are compiled anew in every process", remedy
        )
    return Finding(subject, Level.OK, f"{directory}: {machine.cache_modules} modules, {format_size(machine.cache_size)}")


def processes(found: Sequence[Process]) -> Finding:
    """A private coordinator belongs to a client, a launcher to a coordinator, a worker to a launcher."""
    by_pid = {process.pid: process for process in found}
    orphans = [process for process in found if not _has_owner(process, by_pid.get(process.parent))]
    if not orphans:
        return Finding(
            "processes", Level.OK, f"{len(found)} running, each of them with its owner" if found else "none is running"
        )
    names = ", ".join(f"{process.role} {process.pid}" for process in orphans)
    remedy = f"if no client uses them: kill {' '.join(str(process.pid) for process in orphans)}"
    return Finding("processes", Level.WARNING, f"without the process that started them: {names}", remedy)


def _has_owner(process: Process, parent: Process | None) -> bool:
    match process.role:
        case "coordinator":
            return process.shared or process.parent_is_client
        case "launcher":
            return parent is not None and parent.role == "coordinator"
        case _:
            return parent is not None and parent.role == "launcher"


def sockets(stale: Sequence[Path]) -> Finding:
    """A killed coordinator leaves its socket file, which the next one there replaces."""
    if not stale:
        return Finding("sockets", Level.OK, "no stale one was found")
    names = " ".join(map(str, stale))
    return Finding("sockets", Level.WARNING, f"nobody listens at {names}", f"rm {names}")


def segments(names: Sequence[str]) -> Finding:
    """Segments lose their names while they are still empty, so none is ever seen."""
    if not names:
        return Finding("segments", Level.OK, "none has a name")
    paths = " ".join(f"{SHARED_MEMORY}/{name}" for name in names)
    return Finding("segments", Level.WARNING, f"still named: {', '.join(names)}", f"if they stay: rm {paths}")


def _version(text: str) -> tuple[int, int]:
    found = re.match(r"([0-9]+)\.([0-9]+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
