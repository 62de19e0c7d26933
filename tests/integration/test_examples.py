"""Every example runs as it stands, in a process of its own, and finds its own result right."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SAYS = {
    "blur.py": "40 tiles of a 1920 x 1080 picture blurred: as numpy does it",
    "counter.py": "the counter says 4000000",
    "histogram.py": "as Python counts them",
    "linked_list.py": "their sum is 333283335000",
    "mandelbrot.py": "as Python draws them",
    "pipeline.py": "as Python finds it",
    "primes.py": "sum up to 37550402023: as Python says",
    "word_count.py": "as Python counts them",
}
"""What a line of each ends with."""


def run(name, *arguments):
    return subprocess.run(
        [sys.executable, "-P", str(EXAMPLES / name), *arguments], capture_output=True, text=True, timeout=50, check=False
    )


@pytest.mark.parametrize(("name", "says"), SAYS.items())
def test_the_example_finds_its_own_result_right(name, says):
    done = run(name)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{says}\n" in done.stdout
    assert f"NOT {says}" not in done.stdout


def test_no_example_is_left_out_of_these_tests():
    assert {path.name for path in EXAMPLES.glob("*.py")} == SAYS.keys()


def test_every_example_fits_on_a_page_and_has_its_guest_beside_it():
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) < 80, path
        assert sum(path.with_suffix(suffix).is_file() for suffix in (".c", ".zig", ".rs", ".ts")) == 1, path
        assert path.with_suffix(".wasm").is_file(), path


@pytest.mark.parametrize("text", [b"x", b" lead a\x0bb\x0cc\rd\x00e\x1cf and trail\n" * 99])
def test_words_are_counted_wherever_the_parts_are_cut(tmp_path, text):
    path = tmp_path / "text"
    path.write_bytes(text)
    done = run("word_count.py", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    assert f": {len(text.split())} words, {sum(map(len, text.split()))} letters: as" in done.stdout
