"""The launcher process as the coordinator sees it: started at once, and given messages to."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
from typing import TYPE_CHECKING, Final

from shmwasm.coordinator.links import Link
from shmwasm.engine.cache import Cache
from shmwasm.engine.wasi import compile_adapters
from shmwasm.errors import UnsupportedError
from shmwasm.posix.channels import Channel
from shmwasm.posix.processes import open_pidfd
from shmwasm.posix.programs import start_program

if TYPE_CHECKING:
    from collections.abc import Iterator

_log = logging.getLogger(__name__)

_PATIENCE: Final = 5.0
"""How long the launcher may take to end its workers and itself, in seconds."""


@contextlib.contextmanager
def compiled_adapters() -> Iterator[int]:
    """Give the descriptor of WASI's compiled adapters; the cache has them but for the first time."""
    try:
        descriptor = compile_adapters(Cache.default())
    except UnsupportedError as refusal:
        _log.warning("the adapters of WASI are compiled without the cache: %s", refusal)
        descriptor = compile_adapters(Cache(None))
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class LauncherProcess:
    """The launcher, and the link to it.

    Args:
        core: The descriptor of the compiled core; it stays the caller's.
        wasi: The descriptor of WASI's compiled adapters; likewise.
    """

    def __init__(self, core: int, wasi: int) -> None:
        ours, theirs = Channel.pair()
        with theirs:
            try:
                self._process = start_program(
                    "shmwasm.launcher",
                    ["--socket-fd", str(theirs.fileno()), "--core-fd", str(core), "--wasi-fd", str(wasi)],
                    [theirs.fileno(), core, wasi],
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
