"""How large a pool is to be: pure.

Theory
------
A pool grows while calls have waited for longer than `grow_after`: to twice its size at most at a time, as nobody knows how long
the calls will take. It shrinks by whatever had nothing to do for `idle_timeout`. An instance that dies before it has ended a
call, or cannot be made, may do so for ever: from the third in a row on, each next one is made after a pause twice as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from shmwasm import errors
from shmwasm.client import checks
from shmwasm.client.arguments import Value

OnTrap = Literal["keep", "replace"]

LARGEST_POOL: Final = 4096
"""The most instances of a pool: each is a process."""

GROW_AFTER: Final = 0.01
"""Seconds that a call waits before a pool grows: what it takes to make an instance."""

PATIENT_WITH: Final = 2
"""How many instances in a row may fail before there are pauses."""

FRESH_CALLS: Final = 500
"""How many fresh calls a worker runs before another one is made in its place: it keeps something of every guest that it has had.
It could run twice as many (see `worker.fresh`), and so goes on until the other one is there."""

FRESH_MEMORIES: Final = 8000
"""How many memories those calls may have in all, if they have several each: half of what there are addresses for, too."""

FRESH_LOT: Final = 64
"""How many fresh calls a lot of a map has at most: that many more than it should have may a worker be given."""

FIRST_PAUSE: Final = 0.02
LONGEST_PAUSE: Final = 5.0


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """How a pool is to be; see `Runtime.pool`."""

    least: int
    most: int
    timeout: float | None = None
    start_timeout: float | None = None
    idle_timeout: float | None = None
    recycle_after: int | None = None
    on_trap: OnTrap = "keep"
    init: tuple[str, tuple[Value, ...]] | None = None
    fresh: bool = False

    def is_worn(self, calls: int, memories: int) -> bool:
        """Return whether an instance that was given so many calls should have another one made in its place.

        Args:
            calls: How many.
            memories: How many memories its module has.
        """
        return self.fresh and (calls >= FRESH_CALLS or calls * memories >= FRESH_MEMORIES)

    @property
    def preparation_timeout(self) -> float | None:
        """Seconds that `init` may take, and with it all that prepares an instance for a fresh call."""
        return self.timeout if self.start_timeout is None else self.start_timeout

    @property
    def depth(self) -> int:
        """How many calls an instance may hold: one that runs, and one that waits unless the first may be its last."""
        return 1 if self.on_trap == "replace" else 2


def pool_options(
    *,
    size: object,
    min_size: object,
    max_size: object,
    usable: int,
    timeout: object,
    start_timeout: object,
    idle_timeout: object,
    recycle_after: object,
    on_trap: object,
    init: object,
    fresh: object,
) -> PoolOptions:
    """Check what a user wants a pool to be.

    Args:
        size: As in `Runtime.pool`, like the others.
        min_size: See there.
        max_size: See there.
        usable: What `size` is by default.
        timeout: See there.
        start_timeout: See there.
        idle_timeout: See there.
        recycle_after: See there.
        on_trap: See there.
        init: See there.
        fresh: See there.

    Raises:
        ArgumentError: It cannot be; the message names the value.
    """
    if size is not None and (min_size is not None or max_size is not None):
        raise errors.ArgumentError("a pool's size was given together with min_size or max_size, which say it all")
    whole = usable if size is None else checks.whole_number(size, "a pool's size", low=1, high=LARGEST_POOL)
    most = whole if max_size is None else checks.whole_number(max_size, "a pool's max_size", low=1, high=LARGEST_POOL)
    if min_size is not None:
        least = checks.whole_number(min_size, "a pool's min_size", high=LARGEST_POOL)
        most = max(most, least) if max_size is None else most
        if least > most:
            raise errors.ArgumentError(f"a pool's min_size of {least} is above its max_size of {most}")
    else:
        least = whole if max_size is None else 1
    trapped = checks.choice(on_trap, "on_trap", "keep", "replace")
    return PoolOptions(
        least,
        most,
        timeout=checks.time_limit(timeout) or None,
        start_timeout=checks.time_limit(start_timeout) or None,
        idle_timeout=checks.time_limit(idle_timeout) or None,
        recycle_after=None if recycle_after is None else checks.whole_number(recycle_after, "recycle_after", low=1),
        on_trap="replace" if trapped == "replace" else "keep",
        init=_init(init),
        fresh=checks.flag(fresh, "fresh"),
    )


def _init(init: object) -> tuple[str, tuple[Any, ...]] | None:
    if init is None:
        return None
    name, *arguments = [init] if isinstance(init, str) else init if isinstance(init, Sequence) and init else [None]
    if not isinstance(name, str):
        raise errors.ArgumentError(f"init must be an export's name, or a tuple of it and its arguments, not {errors.shown(init)}")
    return name, tuple(arguments)


@dataclass(slots=True)
class Growth:
    """Decides when instances are made and let go.

    Attributes:
        options: The pool's.
        failures: How many instances in a row have failed.
        not_before: When the next one may be made (`time.monotonic`).
        fresh_since: When the pool was last enlarged; waiting counts from there.
    """

    options: PoolOptions
    failures: int = 0
    not_before: float = 0.0
    fresh_since: float = 0.0

    @property
    def is_patient(self) -> bool:
        """Whether so few instances have failed in a row that the next one is made at once."""
        return self.failures <= PATIENT_WITH

    def failed(self, now: float) -> None:
        """Take note that an instance died before it had ended a call, or was not made."""
        self.failures += 1
        if not self.is_patient:
            self.not_before = now + min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self.failures - PATIENT_WITH - 1, 30))

    def succeeded(self) -> None:
        """Take note that an instance has ended a call."""
        self.failures = 0
        self.not_before = 0.0

    def missing(self, present: int, starting: int, waiting_since: float | None, now: float) -> int:
        """Return how many instances to make now.

        Args:
            present: How many there are.
            starting: How many are being made.
            waiting_since: When the oldest call that still waits was submitted.
            now: The time.
        """
        if now < self.not_before:
            return 0
        missing = self.options.least - present - starting
        if missing > 0:
            return missing
        if waiting_since is None or starting or present >= self.options.most or now < self._grows_at(present, waiting_since):
            return 0
        self.fresh_since = now
        return min(self.options.most - present, max(present, 1))

    def next_start(self, present: int, starting: int, waiting_since: float | None, now: float) -> float | None:
        """Return when `missing` may say more than before, if nothing else happens; None if it will not."""
        if present + starting < self.options.least:
            return self.not_before
        if waiting_since is None or starting or present >= self.options.most:
            return None
        return max(self._grows_at(present, waiting_since), self.not_before, now)

    def _grows_at(self, present: int, waiting_since: float) -> float:
        # With no instance at all there is nothing to wait for.
        return max(waiting_since, self.fresh_since) + GROW_AFTER if present else waiting_since


def idle_too_long(idle_since: float, present: int, options: PoolOptions, now: float) -> bool:
    """Return whether an instance that had nothing to do since then is to be let go."""
    return options.idle_timeout is not None and present > options.least and now >= idle_since + options.idle_timeout
