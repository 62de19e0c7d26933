"""The launcher process as the coordinator sees it: started at once, and given messages to."""

from __future__ import annotations

import subprocess
from typing import Final

from shmwasm.coordinator.links import Link
from shmwasm.posix.channels import Channel
from shmwasm.posix.processes import open_pidfd
from shmwasm.posix.programs import start_program

_PATIENCE: Final = 5.0
"""How long the launcher may take to end its workers and itself, in seconds."""


class LauncherProcess:
    """The launcher, and the link to it. `core` is the descriptor of the compiled core, which stays the caller's."""

    def __init__(self, core: int) -> None:
        ours, theirs = Channel.pair()
        with theirs:
            try:
                self._process = start_program(
                    "shmwasm.launcher",
                    ["--socket-fd", str(theirs.fileno()), "--core-fd", str(core)],
                    [theirs.fileno(), core],
                )
                self.link = Link(ours, open_pidfd(self._process.pid))
            except BaseException:
                ours.close()
                raise

    def kill(self) -> None:
        """End it now; the kernel ends its workers."""
        self._process.kill()

    def reap(self) -> int:
        """Return how it ended, once it has."""
        return self._process.wait()

    def end(self) -> None:
        """Have it end its workers and itself, and wait until it has. May be called twice."""
        self.link.close_channel()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            self.reap()
        self.link.close_pidfd()
