"""The adapters that let WASI take pointers into a window, as text made from the table of WASI's functions.

Theory
------
wasmtime's WASI finds a caller's bytes in the memory that the *calling instance* exports as "memory", and compares addresses with
that memory's size. So it refuses what lies in a window. Three modules stand between a guest and WASI:

* The *shim* has WASI's functions as the guest imports them. It must exist before the guest, so each one only jumps to an entry
  of a table that is filled later.
* The *private adapter* exports the guest's heap memory as "memory". It looks where the pointers lead. If all is in private
  memory, it jumps on to WASI with what it got: the guest itself might have called. The jumps are tail calls, so that nothing but
  the guest is in a backtrace.
* The *window adapter* exports the alias memory as "memory", in which the chain is mapped a second time. It passes results and
  buffers in the chain as addresses in there, and takes what is in private memory through the scratch area.

Nothing reaches WASI that does not lie whole in private memory or in the chain, nor, where WASI writes, in a heap that is
read-only: WASI would meet it in code of the host, where a fault ends the process. The window adapter then answers `REFUSED`, and
the private adapter makes the call with the guest's own arguments: they do not all lie in private memory, so that WASI refuses
them as it does without a chain. What WASI reads and trusts (paths, subscriptions, arrays of buffers) is copied first, as another
process may change a heap meanwhile.

WASI may transfer less than all buffers hold, and wasmtime's transfers no more than the first that is not empty. The adapters pass
on the buffers up to the first that lies elsewhere, and of those in a window one at a time.

WASI's pointers have 32 bits, which never lead into the window of a 64-bit memory. But a rewritten one is larger, as the engine
knows it, than what the guest may touch, and WASI would meet the rest in code of the host. So the *wide* window adapter takes
every call through a scratch area of its own, and the wide private adapter hands those that it refuses to WASI with a memory in
which no pointer is good.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shmwasm.addresses import WASM_PAGE
from shmwasm.engine.traps import OWN_MODULE
from shmwasm.engine.wasi.functions import (
    FUNCTIONS,
    NO_RESULT,
    Items,
    Number,
    Parameter,
    Result,
    Room,
    Strings,
    Text,
    Vectors,
    value_types,
)
from shmwasm.rewrite.rewriting import WASI_MODULE
from shmwasm.rewrite.seam import (
    ALIAS,
    ALIAS_CHAIN,
    END,
    MIXED,
    NOTHING,
    PAGES,
    START,
    TABLE_END,
    TABLE_ENTRIES,
    TABLE_ENTRY,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

GUEST: Final = "guest"
"""The name that the adapters import the guest's `MEMORY` from, and what the seam exports."""

SHIM: Final = "shim"
"""The name that the adapters import the shim's `TABLE` from."""

MEMORY: Final = "memory"
TABLE: Final = "table"

_READ: Final = 1
_WRITE: Final = 2
_COPY: Final = 4

_CONSTANTS: Final = {
    "TABLE_ENTRIES": TABLE_ENTRIES,
    "TABLE_ENTRY": TABLE_ENTRY,
    "TABLE_END": TABLE_END,
    "ALIAS_CHAIN": ALIAS_CHAIN,
    "REFUSED": -1,  # no error number
    "NO_MEMORY": 48,  # the error number of a range that does not fit the scratch area
    "READ": _READ,  # access to a range: its bytes are needed,
    "WRITE": _WRITE,  # WASI writes some,
    "COPY": _COPY,  # WASI must not see them change
}
"""What the fragments call by name."""

_POINTING: Final = [name for name, parameters in FUNCTIONS.items() if not all(isinstance(one, Number) for one in parameters)]
_ENTRIES: Final = len(FUNCTIONS) + len(_POINTING)
"""The table has the private adapter's functions, then the window adapter's."""


