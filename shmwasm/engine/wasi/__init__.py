"""WASI preview 1, for guests that import it: nothing but what is granted, and pointers into shared heaps are as good as any."""

from __future__ import annotations

from shmwasm.engine.wasi.code import AdapterCode, compile_adapters, load_adapters
from shmwasm.engine.wasi.linking import WasiLinks
from shmwasm.engine.wasi.options import Outputs, grant_wasi

__all__ = ["AdapterCode", "Outputs", "WasiLinks", "compile_adapters", "grant_wasi", "load_adapters"]
