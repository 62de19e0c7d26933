"""`shmwasm include-path`: where the guest kit is."""

from __future__ import annotations

from pathlib import Path

import click

import shmwasm
from shmwasm.cli.reporting import print_json, reported


@click.command(
    "include-path",
    epilog="""\b
Examples:
  clang --target=wasm32 -matomics -O2 -nostdlib -Wl,--no-entry -I "$(shmwasm include-path)" -o guest.wasm guest.c
  shmwasm include-path --json
""",
)
@reported
def include_path(*, as_json: bool) -> None:
    """Print the directory of the guest kit: shmwasm.h for C and C++, shmwasm.zig for Zig."""
    directory = Path(shmwasm.__file__).resolve().parent / "include"
    if as_json:
        print_json({"path": directory})
    else:
        click.echo(directory)
