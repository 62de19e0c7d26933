"""A peer's connection as the shell keeps it: nothing here ever waits for the peer.

What a peer does not read is queued, and a peer that lets its queue grow beyond a bound is given up: one stopped process must not
stop the others, nor fill the coordinator's memory.
"""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING, Final

from shmwasm.errors import ClosedError, ShmwasmError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shmwasm.posix.channels import Channel

MAXIMUM_QUEUED_MESSAGES: Final = 4096
MAXIMUM_QUEUED_BYTES: Final = 64 << 20


class Link:
    """A channel with a queue of what the peer has not read yet, and the peer's pidfd where there is one. It owns all of them.

    `watches_room` is the shell's note that it waits for the peer to make room.
    """

    def __init__(self, channel: Channel, pidfd: int | None = None) -> None:
        self.channel = channel
        self.pidfd = pidfd
        self.watches_room = False
        self._queue: deque[tuple[bytes, list[int]]] = deque()
        self._queued_bytes = 0

    @property
    def is_open(self) -> bool:
        """Whether the channel is open at this end."""
        return self.channel.fileno() >= 0

    @property
    def has_queue(self) -> bool:
        """Whether something waits for the peer to read."""
        return bool(self._queue)

    def send(self, payload: bytes, descriptors: Sequence[int] = ()) -> bool:
        """Send or queue a message; the descriptors stay the caller's. Return false where the peer should be given up."""
        try:
            if not self._queue and self.channel.try_send(payload, descriptors):
                return True
            if len(self._queue) >= MAXIMUM_QUEUED_MESSAGES or self._queued_bytes + len(payload) > MAXIMUM_QUEUED_BYTES:
                return False
            self._queue.append((payload, _duplicates(descriptors)))
        except ClosedError:
            return True  # what it sent before it closed is still to be read, and then its end
        except (ShmwasmError, OSError):
            return False  # the kernel has no room for the message's descriptors
        self._queued_bytes += len(payload)
        return True

    def flush(self) -> bool:
        """Send what the peer has room for. Return false where the peer should be given up."""
        try:
            while self._queue:
                payload, descriptors = self._queue[0]
                if not self.channel.try_send(payload, descriptors):
                    return True
                self._drop_first()
        except ClosedError:
            self._drop_queue()
        except ShmwasmError:
            return False
        return True

    def close_channel(self) -> None:
        """End the connection. May be called twice."""
        self.flush()
        self._drop_queue()
        self.channel.close()

    def close_pidfd(self) -> None:
        """Watch the process no more. May be called twice."""
        if self.pidfd is not None:
            pidfd, self.pidfd = self.pidfd, None
            os.close(pidfd)

    def _drop_queue(self) -> None:
        while self._queue:
            self._drop_first()

    def _drop_first(self) -> None:
        payload, descriptors = self._queue.popleft()
        self._queued_bytes -= len(payload)
        for descriptor in descriptors:
            os.close(descriptor)


def _duplicates(descriptors: Sequence[int]) -> list[int]:
    """Return new descriptors of the same; all or none.

    Raises:
        OSError: This process has too many open files.
    """
    copies: list[int] = []
    try:
        copies.extend(map(os.dup, descriptors))
    except OSError:
        for copy in copies:
            os.close(copy)
        raise
    return copies
