"""The coordinator program: it feeds events to the mind (`shmwasm.control`) and performs what the mind decides."""

from shmwasm.coordinator.program import serve

__all__ = ["serve"]
