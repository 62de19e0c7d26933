"""Code that differs in some immediates only, made once and filled in often: a module may have ten thousand places to rewrite."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence


class Template:
    """Code with holes for immediates.

    Args:
        count: How many different immediates the code is made from, at most 32.
        code: Returns the code, given small numbers for them. It must use each only as an immediate in LEB128, and not depend on
            them in any other way.
    """

    def __init__(self, count: int, code: Callable[[Sequence[int]], bytes]) -> None:
        one = code(range(count))
        other = code(range(count, 2 * count)) if count else one
        # So small a number takes one byte, signed or not, and where the two differ there is nothing but these.
        holes = [position for position, (first, second) in enumerate(zip(one, other, strict=True)) if first != second]
        edges = [-1, *holes, len(one)]
        self._first, *self._pieces = [one[before + 1 : after] for before, after in itertools.pairwise(edges)]
        self._holes = [one[position] for position in holes]

    def fill(self, immediates: Sequence[bytes]) -> bytes:
        """Return the code made from these immediates, which are encoded already."""
        parts = [self._first]
        for hole, piece in zip(self._holes, self._pieces, strict=True):
            parts += (immediates[hole], piece)
        return b"".join(parts)
