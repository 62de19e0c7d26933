"""The results of a pool's map, for coroutines.

Theory
------
What `Mapping.results` does in a thread that waits, this does in an event loop that does not: where there is nothing to do, it
awaits a future, which whoever brings a result completes. Nothing is begun before the first `await`, as with any coroutine, so
what is dropped unused leaves nothing behind.

One asynchronous generator does it all. Where a second one closed it, which happens to what is dropped, another thread's garbage
collection now and then took it for garbage as it ran (in Python 3.11).
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

from shmwasm.client.mapping import Mapping
from shmwasm.errors import ArgumentError, UnsupportedError

if TYPE_CHECKING:
    import asyncio


class AsyncResults(AsyncIterator[Any]):
    """The results of `InstancePool.map_async`: to be awaited as a whole, or iterated over with `async for`, once.

    Args:
        begin: Makes the map, and begins it.
        into_array: Whether the results go into an array.
    """

    def __init__(self, begin: Callable[[], Mapping], *, into_array: bool) -> None:
        self._begin = begin
        self._into_array = into_array
        self._begun = False
        self._parts = _parts(self._start)
        self._part: Iterator[Any] = iter(())

    def __await__(self) -> Generator[Any, None, Any]:
        """Return a list of the results, or the array that they were written to, or the part of it that was filled."""
        return self._all().__await__()

    async def __anext__(self) -> Any:
        """Return the next result, or raise what its call raised."""
        if self._into_array:
            raise ArgumentError("a map with out gives no results one by one: await it")
        while True:
            for value in self._part:
                return value
            self._part = iter(await anext(self._parts))

    async def aclose(self) -> None:
        """Let go of what has not begun. The event loop does so for what is dropped."""
        self._part = iter(())
        await self._parts.aclose()

    async def _all(self) -> Any:
        mapping = self._start()
        values = [value async for part in _parts(lambda: mapping) for value in part]
        return mapping.filled() if self._into_array else values

    def _start(self) -> Mapping:
        if self._begun:
            raise UnsupportedError("awaiting the results of a map twice", "they were given away the first time")
        self._begun = True
        return self._begin()


async def _parts(begin: Callable[[], Mapping]) -> AsyncGenerator[list[Any], None]:
    """Begin a map, and give its results in parts, as they come."""
    import asyncio  # noqa: PLC0415  whoever gets here has it; others need not wait for it

    mapping, told = begin(), 0
    del begin  # what it belongs to has this, and should go when it is dropped, not when the garbage collector comes
    try:
        while True:
            mapping.feed()
            changed = _Change()
            look = mapping.look(told, changed.tell)
            told = mapping.report(told, look.done)
            if look.segment is not None:
                yield mapping.values(look.segment)
                mapping.consumed(look.segment)
            elif look.finished:
                return
            if look.idle:
                await changed.wait(mapping.remaining())
            else:
                await asyncio.sleep(0)
    except BaseException as error:
        mapping.leave(error)
        raise
    finally:
        mapping.close()


class _Change:
    """Something that a coroutine waits for, and that another thread brings about."""

    def __init__(self) -> None:
        import asyncio  # noqa: PLC0415  whoever gets here has it; others need not wait for it

        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] = self._loop.create_future()

    def tell(self) -> None:
        """Let it come about; any thread may."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits
            self._loop.call_soon_threadsafe(self._complete)

    async def wait(self, timeout: float | None) -> None:  # noqa: ASYNC109  not for the caller to choose otherwise
        """Wait for it, for so many seconds at most."""
        import asyncio  # noqa: PLC0415  see above

        await asyncio.wait([self._future], timeout=timeout)

    def _complete(self) -> None:
        if not self._future.done():
            self._future.set_result(None)
