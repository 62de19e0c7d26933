"""Compiles C with the machine's own compiler; without one these tests are skipped."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

HERE = Path(__file__).parent
COMPILER = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
FLAGS = ("-std=gnu17", "-g", "-Wall", "-Wextra", "-Werror", "-fno-strict-aliasing", "-fno-omit-frame-pointer", "-pthread")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip = pytest.mark.skipif(COMPILER is None, reason="this machine has no C compiler")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.native)
            item.add_marker(skip)


@pytest.fixture
def compiler() -> str:
    assert COMPILER is not None
    return COMPILER


@pytest.fixture(scope="session")
def compile_natively(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that compiles a program of this directory, and skips the test where there is no such sanitizer."""
    compiled: dict[tuple[str, str], Path] = {}

    def compile_program(program: str, *options: str, sources: Sequence[Path] = (), include: Path, sanitizers: str = "") -> Path:
        if (program, sanitizers) in compiled:
            return compiled[program, sanitizers]
        directory = tmp_path_factory.mktemp(program)
        if sanitizers:
            options = (*options, f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all")
            probe = directory / "probe.c"
            probe.write_text("int main(void) { return 0; }")
            probed = subprocess.run([COMPILER, *options, "-o", directory / "probe", probe], capture_output=True, check=False)
            if probed.returncode or subprocess.run([directory / "probe"], capture_output=True, check=False).returncode:
                pytest.skip(f"this machine has no sanitizer for {sanitizers}")
        target = directory / program
        command = [COMPILER, *FLAGS, *options, f"-I{include}", "-o", target, HERE / f"{program}.c", *sources]
        subprocess.run(command, check=True)
        compiled[program, sanitizers] = target
        return target

    return compile_program


@pytest.fixture(scope="session")
def run_natively() -> Callable[[Path, int, int], str]:
    """Return a function that runs a program with a seed and a count, and returns what it prints."""

    def run(program: Path, seed: int, count: int) -> str:
        # Leaks are not looked for: that needs ptrace, which containers may forbid.
        environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "halt_on_error=1"}
        done = subprocess.run([program, str(seed), str(count)], capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, f"seed {seed}, count {count}: {done.stderr}"
        return done.stdout

    return run
