"""Starting a private coordinator."""

from __future__ import annotations

import subprocess

from shmwasm.posix.channels import Channel
from shmwasm.posix.programs import start_program


def start_private_coordinator() -> tuple[Channel, subprocess.Popen[bytes]]:
    """Start a coordinator that ends with its last client; return a channel to it, and the process.

    It has a session of its own, so that a terminal's Ctrl-C reaches this process only.
    """
    ours, theirs = Channel.pair()
    try:
        process = start_program("shmwasm.coordinator", ["--socket-fd", str(theirs.fileno())], [theirs.fileno()])
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return ours, process
