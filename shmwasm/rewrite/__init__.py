"""Rewriting: a module that knows nothing of shared heaps becomes one whose every instruction reaches them. Pure."""
