"""The exported functions of an instance, as the user calls them: at once, later, and from coroutines."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final

from shmwasm import errors
from shmwasm.client import checks
from shmwasm.client.arguments import Value, converters, results_of
from shmwasm.client.asynchronous import Call
from shmwasm.client.blocks import Block
from shmwasm.client.calls import RingCallPath, new_clock
from shmwasm.client.futures import ReceivedFuture
from shmwasm.client.receiving import complete
from shmwasm.engine.numbers import is_complex
from shmwasm.posix.reentry import afterwards, holders, on_top_of_lock
from shmwasm.posix.signals import interrupts_put_off

if TYPE_CHECKING:
    import asyncio
    from types import FrameType

    from shmwasm.client.instances import Instance
    from shmwasm.client.modules import Module
    from shmwasm.client.side_channel import Number

_PLAIN: Final = frozenset({int, float})
"""Types whose values go as they are."""


class CallFuture(ReceivedFuture[Any]):
    """The future of one call.

    `running()` tells whether the worker has taken the call, as of this moment. `cancel()` succeeds as long as it has not. Where a
    finalizer may take no lock (see `reentry`), both return False.
    """

    def __init__(self, path: RingCallPath) -> None:
        super().__init__(path.check_may_block)
        self._path = path
        self.call: Call

    def cancel(self) -> bool:
        """Cancel the call if it has not begun; return whether it is cancelled."""
        if on_top_of_lock():
            return self.cancelled()
        with interrupts_put_off():
            if self.done() or not self._path.cancel(self.call):
                return self.cancelled()
            self.call.ended = _nobody_waits
            # Only one cancel gets here: the call changes its state once.
            return super().cancel() and not self.set_running_or_notify_cancel()

    def running(self) -> bool:
        """Return whether the worker runs the call."""
        return not self.done() and not on_top_of_lock() and self._path.is_running(self.call)

    def end(self, results: list[Number] | None, error: BaseException | None) -> None:
        """Take the call's end, unless it was cancelled."""
        self.call.ended = _nobody_waits  # or the two would keep each other until the garbage collector comes
        if not self.cancelled():
            with contextlib.suppress(InvalidStateError):  # it was cancelled this moment
                complete(self, results_of(results or []), error)


