"""The WebAssembly test suite: where it is, and an engine like a worker's.

The suite's scripts (https://github.com/WebAssembly/testsuite) are found through the environment variable `WASM_SPEC_TESTSUITE`,
which holds the path of a checkout. What needs them is skipped where it is not set. The folder `scripts` holds a few of our own,
for what the suite does not say.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from shmwasm.engine.config import new_engine

HERE = Path(__file__).parent
VARIABLE = "WASM_SPEC_TESTSUITE"
HOW_TO_GET_IT = f"set {VARIABLE} to a checkout of https://github.com/WebAssembly/testsuite"

sys.path.append(str(HERE))  # test directories are no packages, and the runner is no test


class Script(NamedTuple):
    """A script: its name, which is its path in the suite or in our own folder, and where it is."""

    name: str
    path: Path


def _scripts_in(folder: Path) -> list[Script]:
    return [Script(str(path.relative_to(folder)), path) for path in sorted(folder.rglob("*.wast"))]


def _suite() -> Path | None:
    given = os.environ.get(VARIABLE)
    return Path(given) if given else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test that takes a `script` run once for each one, or only for those that its module names."""
    if "script" not in metafunc.fixturenames:
        return
    suite = _suite()
    scripts = _scripts_in(HERE / "scripts") + (_scripts_in(suite) if suite else [])
    names = getattr(metafunc.module, "SCRIPTS", None)
    parameters = [pytest.param(script, id=script.name) for script in scripts if names is None or script.name in names]
    if suite is None:
        parameters.append(pytest.param(None, marks=pytest.mark.skip(reason=HOW_TO_GET_IT), id="suite"))
    metafunc.parametrize("script", parameters)


@pytest.fixture(scope="session")
def suite() -> Path:
    path = _suite()
    if path is None:
        pytest.skip(HOW_TO_GET_IT)
    return path


@pytest.fixture(scope="session")
def engine():
    return new_engine(parallel_compilation=False)


@pytest.fixture(scope="module", autouse=True)
def process() -> None:
    """Start no runtime: the fixture of this name, which does, is for the tests beside this folder."""
