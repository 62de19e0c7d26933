"""The self-test: whether heaps can be mapped into the memories of the wasmtime and the kernel that are here.

Everything rests on how wasmtime lays its memories out, which its interface does not promise. So it is tried at every start, in
the time of one small compilation, and the library refuses to run where it does not hold.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

import wasmtime

from shmwasm.addresses import WASM_PAGE, WINDOW_END, AppAddress, NativeAddress
from shmwasm.engine.aliases import Alias
from shmwasm.engine.calls import ExportedFunction
from shmwasm.engine.traps import GuestTrapError
from shmwasm.engine.windows import Grant, Window, reserve
from shmwasm.errors import UnsupportedError
from shmwasm.posix import bells
from shmwasm.posix.mappings import is_reserved, map_anywhere
from shmwasm.posix.segments import Segment
from shmwasm.rewrite import seam

if TYPE_CHECKING:
    from collections.abc import Iterator

_START: Final = WINDOW_END - 2 * WASM_PAGE
_ALIAS_READ_ONLY: Final = seam.ALIAS_CHAIN + WASM_PAGE
_READ_ONLY: Final = _START + WASM_PAGE
_FAR: Final = 0xFF00_0000
"""A static offset far beyond the guard, so that the compiler cannot rely on the guard."""

_OUT_OF_BOUNDS: Final = "memory_out_of_bounds"
_MODULE: Final = f"""(module
  (memory (export "memory") 1)
  (data (i32.const 8) "data that is mapped, not copied")
  (func (export "load") (param i32) (result i32) (i32.load (local.get 0)))
  (func (export "load_far") (param i32) (result i32) (i32.load offset={_FAR} (local.get 0)))
  (func (export "store") (param i32 i32) (i32.store (local.get 0) (local.get 1)))
  (func (export "add") (param i32 i32) (result i32) (i32.atomic.rmw.add (local.get 0) (local.get 1)))
  (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
  (memory $alias (export "{seam.ALIAS}") 0)
  (global (export "{seam.START}") (mut i64) (i64.const {seam.NOTHING}))
  (global (export "{seam.END}") (mut i64) (i64.const 0))
  (global (export "{seam.MIXED}") (mut i32) (i32.const 0))
  (func (export "copy_in") (param i32 i32 i32) (memory.copy $alias 0 (local.get 0) (local.get 1) (local.get 2)))
  (func (export "copy_out") (param i32 i32 i32) (memory.copy 0 $alias (local.get 0) (local.get 1) (local.get 2))))"""


def check_mapping(engine: wasmtime.Engine) -> None:
    """Try that heaps can be mapped into a guest's memory, are reached by its loads and stores, and stay contained; and its bells.

    Raises:
        UnsupportedError: Something does not hold; it says what.
    """
    bells.check()
    with (
        Segment.create(WASM_PAGE, name_for_errors="self-test") as lower,
        Segment.create(WASM_PAGE, name_for_errors="self-test") as upper,
        contextlib.closing(wasmtime.Store(engine)) as store,
    ):
        try:
            trial = _Trial(store, engine)
        except wasmtime.WasmtimeError as failure:
            raise _broken(f"a module runs ({str(failure).splitlines()[0]})") from None
        trial.check_reservation()
        trial.attach(lower, upper)
        trial.check_access(lower, upper)
        trial.check_containment()
        trial.check_detached()


class _Trial:
    """A guest with two heaps, one above the other: the lower one writable, the upper one read-only."""

    def __init__(self, store: wasmtime.Store, engine: wasmtime.Engine) -> None:
        reserve(store, _START)
        store.set_epoch_deadline(1 << 32)
        exports = wasmtime.Instance(store, wasmtime.Module(engine, _MODULE), []).exports(store)
        memory = exports["memory"]
        assert isinstance(memory, wasmtime.Memory)
        self._alias = Alias(store, exports)
        self._window = Window(store, memory, alias=self._alias)
        self._functions = {
            name: ExportedFunction(store, function, name)
            for name, function in exports.items()
            if isinstance(function, wasmtime.Func)
        }

    def check_reservation(self) -> None:
        """Check that there is nothing else where the heaps will be mapped: they would replace it."""
        for unused, size in (
            (NativeAddress(self._window.base + WASM_PAGE), WINDOW_END - WASM_PAGE),
            (self._alias.base, WINDOW_END),
        ):
            if not is_reserved(unused, size):
                raise _broken("4 GiB are reserved for each memory")

    def attach(self, lower: Segment, upper: Segment) -> None:
        read_only = upper.read_only_descriptor()
        try:
            self._window.attach(
                [
                    Grant(heap="lower", start=AppAddress(_START), size=WASM_PAGE, descriptor=lower.descriptor, writable=True),
                    Grant(heap="upper", start=AppAddress(_READ_ONLY), size=WASM_PAGE, descriptor=read_only, writable=False),
                ]
            )
        finally:
            os.close(read_only)

    def check_access(self, lower: Segment, upper: Segment) -> None:
        with _words(lower) as low, _words(upper) as high:
            low[1], low[-1], high[0] = 0x1234, 0x1111_0000, 0x2222
            self._returns("a load reaches the heap", 0x1234, "load", _START + 4)
            self._returns("a load with a large offset reaches the heap", 0x1234, "load_far", _START + 4 - _FAR)
            self._returns("a load that straddles two heaps reads both", 0x2222_1111, "load", _READ_ONLY - 2)
            self._returns("a store is allowed", None, "store", _START + 8, 77)
            self._returns("an atomic is allowed", 77, "add", _START + 8, 1)
            if low[2] != 78:
                raise _broken("a store reaches the heap")
            self._traps("a store into a read-only heap traps", "store", _READ_ONLY, 1)
            if high[0] != 0x2222:
                raise _broken("a read-only heap keeps its content")
            self._returns("a copy out of the second mapping is allowed", None, "copy_out", 16, _ALIAS_READ_ONLY, 4)
            self._returns("a copy out of the second mapping reads the heap", 0x2222, "load", 16)
            self._returns("a copy into the second mapping is allowed", None, "copy_in", seam.ALIAS_CHAIN + 16, 8, 4)
            if low[4] != int.from_bytes(b"data", "little"):
                raise _broken("a copy into the second mapping reaches the heap")

    def check_containment(self) -> None:
        self._traps("a load below the window traps", "load", _START - 4)
        self._traps("a load past linear memory traps", "load", WASM_PAGE)
        self._traps("a load past 4 GiB traps", "load", WINDOW_END - 2)
        self._traps("a load with an offset past 4 GiB traps", "load_far", WINDOW_END - 4)
        self._returns("memory cannot grow into the window", -1, "grow", _START // WASM_PAGE)

    def check_detached(self) -> None:
        self._window.detach()
        self._traps("a detached heap is inaccessible", "load", _START)
        self._returns("linear memory stays", int.from_bytes(b"data", "little"), "load", 8)

    def _returns(self, claim: str, expected: int | None, function: str, *arguments: int) -> None:
        try:
            results = self._functions[function].call(arguments)
        except GuestTrapError as trap:
            raise _broken(f"{claim} ({trap})") from None
        if results != (() if expected is None else (expected,)):
            raise _broken(claim)

    def _traps(self, claim: str, function: str, *arguments: int) -> None:
        try:
            self._functions[function].call(arguments)
        except GuestTrapError as trap:
            if trap.description.code != _OUT_OF_BOUNDS:
                raise _broken(f"{claim} ({trap})") from None
        else:
            raise _broken(claim)


@contextlib.contextmanager
def _words(segment: Segment) -> Iterator[memoryview]:
    with map_anywhere(segment.descriptor, segment.size, writable=True) as mapping:
        yield mapping.view.cast("I")


def _broken(claim: str) -> UnsupportedError:
    return UnsupportedError(
        "this wasmtime or kernel", f"mapping a heap into a guest does not work as it must: it does not hold that {claim}"
    )
