"""The coordinator's peers: clients, and the workers that run their instances."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shmwasm.control.workers import Attachment, Life

if TYPE_CHECKING:
    from shmwasm.control.heaps import Heap


@dataclass(eq=False, slots=True)
class Peer:
    """A client or a worker: who leases. `leased` and `quota` in bytes; `connected` while messages can be sent to it.

    `denied` has the heaps in which its quota stood in the way, since it last gave slabs back.
    """

    number: int
    quota: int
    leased: int = 0
    connected: bool = True
    denied: set[int] = field(default_factory=set)


@dataclass(eq=False, slots=True)
class Client(Peer):
    """A user's process. `greeted` once it has said `Hello`."""

    greeted: bool = False
    workers: set[int] = field(default_factory=set)


@dataclass(eq=False, slots=True)
class Worker(Peer):
    """A process with one instance of `client`.

    `chain` is what it is attached to, may be or may still be; `writable` whether for writing. `asked` is the number of the
    request that the worker has to answer, `attach_request` that of the client's request behind it; `spawn_request` is None once
    answered, and `missed` the time limit, in seconds, within which it was not.
    """

    client: int = 0
    module: str = ""
    spawn_request: int | None = None
    missed: float | None = None
    life: Life = Life.FORKING
    attachment: Attachment = Attachment.DETACHED
    pid: int = 0
    chain: list[Heap] = field(default_factory=list)
    writable: bool = False
    asked: int = 0
    attach_request: int = 0
    close_requests: list[int] = field(default_factory=list)
    doomed: bool = False
    process_gone: bool = False
