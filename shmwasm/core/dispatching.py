"""The dispatcher: a module made for each guest module, which runs the calls that come through the ring without leaving wasm.

Theory
------
It lies between the core, which knows the ring, and the guest, whose exports it calls: take a call, load its arguments from the
slot's cells, call, store the results in their place, end the call, take the next, or sleep until there is one. Which export has
which type is known when the module is loaded, so there is code for each type; one table leads from an export's number to the code
of its type, another to the export itself. The host is entered only for what wasm cannot do: to look at a message, and after a
trap.

(Code for each export would need no second table. But all of it would be one function, and what a compiler takes for that grows
with its square: twelve seconds for a module with a thousand exports.)

A batch is one slot for many calls of one export, with arguments and results as columns. If it is stoppable, it may end after any
of them; to look for that takes longer than a small call, so others do not.

A call of a metered module has one more argument, after its function's own: the fuel that it may use. The dispatcher puts that
into the guest's globals.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from shmwasm.core import layout

CORE: Final = "core"
"""Where the dispatcher imports the core's memory and functions from."""

GUEST: Final = "guest"
"""Where it imports the guest's functions from; their names are their places in `dispatched`, as texts."""

RUN: Final = "run"
"""Its export: takes the ring's address in the core's memory, and whether it may sleep; returns why the host is needed."""

CORE_IMPORTS: Final = ("memory", "ring_next", "ring_end", "ring_park", "ring_unpark", "ring_advance")
"""What it imports from the core, in this order."""

BELLS: Final = "bells"
"""Where it imports two functions from after that: one sleeps at the worker's bell, the other rings for the client."""


class Signature(Protocol):
    """A function's type: names of value types, as in the WebAssembly text format."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """Types of the parameters."""

    @property
    def results(self) -> tuple[str, ...]:
        """Types of the results."""


FUEL: Final = ("given", "fuel")
"""The globals (i64) of a metered guest that are set to a call's fuel; the dispatcher imports them from `GUEST`, at last."""

_NUMBERS: Final = frozenset({"i32", "i64", "f32", "f64"})
_EXPORT, _FLAGS, _COUNT, _PROGRESS, _ARGUMENTS, _RESULTS = 12, 16, 24, 28, 32, 36  # offsets in a slot


def dispatched(functions: Mapping[str, Signature]) -> list[str]:
    """Return the exported functions that can be called through a ring, in the order of their numbers there."""
    return [name for name, kind in functions.items() if _NUMBERS.issuperset(kind.parameters + kind.results)]


def cells_of(functions: Mapping[str, Signature]) -> int:
    """Return how many cells a slot needs for any of these functions."""
    return max((max(len(kind.parameters), len(kind.results)) for kind in functions.values()), default=0)


@functools.cache
def purpose() -> str:
    """Return what a dispatcher is, for whoever keeps compiled ones: another text as soon as this version makes others."""
    digest = hashlib.sha256()
    for source in (__file__, layout.__file__):
        digest.update(Path(source).read_bytes())
    return f"dispatcher {digest.hexdigest()}"


def dispatcher_text(functions: Mapping[str, Signature], *, metered: bool = False) -> str:
    """Return the dispatcher for a module that exports these functions, in the text format."""
    kinds = [functions[name] for name in dispatched(functions)]
    numbers: dict[tuple[tuple[str, ...], tuple[str, ...]], int] = {}
    types = [numbers.setdefault((kind.parameters, kind.results), len(numbers)) for kind in kinds]
    lines = ["(module", "(type $serve (func (param i32 i32)))"]
    for (parameters, results), number in numbers.items():
        lines.append(f"(type $type{number} (func{_typed('param', parameters)}{_typed('result', results)}))")
    lines += _imports(types)
    if metered:
        lines += [f'(import "{GUEST}" "{name}" (global ${name} (mut i64)))' for name in FUEL]
    lines.append(f"(table $guest funcref (elem{''.join(f' $export{number}' for number in range(len(types)))}))")
    lines.append(f"(table $serve funcref (elem{''.join(f' $serve{number}' for number in types)}))")
    for (parameters, results), number in numbers.items():
        lines += _serve(number, parameters, results, metered=metered)
    return "\n".join([*lines, _RUN, ")"])


_RUN: Final = f"""(func (export "{RUN}") (param $ring i32) (param $may_sleep i32) (result i32) (local $slot i32)
  (loop $again
    (local.set $slot (call $next (local.get $ring)))
    (if (i32.lt_u (local.get $slot) (i32.const {layout.RING_FIRST_SLOT})) (then
      (if (i32.or (i32.eq (local.get $slot) (i32.const {layout.RING_ATTENTION})) (i32.eqz (local.get $may_sleep)))
        (then (return (local.get $slot))))
      (if (call $park (local.get $ring)) (then (call $sleep) (call $unpark (local.get $ring))))
      (br $again)))
    (call_indirect $serve (type $serve) (local.get $ring) (local.get $slot) (i32.load offset={_EXPORT} (local.get $slot)))
    (if (call $end (local.get $ring) (local.get $slot) (i32.const {layout.CALL_RETURNED}) (i32.const 0)) (then (call $ring_bell)))
    (br $again))
  unreachable)"""


