"""The guest kit's headers, compiled natively: threads under sanitizers, and real processes that are killed."""

import json
import re
import subprocess
from pathlib import Path

import pytest

import shmwasm

INCLUDE = Path(shmwasm.__file__).parent / "include"
PAGE = Path(__file__).parents[2] / "docs" / "guests.md"
SEEDS = [1, 2, 3]


@pytest.fixture(scope="module", params=["thread", "address,undefined"])
def threads(request, compile_natively):
    return compile_natively("kit_threads", "-O1", include=INCLUDE, sanitizers=request.param)


@pytest.fixture(scope="module")
def deaths(compile_natively):
    return compile_natively("kit_deaths", "-O2", include=INCLUDE)


@pytest.mark.parametrize("seed", SEEDS)
def test_threads_that_die_with_claims_and_locks_neither_race_nor_touch_a_byte_outside(threads, run_natively, seed):
    run_natively(threads, seed, 5_000)


@pytest.mark.parametrize("seed", SEEDS)
def test_processes_killed_at_random_lose_no_message_but_the_one_in_hand_and_no_lock(deaths, run_natively, seed):
    found = json.loads(run_natively(deaths, seed, 300))
    assert min(found["voided"], found["lost"], found["inherited"]) > 0, "nobody was killed where it matters"


@pytest.mark.parametrize("language", ["c -std=gnu11", "c++ -std=gnu++17"])
def test_the_headers_and_what_the_page_shows_compile_without_a_warning_as_c_and_as_cpp(compiler, tmp_path, language):
    source = tmp_path / "guest.c"
    first, second = re.findall(r"^```c\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    declaration, _, body = second.partition("\n")
    around = f"{declaration}\nvoid repair(void);\nvoid run(shmwasm_mutex *mutex);\nvoid run(shmwasm_mutex *mutex) {{{body}}}\n"
    source.write_text(f"{first}\n{around}")
    options = [*language.split(), "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror", "-fsyntax-only", f"-I{INCLUDE}"]
    done = subprocess.run([compiler, "-x", *options, source], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
