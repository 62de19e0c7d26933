"""How an instance is to be made, checked."""

from __future__ import annotations

from dataclasses import dataclass

from shmwasm import errors
from shmwasm.client import checks
from shmwasm.client.heaps import SharedHeap
from shmwasm.client.modules import Module
from shmwasm.protocol import messages


@dataclass(frozen=True, slots=True)
class SpawnOptions:
    """How an instance is to be made; see `Runtime.spawn`."""

    module: Module
    shared_heap: SharedHeap | None
    read_only: bool
    quota: int
    memory_limit: int | None
    fuel: int | None
    wasi: messages.WasiOptions | None
    time_limit: float | None
    """Seconds until it must be ready; None for no limit."""
    fresh: messages.FreshCalls | None
    """How guests are prepared, if each call is to run in one of its own."""

    def plan(self) -> messages.SpawnPlan:
        """Return all that a worker must know to make the instance, as things are now: the plan names the working directory.

        Raises:
            ArgumentError: See `Module.plan`.
        """
        return self.module.plan(self.wasi, memory_limit=self.memory_limit, fresh=self.fresh)


def spawn_options(
    module: Module,
    *,
    shared_heap: SharedHeap | None,
    read_only: bool,
    quota: int,
    memory_limit: int | None,
    fuel: int | None,
    wasi: messages.WasiOptions | None,
    start_timeout: float | None,
    fresh: messages.FreshCalls | None = None,
) -> SpawnOptions:
    """Check how a user wants instances to be made; whether the chain can be attached turns out when one is.

    Args:
        module: A module of the runtime that is asked.
        shared_heap: As in `Runtime.spawn`, like the others.
        read_only: See there.
        quota: See there.
        memory_limit: See there.
        fuel: See there.
        wasi: See there.
        start_timeout: See there.
        fresh: How guests are prepared, if each call is to run in one of its own.

    Raises:
        ArgumentError: One cannot be; the message names the value.
        UnsupportedError: There is a limit of fuel, and the module is not metered.
    """
    time_limit = checks.time_limit(start_timeout) or None
    checks.flag(read_only, "read_only")
    allowed = checks.whole_number(quota, "a quota of bytes")
    limit = None if memory_limit is None else checks.whole_number(memory_limit, "a memory limit in bytes")
    if fuel is not None and not module.metered:
        raise errors.UnsupportedError(f"a limit of fuel for {module!r}", "it was not loaded as a metered one")
    checks.amount_of_fuel(fuel)
    return SpawnOptions(
        module=module,
        shared_heap=shared_heap,
        read_only=read_only,
        quota=allowed,
        memory_limit=limit,
        fuel=fuel,
        wasi=checks.wasi_options(wasi),
        time_limit=time_limit,
        fresh=fresh,
    )
