"""Work that takes long, in a thread of its own, so that an event loop need not wait for it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from shmwasm.client.futures import SafeFuture
from shmwasm.posix.signals import interrupts_put_off


def in_background(work: Callable[[], None], name: str) -> SafeFuture[None]:
    """Do `work` in a thread of that name; return the future of its end, which cannot be cancelled.

    Nobody waits for the thread when the interpreter ends.
    """
    finished: SafeFuture[None] = SafeFuture()
    finished.set_running_or_notify_cancel()

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  it is told to whoever waits
            finished.set_exception(error)
        else:
            finished.set_result(None)

    with interrupts_put_off():  # a thread whose start is interrupted may wait for its starter for ever
        threading.Thread(target=run, name=name, daemon=True).start()
    return finished
