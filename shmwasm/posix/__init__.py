"""The only layer at the kernel: mappings, segments, channels, processes."""
