"""The dispatcher: a module made for each guest module, which runs the calls that come through the ring without leaving wasm.

Theory
------
It lies between the core, which knows the ring, and the guest, whose exports it calls: take a call, load its arguments from the
slot's cells, call, store the results in their place, end the call, take the next. What export has which signature is known when
the module is loaded, so each has code of its own, and a call costs what an indirect jump and a few loads cost. The host is
entered only for what wasm cannot do: to sleep, to look at a message, and after a trap.

A batch is one slot for many calls of one export, with arguments and results as columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Protocol

from shmwasm.core import layout

CORE: Final = "core"
"""Where the dispatcher imports the core's memory and functions from."""

GUEST: Final = "guest"
"""Where it imports the guest's functions from; their names are their places in `dispatched`, as texts."""

RUN: Final = "run"
"""Its export: takes the ring's address in the core's memory, and returns why the host is needed."""


class Signature(Protocol):
    """A function's type: names of value types, as in the WebAssembly text format."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """Types of the parameters."""

    @property
    def results(self) -> tuple[str, ...]:
        """Types of the results."""


_NUMBERS: Final = frozenset({"i32", "i64", "f32", "f64"})
_EXPORT, _COUNT, _PROGRESS, _ARGUMENTS, _RESULTS = 12, 24, 28, 32, 36  # offsets in a slot


def dispatched(functions: Mapping[str, Signature]) -> list[str]:
    """Return the exported functions that can be called through a ring, in the order of their numbers there."""
    return [name for name, kind in functions.items() if _NUMBERS.issuperset(kind.parameters + kind.results)]


def cells_of(functions: Mapping[str, Signature]) -> int:
    """Return how many cells a slot needs for any of these functions."""
    return max((max(len(kind.parameters), len(kind.results)) for kind in functions.values()), default=0)


def dispatcher_text(functions: Mapping[str, Signature]) -> str:
    """Return the dispatcher for a module that exports these functions, in the text format."""
    kinds = [functions[name] for name in dispatched(functions)]
    return "\n".join(["(module", *_imports(kinds), *_run(kinds), ")"])


def _imports(kinds: Sequence[Signature]) -> Iterator[str]:
    yield f'(import "{CORE}" "memory" (memory 0))'
    yield f'(import "{CORE}" "ring_next" (func $next (param i32) (result i32)))'
    yield f'(import "{CORE}" "ring_end" (func $end (param i32 i32 i32 i32)))'
    for number, kind in enumerate(kinds):
        yield f'(import "{GUEST}" "{number}" (func ${number}{_typed("param", kind.parameters)}{_typed("result", kind.results)}))'


def _typed(word: str, types: Sequence[str]) -> str:
    return f" ({word} {' '.join(types)})" if types else ""


def _run(kinds: Sequence[Signature]) -> Iterator[str]:
    yield f'(func (export "{RUN}") (param $ring i32) (result i32)'
    yield "(local $slot i32) (local $at i32) (local $to i32) (local $end i32) (local $column i32)"
    most = {kind: max((function.results.count(kind) for function in kinds), default=0) for kind in sorted(_NUMBERS)}
    for kind, count in most.items():
        yield "".join(f"(local ${kind}.{number} {kind})" for number in range(count))
    yield "(loop $again"
    yield "(local.set $slot (call $next (local.get $ring)))"
    yield f"(if (i32.lt_u (local.get $slot) (i32.const {layout.RING_FIRST_SLOT})) (then (return (local.get $slot))))"
    yield "(block $done"
    for number in reversed(range(len(kinds))):
        yield f"(block $call{number}"
    targets = " ".join(f"$call{number}" for number in range(len(kinds)))
    # The client gives no other numbers; the last block is as good as any for one.
    yield f"(br_table {targets} {len(kinds)} (i32.load offset={_EXPORT} (local.get $slot)))" if kinds else ""
    for number, kind in enumerate(kinds):
        yield ")"
        yield from _either(number, kind)
        yield "(br $done)"
    yield ")"
    yield f"(call $end (local.get $ring) (local.get $slot) (i32.const {layout.CALL_RETURNED}) (i32.const 0))"
    yield "(br $again)) unreachable)"


def _either(number: int, kind: Signature) -> Iterator[str]:
    """Give the code that makes the call in a slot, or all those of a batch."""
    yield f"(if (i32.eqz (i32.load offset={_COUNT} (local.get $slot))) (then"
    places = [f"offset={layout.RING_SLOT_HEADER + 8 * index} (local.get $slot)" for index in range(len(kind.parameters))]
    yield _call(number, kind, places)
    places = [f"offset={layout.RING_SLOT_HEADER + 8 * index} (local.get $slot)" for index in range(len(kind.results))]
    yield from _stores(kind, places)
    yield ") (else"
    yield f"(local.set $at (i32.add (local.get $ring) (i32.load offset={_ARGUMENTS} (local.get $slot))))"
    yield f"(local.set $to (i32.add (local.get $ring) (i32.load offset={_RESULTS} (local.get $slot))))"
    yield f"(local.set $column (i32.shl (i32.load offset={_COUNT} (local.get $slot)) (i32.const 3)))"
    yield "(local.set $end (i32.add (local.get $at) (local.get $column)))"
    yield "(loop $next"
    yield _call(number, kind, [_cell("$at", index) for index in range(len(kind.parameters))])
    yield from _stores(kind, [_cell("$to", index) for index in range(len(kind.results))])
    yield f"(i32.store offset={_PROGRESS} (local.get $slot)"
    yield f" (i32.add (i32.load offset={_PROGRESS} (local.get $slot)) (i32.const 1)))"
    yield "(local.set $to (i32.add (local.get $to) (i32.const 8)))"
    yield "(br_if $next (i32.ne (local.tee $at (i32.add (local.get $at) (i32.const 8))) (local.get $end))))))"


def _cell(base: str, column: int) -> str:
    """Return the place of this call's cell in a column."""
    if column == 0:
        return f"(local.get {base})"
    return f"(i32.add (local.get {base}) (i32.mul (local.get $column) (i32.const {column})))"


def _call(number: int, kind: Signature, places: Sequence[str]) -> str:
    loads = " ".join(f"({value}.load {place})" for value, place in zip(kind.parameters, places, strict=True))
    return f"(call ${number} {loads})"


def _stores(kind: Signature, places: Sequence[str]) -> Iterator[str]:
    """Give the code that takes the results off the stack and stores them."""
    taken: dict[str, int] = {}
    variables = []
    for value in kind.results:
        variables.append(f"${value}.{taken.get(value, 0)}")
        taken[value] = taken.get(value, 0) + 1
    for variable in reversed(variables):
        yield f"(local.set {variable})"
    for value, variable, place in zip(kind.results, variables, places, strict=True):
        yield f"({value}.store {place} (local.get {variable}))"
