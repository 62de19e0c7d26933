"""Fixtures for all tests: runtimes, and the watch that no test leaves anything behind."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator
from multiprocessing import resource_tracker
from pathlib import Path

import pytest

from shmwasm import Runtime
from shmwasm.testing.leaks import Snapshot, mark_descendants

_mark = mark_descendants()
_failed = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[_failed] = True
    return report


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_behind_by_the_session(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail if a fixture of a wider scope than one test leaves something behind; set up first, so torn down last."""
    # Python's own helper for shared memory is started at its first use, and stays; start it where it is nobody's.
    resource_tracker.ensure_running()
    snapshot = Snapshot(_mark)
    yield
    # What a failed test left behind is still there, and was reported.
    if not request.session.testsfailed:
        _fail_on(snapshot, "the tests' shared fixtures")


@pytest.fixture(autouse=True)
def _nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a process, descriptor, thread or segment behind."""
    snapshot = Snapshot(_mark)
    yield
    # A failed test has failed already, and its traceback keeps alive what it held.
    if not request.node.stash.get(_failed, False):
        # The values of its fixtures were torn down, but are still named here.
        request.node.funcargs.clear()
        _fail_on(snapshot, "the test")


def _fail_on(snapshot: Snapshot, who: str) -> None:
    leftovers = snapshot.leftovers()
    if leftovers:
        pytest.fail(f"{who} left behind:\n  " + "\n  ".join(leftovers), pytrace=False)


@pytest.fixture
def importable_tests(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let other processes import the test modules, to unpickle their functions; shmwasm stays the one that is installed."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(request.config.rootpath)])


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    """A private runtime for one test."""
    with Runtime() as private:
        yield private


@pytest.fixture(scope="session")
def shared_runtime() -> Iterator[Runtime]:
    """One private runtime for all tests of a process (an xdist worker has its own); what a test makes in it, it must close."""
    with Runtime() as shared:
        shared.create_shared_heap(1).close()  # what is made at the first use is nobody's leftover
        yield shared


@pytest.fixture(scope="session")
def npm() -> Path:
    """The directory of the files that `npm.py` lists; tests that need it are skipped without npm or a network, but not in CI."""
    import npm as packages  # noqa: PLC0415  few tests need it

    try:
        return packages.fetch()
    except packages.UnavailableError as reason:
        if os.environ.get("CI"):
            pytest.fail(str(reason))
        pytest.skip(str(reason))
