"""Edits of a module's bytes, and the map from offsets of the new file back to the old one."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable
from typing import NamedTuple

import msgspec


class Edit(NamedTuple):
    """The bytes [`start`, `end`) become `new`; offsets in it stand for `origin` of the old file."""

    start: int
    end: int
    new: bytes
    origin: int


def replacement(start: int, end: int, new: bytes) -> Edit:
    """Return the edit that puts `new` in the place of [`start`, `end`)."""
    return Edit(start, end, new, start)


class OffsetMap(msgspec.Struct, frozen=True):
    """Where the bytes of a new file come from.

    Pieces of the new file in ascending order: what was copied, what an edit put there, copied, edited, and so on. `starts` says
    where each piece starts, `origins` which offset of the old file its first byte stands for: 32-bit numbers of this machine,
    since there may be a hundred thousand. Both are empty where nothing was edited.
    """

    starts: bytes = b""
    origins: bytes = b""

    def original(self, offset: int) -> int:
        """Return the offset in the old file that `offset` in the new one stands for."""
        starts = memoryview(self.starts).cast("I")
        piece = bisect_right(starts, offset) - 1
        if piece < 0:
            return offset
        origin = memoryview(self.origins).cast("I")[piece]
        copied = piece % 2 == 0
        return origin + (offset - starts[piece] if copied else 0)


def edited(content: bytes, edits: Iterable[Edit]) -> tuple[bytes, OffsetMap]:
    """Return the content after the edits, and the map back.

    Args:
        content: The old file.
        edits: In ascending order; they do not overlap.
    """
    view = memoryview(content)
    parts: list[bytes | memoryview] = []
    starts: list[int] = []
    origins: list[int] = []
    position = length = 0
    for start, end, new, origin in edits:
        parts += (view[position:start], new)
        changed = length + start - position
        starts += (length, changed)
        origins += (position, origin)
        position, length = end, changed + len(new)
    if not parts:
        return content, OffsetMap()
    parts.append(view[position:])
    starts.append(length)
    origins.append(position)
    return b"".join(parts), OffsetMap(array("I", starts).tobytes(), array("I", origins).tobytes())
