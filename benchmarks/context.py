"""What every benchmark is given, and the small programs that it runs."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measuring import elapsed, median_elapsed, process_clock

if TYPE_CHECKING:
    from shmwasm import Instance

GUESTS = Path(__file__).parent / "guests"

NO_COMPILER = "no peer: no compiler"

MIB = 1 << 20

EMPTY_CALLS = 100
"""How often an empty call is measured."""


@dataclass(frozen=True, slots=True)
class Context:
    """How much work to do."""

    quick: bool

    @property
    def rounds(self) -> int:
        """How often each side of a comparison is measured."""
        return 5 if self.quick else 15

    @property
    def few_rounds(self) -> int:
        """How often where a side takes long, or there are many."""
        return max(2, self.rounds // 3)

    def scaled(self, amount: int) -> int:
        """Return how much of `amount` to do in one round."""
        return amount // 10 if self.quick else amount


def guest(name: str) -> Path:
    """Return the path of a guest of the benchmarks."""
    return GUESTS / f"{name}.wasm"


def guest_work(instance: Instance, export: str, *arguments: int, divisor: int) -> Callable[[], float]:
    """Return a subject: the processor time that the worker needs for one call, divided by `divisor`."""
    clock = process_clock(instance.pid)
    return lambda: elapsed(lambda: instance.call(export, *arguments), clock=clock) / divisor


def loop_work(instance: Instance, export: str, times: int, argument: int) -> Callable[[], float]:
    """Return a subject: the processor time of one round of a guest's loop, without what the call of it takes."""
    clock = process_clock(instance.pid)
    empty = median_elapsed(lambda: instance.call(export, 0, argument), EMPTY_CALLS, clock=clock)
    return lambda: (elapsed(lambda: instance.call(export, times, argument), clock=clock) - empty) / times


def compiler() -> str | None:
    """Return the machine's C compiler; a user need not have one."""
    return shutil.which(os.environ.get("CC", "cc"))


def compile_natively(name: str) -> ctypes.CDLL | None:
    """Return a guest's source compiled for this machine and loaded into this process, or None without a compiler."""
    found = compiler()
    if found is None:
        return None
    with tempfile.TemporaryDirectory() as directory:
        library = Path(directory) / f"{name}.so"
        source = GUESTS / f"{name}.c"
        subprocess.run([found, "-O2", "-fno-builtin", "-shared", "-fPIC", "-o", library, source], check=True)
        return ctypes.CDLL(str(library))  # stays loaded when the file is gone