_NARROW_ACCESS: Final = """
(func $guest_size (result i64) (i64.shl (i64.extend_i32_u (memory.size $guest)) (i64.const 16)))
(func $load_guest (param $at i32) (result i32) (i32.load $guest (local.get $at)))
(func $from_guest (param $at i32) (param $from i64) (param $length i32)
  (memory.copy $alias $guest (local.get $at) (i32.wrap_i64 (local.get $from)) (local.get $length)))
(func $to_guest (param $to i64) (param $at i32) (param $length i32)
  (memory.copy $guest $alias (i32.wrap_i64 (local.get $to)) (local.get $at) (local.get $length)))
"""
_WIDE_ACCESS: Final = """
(func $guest_size (result i64) (i64.shl (global.get $pages) (i64.const 16)))
(func $load_guest (param $at i32) (result i32) (i32.load $guest (i64.extend_i32_u (local.get $at))))
(func $from_guest (param $at i32) (param $from i64) (param $length i32)
  (memory.copy $alias $guest (local.get $at) (local.get $from) (local.get $length)))
(func $to_guest (param $to i64) (param $at i32) (param $length i32)
  (memory.copy $guest $alias (local.get $to) (local.get $at) (local.get $length)))
"""
"""How the window adapter reaches the guest's memory, by the size of its addresses."""


def adapters() -> dict[str, str]:
    """Return the text of each module, by its name.

    Those named "shared" are for guests whose heap memory is shared, those named "wide" for ones with a rewritten 64-bit memory.
    """
    return {
        "shim": _shim(),
        "private": _private_adapter("0"),
        "window": _window_adapter("0"),
        "private_shared": _private_adapter("0 65536 shared"),
        "window_shared": _window_adapter("0 65536 shared"),
        "private_wide": _private_adapter_wide(),
        "window_wide": _window_adapter_wide(),
    }


def _shim() -> str:
    functions = [
        f'(func (export "{name}") {_signature(name)} (return_call_indirect $table {_signature(name)} {_arguments(name)} '
        f"(i32.const {entry})))"
        for entry, name in enumerate(FUNCTIONS)
    ]
    return _module([f'(table $table (export "{TABLE}") {_ENTRIES} funcref)', *functions])


def _private_adapter(memory: str) -> str:
    fields = [
        _import_from_guest(MEMORY, f"(memory $guest {memory})"),
        _import_from_guest(START, "(global $start (mut i64))"),
        f'(export "{MEMORY}" (memory $guest))',
        _fragment("private.wat"),
    ]
    functions = [_private_function(name, list(_private_checks(name))) for name in FUNCTIONS]
    return _module([*_imports(), *fields, *functions, _elements(0, FUNCTIONS)])


def _private_adapter_wide() -> str:
    fields = [f'(memory (export "{MEMORY}") 0)', _constants()]
    functions = [_private_function(name, []) for name in FUNCTIONS]
    return _module([*_imports(), *fields, *functions, _elements(0, FUNCTIONS)])


def _window_adapter(memory: str) -> str:
    return _window_adapter_of(
        [
            _import_from_guest(MEMORY, f"(memory $guest {memory})"),
            _import_from_guest(START, "(global $start (mut i64))"),
            _import_from_guest(END, "(global $end (mut i64))"),
            _import_from_guest(MIXED, "(global $mixed (mut i32))"),
            _import_from_guest(ALIAS, "(memory $alias 0)"),
            f'(export "{MEMORY}" (memory $alias))',
            _NARROW_ACCESS,
        ]
    )


def _window_adapter_wide() -> str:
    return _window_adapter_of(
        [
            _import_from_guest(MEMORY, "(memory $guest i64 0)"),
            _import_from_guest(PAGES, "(global $pages (mut i64))"),
            f"(global $start i64 (i64.const {NOTHING}))",
            "(global $end i64 (i64.const 0))",
            "(global $mixed i32 (i32.const 0))",
            f'(memory $alias (export "{MEMORY}") {ALIAS_CHAIN // WASM_PAGE})',
            _WIDE_ACCESS,
        ]
    )


def _window_adapter_of(fields: list[str]) -> str:
    functions = [_window_function(name) for name in _POINTING]
    return _module([*_imports(), *fields, _fragment("window.wat"), *functions, _elements(len(FUNCTIONS), _POINTING)])


def _module(fields: Iterable[str]) -> str:
    return "\n".join([f"(module ${OWN_MODULE}", *fields, ")"])


