"""The layer at wasmtime: engines, modules, windows, calls, traps."""
