"""Modules: their bytes, their compiled code, and what they import and export.

What a module imports and exports is described by plain values, since processes that hold no engine must know it too.
"""

from __future__ import annotations

import functools
import os
import re
import stat
from typing import Any

import msgspec
import wasmtime
from wasmtime import _bindings, _ffi

from shmwasm.errors import ModuleError, shown
from shmwasm.posix.signals import raises_again

ImportName = tuple[str, str]
"""Module and name of an import."""

Source = bytes | str | os.PathLike[str]
"""A module: its bytes, its text (which holds "(module"), or the path of either."""

_LONGEST_NAME = 4096
"""How many characters a module's name has at most: what no path exceeds."""

_MAGIC = b"\0asm"
_CORE_VERSION = b"\1\0\0\0"


class FunctionType(msgspec.Struct, frozen=True, tag="function"):
    """A function's signature: names of value types, as in the WebAssembly text format."""

    parameters: tuple[str, ...]
    results: tuple[str, ...]


class MemoryType(msgspec.Struct, frozen=True, tag="memory"):
    """A memory's limits, in pages of 64 KiB."""

    minimum: int
    maximum: int | None
    is_64: bool
    shared: bool


class GlobalType(msgspec.Struct, frozen=True, tag="global"):
    """A global: the name of its value's type, and whether it can be set."""

    content: str
    mutable: bool


class OtherType(msgspec.Struct, frozen=True, tag="other"):
    """Something else that is imported or exported: a "table" or "tag"."""

    kind: str


ExternType = FunctionType | MemoryType | GlobalType | OtherType


def kind_of(extern: ExternType) -> str:
    """Return what kind of thing a type is of: "function", "memory", "global", "table" or "tag"."""
    match extern:
        case FunctionType():
            return "function"
        case MemoryType():
            return "memory"
        case GlobalType():
            return "global"
        case OtherType():
            return extern.kind


class Import(msgspec.Struct, frozen=True):
    """What a module needs under a name."""

    module: str
    name: str
    type: ExternType


class ModuleDescription(msgspec.Struct, frozen=True):
    """What a module imports, in its order, and exports, by name."""

    imports: tuple[Import, ...]
    exports: dict[str, ExternType]

    @property
    def memories(self) -> list[MemoryType]:
        """The memories that are imported or exported."""
        kinds = [entry.type for entry in self.imports] + list(self.exports.values())
        return [kind for kind in kinds if isinstance(kind, MemoryType)]


def read_module(source: Source) -> tuple[str, bytes]:
    """Return a module's name for errors, and its bytes in the binary format.

    Raises:
        ModuleError: The file cannot be read, or holds no core module in either format.
    """
    match source:
        case str() if "(module" in source:
            name, content = "text", _encoded(source)
        case bytes() | bytearray():
            name, content = f"{len(source)} bytes", bytes(source)
        case str() | os.PathLike():
            name, content = _read_file(source)
        case _:
            raise ModuleError(shown(source), "it is neither bytes nor text nor a path")
    if not content.startswith(_MAGIC):
        content = _binary(name, content)
    if content[4:8] != _CORE_VERSION:
        if len(content) < len(_MAGIC + _CORE_VERSION):
            raise ModuleError(name, f"it is no core module: it ends after {len(content)} bytes")
        raise ModuleError(name, f"its version is {content[4:8].hex()}: a component, or a format to come, and no core module")
    return name, content


def _read_file(source: str | os.PathLike[str]) -> tuple[str, bytes]:
    """Return a name for errors, and what the file holds. Only a regular file has an end that is sure to come."""
    try:
        path = os.fsdecode(source)
    except Exception as failure:  # the path's own code ran
        if not raises_again(lambda: os.fsdecode(source)):
            raise
        raise ModuleError(shown(source), f"it is no path: {failure}") from failure
    try:
        # A pipe that nobody writes to must not be waited for.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            is_regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            content = file.read() if is_regular else b""
    except OSError as failure:
        raise ModuleError(_readable(path), f"it cannot be read: {failure.strerror}") from None
    except ValueError as failure:
        raise ModuleError(_readable(path), f"it is no path: {failure}") from None
    if not is_regular:
        raise ModuleError(_readable(path), "it is no regular file")
    return _readable(path), content


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as failure:
        raise ModuleError("text", f"it cannot be written as UTF-8: {failure}") from None


def _readable(path: str) -> str:
    """Return a path as text that can be shown and sent, whatever bytes it has."""
    text = path.encode(errors="backslashreplace").decode()
    return text if len(text) <= _LONGEST_NAME else f"{text[:100]}..."


