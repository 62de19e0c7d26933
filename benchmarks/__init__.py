"""Measures what the project promises, each thing beside its peer in the same run: `python -m benchmarks --help`."""
