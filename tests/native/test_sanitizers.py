"""The core's own C, compiled natively with a sanitizer: long random histories, and threads that play processes."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from shmwasm import core

HERE = Path(__file__).parent
CORE_SOURCES = sorted(Path(core.__file__).parent.glob("src/*.c"))
COMPILER = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
FLAGS = ("-std=gnu17", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-fno-strict-aliasing", "-fno-omit-frame-pointer", "-pthread")

pytestmark = [pytest.mark.native, pytest.mark.skipif(COMPILER is None, reason="this machine has no C compiler")]


def compile_with(sanitizers, program, directory):
    """Compile a program of this directory; skip the test where the compiler has no such sanitizer."""
    probe = directory / "probe.c"
    probe.write_text("int main(void) { return 0; }")
    options = (f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all")
    probed = subprocess.run([COMPILER, *options, "-o", directory / "probe", probe], capture_output=True, check=False)
    if probed.returncode or subprocess.run([directory / "probe"], capture_output=True, check=False).returncode:
        pytest.skip(f"this machine has no sanitizer for {sanitizers}")
    target = directory / program
    sources = [HERE / f"{program}.c", HERE / "harness.c", *CORE_SOURCES]
    include = f"-I{Path(core.__file__).parent / 'src'}"
    subprocess.run([COMPILER, *FLAGS, *options, include, "-o", target, *sources], check=True)
    return target


def run(program, seed, steps):
    # Leaks are not looked for: that needs ptrace, which containers may forbid.
    environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "halt_on_error=1"}
    finished = subprocess.run([program, str(seed), str(steps)], capture_output=True, text=True, env=environment, check=False)
    assert finished.returncode == 0, f"seed {seed}, {steps} steps: {finished.stderr}"


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    return compile_with("address,undefined", "history", tmp_path_factory.mktemp("history"))


@pytest.fixture(scope="module")
def threads(tmp_path_factory):
    return compile_with("thread", "threads", tmp_path_factory.mktemp("threads"))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_history_touches_no_byte_outside_the_segment_and_breaks_no_invariant(history, seed):
    run(history, seed, 400_000)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_processes_that_allocate_free_and_die_at_once_never_race(threads, seed):
    run(threads, seed, 40_000)
