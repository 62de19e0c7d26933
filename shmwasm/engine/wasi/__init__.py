"""WASI preview 1, for guests that import it: nothing but what is granted."""

from __future__ import annotations

from shmwasm.engine.wasi.options import grant_wasi

__all__ = ["grant_wasi"]
