from __future__ import annotations

import itertools
import os
import struct
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shmwasm.addresses import OS_PAGE, WASM_PAGE, WINDOW_END, NativeAddress
from shmwasm.engine.aliases import Alias
from shmwasm.engine.windows import Grant, Window
from shmwasm.errors import ArgumentError, AttachError, UnsupportedError
from shmwasm.posix.mappings import is_reserved
from shmwasm.posix.segments import Segment
from shmwasm.rewrite import seam

SIZES = (WASM_PAGE, 3 * OS_PAGE, 1 << 20, OS_PAGE)
"""Of the segments that chains are made of."""

MODULE = f"""(module
  (memory $main (export "memory") 1)
  (memory $alias (export "{seam.ALIAS}") 0)
  (global (export "{seam.START}") (mut i64) (i64.const {seam.NOTHING}))
  (global (export "{seam.END}") (mut i64) (i64.const 0))
  (global (export "{seam.MIXED}") (mut i32) (i32.const 0))
  (func (export "load") (param i32) (result i32) (i32.load (local.get 0)))
  (func (export "store") (param i32 i32) (i32.store (local.get 0) (local.get 1)))
  (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
  (func (export "load_alias") (param i32) (result i32) (i32.load $alias (local.get 0)))
  (func (export "store_alias") (param i32 i32) (i32.store $alias (local.get 0) (local.get 1)))
  (func (export "copy_in") (param i32 i32 i32) (memory.copy $alias $main (local.get 0) (local.get 1) (local.get 2)))
  (func (export "copy_within") (param i32 i32 i32) (memory.copy $alias $alias (local.get 0) (local.get 1) (local.get 2))))"""


class Attached:
    """A guest with an alias memory, and what it is told."""

    def __init__(self, guest) -> None:
        self.guest = guest
        self.alias = Alias(guest.store, guest.exports)
        self.window = Window(guest.store, guest.memory, alias=self.alias)

    def told(self) -> tuple[int, int, int]:
        start, end, mixed = (self.guest.exports[name].value(self.guest.store) for name in (seam.START, seam.END, seam.MIXED))
        return start, end, mixed

    def table(self) -> list[tuple[int, int, int]]:
        content = bytes(self.alias.memory.read(self.guest.store, 0, seam.TABLE_END))
        count = int.from_bytes(content[:4], "little")
        entries = struct.iter_unpack("<QQI4x", content[seam.TABLE_ENTRIES :][: count * seam.TABLE_ENTRY])
        return list(entries)

    def native(self, offset: int) -> NativeAddress:
        return NativeAddress(self.alias.base + offset)


@pytest.fixture
def attached(make_guest):
    made = Attached(make_guest(MODULE))
    yield made
    made.window.close()


@pytest.fixture(scope="module")
def segments():
    with ExitStack() as stack:
        made = [stack.enter_context(Segment.create(size, name_for_errors=f"heap{size}")) for size in SIZES]
        for number, segment in enumerate(made, 1):
            os.pwrite(segment.descriptor, bytes([number]) * segment.size, 0)
        yield made


@pytest.fixture(scope="module")
def read_only(segments):
    descriptors = [segment.read_only_descriptor() for segment in segments]
    yield descriptors
    for descriptor in descriptors:
        os.close(descriptor)


def _chain(segments, read_only, heaps: list[tuple[int, bool]]) -> list[Grant]:
    """Return grants for the heaps (index, writable), the last of which ends where the window does."""
    start = WINDOW_END - sum(SIZES[index] for index, _ in heaps)
    grants = []
    for index, writable in heaps:
        descriptor = segments[index].descriptor if writable else read_only[index]
        grants.append(
            Grant(heap=f"heap{index}", start=start, size=SIZES[index], descriptor=descriptor, writable=writable)  # type: ignore[arg-type]
        )
        start += SIZES[index]
    return grants


def _permissions(address: int, size: int) -> set[str]:
    """Return the permissions that occur in a range of this process, "?" for none at all."""
    found, reached = set(), address
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        limits, permissions = line.split(maxsplit=2)[:2]
        start, end = (int(limit, 16) for limit in limits.split("-"))
        if start <= reached < end and reached < address + size:
            found.add(permissions)
            reached = end
    return found if reached >= address + size else {*found, "?"}


