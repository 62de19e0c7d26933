"""Rewriting: a module that knows nothing of shared heaps becomes one whose every instruction reaches them. Pure."""

from shmwasm.rewrite.metering import Metered, meter
from shmwasm.rewrite.report import Change, HeapMemory, Report
from shmwasm.rewrite.rewriting import Rewritten, rewrite

__all__ = ["Change", "HeapMemory", "Metered", "Report", "Rewritten", "meter", "rewrite"]
