"""Random modules do the same before and after rewriting, and none of them harms the process with a chain attached.

SHMWASM_RANDOM_MODULES=100000 tries more than the usual number, which is what a run of all tests can afford. A module that failed
is tried again, alone, by its seed: SHMWASM_RANDOM_SEED=1234 SHMWASM_RANDOM_MODULES=1 pytest tests/conformance/random
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

FIRST = int(os.environ.get("SHMWASM_RANDOM_SEED", "0"))
COUNT = int(os.environ.get("SHMWASM_RANDOM_MODULES", "3000"))
BATCH = 250  # what one process tries

BATCHES = [(first, min(BATCH, FIRST + COUNT - first)) for first in range(FIRST, FIRST + COUNT, BATCH)]


@pytest.mark.timeout(600)  # the first test downloads the packages
@pytest.mark.parametrize(("first", "count"), BATCHES)
def test_rewritten_modules_do_what_the_originals_do(npm, first, count):
    command = [
        sys.executable,
        str(Path(__file__).with_name("agree.py")),
        str(npm / "binaryen@132.0.0/bin/wasm-opt"),
        str(first),
        str(count),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    if done.returncode:
        how = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit code {done.returncode}"
        pytest.fail(f"{how} after seed {lines[-1] if lines else 'none'}\n{done.stderr[-3000:]}")
    found = json.loads(lines[-1])
    assert found["disagreements"] == {}  # by seed
    if count == BATCH:  # that much is tried at least, so that agreement says something
        counts = found["counts"]
        assert counts["changed"] > 0.7 * count
        assert counts["attached"] > 0.6 * count
        assert counts["results"] > 5 * count
        assert counts["traps"] > 5 * count
        assert counts["calls with data in the chain"] > count // 2
        assert counts["traps with a chain"] > count