def _imports() -> list[str]:
    functions = [f'(import "{WASI_MODULE}" "{name}" (func $wasi_{name} {_signature(name)}))' for name in FUNCTIONS]
    return [*functions, f'(import "{SHIM}" "{TABLE}" (table $table {_ENTRIES} funcref))']


def _import_from_guest(name: str, item: str) -> str:
    return f'(import "{GUEST}" "{name}" {item})'


def _elements(first: int, names: Iterable[str]) -> str:
    return f"(elem (table $table) (i32.const {first}) func {' '.join(f'${name}' for name in names)})"


def _constants() -> str:
    return "\n".join(f"(global ${constant} i32 (i32.const {value}))" for constant, value in _CONSTANTS.items())


def _fragment(name: str) -> str:
    """Return a file of this directory, and the constants that it may call by name."""
    return _constants() + Path(__file__).with_name(name).read_text("utf-8")


def _signature(name: str) -> str:
    result = "" if name == NO_RESULT else " (result i32)"
    return f"(param {' '.join(value_types(FUNCTIONS[name]))}){result}"


def _arguments(name: str) -> str:
    return " ".join(map(_get, range(len(value_types(FUNCTIONS[name])))))


def _get(index: int) -> str:
    return f"(local.get {index})"


def _extended(index: int) -> str:
    return f"(i64.extend_i32_u {_get(index)})"


def _indexed(name: str) -> Iterator[tuple[int, Parameter]]:
    """Give a function's parameters, and the index of each one's first value."""
    index = 0
    for parameter in FUNCTIONS[name]:
        yield index, parameter
        index += len(value_types((parameter,)))


# ------------------------------------------------------------ ranges: what a parameter points to


@dataclass(frozen=True)
class _Range:
    """Bytes that the parameter at `index` points to.

    Attributes:
        length: How many, as an expression of type i64.
        access: How WASI uses them.
        alignment: What WASI requires.
        given: How many to copy back if WASI wrote to a copy, as an expression of type i32.
    """

    index: int
    length: str
    access: int
    alignment: int = 1
    given: str = ""

    @property
    def place(self) -> str:
        """The local variable that has the range's address in the alias memory."""
        return f"$at{self.index}"


def _ranges(name: str) -> list[_Range]:
    """Return what a function's parameters point to, but for arrays of buffers and of strings."""
    ranges = []
    last = len(value_types(FUNCTIONS[name])) - 1
    for index, parameter in _indexed(name):
        match parameter:
            case Result(size, alignment):  # brought too, as WASI does not write the padding
                one = _Range(index, f"(i64.const {size})", _READ | _WRITE, alignment, f"(i32.const {size})")
            case Text():
                one = _Range(index, _extended(index + 1), _READ | _COPY)
            case Room("counted"):
                counted = f"(call $smaller {_get(index + 1)} (i32.load $alias (local.get $at{last})))"
                one = _Range(index, _extended(index + 1), _WRITE, given=counted)
            case Room(filled):
                access = _WRITE if filled == "all" else _READ | _WRITE
                one = _Range(index, _extended(index + 1), access, given=_get(index + 1))
            case Items(size, counted_by, written):
                length = f"(i64.mul {_extended(counted_by)} (i64.const {size}))"
                given = f"(i32.wrap_i64 {length})" if written else ""
                one = _Range(index, length, _READ | (_WRITE if written else _COPY), 8, given)
            case _:
                continue
        ranges.append(one)
    return ranges


def _vectors(name: str) -> Iterator[tuple[int, bool]]:
    """Give where a function takes an array of buffers, and whether it writes to them."""
    return ((index, one.written) for index, one in _indexed(name) if isinstance(one, Vectors))


# ------------------------------------------------------------ the functions


def _private_function(name: str, checks: Collection[str]) -> str:
    """Return the function that calls WASI, or the window adapter if `checks` branch to it or there are none."""
    lines = [f"(func ${name} {_signature(name)} (local $answer i32)"]
    if name in _POINTING:
        entry = len(FUNCTIONS) + _POINTING.index(name)
        private = ["(block $window", *checks, "(br $private))"] if checks else []
        lines += [
            "(block $private",
            *private,
            f"(local.set $answer (call_indirect $table {_signature(name)} {_arguments(name)} (i32.const {entry})))",
            "(br_if $private (i32.eq (local.get $answer) (global.get $REFUSED)))",
            "(return (local.get $answer)))",
        ]
    return "\n".join([*lines, f"(return_call $wasi_{name} {_arguments(name)}))"])


