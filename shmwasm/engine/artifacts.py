"""Artifacts: compiled code with notes on it, in one file, so that neither is ever without the other.

Layout
------
======================  =====================================================================================
bytes                   what
======================  =====================================================================================
the first ones          the code, as the engine serialized it; it ignores what follows
`notes_size`            the notes
`FOOTER.size`           magic, `code_size` (u64), `notes_size` (u64), SHA-256 of the key, the sizes and the notes
======================  =====================================================================================

A file that was cut off, or is of another key or format, has no such footer. Whether the code is what was written is the cache's
affair.
"""

from __future__ import annotations

import hashlib
import os
import struct
from typing import Final

FOOTER: Final = struct.Struct("<8sQQ32s")
_MAGIC: Final = b"shmwasm1"
_LONGEST_NOTES: Final = 1 << 30


def pack(key: str, code: bytearray, notes: bytes) -> bytearray:
    """Append the notes to the code, and return it."""
    code_size = len(code)
    code += notes
    code += FOOTER.pack(_MAGIC, code_size, len(notes), _digest(key, code_size, notes))
    return code


def notes_of(key: str, artifact: int) -> bytes | None:
    """Return the notes of the artifact behind a descriptor; None if it is none that was packed under `key`."""
    size = os.fstat(artifact).st_size
    if size < FOOTER.size:
        return None
    magic, code_size, notes_size, digest = FOOTER.unpack(os.pread(artifact, FOOTER.size, size - FOOTER.size))
    if magic != _MAGIC or notes_size > _LONGEST_NOTES or code_size + notes_size + FOOTER.size != size:
        return None
    notes = os.pread(artifact, notes_size, code_size)
    return notes if digest == _digest(key, code_size, notes) else None


def _digest(key: str, code_size: int, notes: bytes) -> bytes:
    return hashlib.sha256(b"%s %d %d " % (key.encode(), code_size, len(notes)) + notes).digest()
