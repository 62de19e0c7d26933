"""Closing at the end of a block, also where a coroutine must not wait for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from shmwasm.client.background import in_background

if TYPE_CHECKING:
    from types import TracebackType


class Closing(ABC):
    """What the end of a `with` block closes."""

    @abstractmethod
    def close(self) -> None:
        """Let go of it. Twice is fine."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class AsyncClosing(Closing):
    """What the end of an `async with` block closes, too, in a thread of its own."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        await done_in_background(self.close, f"shmwasm-{type(self).__name__.lower()}-close")


async def done_in_background(work: Callable[[], None], name: str) -> None:
    """Do `work` in a thread of that name, and await its end."""
    import asyncio  # noqa: PLC0415  whoever gets here has it; others need not wait for it

    await asyncio.wrap_future(in_background(work, name))
