"""How a pool takes note of what happens, and arranges what follows.

Locking
-------
Whoever learns something takes the lock, notes it down, and then has arranged what follows from it; so there is nothing in
between for others to see. What may call back, or takes long, is left for later: it is done after that, without the lock.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from shmwasm.posix.conditions import Condition
from shmwasm.posix.signals import interrupts_put_off


class Notes:
    """Has things noted down, one after the other.

    Args:
        arrange: Arranges what follows from what was noted down; called with the lock held.

    Attributes:
        lock: Guards all that is noted down; notified of each change.
    """

    def __init__(self, arrange: Callable[[], None]) -> None:
        self.lock = Condition()
        self._arrange = arrange
        self._holder = 0
        self._told: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._afterwards: deque[Callable[[], None]] = deque()

    def tell(self, note: Callable[..., None], *arguments: Any) -> None:
        """Have something noted down, and arranged what follows; raises what `note` raises.

        Where that happens while something else is noted down, it comes after that.
        """
        if self._holder == threading.get_ident():
            self._told.append((note, arguments))
            return
        # Ctrl-C in the middle would leave an instance busy for ever with what it was never given, or a future without an end.
        with interrupts_put_off():
            self._tell_at_once(note, arguments)

    def later(self, action: Callable[[], None]) -> None:
        """Have something done without the lock, which is held now."""
        self._afterwards.append(action)

    def abandon(self) -> None:
        """Forget everything, in a forked child."""
        self.lock = Condition()  # another thread may have held it
        self._holder = 0
        self._told.clear()
        self._afterwards.clear()

    def _tell_at_once(self, note: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        actions: deque[Callable[[], None]] = deque()
        try:
            with self.lock:
                self._holder = threading.get_ident()
                try:
                    note(*arguments)
                    self._arrange()
                    while self._told:
                        another, others = self._told.popleft()
                        another(*others)
                        self._arrange()
                finally:
                    self._holder = 0
                    actions, self._afterwards = self._afterwards, actions
                    self.lock.notify_all()
        finally:
            _perform(actions)


def _perform(actions: deque[Callable[[], None]]) -> None:
    """Do all of it, also if a part raises: a callback of the user's may."""
    try:
        while actions:
            actions.popleft()()
    finally:
        if actions:
            _perform(actions)
