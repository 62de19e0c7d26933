"""The modules that the launcher keeps ready to fork with."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

from shmwasm.engine.modules import ModuleDescription, describe, deserialize

if TYPE_CHECKING:
    import wasmtime

CAPACITY: Final = 16
"""How many modules are kept; the one that was used the longest time ago goes first."""


class ReadyModule(NamedTuple):
    """A module that an instance can be made of at once, what it imports and exports, and its dispatcher."""

    code: wasmtime.Module
    description: ModuleDescription
    dispatcher: wasmtime.Module

    def close(self) -> None:
        """Release the code."""
        self.code.close()
        self.dispatcher.close()


class ModuleCache:
    """Deserialized modules by key."""

    def __init__(self, engine: wasmtime.Engine) -> None:
        self._engine = engine
        self._modules: OrderedDict[str, ReadyModule] = OrderedDict()

    def load(self, key: str, artifact: int, dispatcher: int) -> ReadyModule:
        """Return the module `key`, made from the descriptors of its artifact and its dispatcher's unless it is here already.

        Raises:
            ModuleError: One is none of this engine's.
        """
        module = self._modules.get(key)
        if module is None:
            code = deserialize(self._engine, artifact)
            module = self._modules[key] = ReadyModule(code, describe(code), deserialize(self._engine, dispatcher))
            if len(self._modules) > CAPACITY:
                _, dropped = self._modules.popitem(last=False)
                dropped.close()
        self._modules.move_to_end(key)
        return module

    def close(self) -> None:
        """Drop all modules."""
        while self._modules:
            _, dropped = self._modules.popitem()
            dropped.close()
