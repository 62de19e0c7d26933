"""What a module imports besides functions: memories and tables made for it, and globals with numbers that the user gave."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import wasmtime
from wasmtime import _bindings, _ffi

from shmwasm.engine.modules import FunctionType, GlobalType, OtherType, value_type
from shmwasm.errors import ModuleError, UnsupportedError
from shmwasm.rewrite.rewriting import WASI_MODULE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shmwasm.engine.modules import ImportName, ModuleDescription

Item = wasmtime.Memory | wasmtime.SharedMemory | wasmtime.Table | wasmtime.Global


def check_provided(
    name: str,
    description: ModuleDescription,
    *,
    functions: frozenset[ImportName],
    numbers: frozenset[ImportName],
    wasi: bool,
) -> None:
    """Check that all imports of the module `name` are functions or numbers that are given, or what is made for it.

    Raises:
        ModuleError: It imports something that nobody provides.
    """
    for entry in description.imports:
        label, key = f"{entry.module}.{entry.name}", (entry.module, entry.name)
        match entry.type:
            case FunctionType():
                if key in functions or (wasi and entry.module == WASI_MODULE):
                    continue
                if entry.module == WASI_MODULE:
                    raise ModuleError(name, f"it imports {label}, and WASI was not granted")
                raise ModuleError(name, f"it imports {label}, which nobody provides")
            case OtherType(kind="tag"):
                raise ModuleError(name, f"it imports the tag {label}, and only functions and numbers can be provided")
            case GlobalType() if key not in numbers:
                raise ModuleError(name, f"it imports the global {label}, which nobody gives a number for")


def make_imports(store: wasmtime.Store, module: wasmtime.Module, numbers: Mapping[ImportName, float]) -> dict[ImportName, Item]:
    """Make the memories, tables and globals that `module` imports, each of the import's own type.

    Raises:
        UnsupportedError: A table or global holds something that cannot be made here.
        wasmtime.WasmtimeError: One is larger than `store` admits.
    """
    made: dict[ImportName, Item] = {}
    for entry in module.imports:
        key = entry.module, entry.name or ""
        item = _made(store, entry.type, f"{entry.module}.{entry.name}", numbers.get(key))
        if item is not None:
            made[key] = item
    return made


def define(linker: wasmtime.Linker, store: wasmtime.Store, module: str, name: str, item: Item) -> None:
    """Define an item in a linker, as `Linker.define` does; that one cannot take a shared memory."""
    if not isinstance(item, wasmtime.SharedMemory):
        linker.define(store, module, name, item)
        return
    union = _bindings.wasmtime_extern_union(sharedmemory=item.ptr())
    extern = _bindings.wasmtime_extern_t(_ffi.WASMTIME_EXTERN_SHAREDMEMORY, union)
    first, second = module.encode(), name.encode()
    error: Any = _bindings.wasmtime_linker_define(
        linker.ptr(),
        store._context(),  # noqa: SLF001
        ctypes.create_string_buffer(first),
        len(first),
        ctypes.create_string_buffer(second),
        len(second),
        ctypes.byref(extern),
    )
    if error:
        raise wasmtime.WasmtimeError._from_ptr(error)  # noqa: SLF001


def _made(store: wasmtime.Store, kind: object, label: str, number: float | None) -> Item | None:
    match kind:
        case wasmtime.MemoryType():
            return wasmtime.SharedMemory(store.engine, kind) if kind.is_shared else wasmtime.Memory(store, kind)
        case wasmtime.TableType():
            element = value_type(kind.element)
            if element not in {"funcref", "externref"}:
                raise UnsupportedError(f"the imported table {label}", "only tables of funcref or externref can be made")
            return wasmtime.Table(store, kind, None)
        case wasmtime.GlobalType() if number is not None:
            return wasmtime.Global(store, kind, _value(label, value_type(kind.content), number))
    return None


def _value(label: str, kind: str, number: Any) -> wasmtime.Val:
    match kind:
        case "i32":
            return wasmtime.Val.i32(int(number))
        case "i64":
            return wasmtime.Val.i64(int(number))
        case "f32":
            return wasmtime.Val.f32(float(number))
        case "f64":
            return wasmtime.Val.f64(float(number))
    raise UnsupportedError(f"the imported global {label}", f"a value of type {kind} cannot be given; only numbers can")
