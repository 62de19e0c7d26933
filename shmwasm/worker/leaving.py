"""How a worker ends: at once, from wherever it is."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import NoReturn

from shmwasm.errors import ProtocolError


def leave(code: int = 0) -> NoReturn:
    """End this process at once, after writing out what host functions printed."""
    with suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def give_up(violation: ProtocolError) -> NoReturn:
    """End this process because nobody can understand what it was told."""
    sys.stderr.write(f"shmwasm worker: {violation}\n")
    leave(os.EX_PROTOCOL)
