"""The command `shmwasm`.

Every command prints for people, or with `--json` one JSON object for programs, and exits with 0 (done), 1 (it found a problem, or
an operation failed) or 2 (wrong usage).
"""

from __future__ import annotations

from importlib import import_module

import click

__all__ = ["main"]

_HOMES = {
    "demo": "demo",
    "run": "run",
    "inspect": "inspect",
    "include-path": "include_path",
    "coordinator": "coordinator",
    "verify": "coordinator",
    "doctor": "doctor",
}
"""The module of each command, imported when it is used: `doctor` must run where the others cannot even be imported."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        return list(_HOMES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  click's signature
        if cmd_name not in _HOMES:
            return None
        command = getattr(import_module(f"shmwasm.cli.{_HOMES[cmd_name]}"), cmd_name.replace("-", "_"))
        assert isinstance(command, click.Command)
        return command


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with `shmwasm demo`; `shmwasm COMMAND --help` shows examples of each command.",
)
@click.version_option(package_name="shmwasm")
def main() -> None:
    """Run WebAssembly instances, each in its own process, over shared heaps that none of them copies."""