def _check_told(attached: Attached, grants: list[Grant]) -> None:
    """Check that what the guest is told is true, page by page: a fault in the engine's own code would end the process."""
    start, end, mixed = attached.told()
    if not grants:
        assert (start, end, mixed) == (seam.NOTHING, 0, 0)
        return
    assert (start, end) == (grants[0].start, WINDOW_END)
    assert mixed == (not all(grant.writable for grant in grants))
    assert attached.table() == [(grant.start, grant.start + grant.size, grant.writable) for grant in grants]
    for entry_start, entry_end, writable in attached.table():
        place = attached.native(seam.ALIAS_CHAIN + entry_start - start)
        assert _permissions(place, entry_end - entry_start) == {"rw-s" if writable else "r--s"}
    assert _permissions(attached.native(0), seam.ALIAS_CHAIN) <= {"rw-p"}


def _check_bytes(attached: Attached, grants: list[Grant]) -> None:
    """Check that the first and last word of each heap are the segment's, through the window and through the alias."""
    call = attached.guest.call
    for grant in grants:
        for offset in (0, grant.size - 4):
            word = int.from_bytes(os.pread(grant.descriptor, 4, offset), "little", signed=True)
            address = grant.start + offset
            assert call("load", address) == word
            assert call("load_alias", address - grants[0].start + seam.ALIAS_CHAIN) == word


CHAINS = [
    [(0, True)],
    [(2, True), (0, True)],
    [(1, True), (3, True), (2, True)],
    [(0, False)],
    [(3, False), (2, False)],
    [(2, True), (1, False), (0, True)],
]


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(range(len(CHAINS)), 2)))
def test_chains_in_any_order_are_seen_through_window_and_alias(attached, segments, read_only, first, second):
    for number in (first, second, first):
        grants = _chain(segments, read_only, CHAINS[number])
        attached.window.attach(grants)
        _check_told(attached, grants)
        _check_bytes(attached, grants)
        attached.window.detach()
        _check_told(attached, [])


_HEAPS = st.lists(st.tuples(st.integers(0, len(SIZES) - 1), st.booleans()), min_size=1, max_size=5)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=st.lists(_HEAPS, min_size=1, max_size=6))
def test_what_the_guest_is_told_can_be_touched_at_every_point_of_any_history(make_guest, segments, read_only, history):
    attached = Attached(make_guest(MODULE))
    for heaps in history:
        grants = _chain(segments, read_only, heaps)
        attached.window.attach(grants)
        _check_told(attached, grants)
        _check_bytes(attached, grants)
        attached.window.detach()
        _check_told(attached, [])


def test_native_copies_through_the_alias_reach_the_heap(attached):
    with Segment.create(WASM_PAGE, name_for_errors="heap") as segment:
        grant = Grant(
            heap="heap",
            start=WINDOW_END - WASM_PAGE,
            size=WASM_PAGE,
            descriptor=segment.descriptor,
            writable=True,  # type: ignore[arg-type]
        )
        attached.window.attach([grant])
        attached.guest.memory.write(attached.guest.store, b"from private memory", 100)
        attached.guest.call("copy_in", seam.ALIAS_CHAIN + 8, 100, 19)
        assert os.pread(segment.descriptor, 19, 8) == b"from private memory"
        attached.guest.call("copy_within", seam.ALIAS_CHAIN + 9, seam.ALIAS_CHAIN + 8, 19)
        assert os.pread(segment.descriptor, 20, 8) == b"ffrom private memory"


def test_detached_alias_is_inaccessible_and_what_is_left_is_below_the_chain(attached, segments, read_only):
    attached.window.attach(_chain(segments, read_only, [(2, True)]))
    attached.window.detach()
    assert is_reserved(attached.native(seam.ALIAS_CHAIN), SIZES[2])
    attached.window.attach(_chain(segments, read_only, [(0, True)]))
    assert is_reserved(attached.native(seam.ALIAS_CHAIN + SIZES[0]), SIZES[2] - SIZES[0])