def _private_checks(name: str) -> Iterator[str]:
    """Give what branches to the window adapter."""
    attached = f"(i64.ne (global.get $start) (i64.const {NOTHING}))"
    if any(isinstance(one, Strings) for one in FUNCTIONS[name]):  # it takes another call to know how long they are
        yield f"(br_if $window {attached})"
    for one in _ranges(name):
        yield f"(br_if $window (i64.gt_u (i64.add {_extended(one.index)} {one.length}) (global.get $start)))"
    for index, _ in _vectors(name):
        yield f"""(if {attached} (then
  (br_if $window (i64.gt_u (i64.add {_extended(index)} (i64.shl {_extended(index + 1)} (i64.const 3))) (global.get $start)))
  (br_if $window (i32.eqz (local.tee $answer (call $leading {_get(index)} {_get(index + 1)}))))
  (local.set {index + 1} (local.get $answer))))"""


def _window_function(name: str) -> str:
    """Return the function that makes a call through the alias memory, or refuses to."""
    first = FUNCTIONS[name][0]
    if isinstance(first, Strings):
        return _strings_function(name, first)
    ranges = _ranges(name)
    vectors = list(_vectors(name))
    passed = {index: _get(index) for index in range(len(value_types(FUNCTIONS[name])))}
    passed |= {one.index: f"(local.get {one.place})" for one in ranges}
    for index, _ in vectors:
        passed |= {index: "(local.get $vector)", index + 1: "(i32.const 1)"}
    return "\n".join(
        [
            f"(func ${name} {_signature(name)} (local $answer i32) (local $vector i32)",
            *(f"(local {one.place} i32)" for one in ranges),
            "(global.set $top (global.get $TABLE_END))",
            *map(_placing, ranges),
            # Last, as it takes what is left of the scratch area.
            *(_placing_vector(index, _WRITE if written else _READ) for index, written in vectors),
            f"(if (local.tee $answer (call $wasi_{name} {' '.join(passed.values())})) (then (return (local.get $answer))))",
            *(f"(call $give_back (local.get {one.place}) {_get(one.index)} {one.given})" for one in ranges if one.given),
            *(f"(call $give_vector (local.get $vector) (local.get {ranges[0].place}))" for _, written in vectors if written),
            "(i32.const 0))",
        ]
    )


def _placing(one: _Range) -> str:
    place = f"(call $place {_get(one.index)} {one.length} (i32.const {one.access}))"
    return f"""(if (i32.and {_get(one.index)} (i32.const {one.alignment - 1})) (then (return (global.get $REFUSED))))
(if (i32.eqz (local.tee {one.place} {place})) (then (return (global.get $refusal))))"""


def _placing_vector(index: int, access: int) -> str:
    vector = f"(call $vector {_get(index)} {_get(index + 1)} (i32.const {access}))"
    return f"(if (i32.eqz (local.tee $vector {vector})) (then (return (global.get $refusal))))"


def _strings_function(name: str, strings: Strings) -> str:
    """Return the window adapter's function for an array of pointers, whose values must be the guest's addresses."""
    sizes = "(global.get $TABLE_END) (i32.add (global.get $TABLE_END) (i32.const 4))"
    return f"""(func ${name} {_signature(name)} (local $answer i32)
(global.set $top (i32.add (global.get $TABLE_END) (i32.const 8)))
(if (local.tee $answer (call $wasi_{strings.sizes} {sizes})) (then (return (local.get $answer))))
(if (i32.eqz (call $place_strings {_arguments(name)})) (then (return (global.get $refusal))))
(if (local.tee $answer (call $wasi_{name} (global.get $pointers) (global.get $strings))) (then (return (local.get $answer))))
(call $give_strings {_arguments(name)})
(i32.const 0))"""
