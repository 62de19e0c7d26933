"""Where things lie in a metadata segment. `core.h` is the specification."""

from __future__ import annotations

from shmwasm.addresses import round_up
from shmwasm.core import layout


def states_offset(slabs: int) -> int:
    """Return where the state bytes start in the metadata of a heap of `slabs` slabs; all before it is in use from the start."""
    return layout.DESCRIPTORS_OFFSET + round_up(slabs * layout.DESCRIPTOR_SIZE, layout.SECTION_ALIGNMENT)


def metadata_size(slabs: int) -> int:
    """Return the size in bytes of the metadata segment of a heap of `slabs` slabs."""
    return states_offset(slabs) + round_up(slabs * layout.GRANULES_PER_SLAB, layout.SECTION_ALIGNMENT)


def states_range(slabs: int, first: int, count: int) -> tuple[int, int]:
    """Return offset and length of the state bytes of `count` slabs from `first` on; reserve them before an assignment."""
    return states_offset(slabs) + first * layout.GRANULES_PER_SLAB, count * layout.GRANULES_PER_SLAB
