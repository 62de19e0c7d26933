"""Pools of WebAssembly instances, each in its own worker process, over shared heaps that nobody copies.

Start with `Runtime`; the errors are in `shmwasm.errors`, WAMR's own names for the same things in `shmwasm.wamr`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str
    from shmwasm.client.blocks import Block
    from shmwasm.client.exports import BoundExport
    from shmwasm.client.heaps import SharedHeap
    from shmwasm.client.instances import Instance
    from shmwasm.client.modules import Module, on_client
    from shmwasm.client.pools import InstancePool
    from shmwasm.client.runtime import Runtime
    from shmwasm.engine.callers import Caller
    from shmwasm.protocol.messages import WasiOptions

__all__ = [
    "Block",
    "BoundExport",
    "Caller",
    "Instance",
    "InstancePool",
    "Module",
    "Runtime",
    "SharedHeap",
    "WasiOptions",
    "on_client",
]

_HOMES = {
    "Block": "client.blocks",
    "BoundExport": "client.exports",
    "Caller": "engine.callers",
    "Instance": "client.instances",
    "InstancePool": "client.pools",
    "Module": "client.modules",
    "Runtime": "client.runtime",
    "SharedHeap": "client.heaps",
    "WasiOptions": "protocol.messages",
    "on_client": "client.modules",
}
"""Where each public name lives. They are imported at their first use: the coordinator and the launcher import this package too,
and have no use for a client."""


def __getattr__(name: str) -> object:
    if name == "__version__":
        return import_module("importlib.metadata").version("shmwasm")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'shmwasm' has no attribute {name!r}")
    return getattr(import_module(f"shmwasm.{home}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
