"""The scan: goes through all code and stops only where a rewriter may have something to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from shmwasm.wasm.binary import Binary


class Constant(NamedTuple):
    """The `i32.const` or `i64.const` directly before an instruction: its bytes, and its value, signed."""

    start: int
    end: int
    value: int


class Site(NamedTuple):
    """An instruction that works on a whole memory, or waits in it.

    Attributes:
        function: The index of the function that it stands in, imports included.
        instruction: "memory.copy", "memory.fill", "memory.init", "memory.size", "memory.grow", "memory.atomic.wait32",
            "memory.atomic.wait64" or "memory.atomic.notify".
        start: Its first byte.
        end: One past its last byte.
        memory: The memory; for memory.copy the one that is written.
        source: The memory that memory.copy reads, or the data segment of memory.init; else 0.
        align: For wait and notify, the alignment's exponent.
        offset: For wait and notify, the static offset.
        constant: What stands directly before memory.copy, memory.fill and memory.init, if it is a constant: their length.
    """

    function: int
    instruction: str
    start: int
    end: int
    memory: int
    source: int = 0
    align: int = 0
    offset: int = 0
    constant: Constant | None = None


class Scan:
    """Goes through a module's code once. Iterate over it for its sites, in order; then `features` is complete.

    Raises (while iterating):
        ModuleError: A function does not end where its body does, or an instruction is cut off.
        UnsupportedError: There is an opcode that is not in the table.
    """

    def __init__(self, binary: Binary) -> None:
        self.features: set[str] = set()
        """The proposals whose opcodes were met."""
        self._binary = binary

    def __iter__(self) -> Iterator[Site]:
        raise NotImplementedError
