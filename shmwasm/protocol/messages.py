"""Every message, by the channel that carries it.

Theory
------
Four kinds of channel join the processes; each carries the union of messages listed at its end:

=====================  ==========================================  ==================================
channel                towards                                     back
=====================  ==========================================  ==================================
client - coordinator   `ClientMessage`                             `CoordinatorToClient`
coordinator - launcher `CoordinatorToLauncher`                     `LauncherMessage`
worker - coordinator   `WorkerMessage`                             `CoordinatorToWorker`
client - worker        `CallMessage`                               `CallReply`
=====================  ==========================================  ==================================

Calls themselves pass through shared memory (see `OpenRing`); the channel beside it carries what does not fit there.

A message is one msgpack packet. Descriptors travel beside it (SCM_RIGHTS); a message that takes some says in its docstring which,
and in which order. A request carries a `request` number chosen by the sender; its answer, or a `Failed`, carries the same.

*Peers* are clients and workers. Their numbers are given by the coordinator and are never used twice; a peer's number is also the
owner number written in the slabs that it leases.
"""

from __future__ import annotations

from typing import Any

import msgspec

VERSION = 1
"""Both ends of a channel must speak the same version."""

NOBODY = 0
"""The owner number of a slab that nobody owns."""

COORDINATOR = 1
"""The owner number of a slab that the coordinator adopted from a dead process."""


class Message(msgspec.Struct, tag=True, frozen=True, kw_only=True, array_like=False):
    """Base of all messages."""


class Request(Message, frozen=True):
    """A message that is answered by exactly one message with the same `request`."""

    request: int


class Done(Message, frozen=True):
    """The request was carried out, and there is nothing to tell."""

    request: int


class Failed(Message, frozen=True):
    """The request was refused and changed nothing: an error's code and facts (see `errors.from_wire`)."""

    request: int
    code: str
    facts: dict[str, Any]


# ---------------------------------------------------------------- values


class SlabRange(msgspec.Struct, frozen=True):
    """`count` slabs from slab `first` on; `adopted` ones hold blocks already."""

    first: int
    count: int
    adopted: bool = False


class HeapDescription(msgspec.Struct, frozen=True, kw_only=True):
    """A shared heap as its users know it. `size` in bytes; `token` is the capability to open it."""

    heap: int
    name: str
    token: str
    size: int
    start: int
    managed: bool
    read_only: bool
    scrub: bool


class ChainLink(msgspec.Struct, frozen=True):
    """One heap of a chain, and the app address where it starts."""

    heap: int
    start: int


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """One heap of a chain, granted to a worker.

    Its descriptors travel with the message that holds the grant, in the order of the grants: the segment's, then, if `managed`,
    the metadata's. A read-only grant has an O_RDONLY descriptor of the segment, and never the metadata's (`managed` is false).
    """

    heap: int
    name: str
    start: int
    size: int
    writable: bool
    managed: bool
    metadata_size: int = 0
    scrub: bool = False
    prefault: bool = False


# ---------------------------------------------------------------- client -> coordinator


class Hello(Request, frozen=True):
    """Opens every connection of a client. `quota`: bytes it may lease in all, 0 for no limit."""

    version: int
    quota: int = 0


class CreateHeap(Request, frozen=True):
    """Registers a heap whose segment the client made or opened. Descriptor: the segment's.

    `read_only` says that nobody may be granted more than reading.
    """

    name: str
    size: int
    managed: bool
    read_only: bool = False
    scrub: bool = False
    owner_frees_only: bool = False
    free_on_death: bool = False
    prefault: bool = False


class OpenHeap(Request, frozen=True):
    """Opens a heap by its `token`, or, where `token` is empty, by its `name`."""

    token: str = ""
    name: str = ""


class CloseHeap(Request, frozen=True):
    """The client uses the heap no longer; its leases there go back."""

    heap: int


class ChainHeaps(Request, frozen=True):
    """Puts `head` directly below the chain that `body` heads."""

    head: int
    body: int


class UnchainHeaps(Request, frozen=True):
    """Takes the first heap off the chain, or, with `entire_chain`, all apart."""

    head: int
    entire_chain: bool


class ResetChain(Request, frozen=True):
    """Rebuilds the managed heaps of the chain. The client zeroes the preallocated ones itself, once this is `Done`."""

    head: int


class Lease(Request, frozen=True):
    """Asks for slabs of one size class (`size_class` > 0), or for one run of exactly `slabs` slabs (`size_class` 0)."""

    heap: int
    size_class: int
    slabs: int


class Release(Message, frozen=True):
    """Gives slabs back; nothing lives in them."""

    heap: int
    ranges: list[SlabRange]


class Recalled(Message, frozen=True):
    """Answers `Recall`: all that could be given back has been (by the `Release` messages before this one)."""

    heap: int


class WasiOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What WASI preview 1 grants a guest; by default nothing.

    `stdout` and `stderr`: "discard", "inherit" (the worker's own), or the path of a file. `stdin`: "" for an empty one,
    "inherit", or a path. `preopens` maps host directories to guest paths; `read_only_preopens` lists those guest paths that may
    not be written. Path objects are taken too, wherever a path is meant.
    """

    args: list[str] = []
    env: dict[str, str] = {}
    stdin: str = ""
    stdout: str = "discard"
    stderr: str = "discard"
    preopens: dict[str, str] = {}
    read_only_preopens: list[str] = []


class HostImport(msgspec.Struct, frozen=True, kw_only=True):
    """A host function that the guest imports. With `on_client` it runs in the client, else `pickled` is run in the worker."""

    module: str
    name: str
    on_client: bool
    pickled: bytes = b""


class NumberImport(msgspec.Struct, frozen=True, kw_only=True):
    """What a global that the guest imports holds; it fits the global's type, signed or unsigned."""

    module: str
    name: str
    number: int | float


class FreshCalls(msgspec.Struct, frozen=True, kw_only=True):
    """Says that each call is to run in a guest that no call ran in before.

    With `init`, the first call of all is no user's: it prepares the guest for the second one, which runs in the same guest, and
    is repeated on each guest to come. `time_limit`: seconds that making and preparing such a guest may take; None for no limit.
    """

    init: bool = False
    time_limit: float | None = None


class SpawnPlan(msgspec.Struct, frozen=True, kw_only=True):
    """All that a worker must know to make its instance; opaque to the coordinator and the launcher but for `module_key`.

    `preparation` is `multiprocessing.spawn`'s preparation data (pickled), for host functions that live in the user's main module;
    `search_path` the client's `sys.path`, set only where there are pickled host functions. `memory_limit`: bytes that each of the
    instance's memories may have. `fresh`: None for one guest that runs all calls.
    """

    module_key: str
    module_name: str
    imports: list[HostImport] = []
    numbers: list[NumberImport] = []
    wasi: WasiOptions | None = None
    preparation: bytes = b""
    search_path: list[str] = []
    working_directory: str = ""
    memory_limit: int | None = None
    fresh: FreshCalls | None = None


class Spawn(Request, frozen=True):
    """Asks for a new instance in a new worker. Descriptors: the compiled module's artifact, and its dispatcher's.

    `chain_head` 0: attached to nothing. `quota`: bytes the worker may lease in all, 0 for no limit. `time_limit`: seconds until
    the instance must be ready; None for no limit.
    """

    plan: SpawnPlan
    chain_head: int = 0
    read_only: bool = False
    quota: int = 0
    time_limit: float | None = None


class Attach(Request, frozen=True):
    """Maps a chain into an instance, once the instance is between calls."""

    instance: int
    chain_head: int
    read_only: bool


class Detach(Request, frozen=True):
    """Takes the chain out of an instance, once the instance is between calls."""

    instance: int


class Kill(Request, frozen=True):
    """Ends an instance's worker with SIGKILL; `InstanceExited` follows `Done`."""

    instance: int


class CloseInstance(Request, frozen=True):
    """Ends an instance's worker once the calls made so far are served; `Done` is sent once it is gone."""

    instance: int


class Verify(Request, frozen=True):
    """Checks every invariant of a heap (0: of all heaps) while its leases stay as they are. Meaningful while nobody allocates."""

    heap: int = 0


class Status(Request, frozen=True):
    """Asks what the coordinator holds."""


class Goodbye(Message, frozen=True):
    """The client touches no heap any more. Once all that it held is taken back, the coordinator ends the connection."""


ClientMessage = (
    Hello
    | CreateHeap
    | OpenHeap
    | CloseHeap
    | ChainHeaps
    | UnchainHeaps
    | ResetChain
    | Lease
    | Release
    | Recalled
    | Spawn
    | Attach
    | Detach
    | Kill
    | CloseInstance
    | Verify
    | Status
    | Goodbye
)

# ---------------------------------------------------------------- coordinator -> client


class Welcome(Message, frozen=True):
    """Answers `Hello`.

    `address` is where other processes can connect, `private` whether the coordinator ends with its clients.
    """

    request: int
    peer: int
    version: int
    address: str
    private: bool


class HeapOpened(Message, frozen=True):
    """Answers `CreateHeap` and `OpenHeap`.

    `chain` is the whole chain that the heap is in. Descriptors: the segment's (not after `CreateHeap`), then the metadata's if
    managed.
    """

    request: int
    heap: HeapDescription
    metadata_size: int
    chain: list[ChainLink]


class ChainLaidOut(Message, frozen=True):
    """Answers `ChainHeaps` and `UnchainHeaps`: every heap that moved or stayed, chain by chain.

    After `ChainHeaps`, `result` is the head of the new chain.
    After `UnchainHeaps(entire_chain=False)`, `result` is the head of the rest; after `entire_chain=True`, the last heap.
    """

    request: int
    result: int
    chains: list[list[ChainLink]]


class ChainMoved(Message, frozen=True):
    """Tells the other clients that hold one of these heaps where the heaps lie from now on."""

    chains: list[list[ChainLink]]


class Leased(Message, frozen=True):
    """Answers `Lease`; no range means refused.

    Then `largest_free` is the largest free run in bytes, and `quota`, if not 0, is the peer's quota that stood in the way.
    """

    request: int
    ranges: list[SlabRange]
    largest_free: int = 0
    quota: int = 0


class Recall(Message, frozen=True):
    """Somebody needs room in the heap: give back every slab in which nothing lives, then answer `Recalled`."""

    heap: int


class Spawned(Message, frozen=True):
    """Answers `Spawn`. Descriptor: the client's end of the instance's call channel."""

    request: int
    instance: int
    pid: int


class InstanceExited(Message, frozen=True):
    """An instance's worker is gone; its leases have been reclaimed. Exactly one of `signal` and `exit_code` is set."""

    instance: int
    pid: int
    signal: int | None
    exit_code: int | None


class Verified(Message, frozen=True):
    """Answers `Verify`: how many heaps were checked. A broken invariant is `Failed` with `HeapCorruptError` instead."""

    request: int
    heaps: int


class StatusReport(Message, frozen=True):
    """Answers `Status`: numbers of all that exists, and one plain dictionary a heap and a worker."""

    request: int
    clients: int
    heaps: list[dict[str, Any]]
    workers: list[dict[str, Any]]


CoordinatorToClient = (
    Welcome
    | HeapOpened
    | ChainLaidOut
    | ChainMoved
    | Leased
    | Recall
    | Spawned
    | InstanceExited
    | Verified
    | StatusReport
    | Done
    | Failed
)

# ---------------------------------------------------------------- coordinator <-> launcher


class Fork(Message, frozen=True):
    """Forks a worker.

    Descriptors: the module's artifact, its dispatcher's, the worker's control channel, the worker's call channel, then those of
    `grants`.
    """

    worker: int
    plan: SpawnPlan
    grants: list[Grant]


class Forked(Message, frozen=True):
    """A worker was forked. Descriptor: its pidfd."""

    worker: int
    pid: int


class ForkFailed(Message, frozen=True):
    """A worker could not be forked, or its module could not be deserialized."""

    worker: int
    reason: str


class Exited(Message, frozen=True):
    """A worker was reaped. Exactly one of `signal` and `exit_code` is set."""

    worker: int
    pid: int
    signal: int | None
    exit_code: int | None


CoordinatorToLauncher = Fork | Done
LauncherMessage = Forked | ForkFailed | Exited

# ---------------------------------------------------------------- worker <-> coordinator


class Ready(Message, frozen=True):
    """The instance was made, its first grants are mapped, and it takes calls."""


class StartFailed(Message, frozen=True):
    """The instance could not be made; the worker exits. An error's code and facts."""

    code: str
    facts: dict[str, Any]


class MapChain(Request, frozen=True):
    """Maps these grants (descriptors beside, as `Grant` says). The worker answers `Done` or `Failed` once it is between calls."""

    grants: list[Grant]


class UnmapChain(Request, frozen=True):
    """Unmaps what is mapped; the worker gives its slabs back (`Release`), then answers `Done`."""


class Stop(Message, frozen=True):
    """Exit with code 0 once the calls that the client has made so far are served."""


class IsAlive(Request, frozen=True):
    """Asks whether the peer of that number, a client or a worker, is there; answered by `Alive`."""

    number: int


class Alive(Message, frozen=True):
    """Answers `IsAlive`: false once the peer touches no heap any more, which the kernel says, and for a number never given."""

    request: int
    alive: bool


WorkerMessage = Ready | StartFailed | Lease | Release | Recalled | IsAlive | Done | Failed
CoordinatorToWorker = MapChain | UnmapChain | Leased | Recall | Alive | Stop

# ---------------------------------------------------------------- client <-> worker (the call channel)


class OpenRing(Message, frozen=True):
    """The first message of all: where calls are made from now on.

    Descriptors: the segment of the call ring (see `core/ring.h`), and two eventfds: the *completion*, with which the worker
    wakes the client's receiver; the *interrupt*, to which the client writes once for each call that it has marked as being
    interrupted.
    """


class HostReturn(Message, frozen=True):
    """Answers `HostCall`: results, or an error's code and facts."""

    results: list[int | float] = []
    code: str = ""
    facts: dict[str, Any] = {}


class ShareMemory(Request, frozen=True):
    """Asks for the guest's linear memory to be shared; served between calls and while a host function of the client runs.

    Who sends it calls attention to it in the ring; else the worker may run other calls first. Its number is that of no call.
    """


CallMessage = OpenRing | HostReturn | ShareMemory


class Raised(Message, frozen=True):
    """The call of that number in the ring trapped, or the request failed: an error's code and facts.

    For a call it is sent before the ring says that the call has ended.
    """

    request: int
    code: str
    facts: dict[str, Any]


class HostCall(Message, frozen=True):
    """The guest, in the ring's call `request`, calls the client's host function `index` (its place in the plan's imports)."""

    request: int
    index: int
    arguments: list[int | float]


class MemoryShared(Message, frozen=True):
    """Answers `ShareMemory`: the linear memory's size in bytes now.

    Descriptor: its file, of size `capacity`; only the first time.
    """

    request: int
    size: int
    capacity: int


CallReply = Raised | HostCall | MemoryShared
