"""The worker program: one WebAssembly instance in one process, forked by the launcher."""