def validate(engine: wasmtime.Engine, name: str, content: bytes) -> None:
    """Check that a module is valid, as the engine sees it; `name` is for the error.

    Raises:
        ModuleError: It is not; the reason is wasmtime's.
    """
    try:
        wasmtime.Module.validate(engine, content)
    except wasmtime.WasmtimeError as failure:
        raise ModuleError(name, reason_of(failure)) from None


def deserialize(engine: wasmtime.Engine, artifact: int) -> wasmtime.Module:
    """Return the module whose code is behind the descriptor `artifact`, which the caller keeps.

    The code is run as it is: it must come from a process of the same user.

    Raises:
        ModuleError: It is no code, or no code for this engine and processor.
    """
    try:
        is_file = stat.S_ISREG(os.fstat(artifact).st_mode)
    except OSError as failure:
        raise ModuleError("compiled code", str(failure)) from None
    if not is_file:
        raise ModuleError("compiled code", "it is no regular file")
    try:
        return wasmtime.Module.deserialize_file(engine, f"/proc/self/fd/{artifact}")
    except wasmtime.WasmtimeError:
        # A file system mounted noexec cannot be mapped as code, but copied.
        try:
            return wasmtime.Module.deserialize(engine, os.pread(artifact, os.fstat(artifact).st_size, 0))
        except OSError as failure:
            raise ModuleError("compiled code", str(failure)) from None
        except wasmtime.WasmtimeError as failure:
            raise ModuleError("compiled code", reason_of(failure)) from None


def describe(module: wasmtime.Module) -> ModuleDescription:
    """Return what `module` imports and exports."""
    return ModuleDescription(
        tuple(Import(entry.module, entry.name or "", _described(entry.type)) for entry in module.imports),
        {entry.name: _described(entry.type) for entry in module.exports},
    )


def function_type(kind: wasmtime.FuncType) -> FunctionType:
    """Return the plain description of a function's type."""
    return FunctionType(tuple(map(value_type, kind.params)), tuple(map(value_type, kind.results)))


def memory_type(kind: wasmtime.MemoryType) -> MemoryType:
    """Return the plain description of a memory's type."""
    return MemoryType(kind.limits.min, kind.limits.max, kind.is_64, kind.is_shared)


def value_type(kind: wasmtime.ValType) -> str:
    """Return the name of a value type; "reference" for the many that are not named here."""
    for name, known in _known_value_types():
        if _bindings.wasmtime_wasm_valtype_equal(kind.ptr(), known):
            return name
    return "reference"


@functools.cache
def _known_value_types() -> list[tuple[str, Any]]:
    """Return value types to compare with: asking wasmtime which one a type is ends the process if it is a newer one."""
    kinds = {"i32": _ffi.WASM_I32, "i64": _ffi.WASM_I64, "f32": _ffi.WASM_F32, "f64": _ffi.WASM_F64}
    kinds |= {"funcref": _ffi.WASM_FUNCREF, "externref": _ffi.WASM_ANYREF}
    known = [(name, _bindings.wasm_valtype_new(kind)) for name, kind in kinds.items()]
    return [*known, ("v128", _bindings.wasmtime_wasm_valtype_v128())]


def _described(kind: object) -> ExternType:
    match kind:
        case wasmtime.FuncType():
            return function_type(kind)
        case wasmtime.MemoryType():
            return memory_type(kind)
        case wasmtime.TableType():
            return OtherType("table")
        case wasmtime.GlobalType():
            return GlobalType(value_type(kind.content), kind.mutable)
        case _:
            return OtherType("tag")


def _binary(name: str, text: bytes) -> bytes:
    """Return the binary format of a module in the text format.

    Raises:
        ModuleError: It is not in the text format.
    """
    if not text.lstrip().startswith((b"(", b";")):
        raise ModuleError(name, f"it starts with {text[:4].hex(' ')!r}, and is neither in the binary nor in the text format")
    try:
        return bytes(wasmtime.wat2wasm(text.decode(errors="replace")))
    except wasmtime.WasmtimeError as failure:
        raise ModuleError(name, reason_of(failure)) from None


def reason_of(failure: wasmtime.WasmtimeError) -> str:
    """Return wasmtime's reason in one line: the first of its message, and the innermost cause or the place in the text."""
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
    place = re.search(r"^ *--> <anon>:([0-9]+):([0-9]+)$", str(failure), re.MULTILINE)
    if place:
        return f"{lines[0]} (line {place[1]}, column {place[2]})"
    if "Caused by:" in lines:
        return f"{lines[0]}: {re.sub(r'^[0-9]+: ', '', lines[-1])}"
    return lines[0] if lines else "unknown"
