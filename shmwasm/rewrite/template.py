"""Code that differs in indices only, made once and filled in often: a module may have ten thousand places to rewrite."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from shmwasm.wasm.leb128 import encode_unsigned


class Template:
    """Code with holes for indices.

    Args:
        count: How many different indices the code is made from, at most 64.
        code: Returns the code. It must use each index as an immediate only, and not depend on the indices in any other way.
    """

    def __init__(self, count: int, code: Callable[[Sequence[int]], bytes]) -> None:
        one, other = code(range(count)), code(range(count, 2 * count))
        # So small an index takes one byte, and where the two differ there is nothing but indices.
        holes = [position for position, (first, second) in enumerate(zip(one, other, strict=True)) if first != second]
        edges = [-1, *holes, len(one)]
        self._first, *self._pieces = [one[before + 1 : after] for before, after in itertools.pairwise(edges)]
        self._holes = [one[position] for position in holes]

    def fill(self, indices: Sequence[int]) -> bytes:
        """Return the code made from these indices."""
        encoded = [encode_unsigned(index) for index in indices]
        parts = [self._first]
        for hole, piece in zip(self._holes, self._pieces, strict=True):
            parts += (encoded[hole], piece)
        return b"".join(parts)
