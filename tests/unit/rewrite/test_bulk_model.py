"""Bulk memory instructions against a model of memory: the same bytes afterwards, or a trap and no byte changed."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shmwasm.addresses import OS_PAGE, WASM_PAGE, WINDOW_END

SEGMENT = bytes(range(1, 201)) * 2
CONSTANTS = (0, 1, 7, 16, 33, 100, 5000)


def module(kind: str) -> str:
    """Return a module with every bulk instruction, for addresses of the type `kind`."""
    index = "i64" if kind == "i64" else ""
    text = "".join(f"\\{byte:02x}" for byte in SEGMENT)
    constant_lengths = "".join(
        f"""(func (export "copy{n}") (param {kind} {kind}) (memory.copy (local.get 0) (local.get 1) ({kind}.const {n})))
            (func (export "fill{n}") (param {kind} i32) (memory.fill (local.get 0) (local.get 1) ({kind}.const {n})))"""
        for n in CONSTANTS
    )
    return f"""(module
      (memory (export "memory") {index} 2) (memory $narrow (export "narrow") 2) (memory $wide (export "wide") i64 2)
      (data $text "{text}")
      (func (export "copy") (param {kind} {kind} {kind}) (memory.copy (local.get 0) (local.get 1) (local.get 2)))
      (func (export "fill") (param {kind} i32 {kind}) (local f64) (memory.fill (local.get 0) (local.get 1) (local.get 2)))
      (func (export "init") (param {kind} i32 i32) (memory.init $text (local.get 0) (local.get 1) (local.get 2)))
      (func (export "from_narrow") (param {kind} i32 i32) (memory.copy 0 $narrow (local.get 0) (local.get 1) (local.get 2)))
      (func (export "to_narrow") (param i32 {kind} i32) (memory.copy $narrow 0 (local.get 0) (local.get 1) (local.get 2)))
      (func (export "from_wide") (param {kind} i64 {kind}) (memory.copy 0 $wide (local.get 0) (local.get 1) (local.get 2)))
      (func (export "to_wide") (param i64 {kind} {kind}) (memory.copy $wide 0 (local.get 0) (local.get 1) (local.get 2)))
      (func (export "grow") (param {kind}) (result {kind}) (memory.grow (local.get 0)))
      (func (export "drop") (data.drop $text))
      {constant_lengths})"""


@dataclass
class Region:
    """Addresses that a guest has, and what they hold."""

    start: int
    content: bytearray
    writable: bool = True

    @property
    def end(self) -> int:
        return self.start + len(self.content)


@dataclass
class Model:
    """What the specification says of a memory that consists of regions; those that touch are one."""

    regions: list[Region]
    edges: list[int] = field(default_factory=list)

    def pieces(self, start: int, size: int) -> list[tuple[Region, int, int]] | None:
        """Return the parts of a range as region, offset and size; None if it is out of bounds."""
        if size == 0:
            return [] if any(region.start <= start <= region.end for region in self.regions) else None
        found = []
        while size:
            region = next((one for one in self.regions if one.start <= start < one.end), None)
            if region is None:
                return None
            step = min(size, region.end - start)
            found.append((region, start - region.start, step))
            start, size = start + step, size - step
        return found

    def read(self, start: int, size: int) -> bytes | None:
        pieces = self.pieces(start, size)
        if pieces is None:
            return None
        return b"".join(bytes(region.content[offset : offset + step]) for region, offset, step in pieces)

    def write(self, start: int, content: bytes) -> bool:
        pieces = self.pieces(start, len(content))
        if pieces is None or not all(region.writable for region, _, _ in pieces):
            return False
        for region, offset, step in pieces:
            region.content[offset : offset + step], content = content[:step], content[step:]
        return True


HEAPS = {
    "one heap": [(5 * OS_PAGE, True)],
    "three heaps": [(3 * OS_PAGE, True), (OS_PAGE, True), (9 * OS_PAGE, True)],
    "a read-only heap between": [(OS_PAGE, True), (3 * OS_PAGE, False), (2 * OS_PAGE, True)],
    "read-only heaps around": [(2 * OS_PAGE, False), (OS_PAGE, True), (OS_PAGE, False)],
    "private memory up to the chain": [(3 * OS_PAGE, True), (13 * OS_PAGE, True)],
    "private memory up to a read-only heap": [(3 * OS_PAGE, False), (13 * OS_PAGE, True)],
    "nothing attached": [],
}
PRIVATE_PAGES = 2
TRACKED = PRIVATE_PAGES * WASM_PAGE
"""How much of private memory the model knows: all, or the end of what was grown up to the chain."""

PATTERN = bytes((place + (place >> 8)) & 0xFF for place in range(TRACKED + 64))


class Machine:
    """A rewritten guest with a chain, and the models of its memories."""

    def __init__(self, make_guest, make_chain, kind: str, heaps: list[tuple[int, bool]], *, touching: bool) -> None:
        self.guest = make_guest(module(kind))
        self.bits = 64 if kind == "i64" else 32
        self.chain = make_chain(*heaps)
        start = self.guest.origin + WINDOW_END - self.chain.size
        private = 0
        if touching:
            assert self.guest.call("grow", start // WASM_PAGE - PRIVATE_PAGES) == PRIVATE_PAGES
            private = start - TRACKED
        self.memory = Model([Region(private, bytearray(TRACKED))])
        for size, writable in heaps:
            self.memory.regions.append(Region(start, bytearray(size), writable))
            start += size
        if heaps:
            self.guest.window.attach(self.chain.grants())
        self.others = {name: Model([Region(0, bytearray(TRACKED))]) for name in ("narrow", "wide")}
        self.edges = sorted({edge for region in self.memory.regions for edge in (region.start, region.end)})

    def reset(self) -> None:
        """Give every byte a value that tells where it belongs."""
        regions = [region for model in (self.memory, *self.others.values()) for region in model.regions]
        for number, region in enumerate(regions):
            region.content[:] = PATTERN[number : number + len(region.content)]
        private, *heaps = self.memory.regions
        self.guest.poke(private.start, bytes(private.content))
        for segment, region in zip(self.chain.segments, heaps, strict=True):
            os.pwrite(segment.descriptor, region.content, 0)
        for name, model in self.others.items():
            self.guest.exports[name].write(self.guest.store, model.regions[0].content, 0)

    def check(self) -> None:
        for region in self.memory.regions:
            assert self.guest.peek(region.start, len(region.content)) == region.content, (
                f"the region at {region.start:#x} differs"
            )
        for name, model in self.others.items():
            assert bytes(self.guest.exports[name].read(self.guest.store)) == model.regions[0].content

    def run(self, name: str, to: int, source: int, size: int) -> None:
        """Run an instruction here and in the model, and check that both trap or neither does."""
        word = (1 << self.bits) - 1
        origin = None
        to &= word
        if name == "init":
            source, size = source & 0xFFFF_FFFF, size & 0xFFFF_FFFF
            content = SEGMENT[source : source + size] if source + size <= len(SEGMENT) else None
            arguments = to, source, size
            target = self.memory
        elif name.startswith("fill"):
            size = int(name[4:]) if name[4:] else size & word
            arguments = (to, source & 0xFFFF_FFFF, size)[: 2 if name[4:] else 3]
            target = self.memory
            content = bytes([source & 0xFF]) * size if size < 1 << 20 else None
        else:
            direction, _, other = name.partition("_")
            target = self.others[other] if direction == "to" else self.memory
            origin = self.others[other] if direction == "from" else self.memory
            masks = {"narrow": 32, "wide": 64}.get(other, self.bits)
            to &= (1 << (masks if direction == "to" else self.bits)) - 1
            source &= (1 << (masks if direction == "from" else self.bits)) - 1
            size = int(name[4:]) if name[4:].isdigit() else size & ((1 << min(masks, self.bits)) - 1)
            arguments = (to, source, size)[: 2 if name[4:].isdigit() else 3]
            content = origin.read(source, size)
        heap_addresses = [to] if target is self.memory else []
        heap_addresses += [source] if origin is self.memory else []
        if any(address < self.memory.regions[0].start for address in heap_addresses):
            return  # the model does not know what is there
        works = content is not None and target.write(arguments[0], content)
        assert self.guest.trap(name, *arguments) == (None if works else "memory_out_of_bounds"), (name, *map(hex, arguments))


NAMES = (
    *("copy", "fill", "init", "from_narrow", "to_narrow", "from_wide", "to_wide"),
    *(f"{name}{n}" for n in CONSTANTS for name in ("copy", "fill")),
)
NEAR = st.integers(-80, 80) | st.integers(-6000, 6000)
SIZES = st.integers(0, 80) | st.integers(0, 6000) | st.integers(0, 40_000)
WILD = st.sampled_from([-1, -16, 1 << 31, 1 << 32, 1 << 36, 1 << 47, 1 << 48, 1 << 63, (1 << 64) - (1 << 16)])


@st.composite
def _steps(draw, edges):
    """Draw an instruction, addresses about edges and each other, and a size that may reach just to an edge."""
    address = st.builds(int.__add__, st.sampled_from(edges), NEAR) | WILD
    to = draw(address)
    source = draw(st.builds(int.__add__, st.just(to), NEAR) | address)
    exact = [edge - first for edge in edges for first in (to, source) if 0 <= edge - first < WASM_PAGE]
    size = draw(SIZES | (st.sampled_from(exact) if exact else SIZES) | WILD)
    return draw(st.sampled_from(NAMES[:7]) | st.sampled_from(NAMES)), to, source, size


@pytest.fixture
def machine(request, make_guest, make_chain):
    kind, name = request.param
    return Machine(make_guest, make_chain, kind, HEAPS[name], touching="up to" in name)


@pytest.mark.parametrize(
    "machine",
    [(kind, name) for kind in ("i32", "i64") for name in HEAPS],
    ids=lambda param: f"{param[0]}, {param[1]}",
    indirect=True,
)
def test_bulk_instructions_do_what_the_specification_says_of_all_memory_there_is(machine):
    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(_steps(machine.edges), min_size=1, max_size=10))
    def check(history):
        machine.reset()
        for step in history:
            machine.run(*step)
        machine.check()

    check()


def test_copy_over_the_seam_moves_overlapping_bytes_as_memmove(make_guest, make_chain):
    machine = Machine(make_guest, make_chain, "i32", HEAPS["private memory up to the chain"], touching=True)
    start = WINDOW_END - machine.chain.size
    for distance in (-200, -70, -1, 1, 70, 200):
        machine.reset()
        machine.run("copy", start - 150 + distance, start - 150, 300)
        machine.check()


@pytest.mark.parametrize("kind", ["i32", "i64"])
def test_range_that_ends_where_the_chain_starts_is_private(make_guest, make_chain, kind):
    machine = Machine(make_guest, make_chain, kind, HEAPS["private memory up to the chain"], touching=True)
    machine.reset()
    start = machine.memory.regions[1].start
    for name, to, source in (("copy", start - 100, start - 300), ("copy", start - 300, start - 100), ("fill", start - 100, 7)):
        machine.run(name, to, source, 100)
    machine.run("init", start - 100, 5, 100)
    machine.check()


def test_init_over_the_seam_from_beyond_its_segment_writes_nothing(make_guest, make_chain):
    machine = Machine(make_guest, make_chain, "i32", HEAPS["private memory up to the chain"], touching=True)
    machine.reset()
    start = WINDOW_END - machine.chain.size
    for source in ((1 << 32) - 16, len(SEGMENT) - 60, len(SEGMENT) - 100, 0):
        machine.run("init", start - 50, source, 100)
        machine.check()


def test_dropped_segment_has_no_bytes_for_a_heap_either(make_guest, make_chain):
    guest = make_guest(module("i32"))
    chain = make_chain((OS_PAGE, True))
    guest.window.attach(chain.grants())
    guest.call("init", WINDOW_END - OS_PAGE, 0, 10)
    assert guest.peek(WINDOW_END - OS_PAGE, 10) == SEGMENT[:10]
    guest.call("drop")
    assert guest.trap("init", WINDOW_END - OS_PAGE, 0, 1) == "memory_out_of_bounds"
    guest.call("init", WINDOW_END - OS_PAGE, 0, 0)


def test_bulk_instructions_follow_the_chain_through_attach_and_detach(make_guest, make_chain):
    guest = make_guest(module("i32"))
    long, short = make_chain((4 * OS_PAGE, True)), make_chain((OS_PAGE, True))
    lost = WINDOW_END - 2 * OS_PAGE
    for chain, reached in ((long, True), (short, False), (long, True)):
        guest.window.attach(chain.grants())
        guest.call("fill", WINDOW_END - OS_PAGE, 9, OS_PAGE)
        assert guest.trap("fill", lost, 1, 100) == (None if reached else "memory_out_of_bounds")
        guest.window.detach()
        assert guest.trap("fill", WINDOW_END - OS_PAGE, 9, 100) == "memory_out_of_bounds"
        assert guest.trap("copy", 0, WINDOW_END - OS_PAGE, 100) == "memory_out_of_bounds"
        assert guest.trap("copy", 0, 100, 100) is None


def test_64_bit_ranges_whose_ends_wrap_are_out_of_bounds(make_guest, make_chain):
    machine = Machine(make_guest, make_chain, "i64", HEAPS["one heap"], touching=False)
    machine.reset()
    start = machine.memory.regions[1].start
    # Both ends, and the length's lower half, look as if the ranges lay in the chain and in private memory.
    machine.run("copy", start, 1 << 32, (1 << 64) - (1 << 32) + 16)
    machine.run("copy", 1 << 32, start, (1 << 64) - (1 << 32) + 16)
    machine.run("copy", (1 << 64) - 8, 0, 16)
    machine.run("fill", (1 << 64) - 8, 1, 16)
    machine.check()
