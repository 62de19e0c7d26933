"""What the documentation shows runs as it is printed, and what it points to exists."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from shmwasm.cli import main

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
CODE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def name_of(page):
    return str(page.relative_to(ROOT))


def blocks(page, language):
    return [code for kind, code in CODE.findall(page.read_text()) if kind == language]


def prose(page):
    return CODE.sub("", page.read_text())


def anchors(page):
    """Return the anchors of a page's headings, as they are made on the web."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def run_in_order(page, directory):
    """Run a page's Python as one script, in an empty directory."""
    script = directory / "page.py"
    script.write_text("\n".join(blocks(page, "python")))
    return subprocess.run(
        [sys.executable, "-P", "-W", "error", str(script)], cwd=directory, capture_output=True, text=True, timeout=50, check=False
    )


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_the_python_on_a_page_runs_in_order_as_it_is_printed(page, tmp_path):
    done = run_in_order(page, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_readmes_example_counts_the_lines_of_files(tmp_path):
    files = sorted(Path(json.__file__).parent.glob("*.py"))
    expected = [f"{path.name}: {len(path.read_text().splitlines())} lines" for path in files]
    assert run_in_order(ROOT / "README.md", tmp_path).stdout.splitlines() == expected


def test_the_readmes_example_has_twenty_lines():
    (example,) = blocks(ROOT / "README.md", "python")
    assert len([line for line in example.splitlines() if line.strip()]) <= 20


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_point_to_what_exists(page):
    for link in LINK.findall(prose(page)):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = (page.parent / path) if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_named_exist(page):
    """A name in backquotes that looks like a path of the checkout is one: `directory/file.ext`, or `directory/`."""
    directories = {path.name for path in [*ROOT.iterdir(), *(ROOT / "shmwasm").iterdir()] if path.is_dir()}
    for name in re.findall(r"`([a-z_]+/[\w./]*)(?::\w+)?`", prose(page)):
        if name.split("/")[0] in directories:
            assert (ROOT / name).exists() or (ROOT / "shmwasm" / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_that_are_shown_exist(page):
    text = page.read_text()
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make (\w+)", text, re.MULTILINE)) <= targets
    known = set(main.list_commands(None))
    for line in [*re.findall(r"`(shmwasm [^`]+)`", prose(page)), *"".join(blocks(page, "sh")).splitlines()]:
        for command, options in re.findall(r"(?:^|&& )shmwasm ([a-z-]+)([^#]*)", line):
            assert command in known, line
            described = CliRunner().invoke(main, [command, "--help"]).output
            for option in re.findall(r"--[a-z]+", options.split(" -- ")[0]):
                assert option in described, line
