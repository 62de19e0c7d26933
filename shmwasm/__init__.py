"""Pools of WebAssembly instances, each in its own process, over shared heaps."""
