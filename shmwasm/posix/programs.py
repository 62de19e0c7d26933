"""Starting the project's own programs, in fresh interpreters that import the very package that is running."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent.parent
"""The directory that this package was imported from."""


def start_program(module: str, arguments: Sequence[str], descriptors: Sequence[int]) -> subprocess.Popen[bytes]:
    """Start `python -m module arguments` in a session of its own, with these descriptors besides the standard three.

    `-P` keeps the working directory out of the new interpreter's search path, where it could hide a package; the directory that
    this package was imported from is put there instead.
    """
    search_path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH", "")]))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=subprocess.DEVNULL,
        pass_fds=list(descriptors),
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": search_path},
    )
