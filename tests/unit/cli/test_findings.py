from dataclasses import replace
from pathlib import Path

import pytest

from shmwasm.cli import findings
from shmwasm.cli.findings import Level, Machine, Process, diagnose, worst

OK, WARNING, PROBLEM = Level.OK, Level.WARNING, Level.PROBLEM

GOOD = Machine(
    shared_memory_size=8 << 30,
    shared_memory_available=7 << 30,
    overcommit_mode=0,
    commit_left=0,
    address_space_limit=None,
    descriptor_limit=4096,
    locked_memory_limit=8 << 20,
    system="Linux",
    kernel="6.18.44-generic",
    architecture="x86_64",
    python="3.11.7",
    implementation="CPython",
    engine="50.0.1",
    self_test_failure=None,
    cache_directory=Path("/home/me/.cache/shmwasm"),
    cache_failure=None,
    cache_writable=True,
    cache_modules=3,
    cache_size=1 << 20,
    processes=(),
    stale_sockets=(),
    segments=(),
)


def test_a_good_machine_has_only_ok_findings():
    found = diagnose(GOOD)
    assert [finding.level for finding in found] == [OK] * len(found)
    assert worst(found) is OK


@pytest.mark.parametrize(
    ("facts", "subject", "level", "detail", "remedy"),
    [
        ({"shared_memory_size": None}, "/dev/shm", PROBLEM, "missing", "mount -t tmpfs"),
        ({"shared_memory_size": 64 << 20, "shared_memory_available": 64 << 20}, "/dev/shm", WARNING, "64.0 MiB", "--shm-size"),
        ({"shared_memory_size": 64 << 20, "shared_memory_available": 4096}, "/dev/shm", PROBLEM, "4.0 KiB", "--shm-size"),
        ({"shared_memory_available": 1 << 20}, "/dev/shm", WARNING, "1.0 MiB available of 8.0 GiB", "free what fills it"),
        ({"overcommit_mode": 2, "commit_left": 1 << 30}, "overcommit", WARNING, "1.0 GiB more", "vm.overcommit_memory=0"),
        ({"overcommit_mode": 2, "commit_left": -5}, "overcommit", PROBLEM, "0 bytes more", "vm.overcommit_memory=0"),
        ({"overcommit_mode": None}, "overcommit", WARNING, "cannot be read", "/proc"),
        ({"address_space_limit": 8 << 30}, "address space (RLIMIT_AS)", PROBLEM, "8.0 GiB", "ulimit -v unlimited"),
        ({"address_space_limit": 64 << 30}, "address space (RLIMIT_AS)", WARNING, "64.0 GiB", "ulimit -v unlimited"),
        ({"descriptor_limit": 256}, "open files (RLIMIT_NOFILE)", WARNING, "about 128 instances", "ulimit -n"),
        ({"descriptor_limit": 64}, "open files (RLIMIT_NOFILE)", PROBLEM, "about 32 instances", "ulimit -n"),
        ({"system": "Darwin", "kernel": "24.0"}, "kernel", PROBLEM, "Darwin", "use Linux"),
        ({"kernel": "5.3.0"}, "kernel", PROBLEM, "5.3.0", "5.4 or newer"),
        ({"kernel": "6.1.0-18"}, "kernel", WARNING, "PID namespaces", "6.5 or newer"),
        ({"kernel": "unreadable"}, "kernel", PROBLEM, "unreadable", "5.4 or newer"),
        ({"architecture": "riscv64"}, "architecture", PROBLEM, "riscv64", "aarch64, x86_64"),
        ({"python": "3.10.4"}, "Python", PROBLEM, "3.10.4", "3.11 or newer"),
        ({"implementation": "PyPy"}, "Python", PROBLEM, "PyPy", "CPython"),
        ({"engine": None}, "wasmtime", PROBLEM, "not installed", "pip install"),
        ({"self_test_failure": "a load in the hole does not trap"}, "wasmtime", PROBLEM, "does not trap", "pip install"),
        ({"cache_directory": None}, "module cache", WARNING, "there is none", "SHMWASM_CACHE_DIR"),
        ({"cache_failure": "others can write to it"}, "module cache", PROBLEM, "others can write", "chmod 700 /home/me"),
        ({"cache_writable": False}, "module cache", WARNING, "cannot be written", "SHMWASM_CACHE_DIR"),
        ({"stale_sockets": [Path("/tmp/shmwasm.sock")]}, "sockets", WARNING, "/tmp/shmwasm.sock", "rm /tmp/shmwasm.sock"),
        ({"segments": ["shmwasm-ab"]}, "segments", WARNING, "shmwasm-ab", "rm /dev/shm/shmwasm-ab"),
    ],
)
def test_what_is_wrong_is_found_with_its_remedy(facts, subject, level, detail, remedy):
    bad = [finding for finding in diagnose(replace(GOOD, **facts)) if finding.level is not OK]
    assert [(finding.subject, finding.level) for finding in bad] == [(subject, level)]
    assert detail in bad[0].detail
    assert remedy in bad[0].remedy
    assert worst(bad) is level


@pytest.mark.parametrize(
    ("facts", "detail"),
    [
        ({"overcommit_mode": 1}, "mode 1"),
        ({"address_space_limit": None}, "unlimited"),
        ({"descriptor_limit": None}, "unlimited"),
        ({"locked_memory_limit": None}, "unlimited"),
        ({"kernel": "6.5.0"}, "Linux 6.5.0"),
        ({"python": "3.14.0rc1"}, "CPython 3.14.0rc1"),
        ({"architecture": "aarch64"}, "aarch64"),
    ],
)
def test_what_will_do_is_ok(facts, detail):
    found = diagnose(replace(GOOD, **facts))
    assert worst(found) is OK
    assert any(detail in finding.detail for finding in found)


CLIENT, COORDINATOR, LAUNCHER, WORKER = 10, 20, 30, 40


@pytest.mark.parametrize(
    ("processes", "orphans"),
    [
        ([], []),
        ([Process(COORDINATOR, "coordinator", CLIENT, parent_is_client=True)], []),
        ([Process(COORDINATOR, "coordinator", 1, shared=True)], []),
        ([Process(COORDINATOR, "coordinator", 1)], [COORDINATOR]),
        ([Process(COORDINATOR, "coordinator", 1, shared=True), Process(LAUNCHER, "launcher", COORDINATOR)], []),
        ([Process(LAUNCHER, "launcher", 1), Process(WORKER, "worker", LAUNCHER)], [LAUNCHER]),
        ([Process(LAUNCHER, "launcher", CLIENT, parent_is_client=True)], [LAUNCHER]),
        ([Process(WORKER, "worker", 1)], [WORKER]),
    ],
)
def test_a_process_without_its_owner_is_left_over(processes, orphans):
    finding = findings.processes(processes)
    assert finding.level is (WARNING if orphans else OK)
    assert (finding.remedy or "").endswith(" ".join(map(str, orphans)))


def test_the_worst_finding_counts():
    levels = [findings.Finding("a", level, "") for level in (OK, PROBLEM, WARNING)]
    assert worst(levels) is PROBLEM
    assert worst(levels[::2]) is WARNING
    assert worst([]) is OK
