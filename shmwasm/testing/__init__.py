"""What helps to test programs that use shared heaps."""
