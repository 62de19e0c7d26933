"""A loaded module with its host functions, as the user holds it."""

from __future__ import annotations

import multiprocessing.spawn
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat, SupportsIndex

from shmwasm import errors
from shmwasm.client import checks
from shmwasm.client.closing import Closing
from shmwasm.core import layout
from shmwasm.core.dispatching import cells_of
from shmwasm.engine.compiling import CompiledModule
from shmwasm.engine.modules import FunctionType, GlobalType, ImportName, OtherType
from shmwasm.engine.numbers import BITS, NUMBERS, fits, number_of
from shmwasm.posix.signals import raises_again
from shmwasm.protocol import messages
from shmwasm.rewrite.rewriting import WASI_MODULE

NATIVE_IMPORTS = frozenset(("env", f"shared_heap_{name}") for name in ("malloc", "free", "self", "peer_alive"))
"""What every instance is given natively, without being asked."""

_LONGEST_IMPORT = 100_000
"""How many characters a module's import can have: what wasmtime takes."""

Imports = Mapping[str, Mapping[str, Callable[..., Any] | float]]
"""Host functions, and numbers for imported globals, by module and name."""


class OnClient:
    """A host function that runs in the client; see `on_client`."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function


def on_client(function: Callable[..., Any]) -> OnClient:
    """Mark a host function to run in this process, in a thread of its own, instead of in the worker.

    It may be any callable, closures included, and is called like every host function: `function(caller, *arguments)`. The guest
    waits meanwhile. It must not call the instance that called it.

    Raises:
        ArgumentError: `function` cannot be called.
    """
    if not callable(function):
        raise errors.ArgumentError(f"{errors.shown(function)} cannot be called, so it cannot be a host function")
    return OnClient(function)


class Module(Closing):
    """A compiled module; made by `Runtime.load`, and usable with that runtime for as many instances as one likes.

    `close` releases its code's descriptor, as does the runtime's; so does forgetting the module.

    Attributes:
        name: Where it came from, for people.
        exports: Its exported functions: name to type.
        is_64: Whether a chain is mapped into a memory with 64-bit addresses.
        metered: Whether its calls use up fuel.
        signatures: Its exported functions as they are called in a ring: those of a metered module take their fuel at last.
    """

    def __init__(self, name: str, compiled: CompiledModule, dispatcher: CompiledModule, imports: Imports | None) -> None:
        self.name = name
        self.compiled = compiled
        self.dispatcher = dispatcher
        self.exports: dict[str, FunctionType] = compiled.functions
        self.is_64 = compiled.facts.is_64
        self.metered = compiled.metered
        self.signatures = {export: _fuelled(kind) for export, kind in self.exports.items()} if self.metered else self.exports
        if cells_of(self.signatures) > layout.RING_MAXIMUM_CELLS:
            raise errors.UnsupportedError(
                f"metering {name!r}", f"a function has {layout.RING_MAXIMUM_CELLS} parameters, and so no room for one more"
            )
        self._wanted = compiled.imported_functions
        self._functions: dict[ImportName, Callable[..., Any] | OnClient] = {}
        self._numbers: dict[ImportName, int | float] = {}
        for key, given in _collect(name, {} if imports is None else imports).items():
            self._take(*key, given)
        self._check_complete()

    @property
    def is_wasi_command(self) -> bool:
        """Whether the module is a WASI command: a program with `_start`."""
        return "_start" in self.exports and self.needs_wasi

    @property
    def needs_wasi(self) -> bool:
        """Whether the module imports WASI preview 1."""
        return any(module == WASI_MODULE for module, _ in self._wanted)

    def client_function(self, index: int) -> Callable[..., Any]:
        """Return the host function at that place in the plan.

        Raises:
            ProtocolError: It does not run in the client.
        """
        given = list(self._functions.values())[index]
        if not isinstance(given, OnClient):
            raise errors.ProtocolError(f"host function {index} does not run in the client")
        return given.function

    def import_type(self, index: int) -> FunctionType:
        """Return the type of the host function at that place in the plan."""
        return self._wanted[list(self._functions)[index]]

    def translate(self, error: BaseException | None) -> None:
        """Let the backtrace of a trap, if it is one, tell of the module as it was loaded, not as it was rewritten."""
        if isinstance(error, errors.WorkerTrapError):
            error.backtrace = self.compiled.original_backtrace(error.backtrace)

    def plan(
        self,
        wasi: messages.WasiOptions | None,
        *,
        memory_limit: int | None = None,
        fresh: messages.FreshCalls | None = None,
    ) -> messages.SpawnPlan:
        """Return all that a worker must know to make an instance.

        Args:
            wasi: What WASI grants the guest.
            memory_limit: Bytes that its memories may have together.
            fresh: How guests are prepared, if each call is to run in one of its own.

        Raises:
            ArgumentError: A memory has more from the beginning, or is shared and may grow beyond.
        """
        share = None if memory_limit is None else self._share_of(memory_limit)
        host_imports = [
            messages.HostImport(
                module=module,
                name=name,
                on_client=isinstance(given, OnClient),
                pickled=b"" if isinstance(given, OnClient) else _pickle(f"{module}.{name}", given),
            )
            for (module, name), given in self._functions.items()
        ]
        in_worker = any(not one.on_client for one in host_imports)
        return messages.SpawnPlan(
            module_key=self.compiled.key,
            module_name=self.name,
            imports=host_imports,
            numbers=[
                messages.NumberImport(module=module, name=name, number=one) for (module, name), one in self._numbers.items()
            ],
            wasi=wasi if wasi is not None or not self.needs_wasi else messages.WasiOptions(),
            preparation=_preparation() if in_worker and self._uses_main() else b"",
            search_path=list(sys.path) if in_worker else [],
            working_directory=str(Path.cwd()) if in_worker or wasi is not None else "",
            memory_limit=share,
            fresh=fresh,
        )

    def close(self) -> None:
        """Let go of the code: no further instance can be made. Those that are there go on. Twice is fine."""
        self.compiled.close()
        self.dispatcher.close()

    def __repr__(self) -> str:
        return f"<module {self.name!r} with {len(self.exports)} exported functions>"

    def _uses_main(self) -> bool:
        return any(getattr(given, "__module__", None) == "__main__" for given in self._functions.values())

    def _take(self, module: str, name: str, given: Any) -> None:
        """Take what was given for an import."""
        label, kind = f"{module}.{name}", self.compiled.imported_globals.get((module, name))
        is_function = isinstance(given, OnClient) or callable(given)
        if (module, name) in self._wanted:
            if not is_function:
                raise errors.ArgumentError(f"the import {label} is {errors.shown(given)}, which cannot be called")
            self._functions[module, name] = given
        elif kind is not None:
            if is_function:
                raise errors.ArgumentError(f"the import {label} is {errors.shown(given)}, and the module imports a global")
            self._numbers[module, name] = _number(label, kind, given)
        else:
            what = "function" if is_function else "global"
            raise errors.ModuleError(self.name, f"it imports no {what} {label}, which was given")

    def _share_of(self, limit: int) -> int:
        """Return how many bytes each memory may have, so that all have at most `limit` together: one number bounds them."""
        memories = self.compiled.report.memories
        share = _equal_share(limit, [memory.maximum for memory in memories])
        given = f"a memory limit of {limit} bytes" + (len(memories) > 1) * f", {share} for each of {len(memories)} memories,"
        for index, memory in enumerate(memories):
            which = f"memory {index} of {self.name!r}"
            if memory.minimum > share:
                raise errors.ArgumentError(f"{given} is too low: {which} starts with {memory.minimum} bytes")
            # What bounds the growth of the others does not see it: only its own maximum binds a shared memory.
            if memory.shared and (memory.maximum is None or memory.maximum > share):
                raise errors.ArgumentError(f"{given} is too low: {which} is shared, and may grow to {memory.maximum} bytes")
        return share

    def _check_complete(self) -> None:
        """Check that all is there which cannot be made for the module."""
        for one in self.compiled.description.imports:
            key, label = (one.module, one.name), f"{one.module}.{one.name}"
            match one.type:
                case FunctionType():
                    if key not in self._functions and key not in NATIVE_IMPORTS and one.module != WASI_MODULE:
                        raise errors.ModuleError(self.name, f"it imports {label}, which was not given")
                case GlobalType() if key not in self._numbers:
                    raise errors.ModuleError(self.name, f"it imports the global {label}, for which no number was given")
                case OtherType(kind="tag"):
                    raise errors.ModuleError(
                        self.name, f"it imports the tag {label}, and only functions and numbers can be given"
                    )


def _equal_share(total: int, maxima: Sequence[int | None]) -> int:
    """Return the most that each of some things may have if they have these maxima, and at most `total` together."""
    rest = total
    bounded = sorted(maximum for maximum in maxima if maximum is not None)
    for index, maximum in enumerate(bounded):
        share = rest // (len(maxima) - index)
        if maximum > share:
            return share
        rest -= maximum
    return rest // max(len(maxima) - len(bounded), 1) if len(bounded) < len(maxima) else total


def _fuelled(kind: FunctionType) -> FunctionType:
    return FunctionType((*kind.parameters, "i64"), kind.results)


def _collect(name: str, imports: Imports) -> dict[ImportName, Any]:
    """Return what was given by module and name, having checked its form."""
    collected: dict[ImportName, Any] = {}
    if not isinstance(imports, Mapping):
        raise errors.ArgumentError(f"the imports of {name!r} must map module names to functions, not be {errors.shown(imports)}")
    for module, functions in imports.items():
        _check_name(module, "an imported module's name")
        if not isinstance(functions, Mapping):
            raise errors.ArgumentError(
                f"the imports of {name!r} must map module names to functions by name; "
                f"{errors.shown(module)} maps to {errors.shown(functions)}"
            )
        for import_name, given in functions.items():
            _check_name(import_name, "an imported function's name")
            if not callable(given) and not isinstance(given, OnClient | SupportsIndex | SupportsFloat):
                raise errors.ArgumentError(
                    f"the import {module}.{import_name} is {errors.shown(given)}, which is neither a function nor a number"
                )
            if (module, import_name) in NATIVE_IMPORTS:
                raise errors.ArgumentError(f"the import {module}.{import_name} is the shared heap's own and cannot be replaced")
            collected[module, import_name] = given
    return collected


def _number(label: str, kind: GlobalType, given: Any) -> int | float:
    """Return the number for an imported global, integers signed."""
    if kind.content not in NUMBERS:
        raise errors.UnsupportedError(f"the imported global {label}", f"a value of type {kind.content} cannot be given")
    try:
        number = number_of(kind.content, given)
    except Exception as failure:  # the value's own code ran
        if not raises_again(lambda: number_of(kind.content, given)):
            raise
        raise errors.ArgumentError(
            f"the import {label} is {errors.shown(given)}, and must be of type {kind.content}"
        ) from failure
    if not fits(kind.content, number):
        raise errors.ArgumentError(
            f"the import {label} is {errors.shown(number)}, which does not fit into {BITS[kind.content]} bits"
        )
    return number


def _check_name(name: object, what: str) -> None:
    """WebAssembly allows any text for a name, even none."""
    if name != "":
        checks.text(name, what, longest=_LONGEST_IMPORT)


def _pickle(name: str, function: Callable[..., Any]) -> bytes:
    try:
        return pickle.dumps(function)
    except Exception as error:  # the function's own code ran
        if not raises_again(lambda: pickle.dumps(function)):
            raise
        raise errors.ArgumentError(
            f"the import {name} cannot be pickled, so it cannot run in a worker ({error}); make it importable, or use on_client"
        ) from error


def _preparation() -> bytes:
    """Return what lets a worker import the user's main module, as multiprocessing's spawned processes do."""
    data = multiprocessing.spawn.get_preparation_data("shmwasm-worker")
    wanted = {key: data[key] for key in ("init_main_from_name", "init_main_from_path", "dir") if key in data}
    return pickle.dumps(wanted)
