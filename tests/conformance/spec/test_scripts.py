"""The WebAssembly test suite, run twice: its modules as they are, and as the rewriter makes them."""

from __future__ import annotations

from wast_exclusions import ANY, EXCLUSIONS, excluded
from wast_reader import read_script
from wast_rewriting import RewrittenWorld
from wast_runner import World, differences, meets, outcomes


def test_script_does_what_it_asserts_and_does_the_same_rewritten(engine, script):
    commands = read_script(script.path)
    modules = {}
    untouched = outcomes(World(engine, modules), commands)
    failed = {command.line for command, outcome in zip(commands, untouched, strict=True) if not meets(command, outcome)}
    row = excluded(script.name)
    if row is not None and row.lines is ANY:
        assert failed, f"nothing fails that is excluded because {row.reason}"
    else:
        assert failed == (row.lines if row else set())
    rewritten = outcomes(RewrittenWorld(engine, modules), commands)
    assert differences(commands, untouched, rewritten) == []


def test_every_excluded_script_is_there(suite):
    assert [row.script for row in EXCLUSIONS if not (suite / row.script).is_file()] == []
