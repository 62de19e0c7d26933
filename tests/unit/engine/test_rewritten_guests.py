"""Rewritten modules on real windows: whatever they ask for ends in a result or a trap, never in a fault of the engine's code."""

from __future__ import annotations

import random
from contextlib import ExitStack

import pytest
import wasmtime

from shmwasm.addresses import OS_PAGE, WASM_PAGE, WINDOW_END, WINDOW_END_64, AppAddress
from shmwasm.engine.guests import Guest
from shmwasm.engine.modules import describe
from shmwasm.engine.nests import Nest, new_store
from shmwasm.engine.traps import GuestTrapError
from shmwasm.engine.windows import Grant, Window
from shmwasm.posix.segments import Segment
from shmwasm.rewrite.rewriting import rewrite

SIZES = (OS_PAGE, WASM_PAGE, 3 * OS_PAGE, 1 << 20)
TRAPS = {"memory_out_of_bounds", "heap_misaligned", "atomic_wait_non_shared_memory"}
CALLS = 6000
CALLS_ON_ONE_CHAIN = 50


class NoWaiters:
    """Futexes that nobody else waits on."""

    def wait32(self, address: int, expected: int, timeout_ns: int) -> int:
        return 2

    def wait64(self, address: int, expected: int, timeout_ns: int) -> int:
        return 2

    def notify(self, address: int, count: int) -> int:
        return 0


def _module(kind: str) -> str:
    limits = "i64 2 40" if kind == "i64" else "2 40"
    return f"""(module (memory (export "memory") {limits}) (memory $other 1)
      (data $text "0123456789abcdef")
      (func (export "copy") (param {kind} {kind} {kind}) (memory.copy 0 0 (local.get 0) (local.get 1) (local.get 2)))
      (func (export "copy_16") (param {kind} {kind}) (memory.copy 0 0 (local.get 0) (local.get 1) ({kind}.const 16)))
      (func (export "copy_out") (param i32 {kind} i32) (memory.copy $other 0 (local.get 0) (local.get 1) (local.get 2)))
      (func (export "copy_in") (param {kind} i32 i32) (memory.copy 0 $other (local.get 0) (local.get 1) (local.get 2)))
      (func (export "fill") (param {kind} i32 {kind}) (memory.fill 0 (local.get 0) (local.get 1) (local.get 2)))
      (func (export "init") (param {kind} i32 i32) (memory.init 0 $text (local.get 0) (local.get 1) (local.get 2)))
      (func (export "wait32") (param {kind} i32 i64) (result i32)
        (memory.atomic.wait32 0 (local.get 0) (local.get 1) (local.get 2)))
      (func (export "wait64") (param {kind} i64 i64) (result i32)
        (memory.atomic.wait64 0 (local.get 0) (local.get 1) (local.get 2)))
      (func (export "notify") (param {kind} i32) (result i32) (memory.atomic.notify 0 (local.get 0) (local.get 1)))
      (func (export "grow") (param {kind}) (result {kind}) (memory.grow 0 (local.get 0))))"""


class Hostile:
    """Calls that aim at the edges of everything: memory, heaps, chain, address space."""

    def __init__(self, window: Window, dice: random.Random) -> None:
        self._window = window
        self._dice = dice
        self._end = WINDOW_END_64 if window.is_64 else WINDOW_END
        self._top = 1 << 64 if window.is_64 else 1 << 32

    def call(self) -> tuple[str, tuple[int, ...]]:
        dice, address, length, small = self._dice, self._address, self._length, self._small
        match dice.choice(["copy", "copy_16", "copy_out", "copy_in", "fill", "init", "wait32", "wait64", "notify", "grow"]):
            case "copy":
                return "copy", (address(), address(), length())
            case "copy_16":
                return "copy_16", (address(), address())
            case "copy_out":
                return "copy_out", (small(), address(), small())
            case "copy_in":
                return "copy_in", (address(), small(), small())
            case "fill":
                return "fill", (address(), 7, length())
            case "init":
                return "init", (address(), dice.choice([0, 5, 16, 17]), dice.choice([0, 11, 16, 1 << 31]))
            case "notify":
                return "notify", (address() & ~3, dice.choice([0, 1, 0xFFFF_FFFF]))
            case "grow":
                return "grow", (dice.choice([0, 0, 0, 1, self._top - 1, dice.randrange(self._top)]),)
            case wait:
                return wait, (address() & ~dice.choice([0, 3, 7]), 0, dice.choice([0, -1]))

    def _address(self) -> int:
        starts = [self._window.guest_address(grant.start) for grant in self._window.grants]
        edges = [0, self._window.memory_size, self._end, self._top, 1 << 62, *starts, *starts[:1]]
        return (self._dice.choice(edges) + self._dice.choice([0, 1, -1, 4, -4, -8, -16, 16, -70000, 70000])) % self._top

    def _length(self) -> int:
        start = self._window.guest_address(self._window.grants[0].start) if self._window.grants else 0
        lengths = [0, 1, 2, 16, 4096, WASM_PAGE, 100_001, self._end - start, self._top - 1, self._dice.randrange(self._top)]
        return self._dice.choice(lengths) % self._top

    def _small(self) -> int:
        return self._dice.choice([0, 1, 100, WASM_PAGE, 1 << 31])


@pytest.fixture(scope="module")
def segments():
    with ExitStack() as stack:
        made = [stack.enter_context(Segment.create(size, name_for_errors=f"heap{size}")) for size in SIZES]
        yield made


@pytest.fixture
def window_and_guest(engine, request):
    store = new_store(engine)
    module = wasmtime.Module(engine, rewrite(bytes(wasmtime.wat2wasm(_module(request.param)))).content)
    guest = Guest(1, Nest(store, {}), module, describe(module), name="unit", functions={}, wasi=None, futexes=NoWaiters())
    yield guest.window, guest
    guest.window.close()
    store.close()


def _chain(segments: list[Segment], dice: random.Random) -> list[Grant]:
    chosen = [dice.choice(segments) for _ in range(dice.randrange(1, 5))]
    start = WINDOW_END - sum(segment.size for segment in chosen)
    grants = []
    for segment in chosen:
        writable = dice.random() < 0.7
        grants.append(
            Grant(heap="heap", start=AppAddress(start), size=segment.size, descriptor=segment.descriptor, writable=writable)
        )
        start += segment.size
    return grants


@pytest.mark.parametrize("window_and_guest", ["i32", "i64"], indirect=True)
@pytest.mark.parametrize("seed", [1, 2])
def test_hostile_bulk_instructions_and_waits_end_in_results_or_traps(window_and_guest, segments, seed):
    window, guest = window_and_guest
    dice = random.Random(seed)
    hostile = Hostile(window, dice)
    ended: set[tuple[str, str]] = set()
    for number in range(CALLS):
        if number % CALLS_ON_ONE_CHAIN == 0:
            window.detach()
            if dice.random() < 0.9:
                window.attach(_chain(segments, dice))
        name, arguments = hostile.call()
        try:
            guest.function(name).call(arguments)
            ended.add((name, "result"))
        except GuestTrapError as trap:
            assert trap.description.code in TRAPS, (name, list(map(hex, arguments)))  # noqa: PT017  either is right
            ended.add((name, "trap"))
    names = {"copy", "copy_16", "copy_out", "copy_in", "fill", "init", "wait32", "wait64", "notify"}
    assert ended >= {(name, how) for name in names for how in ("result", "trap")}
