"""What a user holds: the runtime, and the heaps, blocks, modules, instances and pools made through it."""
