"""Artifacts: compiled code with notes on it, in one file, so that neither is ever without the other.

Layout
------
======================  =====================================================================================
bytes                   what
======================  =====================================================================================
the first ones          the code, as the engine serialized it; it ignores what follows
`notes_size`            the notes
`FOOTER.size`           magic, `code_size` (u64), `notes_size` (u64), SHA-256 of the key, the sizes, the notes and
                        the first `HEAD` bytes of the code
======================  =====================================================================================

A file that was cut off, or is of another key or format, has no such footer. To read all of the code would take longer than all
else that loading a module takes; whether it is what was written is the cache's affair.
"""

from __future__ import annotations

import hashlib
import os
import struct
from typing import Final

FOOTER: Final = struct.Struct("<8sQQ32s")
_MAGIC: Final = b"shmwasm1"
HEAD: Final = 1 << 16
"""How much of the code the footer vouches for: what says that it is code, and where its parts lie."""

_LONGEST_NOTES: Final = 1 << 30


def pack(key: str, code: bytearray, notes: bytes) -> bytearray:
    """Append the notes to the code, and return it."""
    footer = FOOTER.pack(_MAGIC, len(code), len(notes), _digest(key, len(code), notes, bytes(code[:HEAD])))
    code += notes
    code += footer
    return code


def notes_of(key: str, artifact: int) -> bytes | None:
    """Return the notes of the artifact behind a descriptor; None if it is none that was packed under `key`."""
    size = os.fstat(artifact).st_size
    if size < FOOTER.size:
        return None
    magic, code_size, notes_size, digest = FOOTER.unpack(os.pread(artifact, FOOTER.size, size - FOOTER.size))
    if magic != _MAGIC or notes_size > _LONGEST_NOTES or code_size + notes_size + FOOTER.size != size:
        return None
    notes, head = os.pread(artifact, notes_size, code_size), os.pread(artifact, min(HEAD, code_size), 0)
    return notes if digest == _digest(key, code_size, notes, head) else None


def _digest(key: str, code_size: int, notes: bytes, head: bytes) -> bytes:
    return hashlib.sha256(b"%s %d %d " % (key.encode(), code_size, len(notes)) + notes + head).digest()
