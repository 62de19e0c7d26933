"""An instance's exports, looked up by name when they are asked for.

wasmtime-py lists them all first, and each step of that list walks over those before it: ten thousand take seconds.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import wasmtime
from wasmtime import _bindings
from wasmtime._extern import wrap_extern

if TYPE_CHECKING:
    from shmwasm.engine.modules import ModuleDescription

Extern = wasmtime.Func | wasmtime.Table | wasmtime.Memory | wasmtime.SharedMemory | wasmtime.Global | wasmtime.Tag
"""What is exported."""


class Exports(Mapping[str, Extern]):
    """What an instance of the module described exports, by name."""

    def __init__(self, store: wasmtime.Store, instance: wasmtime.Instance, description: ModuleDescription) -> None:
        self._store = store
        self._instance = instance
        self._names = description.exports
        self._found: dict[str, Extern] = {}

    def __getitem__(self, name: str) -> Extern:
        if name not in self._found:
            if name not in self._names:
                raise KeyError(name)
            self._found[name] = look_up(self._store, self._instance, name)
        return self._found[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def look_up(store: wasmtime.Store, instance: wasmtime.Instance, name: str) -> Extern:
    """Return what an instance exports under a name that is known to be there."""
    item = _bindings.wasmtime_extern_t()
    encoded = name.encode()
    characters = ctypes.create_string_buffer(encoded, len(encoded))
    context = store._context()  # noqa: SLF001
    exporter = ctypes.byref(instance._instance)  # noqa: SLF001
    found = _bindings.wasmtime_instance_export_get(context, exporter, characters, len(encoded), ctypes.byref(item))
    assert found, f"an instance has no export {name!r}: the description is of another module"
    return wrap_extern(item)