def _imports(types: Sequence[int]) -> Iterator[str]:
    yield f'(import "{CORE}" "memory" (memory 0))'
    yield f'(import "{CORE}" "ring_next" (func $next (param i32) (result i32)))'
    yield f'(import "{CORE}" "ring_end" (func $end (param i32 i32 i32 i32) (result i32)))'
    yield f'(import "{CORE}" "ring_park" (func $park (param i32) (result i32)))'
    yield f'(import "{CORE}" "ring_unpark" (func $unpark (param i32)))'
    yield f'(import "{CORE}" "ring_advance" (func $advance (param i32) (result i32)))'
    yield f'(import "{BELLS}" "sleep" (func $sleep))'
    yield f'(import "{BELLS}" "ring" (func $ring_bell))'
    for number, kind in enumerate(types):
        yield f'(import "{GUEST}" "{number}" (func $export{number} (type $type{kind})))'


def _typed(word: str, types: Sequence[str]) -> str:
    return f" ({word} {' '.join(types)})" if types else ""


def _serve(number: int, parameters: Sequence[str], results: Sequence[str], *, metered: bool) -> Iterator[str]:
    """Give the function that makes the call in a slot, or all those of a batch, for exports of one type."""
    yield f"(func $serve{number} (param $ring i32) (param $slot i32)"
    yield "(local $export i32) (local $at i32) (local $to i32) (local $end i32) (local $column i32)"
    yield "(local $stoppable i32)"
    yield "".join(f"(local $result{index} {kind})" for index, kind in enumerate(results))
    yield f"(local.set $export (i32.load offset={_EXPORT} (local.get $slot)))"
    yield f"(if (i32.eqz (i32.load offset={_COUNT} (local.get $slot))) (then"
    own = len(parameters)
    most = max(own + metered, len(results))
    cells = [f"offset={layout.RING_SLOT_HEADER + 8 * index} (local.get $slot)" for index in range(most)]
    yield from _fuelling(cells[own]) if metered else ()
    yield _call(number, parameters, cells)
    yield from _stores(results, cells)
    yield ") (else"
    yield f"(local.set $at (i32.add (local.get $ring) (i32.load offset={_ARGUMENTS} (local.get $slot))))"
    yield f"(local.set $to (i32.add (local.get $ring) (i32.load offset={_RESULTS} (local.get $slot))))"
    yield f"(local.set $column (i32.shl (i32.load offset={_COUNT} (local.get $slot)) (i32.const 3)))"
    yield "(local.set $end (i32.add (local.get $at) (local.get $column)))"
    yield f"(local.set $stoppable (i32.and (i32.load offset={_FLAGS} (local.get $slot)) (i32.const {layout.CALL_STOPPABLE})))"
    yield "(loop $next_call"
    yield from _fuelling(_cell("$at", own)) if metered else ()
    yield _call(number, parameters, [_cell("$at", index) for index in range(own)])
    yield from _stores(results, [_cell("$to", index) for index in range(len(results))])
    yield "(if (local.get $stoppable)"
    yield "(then (if (call $advance (local.get $slot)) (then (return))))"
    yield f"(else (i32.store offset={_PROGRESS} (local.get $slot)"
    yield f" (i32.add (i32.load offset={_PROGRESS} (local.get $slot)) (i32.const 1)))))"
    yield "(local.set $to (i32.add (local.get $to) (i32.const 8)))"
    yield "(br_if $next_call (i32.ne (local.tee $at (i32.add (local.get $at) (i32.const 8))) (local.get $end)))))))"


def _cell(base: str, column: int) -> str:
    """Return the place of this call's cell in a column."""
    if column == 0:
        return f"(local.get {base})"
    return f"(i32.add (local.get {base}) (i32.mul (local.get $column) (i32.const {column})))"


def _fuelling(place: str) -> Iterator[str]:
    """Give the code that gives the guest the fuel in a cell."""
    for name in FUEL:
        yield f"(global.set ${name} (i64.load {place}))"


def _call(number: int, parameters: Sequence[str], places: Sequence[str]) -> str:
    loads = " ".join(f"({kind}.load {place})" for kind, place in zip(parameters, places, strict=False))
    return f"(call_indirect $guest (type $type{number}) {loads} (local.get $export))"


def _stores(results: Sequence[str], places: Sequence[str]) -> Iterator[str]:
    """Give the code that takes the results off the stack and stores them."""
    for index in reversed(range(len(results))):
        yield f"(local.set $result{index})"
    for index, (kind, place) in enumerate(zip(results, places, strict=False)):
        yield f"({kind}.store {place} (local.get $result{index}))"