def test_memory_is_kept_below_the_window_although_the_alias_is_larger(attached, segments, read_only):
    attached.window.attach(_chain(segments, read_only, [(2, True)]))
    start = WINDOW_END - SIZES[2]
    assert attached.guest.call("grow", start // WASM_PAGE) == -1
    attached.window.detach()
    attached.window.attach(_chain(segments, read_only, [(0, True)]))
    assert attached.guest.call("grow", start // WASM_PAGE - 1) == 1


def test_alias_holds_a_chain_that_leaves_the_guest_little_memory(attached):
    size = seam.MAXIMUM_ALIASED_CHAIN
    with Segment.create(WASM_PAGE, name_for_errors="sparse") as segment:
        os.ftruncate(segment.descriptor, size)
        start = WINDOW_END - size
        grant = Grant(heap="sparse", start=start, size=size, descriptor=segment.descriptor, writable=True)  # type: ignore[arg-type]
        attached.window.attach([grant])
        _check_told(attached, [grant])
        attached.guest.call("store", WINDOW_END - 4, 7)
        assert attached.guest.call("load_alias", WINDOW_END - 4) == 7
        assert attached.guest.call("grow", start // WASM_PAGE) == -1


def test_chain_that_is_longer_than_the_alias_is_refused_and_nothing_changes(attached):
    size = seam.MAXIMUM_ALIASED_CHAIN + WASM_PAGE
    with Segment.create(WASM_PAGE, name_for_errors="sparse") as segment:
        os.ftruncate(segment.descriptor, size)
        start = WINDOW_END - size
        grant = Grant(heap="sparse", start=start, size=size, descriptor=segment.descriptor, writable=True)  # type: ignore[arg-type]
        with pytest.raises(AttachError, match="bulk instructions"):
            attached.window.attach([grant])
    _check_told(attached, [])
    assert attached.window.grants == ()
    assert attached.alias.memory.size(attached.guest.store) == 0


def test_chain_of_more_heaps_than_the_table_holds_is_refused(attached, segments):
    count = (seam.TABLE_END - seam.TABLE_ENTRIES) // seam.TABLE_ENTRY + 1
    grants = [
        Grant(heap="many", start=WINDOW_END - place * OS_PAGE, size=OS_PAGE, descriptor=segments[3].descriptor, writable=True)  # type: ignore[arg-type]
        for place in range(1, count + 1)
    ]
    with pytest.raises(AttachError, match=f"has {count} heaps"):
        attached.window.attach(grants)
    attached.window.attach(grants[:-1])
    assert len(attached.table()) == count - 1


def test_gap_in_a_chain_is_refused(attached, segments):
    start = WINDOW_END - WASM_PAGE
    grants = [
        Grant(heap="low", start=start, size=OS_PAGE, descriptor=segments[3].descriptor, writable=True),  # type: ignore[arg-type]
        Grant(heap="high", start=start + 2 * OS_PAGE, size=OS_PAGE, descriptor=segments[3].descriptor, writable=True),  # type: ignore[arg-type]
    ]
    with pytest.raises(ArgumentError, match="gap"):
        attached.window.attach(grants)
    _check_told(attached, [])


def test_failure_half_way_leaves_nothing_mapped_anywhere(attached, segments, read_only):
    grants = _chain(segments, read_only, [(2, True), (0, True)])
    broken = Grant(heap="short", start=grants[1].start, size=SIZES[0], descriptor=segments[3].descriptor, writable=True)
    with pytest.raises(ArgumentError, match="fewer than"):
        attached.window.attach([grants[0], broken])
    _check_told(attached, [])
    assert is_reserved(NativeAddress(attached.window.base + grants[0].start), SIZES[2] + SIZES[0])
    attached.window.attach(grants)
    _check_bytes(attached, grants)


def test_follower_that_refuses_a_chain_leaves_nothing_mapped_anywhere(attached, segments, read_only):
    heard: list[object] = []

    class Refusing:
        def attach(self, chain) -> None:
            heard.append((chain.start, chain.end, [start for start, _ in chain.heaps]))
            assert attached.told()[0] == chain.start
            raise UnsupportedError("a chain", "it is not liked")

        def detach(self) -> None:
            heard.append(attached.told()[0])

    attached.window.follow(Refusing())
    grants = _chain(segments, read_only, [(2, True), (0, False)])
    with pytest.raises(UnsupportedError, match="not liked"):
        attached.window.attach(grants)
    start = grants[0].start
    assert heard == [(start, WINDOW_END, [start, grants[1].start]), start]
    _check_told(attached, [])
    assert is_reserved(attached.native(seam.ALIAS_CHAIN), SIZES[2] + SIZES[0])
    assert is_reserved(NativeAddress(attached.window.base + start), WINDOW_END - start)


def test_alias_that_cannot_grow_is_refused_with_the_reason(make_guest, segments, read_only):
    text = MODULE.replace(f'(export "{seam.ALIAS}") 0)', f'(export "{seam.ALIAS}") 0 256)')
    attached = Attached(make_guest(text))
    with pytest.raises(UnsupportedError, match="cannot grow"):
        attached.window.attach(_chain(segments, read_only, [(0, True)]))
    _check_told(attached, [])
    assert attached.window.grants == ()
