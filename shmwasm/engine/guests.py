"""Guests: linking a module to what it imports, making its instance, and reaching the instance's exports and memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import wasmtime

from shmwasm.engine.calls import ExportedFunction
from shmwasm.engine.modules import FunctionType, Import, MemoryType, ModuleDescription
from shmwasm.engine.numbers import BITS, fits, number_of
from shmwasm.engine.traps import describe
from shmwasm.engine.wasi import grant_wasi
from shmwasm.engine.windows import SharedLinearMemory, Window
from shmwasm.errors import (
    ArgumentError,
    HostFunctionError,
    InstantiationError,
    ModuleError,
    ShmwasmError,
    UnknownExportError,
    UnsupportedError,
    shown,
)

if TYPE_CHECKING:
    from shmwasm.protocol.messages import WasiOptions

WASI_MODULE: Final = "wasi_snapshot_preview1"
"""The name that WASI preview 1's functions are imported from."""

ImportName = tuple[str, str]
"""Module and name of an import."""

_KINDS: Final = {
    "i32": wasmtime.ValType.i32,
    "i64": wasmtime.ValType.i64,
    "f32": wasmtime.ValType.f32,
    "f64": wasmtime.ValType.f64,
}


def new_store(engine: wasmtime.Engine) -> wasmtime.Store:
    """Return a store whose guests run until the engine's epoch grows."""
    store = wasmtime.Store(engine)
    store.set_epoch_deadline(1)
    return store


class Nest:
    """A store for one guest, and what is linked natively to it: all that can be there before the guest's module is known.

    Args:
        store: Made by `new_store`.
        natives: Functions of the store that the module may import; called with nothing between.
        natives_64: Other forms of some of them, which a module gets that imports them with 64-bit types.
    """

    def __init__(
        self,
        store: wasmtime.Store,
        natives: Mapping[ImportName, wasmtime.Func],
        natives_64: Mapping[ImportName, wasmtime.Func] = MappingProxyType({}),
    ) -> None:
        self.store = store
        self._natives_64 = natives_64
        self.linker = wasmtime.Linker(store.engine)
        self.linker.allow_shadowing = True  # the user's own functions come before WASI's
        self.provided = frozenset(natives)
        for (module, name), native in natives.items():
            self.linker.define(store, module, name, native)

    def fit(self, imports: Iterable[Import]) -> None:
        """Link the form of each native that the module with these imports asks for."""
        for entry in imports:
            wide = self._natives_64.get((entry.module, entry.name))
            kind = entry.type
            if wide is not None and isinstance(kind, FunctionType) and "i64" in kind.parameters + kind.results:
                self.linker.define(self.store, entry.module, entry.name, wide)