class BoundExport:
    """One exported function of one instance; call it like a function.

    Attributes:
        name: Its name.
        target: What is called in the worker.
    """

    __slots__ = ("_address_of", "_barred", "_convert", "_function", "_instance", "_path", "name", "target")

    def __init__(self, instance: Instance, path: RingCallPath, name: str, barred: set[int]) -> None:
        self._instance = instance
        self._path = path
        self._convert = converters(name, instance.module.exports[name], instance.address_of)
        self.target = path.target(name)
        self._function = path.function(self.target, self._convert)
        self._address_of = instance.address_of
        self._barred = barred
        self.name = name

    def __call__(self, *arguments: Value, timeout: float | None = None, fuel: int | None = None) -> Any:
        """Call the function and wait for its result; returns and raises what `Instance.call` does."""
        if holders or get_ident() in self._barred:  # if it is another thread that holds a lock, no harm is done by looking closer
            self._instance.check_may_wait()
        if timeout is not None or fuel is not None:
            return self._path.call(self.target, self.numbers(arguments, fuel), new_clock(timeout))
        for one in arguments:
            if type(one) not in _PLAIN:
                address_of = self._address_of
                return self._function(*[address_of(one) if type(one) is Block else self._real(one) for one in arguments])
        return self._function(*arguments)

    @property
    def path(self) -> RingCallPath:
        """How its calls reach the instance."""
        return self._path

    def _real(self, argument: Value) -> Value:
        """Return an argument that is no block; raise unless its whole value is one number."""
        if type(argument) not in _PLAIN and is_complex(argument):
            self._convert([argument] * len(self.target.kind.parameters))  # tells why not
        return argument

    def submit(self, *arguments: Value, timeout: float | None = None, fuel: int | None = None, wait: bool = True) -> Future[Any]:
        """Start a call and return its future; takes and raises what `Instance.submit` does."""
        future = CallFuture(self._path)
        future.call = Call(self.target, self.numbers(arguments, fuel), new_clock(timeout), future.end)
        self._instance.require_open()
        may_wait = checks.flag(wait, "wait")
        if on_top_of_lock():
            afterwards(partial(self._path.start, future.call))
        elif not may_wait:
            self._path.start(future.call, "raise")
        else:
            # Some threads must not wait, as the worker, or what makes room, may be waiting for them.
            self._path.start(future.call, "queue" if get_ident() in self._barred else "wait")
        return future

    async def call_async(
        self,
        *arguments: Value,
        timeout: float | None = None,  # noqa: ASYNC109  for the call, not for the await
        fuel: int | None = None,
    ) -> Any:
        """Call the function and await its result; takes, returns and raises what `Instance.call_async` does."""
        import asyncio  # noqa: PLC0415  whoever gets here has it; others need not wait for it

        loop = asyncio.get_running_loop()
        waiter = loop.create_future()

        def ended(results: list[Number] | None, error: BaseException | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits
                loop.call_soon_threadsafe(_settle, waiter, results, error)

        call = Call(self.target, self.numbers(arguments, fuel), new_clock(timeout), ended)
        self._instance.require_open()
        try:
            self._path.start(call)
            return await waiter
        except BaseException:
            if on_top_of_lock():  # a coroutine that is collected
                afterwards(partial(self._path.withdraw, call))
            else:
                self._path.withdraw(call)
            raise

    def numbers(self, arguments: Sequence[Value], fuel: int | None) -> list[Number]:
        """Return a call's arguments as the worker takes them.

        Raises:
            ArgumentError: They do not fit the function's type, or there can be no such amount of fuel.
            UnsupportedError: There is an amount of fuel, and the module is not metered.
        """
        if fuel is not None:
            raise not_metered(self.name)
        return self._convert(arguments)

    def __repr__(self) -> str:
        return f"<export {self.name!r} of {self._instance!r}>"


_CALLS: Final = BoundExport.__call__.__code__


def calls_here(path: RingCallPath) -> bool:
    """Return whether the calling thread is in a call of that path: what it does now runs on top of that, at whichever step."""
    frame: FrameType | None = sys._getframe()  # noqa: SLF001  a call that took note of itself would take longer
    while frame is not None:
        if frame.f_code is _CALLS and frame.f_locals["self"].path is path:
            return True
        frame = frame.f_back
    return False


class MeteredExport(BoundExport):
    """One exported function of a metered module: the worker's takes its fuel too, and `_convert` gives it the usual amount."""

    __slots__ = ("_plain",)

    def __init__(self, instance: Instance, path: RingCallPath, name: str, barred: set[int]) -> None:
        super().__init__(instance, path, name, barred)
        usual = checks.amount_of_fuel(instance.fuel)
        self._plain = plain = self._convert
        self._convert = lambda arguments: [*plain(arguments), usual]
        function = path.function(self.target, lambda given: [*plain(given[:-1]), given[-1]])
        self._function = lambda *arguments: function(*arguments, usual)

    def numbers(self, arguments: Sequence[Value], fuel: int | None) -> list[Number]:
        """Return a call's arguments, and its fuel, as the worker takes them; see `BoundExport.numbers`."""
        if fuel is None:
            return self._convert(arguments)
        return [*self._plain(arguments), checks.amount_of_fuel(fuel)]


class Exports:
    """The exported functions of an instance, as attributes and by name.

    Args:
        module: What exports them.
        number: The instance's number, for errors.
        bind: Makes one of a name.
    """

    def __init__(self, module: Module, number: int, bind: Callable[[str], BoundExport]) -> None:
        self._module = module
        self._number = number
        self._new = bind
        self._bound: dict[str, BoundExport] = {}

    def __getitem__(self, name: str) -> BoundExport:
        try:
            return self._bound[name]
        except (KeyError, TypeError):
            return self._bind(name)

    def __getattr__(self, name: str) -> BoundExport:
        try:
            bound = self[name]
        except errors.UnknownExportError as error:
            raise AttributeError(str(error)) from None
        # The next time it is found without coming here.
        self.__dict__[name] = bound
        return bound

    def __iter__(self) -> Iterator[str]:
        return iter(self._module.exports)

    def __len__(self) -> int:
        return len(self._module.exports)

    def __contains__(self, name: object) -> bool:
        return name in self._module.exports

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._module.exports]

    def _bind(self, name: str) -> BoundExport:
        check_name(name, self._module, self._number)
        # Another thread may bind it at the same time: one is as good as the other.
        bound = self._bound[name] = self._new(name)
        return bound


def check_name(name: object, module: Module, instance: int) -> None:
    """Raise unless `module`, that of an instance of that number, exports a function of that name.

    Raises:
        ArgumentError: It is no name.
        UnknownExportError: There is no such function.
    """
    if not isinstance(name, str):
        raise errors.ArgumentError(f"an export's name must be a string, not {errors.shown(name)}")
    if name not in module.exports:
        raise errors.UnknownExportError(instance, name, sorted(module.exports))


def not_metered(export: str) -> errors.UnsupportedError:
    """Return why there can be no limit of fuel for a function."""
    return errors.UnsupportedError(
        f"a limit of fuel for {export!r}", "its module was not loaded as a metered one; use load(..., metered=True)"
    )


def _nobody_waits(_results: list[Number] | None, _error: BaseException | None) -> None:
    """Take the end of a call whose future is done."""


def _settle(waiter: asyncio.Future[Any], results: list[Number] | None, error: BaseException | None) -> None:
    """End what a coroutine waits for, unless it was cancelled."""
    if waiter.done():
        return
    if error is not None:
        waiter.set_exception(error)
    else:
        waiter.set_result(results_of(results or []))
