"""The user's host functions, as the guest calls them."""

from __future__ import annotations

import pickle
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from shmwasm.engine.callbacks import converted_results
from shmwasm.engine.modules import FunctionType, ImportName, ModuleDescription
from shmwasm.engine.traps import HOST_FUNCTION
from shmwasm.errors import HostFunctionError, InstantiationError, UnsupportedError
from shmwasm.posix.masks import keep_signals_out, let_signals_in

if TYPE_CHECKING:
    from shmwasm.engine.callers import Caller
    from shmwasm.protocol import messages
    from shmwasm.worker.calls import RingCalls
    from shmwasm.worker.links import ClientLink


class HostFunctions:
    """Runs host functions here, or has the client run them; whatever one raises becomes a `HostFunctionError`.

    Args:
        number: The instance's number, for errors.
        client: Where the client's functions run.
        new_caller: Makes what a function gets to see of the guest.
    """

    def __init__(self, number: int, client: ClientLink, new_caller: Callable[[], Caller]) -> None:
        self._number = number
        self._client = client
        self._new_caller = new_caller
        self.calls: RingCalls | None = None
        """What runs the client's calls; None before the first, while the client waits for none."""

    def load(self, plan: messages.SpawnPlan, description: ModuleDescription) -> dict[ImportName, Callable[..., Any]]:
        """Return the plan's functions by what they are imported as.

        Raises:
            InstantiationError: A function cannot be unpickled here.
        """
        if any(not given.on_client for given in plan.imports):
            self._prepare(plan)
        types = {(entry.module, entry.name): entry.type for entry in description.imports}
        functions: dict[ImportName, Callable[..., Any]] = {}
        for index, given in enumerate(plan.imports):
            kind = types.get((given.module, given.name))
            if isinstance(kind, FunctionType):
                label = f"{given.module}.{given.name}"
                run = self._client_function(index) if given.on_client else self._own_function(label, given.pickled)
                functions[given.module, given.name] = self._guarded(label, kind, run)
        return functions

    def _prepare(self, plan: messages.SpawnPlan) -> None:
        """Make this interpreter find what the client's would."""
        if plan.search_path:
            sys.path[:] = plan.search_path
        if not plan.preparation:
            return
        import multiprocessing.spawn  # noqa: PLC0415 - only workers whose functions live in the user's main module need it

        try:
            multiprocessing.spawn.prepare(pickle.loads(plan.preparation))  # noqa: S301 - from a client of the same user
        except Exception as error:
            raise InstantiationError(
                self._number,
                f"the main module cannot be imported in the worker: {_summary(error)}; what it does "
                'as a program belongs behind `if __name__ == "__main__":`, or the function on the client (`on_client`)',
            ) from error

    def _own_function(self, label: str, pickled: bytes) -> Callable[..., Any]:
        try:
            function = pickle.loads(pickled)  # noqa: S301 - from a client of the same user
        except Exception as error:
            raise InstantiationError(
                self._number, f"the host function {label} cannot be unpickled in the worker: {_summary(error)}"
            ) from error

        def run(*arguments: float) -> Any:
            let_signals_in()  # it is like any Python program, and may start others, which inherit what is kept out
            try:
                with self._new_caller() as caller:
                    return function(caller, *arguments)
            finally:
                keep_signals_out()

        return run

    def _client_function(self, index: int) -> Callable[..., Any]:
        def run(*arguments: float) -> Any:
            if self.calls is None:
                raise UnsupportedError("a host function of the client", "the client cannot serve it before the instance exists")
            results = self._client.call_host(self.calls.running, index, list(arguments))
            return results if len(results) > 1 else results[0] if results else None

        return run

    def _guarded(self, label: str, kind: FunctionType, run: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*arguments: float) -> Any:
            try:
                return converted_results(kind.results, run(*arguments))
            except HostFunctionError:
                raise
            except BaseException as error:  # noqa: BLE001 - a function that asks to exit must not end the worker's loop
                raise HostFunctionError(
                    instance=self._number,
                    export="",
                    trap=f"host function {label} raised {_summary(error)}",
                    code=HOST_FUNCTION,
                    backtrace=[],
                    exception=type(error).__name__,
                    details="".join(traceback.format_exception(error)),
                ) from None

        return guarded


def _summary(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
