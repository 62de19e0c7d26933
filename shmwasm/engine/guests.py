"""Guests: making a module's instance in a nest, and reaching the instance's exports and memory."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import wasmtime

from shmwasm.addresses import WINDOW_END, WINDOW_END_64
from shmwasm.engine.aliases import Alias
from shmwasm.engine.calls import ExportedFunction
from shmwasm.engine.cells import IntegerCell
from shmwasm.engine.exports import Exports, look_up
from shmwasm.engine.heap_memory import heap_memory, is_wide
from shmwasm.engine.host_table import Futexes
from shmwasm.engine.imports import define, make_imports
from shmwasm.engine.memories import AnyMemory, base_of, memory_of, size_of
from shmwasm.engine.modules import FunctionType, ImportName, ModuleDescription
from shmwasm.engine.traps import GuestTrapError, describe
from shmwasm.engine.wasi import Outputs, WasiLinks, grant_wasi
from shmwasm.engine.windows import SharedLinearMemory, Window, reserve
from shmwasm.errors import HostFunctionError, InstantiationError, ShmwasmError, UnknownExportError, UnsupportedError
from shmwasm.posix.mappings import unmap_fixed
from shmwasm.rewrite import seam

if TYPE_CHECKING:
    from shmwasm.engine.imports import Item
    from shmwasm.engine.nests import Nest
    from shmwasm.protocol.messages import WasiOptions

_FAR_AHEAD: Final = 1 << 40
"""Ticks that never come."""

_NO_NUMBERS: Final[Mapping[ImportName, float]] = MappingProxyType({})


class Guest:
    """One instance of a module.

    Args:
        number: The instance's number, for errors.
        nest: Where to make it. A guest that was made there before is done with (see `vacate`), and was made with the same
            arguments.
        module: The code.
        description: What `module` imports and exports.
        name: The module's name, for errors.
        functions: Host functions in Python: called with numbers, integers signed; they return what `converted_results` gives.
        wasi: What WASI grants; None provides no WASI at all.
        numbers: What the module's imported globals hold; they fit, signed or unsigned.
        futexes: How the guest waits for words of a heap; without, that is a trap.
        outputs: See `grant_wasi`.
        start: Where the window will start, if a chain is to be attached at once: memory is kept below from the beginning.
        memory_limit: Bytes that each memory of the guest may have at most, if there is such a limit.

    Raises:
        ModuleError: It imports something that nobody provides.
        InstantiationError: wasmtime refused, or the start function stopped.
        UnsupportedError: A host function's type holds more than numbers, or an import of another kind cannot be made.
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
        numbers: Mapping[ImportName, float] = _NO_NUMBERS,
        futexes: Futexes | None = None,
        outputs: Outputs | None = None,
        start: int = WINDOW_END,
        memory_limit: int | None = None,
    ) -> None:
        nest.link(name, description, functions=functions, numbers=frozenset(numbers), wasi=wasi is not None)
        self._number = number
        self._store = store = nest.store
        self._host_table = nest.host_table
        self._functions: dict[str, ExportedFunction] = {}
        self.types = nest.types
        """The exported functions."""
        if wasi is not None:
            grant_wasi(store, wasi, outputs)
        # A 64-bit heap memory is as large from the beginning as it will ever be; the window lowers the limit once it is made.
        most = start if memory_limit is None else min(start, memory_limit)
        reserve(store, WINDOW_END_64 if is_wide(description) else most)
        imported = self._make_imports(nest, module, description, numbers)
        with self._starting():
            self._exports = Exports(store, nest.linker.instantiate(store, module), description)
        self.window = self._open_window(description, imported, nest.wasi, start=start, limit=memory_limit)
        """Where a chain can be attached; None if the module has no memory that it can be mapped into."""
        self._memories = [item for item in imported.values() if isinstance(item, AnyMemory)]
        for export in nest.other_memories:
            self._memories.append(memory_of(self._exports[export]))
        self._fuel: tuple[IntegerCell, IntegerCell] | None = None
        if seam.FUEL in description.exports:
            self._fuel = IntegerCell(store, self._exports[seam.FUEL]), IntegerCell(store, self._exports[seam.FUEL_GIVEN])
        self._fill_host_table(futexes)
        self._begin()

    def function(self, export: str) -> ExportedFunction:
        """Return an exported function, ready to be called.

        Raises:
            UnknownExportError: There is none of that name.
            UnsupportedError: Its type holds more than numbers.
        """
        function = self._functions.get(export)
        if function is None:
            kind = self.types.get(export)
            if kind is None:
                raise UnknownExportError(self._number, export, list(self.types))
            native = self._exports[export]
            assert isinstance(native, wasmtime.Func)
            function = self._functions[export] = ExportedFunction(self._store, native, export, kind)
        return function

    def exports(self, export: str) -> bool:
        """Return whether the module exports a function of that name."""
        return export in self.types

    def memory(self) -> memoryview:
        """Return the linear memory as it is now: writable, no copy.

        Raises:
            UnsupportedError: The module has no memory that can be reached.
        """
        window = self._reachable_memory()
        return memoryview((ctypes.c_char * window.memory_size).from_address(window.base)).cast("B")

    def share_memory(self) -> SharedLinearMemory:
        """Let other processes map the linear memory (see `Window.share_memory`).

        Raises:
            UnsupportedError: The module has no such memory, or the kernel has no room. Then the guest must not run again.
        """
        return self._reachable_memory().share_memory()

    def vacate(self, *, viewed: bool = False) -> None:
        """Give all memories that can be reached back to the kernel, and close the file of one: the guest must not run again.

        The rest of the guest stays as long as its store: hidden memories other than the linear one, too.

        Args:
            viewed: Whether there may be views of the linear memory: they show zeros from now on, and may be written to.

        Raises:
            UnsupportedError: The kernel has no room for that.
        """
        for memory in self._memories:
            base, size = base_of(self._store, memory), size_of(self._store, memory)
            if size and (self.window is None or base != self.window.base):
                unmap_fixed(base, size)
        if self.window is not None:
            self.window.vacate(viewed=viewed)

    def tick(self) -> None:
        """Interrupt what runs in the store; any thread may call this."""
        self._store.engine.increment_epoch()

    def ignore_interruptions(self) -> None:
        """Let no tick interrupt what runs in the store, until `resume_from_interruption`."""
        self._store.set_epoch_deadline(_FAR_AHEAD)

    def resume_from_interruption(self) -> None:
        """Let the store's code run until the next tick."""
        self._store.set_epoch_deadline(1)

    def give_fuel(self, units: int) -> None:
        """Let the next call of a metered guest use so much, which may be given as 64 unsigned bits."""
        assert self._fuel is not None
        for cell in self._fuel:
            cell.set(units)

    @property
    def metered(self) -> bool:
        """Whether calls use up fuel."""
        return self._fuel is not None

    def exhausted_fuel(self) -> int | None:
        """Return what the last call was given if it used that up; None if it was enough, or there is no such limit."""
        if self._fuel is None:
            return None
        left, given = self._fuel
        return given.get() if left.get() < 0 else None

    def dispatch(
        self, dispatcher: wasmtime.Module, core: Sequence[wasmtime.Func | wasmtime.Memory], exports: Sequence[str], name: str
    ) -> ExportedFunction:
        """Instantiate a dispatcher beside the guest.

        Args:
            dispatcher: Its code.
            core: What it imports from the core, in its order.
            exports: The guest's exports that it imports after that; if the guest is metered, it imports its fuel at last.
            name: Its function that runs calls.

        Returns:
            That function: takes two numbers and returns one.
        """
        fuel = (seam.FUEL_GIVEN, seam.FUEL) if self._fuel is not None else ()
        imports = [*core, *(self._exports[export] for export in (*exports, *fuel))]
        made = look_up(self._store, wasmtime.Instance(self._store, dispatcher, imports), name)
        assert isinstance(made, wasmtime.Func)
        return ExportedFunction(self._store, made, name, FunctionType(("i32", "i32"), ("i32",)))

    def _make_imports(
        self, nest: Nest, module: wasmtime.Module, description: ModuleDescription, numbers: Mapping[ImportName, float]
    ) -> dict[ImportName, Item]:
        """Make and link what the module imports besides functions."""
        if all(isinstance(entry.type, FunctionType) for entry in description.imports):
            return {}
        try:
            made = make_imports(self._store, module, numbers)
        except wasmtime.WasmtimeError as failure:
            raise InstantiationError(self._number, describe(failure).message) from failure
        for (origin, name), item in made.items():
            define(nest.linker, self._store, origin, name, item)
        return made

    def _open_window(
        self,
        description: ModuleDescription,
        imported: Mapping[ImportName, Item],
        links: WasiLinks | None,
        *,
        start: int,
        limit: int | None,
    ) -> Window | None:
        chosen = heap_memory(description)
        if chosen is None or (chosen.type.is_64 and not is_wide(description)):
            return None
        memory = memory_of(self._exports[chosen.name] if isinstance(chosen.name, str) else imported[chosen.name])
        pages = self._exports.get(seam.PAGES)
        assert pages is None or isinstance(pages, wasmtime.Global)
        alias = None
        if links is not None:
            alias = links.serve(memory, self._exports)
        elif seam.ALIAS in description.exports:
            alias = Alias(self._store, self._exports)
        return Window(self._store, memory, chosen.type, pages=pages, alias=alias, start=start, limit=limit)

    def _fill_host_table(self, futexes: Futexes | None) -> None:
        table = self._exports.get(seam.HOST)
        if table is not None:
            assert isinstance(table, wasmtime.Table)
            assert self.window is not None
            self._host_table.fill(table, self.window, futexes)

    def _begin(self) -> None:
        """Run the start function, where the rewriter has left that to us."""
        begin = self._exports.get(seam.BEGIN)
        if begin is not None:
            assert isinstance(begin, wasmtime.Func)
            with self._starting():
                ExportedFunction(self._store, begin, seam.BEGIN).call(())

    @contextlib.contextmanager
    def _starting(self) -> Iterator[None]:
        """Report whatever stops the instantiation as such."""
        try:
            yield
        except (wasmtime.Trap, wasmtime.ExitTrap) as failure:
            raise InstantiationError(self._number, describe(failure).message) from None
        except wasmtime.WasmtimeError as failure:
            raise InstantiationError(self._number, describe(failure).message) from failure
        except GuestTrapError as stopped:
            raise InstantiationError(self._number, _reason(stopped.__cause__ or stopped)) from None
        except ShmwasmError as failure:
            raise InstantiationError(self._number, _reason(failure)) from None

    def _reachable_memory(self) -> Window:
        if self.window is None:
            raise UnsupportedError("a view of this instance's memory", "its module has none, or a shared one of 64 bits")
        return self.window


def lacks_room(failure: ShmwasmError) -> bool:
    """Return whether a guest could not be made, where others like it could, because there is no room for it beside them."""
    return isinstance(failure, UnsupportedError) or isinstance(failure.__cause__, wasmtime.WasmtimeError)


def _reason(failure: BaseException) -> str:
    match failure:
        case HostFunctionError():
            return failure.trap
        case ShmwasmError():
            return str(failure)
        case _:
            return describe(failure).message