class Guest:
    """One instance of a module.

    Args:
        number: The instance's number, for errors.
        nest: Where to make it; for one guest only.
        module: The code.
        description: What `module` imports and exports.
        name: The module's name, for errors.
        functions: Host functions in Python: called with numbers, integers signed; they return what `converted_results` gives.
        wasi: What WASI grants; None provides no WASI at all.

    Raises:
        ModuleError: It imports something that nobody provides.
        InstantiationError: wasmtime refused, or the start function stopped.
        UnsupportedError: A host function's type holds more than numbers.
        ArgumentError: A WASI option cannot be granted.
    """

    def __init__(
        self,
        number: int,
        nest: Nest,
        module: wasmtime.Module,
        description: ModuleDescription,
        *,
        name: str,
        functions: Mapping[ImportName, Callable[..., Any]],
        wasi: WasiOptions | None,
    ) -> None:
        _check_provided(name, description, nest.provided | functions.keys(), wasi=wasi is not None)
        self._number = number
        self._store = store = nest.store
        self._functions: dict[str, ExportedFunction] = {}
        self._types = {export: kind for export, kind in description.exports.items() if isinstance(kind, FunctionType)}
        if wasi is not None:
            grant_wasi(store, nest.linker, wasi)
        nest.fit(description.imports)
        for entry in description.imports:
            function = functions.get((entry.module, entry.name))
            if function is not None and isinstance(entry.type, FunctionType):
                nest.linker.define_func(
                    entry.module, entry.name, _native_type(f"{entry.module}.{entry.name}", entry.type), function
                )
        try:
            self._exports = nest.linker.instantiate(store, module).exports(store)
        except (wasmtime.Trap, wasmtime.WasmtimeError) as failure:
            raise InstantiationError(number, describe(failure).message) from None
        except HostFunctionError as failure:
            raise InstantiationError(number, failure.trap) from None
        except ShmwasmError as failure:
            raise InstantiationError(number, str(failure)) from None
        self.window = self._open_window(description)
        """Where a chain can be attached; None if the module exports no 32-bit memory."""

    def function(self, export: str) -> ExportedFunction:
        """Return an exported function, ready to be called.

        Raises:
            UnknownExportError: There is none of that name.
            UnsupportedError: Its type holds more than numbers.
        """
        function = self._functions.get(export)
        if function is None:
            kind = self._types.get(export)
            if kind is None:
                raise UnknownExportError(self._number, export, list(self._types))
            native = self._exports[export]
            assert isinstance(native, wasmtime.Func)
            function = self._functions[export] = ExportedFunction(self._store, native, export, kind)
        return function

    def exports(self, export: str) -> bool:
        """Return whether the module exports a function of that name."""
        return export in self._types

    def memory(self) -> memoryview:
        """Return the linear memory as it is now: writable, no copy.

        Raises:
            UnsupportedError: The module exports no memory.
        """
        window = self._exported_memory()
        return memoryview((ctypes.c_char * window.memory_size).from_address(window.base)).cast("B")

    def share_memory(self) -> SharedLinearMemory:
        """Let other processes map the linear memory (see `Window.share_memory`).

        Raises:
            UnsupportedError: The module exports no memory, or the kernel has no room. Then the guest must not run again.
        """
        return self._exported_memory().share_memory()

    def resume_from_interruption(self) -> None:
        """Let the guest run again after the epoch grew."""
        self._store.set_epoch_deadline(1)

    def _open_window(self, description: ModuleDescription) -> Window | None:
        memories = {name: kind for name, kind in description.exports.items() if isinstance(kind, MemoryType) and not kind.is_64}
        if not memories:
            return None
        name = "memory" if "memory" in memories else next(iter(memories))
        memory = self._exports[name]
        assert isinstance(memory, wasmtime.Memory | wasmtime.SharedMemory)
        return Window(self._store, memory, memories[name])

    def _exported_memory(self) -> Window:
        if self.window is None:
            raise UnsupportedError("a view of this instance's memory", "its module exports no 32-bit memory")
        return self.window


def converted_results(kinds: Sequence[str], returned: object) -> Any:
    """Return what a host function returned, as wasmtime takes it.

    Args:
        kinds: The types that the guest expects.
        returned: None, one value, or a sequence of as many values as there are types. Integers may be signed or unsigned, or
            anything with `__index__`.

    Raises:
        ArgumentError: It is something else, or does not fit.
    """
    if not kinds:
        if returned is not None:
            raise ArgumentError(f"the host function returned {shown(returned)}, and the guest expects nothing")
        return None
    if len(kinds) == 1:
        return _converted_result(kinds[0], returned)
    if not isinstance(returned, Sequence) or len(returned) != len(kinds):
        raise ArgumentError(f"the host function returned {shown(returned)}, and the guest expects {len(kinds)} values")
    return list(map(_converted_result, kinds, returned))


def _converted_result(kind: str, value: Any) -> int | float:
    try:
        number = number_of(kind, value)
    except Exception as failure:  # the value's own code ran
        raise ArgumentError(
            f"the host function returned {shown(value)}, and the guest expects a value of type {kind}"
        ) from failure
    if not fits(kind, number):
        raise ArgumentError(f"the host function returned {shown(number)}, which does not fit into {BITS[kind]} bits")
    return number


def _check_provided(name: str, description: ModuleDescription, provided: frozenset[ImportName], *, wasi: bool) -> None:
    for entry in description.imports:
        label = f"{entry.module}.{entry.name}"
        if not isinstance(entry.type, FunctionType):
            raise ModuleError(name, f"it imports {label}, which is no function, and only functions can be provided")
        if (entry.module, entry.name) in provided or (wasi and entry.module == WASI_MODULE):
            continue
        if entry.module == WASI_MODULE:
            raise ModuleError(name, f"it imports {label}, and WASI was not granted")
        raise ModuleError(name, f"it imports {label}, which nobody provides")


def _native_type(label: str, kind: FunctionType) -> wasmtime.FuncType:
    for value in (*kind.parameters, *kind.results):
        if value not in _KINDS:
            raise UnsupportedError(
                f"the host function {label}", f"a value of type {value} cannot be passed; pass an address instead"
            )
    return wasmtime.FuncType([_KINDS[value]() for value in kind.parameters], [_KINDS[value]() for value in kind.results])
