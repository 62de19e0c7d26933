"""`shmwasm coordinator` and `shmwasm verify`: a coordinator that unrelated processes share."""

from __future__ import annotations

import os
from pathlib import Path

import click

from shmwasm import Runtime
from shmwasm.cli.reporting import print_json, reported


@click.command(
    epilog="""\b
Example:
  shmwasm coordinator --socket /run/user/1000/shmwasm.sock
and then, in any number of Python processes of the same user:
  runtime = shmwasm.Runtime(connect="/run/user/1000/shmwasm.sock")
"""
)
@click.option("--socket", type=click.Path(path_type=Path), required=True, metavar="PATH", help="Where to listen; mode 0600.")
@reported
def coordinator(*, socket: Path, as_json: bool) -> None:
    """Share heaps between unrelated processes: run a coordinator in the foreground.

    It serves every process of this user that connects, until it is interrupted (SIGINT, SIGTERM). It says when it listens. A
    killed coordinator's socket file is replaced.
    """
    # Here and not above: the other commands have no use for a program's machinery.
    from shmwasm.coordinator import serve  # noqa: PLC0415

    def announce() -> None:
        if as_json:
            print_json({"socket": str(socket), "pid": os.getpid()})
        else:
            click.echo(f"listening on {socket}; end with Ctrl-C")

    serve(socket, ready=announce)


@click.command(
    epilog="""\b
Example:
  shmwasm verify --socket /run/user/1000/shmwasm.sock
"""
)
@click.option(
    "--socket",
    type=click.Path(exists=True, path_type=Path),
    required=True,
    metavar="PATH",
    help="Where the coordinator listens.",
)
@reported
def verify(*, socket: Path, as_json: bool) -> None:
    """Check every invariant of every heap of a running coordinator.

    Exits with 1 if one does not hold. The answer is meaningful while nobody allocates.
    """
    with Runtime(connect=socket) as runtime:
        heaps = runtime.verify()
    if as_json:
        print_json({"socket": str(socket), "heaps": heaps, "sound": True})
    else:
        click.echo(f"{heaps} heaps checked: all invariants hold")
