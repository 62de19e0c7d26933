"""Reading a section: a position that moves on, and never beyond the end."""

from __future__ import annotations

from shmwasm.wasm.binary import Span
from shmwasm.wasm.leb128 import decode_unsigned, malformed


class Reader:
    """Reads `content` from `position` up to `end`. Every method raises `ModuleError` where the bytes end too early."""

    def __init__(self, content: bytes, position: int, end: int) -> None:
        self.content = content
        self.position = position
        self.end = end

    @property
    def left(self) -> int:
        """How many bytes are left."""
        return self.end - self.position

    def byte(self) -> int:
        """Read a byte."""
        if self.position >= self.end:
            raise malformed("the bytes end too early", self.position)
        self.position += 1
        return self.content[self.position - 1]

    def peek(self) -> int:
        """Return the next byte without reading it."""
        if self.position >= self.end:
            raise malformed("the bytes end too early", self.position)
        return self.content[self.position]

    def unsigned(self, bits: int = 32) -> int:
        """Read an unsigned number."""
        value, self.position = decode_unsigned(self.content, self.position, self.end, bits)
        return value

    def count(self, limit: int = 1_000_000) -> int:
        """Read how many entries follow; each takes at least one byte. Limits are the engine's own."""
        at = self.position
        value = self.unsigned()
        if value > limit:
            raise malformed(f"a count of {value} is more than {limit}", at)
        if value > self.left:
            raise malformed(f"a count of {value} is more than fits", at)
        return value

    def skip(self, size: int) -> Span:
        """Read `size` bytes, and return where they are."""
        start = self.position
        if size > self.left:
            raise malformed(f"{size} bytes are more than there are", start)
        self.position += size
        return Span(start, self.position)

    def name(self) -> str:
        """Read a name."""
        size, start = decode_unsigned(self.content, self.position, self.end)
        self.position = end = start + size
        if end > self.end:
            raise malformed(f"{size} bytes are more than there are", start)
        try:
            return self.content[start:end].decode()
        except UnicodeDecodeError:
            raise malformed("a name is not UTF-8", start) from None

    def finish(self) -> None:
        """Require that all bytes were read."""
        if self.left:
            raise malformed("bytes are left over", self.position)
