"""What every command has in common: `--json`, and how errors are shown."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import click

from shmwasm import errors


def print_json(facts: dict[str, Any]) -> None:
    """Print the one JSON object that a command with `--json` prints."""
    click.echo(json.dumps(facts, indent=2, default=str, allow_nan=False))


def readable(text: str) -> str:
    """Return text with all but lines and what can be seen as escapes: a module's names may hold what drives a terminal."""
    return "".join(one if one.isprintable() or one == "\n" else one.encode("unicode_escape").decode() for one in text)


def reported(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the option `--json` (its parameter `as_json`), and turn our errors into messages and exit code 1."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
    @functools.wraps(command)
    def run(*arguments: Any, as_json: bool, **options: Any) -> None:
        try:
            command(*arguments, as_json=as_json, **options)
        except errors.ShmwasmError as error:
            if not as_json:
                raise click.ClickException(readable(str(error))) from error
            kind, facts = errors.to_wire(error)
            print_json({"error": {"kind": kind, "message": str(error), "facts": facts}})
            raise SystemExit(1) from error

    return run
