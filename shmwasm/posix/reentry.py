"""What a finalizer or a signal's handler may do that runs on top of a lock of this library.

Theory
------
Python runs finalizers wherever the cyclic garbage collector begins, or the last reference to something goes, and handlers between
any two steps of the main thread: also where the thread holds a lock. What they do may want another lock, which is another
thread's, who waits for the first one; or changes what the lock guards while that is being changed. So it takes no lock there. It
does what needs none, is refused (`refuse_on_top`), or is put off (`afterwards`) until its thread holds no lock any more.

A thread counts as a holder from just before it takes a lock until just after it has let go of it. What is kept here is each
thread's own, so it needs no lock itself.
"""

from __future__ import annotations

from _thread import get_ident  # the launcher, which imports this too, does without `threading`
from typing import TYPE_CHECKING, Final

from shmwasm.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

holders: Final[dict[int, int]] = {}
"""How many locks each thread holds that holds some: to be looked into where a function call would take too long."""

_put_off: Final[dict[int, list[Callable[[], object]]]] = {}


def on_top_of_lock() -> bool:
    """Return whether the calling thread holds a lock, so that what it does now is a finalizer's or a handler's."""
    return get_ident() in holders


def refuse_on_top(what: str) -> None:
    """Raise if the calling thread holds a lock.

    Raises:
        UnsupportedError: It does; `what` is what it wanted.
    """
    if get_ident() in holders:
        raise UnsupportedError(
            what, "this finalizer or signal's handler runs where this library holds a lock, and would wait for itself"
        )


def afterwards(action: Callable[[], object]) -> None:
    """Have something done as soon as the calling thread, which holds a lock, holds none any more. What it raises is logged."""
    _put_off.setdefault(get_ident(), []).append(action)


def enter() -> None:
    """Take note that the calling thread is about to take a lock."""
    me = get_ident()
    holders[me] = holders.get(me, 0) + 1


def leave() -> None:
    """Take note that it has let go of one, and do what was put off if that was its last."""
    me = get_ident()
    held = holders.get(me, 1) - 1
    if held:
        holders[me] = held
        return
    holders.pop(me, None)
    if me in _put_off:
        _do(_put_off.pop(me))


def _do(actions: list[Callable[[], object]]) -> None:
    for action in actions:
        try:
            action()
        except BaseException:  # there is nobody to tell, as with whatever a finalizer raises
            import logging  # noqa: PLC0415  it needs `threading`

            logging.getLogger("shmwasm").exception("what a finalizer or a signal's handler has asked for failed")


def forget_holders() -> None:
    """Forget the parent's threads in a forked child, whose own may get their identities."""
    holders.clear()
    _put_off.clear()
