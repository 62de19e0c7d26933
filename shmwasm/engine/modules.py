"""Modules: from bytes or text to code that any process here can run.

Theory
------
A module is compiled once, in the client. Its code is kept under a key made of the module's bytes and of the engine's
`fingerprint`, and travels as a read-only descriptor; workers deserialize it, which takes a fraction of a millisecond. What a
module imports and exports is described by plain values, since processes that hold no engine must know it too.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import stat
import weakref
from typing import TYPE_CHECKING, Any, Self

import msgspec
import wasmtime
from wasmtime import _bindings, _ffi

from shmwasm.engine.cache import Cache
from shmwasm.engine.config import fingerprint, new_engine
from shmwasm.errors import ClosedError, ModuleError, shown

if TYPE_CHECKING:
    from types import TracebackType

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


class OtherType(msgspec.Struct, frozen=True, tag="other"):
    """Something else that is imported or exported: a "table", "global" or "tag"."""

    kind: str


ExternType = FunctionType | MemoryType | OtherType


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


class CompiledModule:
    """Code and its description. It owns the artifact's descriptor, which `close` closes, as does forgetting the module."""

    def __init__(self, name: str, key: str, description: ModuleDescription, artifact: int) -> None:
        self.name = name
        self.key = key
        self.description = description
        self._artifact = artifact
        self._closing = weakref.finalize(self, os.close, artifact)
        self._closing.atexit = False

    @property
    def descriptor(self) -> int:
        """The read-only descriptor of the code, for `deserialize`; the module keeps it.

        Raises:
            ClosedError: The module was closed.
        """
        if not self._closing.alive:
            raise ClosedError(f"module {self.name!r}")
        return self._artifact

    @property
    def functions(self) -> dict[str, FunctionType]:
        """The exported functions."""
        return {name: kind for name, kind in self.description.exports.items() if isinstance(kind, FunctionType)}

    @property
    def imported_functions(self) -> dict[tuple[str, str], FunctionType]:
        """The imported functions, by module and name."""
        return {(one.module, one.name): one.type for one in self.description.imports if isinstance(one.type, FunctionType)}

    @property
    def other_imports(self) -> list[tuple[str, str, str]]:
        """What is imported but no function: its kind, module and name."""
        return [
            ("memory" if isinstance(one.type, MemoryType) else one.type.kind, one.module, one.name)
            for one in self.description.imports
            if not isinstance(one.type, FunctionType)
        ]

    def close(self) -> None:
        """Close the descriptor. May be called twice."""
        self._closing()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


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
        raise ModuleError(name, f"its version is {content[4:8].hex()}: a component, or a format to come, and no core module")
    return name, content


def _read_file(source: str | os.PathLike[str]) -> tuple[str, bytes]:
    """Return a name for errors, and what the file holds. Only a regular file has an end that is sure to come."""
    try:
        path = os.fsdecode(source)
    except Exception as failure:  # the path's own code ran
        raise ModuleError(shown(source), f"it is no path: {failure}") from failure
    try:
        # A pipe that nobody writes to must not be waited for.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ModuleError(_readable(path), "it is no regular file")
            return _readable(path), file.read()
    except OSError as failure:
        raise ModuleError(_readable(path), f"it cannot be read: {failure.strerror}") from None
    except ValueError as failure:
        raise ModuleError(_readable(path), f"it is no path: {failure}") from None


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as failure:
        raise ModuleError("text", f"it cannot be written as UTF-8: {failure}") from None


def _readable(path: str) -> str:
    """Return a path as text that can be shown and sent, whatever bytes it has."""
    text = path.encode(errors="backslashreplace").decode()
    return text if len(text) <= _LONGEST_NAME else f"{text[:100]}..."


def compile_module(source: Source, cache: Cache | None = None, *, engine: wasmtime.Engine | None = None) -> CompiledModule:
    """Compile a module, or find it in `cache`.

    Args:
        source: The module.
        cache: Where compiled code is kept; `None` keeps it in memory only.
        engine: One that `new_engine` made; by default a new one that compiles in parallel.

    Raises:
        ModuleError: The module is invalid; the reason is wasmtime's.
        UnsupportedError: Others can write to the cache's directory.
    """
    name, content = read_module(source)
    return compile_binary(name, content, cache, engine=engine)


def compile_binary(
    name: str, content: bytes, cache: Cache | None = None, *, engine: wasmtime.Engine | None = None
) -> CompiledModule:
    """Compile the binary module `content`, as `compile_module` does; `name` is for errors."""
    cache = Cache(None) if cache is None else cache
    engine = new_engine(parallel_compilation=True) if engine is None else engine
    key = hashlib.sha256(fingerprint().encode() + content).hexdigest()
    artifact = cache.find(key)
    if artifact is not None:
        try:
            return CompiledModule(name, key, describe(deserialize(engine, artifact)), artifact)
        except ModuleError:
            os.close(artifact)  # damaged, or of a processor with other features: made anew below
    try:
        module = wasmtime.Module(engine, content)
    except wasmtime.WasmtimeError as failure:
        raise ModuleError(name, _reason(failure)) from None
    return CompiledModule(name, key, describe(module), cache.keep(key, module.serialize()))


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
            raise ModuleError("compiled code", _reason(failure)) from None


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
            return OtherType("global")
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
        raise ModuleError(name, _reason(failure)) from None


def _reason(failure: wasmtime.WasmtimeError) -> str:
    """Return wasmtime's reason in one line: the first of its message, and the innermost cause or the place in the text."""
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
    place = re.search(r"^ *--> <anon>:([0-9]+):([0-9]+)$", str(failure), re.MULTILINE)
    if place:
        return f"{lines[0]} (line {place[1]}, column {place[2]})"
    if "Caused by:" in lines:
        return f"{lines[0]}: {re.sub(r'^[0-9]+: ', '', lines[-1])}"
    return lines[0] if lines else "unknown"
