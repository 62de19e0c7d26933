"""The exception tree: the class says who must act, the attributes say what happened.

::

    ShmwasmError
    ├── ArgumentError(ValueError)            the caller passed a value that can never be right
    ├── ClosedError                          the object was closed, or belongs to another process
    ├── UnsupportedError                     this machine, kernel, engine or module cannot do it
    ├── HeapError
    │   ├── HeapExhaustedError(MemoryError)  no room in the heap
    │   │   └── QuotaExceededError           room, but not for this process
    │   ├── HeapNoSpaceError(MemoryError)    no room in /dev/shm for a new heap
    │   ├── InvalidFreeError(ValueError)     the address is no live block
    │   ├── HeapCorruptError                 `verify` found a broken invariant
    │   ├── UnknownHeapError(LookupError)    no heap has that name or token
    │   ├── ChainError                       chain, unchain or reset was refused
    │   └── AttachError                      attach or detach was refused
    ├── ModuleError(ValueError)              the bytes are no module that can run here
    ├── InstanceError
    │   ├── InstantiationError               the instance could not be made
    │   ├── UnknownExportError(LookupError)  the module exports no such function
    │   ├── WorkerTrapError                  the guest trapped; the instance lives on
    │   │   ├── FuelExhaustedError           the call's fuel was not enough; the guest trapped
    │   │   ├── HostFunctionError            a host function raised; the guest trapped
    │   │   └── GuestExitError               the guest ended itself through WASI, with a code other than 0
    │   ├── CallTimeoutError(TimeoutError)   the guest was interrupted at its deadline
    │   ├── BusyError                        as many calls are under way as there is room for; the caller would not wait
    │   └── WorkerLostError                  the worker process is gone
    └── CoordinatorError
        ├── CoordinatorLostError             the coordinator is gone
        ├── PeerRefusedError                 the peer may not connect
        └── ProtocolError                    a message that the protocol does not allow

Every class is a dataclass: its fields are its facts. Errors cross a process as their code (the class's name) and facts, see
`to_wire` and `from_wire`; never as a pickle of an arbitrary object.
"""

from __future__ import annotations

import signal as signals
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any


@dataclass(eq=False)
class ShmwasmError(Exception):
    """Base of every error that this library raises on purpose."""

    def __reduce__(self) -> tuple[type[ShmwasmError], tuple[Any, ...]]:
        return type(self), tuple(getattr(self, field.name) for field in fields(self))


@dataclass(eq=False)
class ArgumentError(ShmwasmError, ValueError):
    """A value that can never be right; `problem` names the value."""

    problem: str

    def __str__(self) -> str:
        return self.problem


@dataclass(eq=False)
class ClosedError(ShmwasmError):
    """The object `what` was closed, or was inherited by a forked child, which may not use it."""

    what: str
    reason: str = "is closed"

    def __str__(self) -> str:
        return f"{self.what} {self.reason}"


@dataclass(eq=False)
class UnsupportedError(ShmwasmError):
    """The machine, kernel, engine or module cannot do `what`; `reason` says why and what would help."""

    what: str
    reason: str

    def __str__(self) -> str:
        return f"{self.what} is not supported: {self.reason}"


@dataclass(eq=False)
class HeapError(ShmwasmError):
    """Base of the errors of shared heaps; `heap` is the heap's name."""

    heap: str


@dataclass(eq=False)
class HeapExhaustedError(HeapError, MemoryError):
    """No free run is large enough for `requested` bytes."""

    requested: int
    largest_free: int

    def __str__(self) -> str:
        return (
            f"shared heap {self.heap!r} cannot allocate {self.requested} bytes: its largest free run is {self.largest_free} bytes"
        )


@dataclass(eq=False)
class QuotaExceededError(HeapExhaustedError):
    """The heap has room, but this process may lease no more than `quota` bytes in all."""

    quota: int

    def __str__(self) -> str:
        return (
            f"shared heap {self.heap!r} cannot allocate {self.requested} bytes: "
            f"this process may hold at most {self.quota} bytes in all"
        )


@dataclass(eq=False)
class HeapNoSpaceError(HeapError, MemoryError):
    """The file system of shared memory has `available` bytes, fewer than `requested`."""

    requested: int
    available: int

    def __str__(self) -> str:
        return (
            f"shared heap {self.heap!r} needs {self.requested} bytes of shared memory, "
            f"but only {self.available} bytes are available"
        )


@dataclass(eq=False)
class InvalidFreeError(HeapError, ValueError):
    """`address` (an app address) is not a live block of the heap; `reason` says what it is instead."""

    address: int
    reason: str

    def __str__(self) -> str:
        return f"cannot free {self.address:#x} in shared heap {self.heap!r}: {self.reason}"


@dataclass(eq=False)
class HeapCorruptError(HeapError):
    """`verify` found that the invariant `invariant` does not hold at heap offset `offset`."""

    invariant: str
    offset: int

    def __str__(self) -> str:
        return f"shared heap {self.heap!r} is corrupt at offset {self.offset:#x}: {self.invariant}"


@dataclass(eq=False)
class UnknownHeapError(HeapError, LookupError):
    """The coordinator knows no heap of that name; `heap` is empty where a pickled block was to be found by its heap's token."""

    def __str__(self) -> str:
        if not self.heap:
            return "the shared heap of the pickled block exists no more"
        return f"no shared heap {self.heap!r} exists on this coordinator"


@dataclass(eq=False)
class ChainError(HeapError):
    """Chaining, unchaining or resetting was refused; nothing changed."""

    reason: str

    def __str__(self) -> str:
        return f"shared heap {self.heap!r}: {self.reason}"


@dataclass(eq=False)
class AttachError(HeapError):
    """Attaching or detaching was refused; nothing changed."""

    reason: str

    def __str__(self) -> str:
        return f"shared heap {self.heap!r} cannot be attached or detached: {self.reason}"


@dataclass(eq=False)
class ModuleError(ShmwasmError, ValueError):
    """The bytes `module` (a path, or a short description) are not a module that can run here."""

    module: str
    reason: str

    def __str__(self) -> str:
        return f"module {self.module!r} cannot be loaded: {self.reason}"


@dataclass(eq=False)
class InstanceError(ShmwasmError):
    """Base of the errors of one instance; `instance` is its number."""

    instance: int


@dataclass(eq=False)
class InstantiationError(InstanceError):
    """The instance could not be made."""

    reason: str

    def __str__(self) -> str:
        return f"instance {self.instance} could not be made: {self.reason}"


@dataclass(eq=False)
class UnknownExportError(InstanceError, LookupError):
    """The module exports no function `export`. `instance` is 0 if a pool was asked, before it had chosen one."""

    export: str
    known: list[str]

    def __str__(self) -> str:
        who = f"instance {self.instance}" if self.instance else "the pool's module"
        return f"{who} exports no function {shown(self.export)}; its functions are: {listed(self.known)}"


@dataclass(eq=False)
class WorkerTrapError(InstanceError):
    """The guest trapped in `export`: `trap` is the trap's message, `code` its name, `backtrace` the guest's frames.

    The instance lives on; its private memory is as the trap left it.
    """

    export: str
    trap: str
    code: str
    backtrace: list[str]

    def __str__(self) -> str:
        frames = "".join(f"\n  at {frame}" for frame in self.backtrace)
        return f"instance {self.instance} trapped in {self.export!r}: {self.trap}{frames}"


@dataclass(eq=False)
class FuelExhaustedError(WorkerTrapError):
    """The call was given `fuel` units of fuel, and needed more; see `Runtime.load`."""

    fuel: int


@dataclass(eq=False)
class HostFunctionError(WorkerTrapError):
    """A host function raised `exception` (its type's name), which trapped the guest; `details` is its traceback, as text."""

    exception: str
    details: str


@dataclass(eq=False)
class GuestExitError(WorkerTrapError):
    """The guest ended itself through WASI with `exit_code`, which is 0 only where results were due; the instance lives on."""

    exit_code: int


@dataclass(eq=False)
class CallTimeoutError(InstanceError, TimeoutError):
    """The call of `export` was interrupted after `timeout` seconds."""

    export: str
    timeout: float

    def __str__(self) -> str:
        return f"instance {self.instance} did not return from {self.export!r} within {self.timeout} s"


@dataclass(eq=False)
class BusyError(InstanceError):
    """The call was not made: `room` calls are under way already, and no more find room."""

    room: int

    def __str__(self) -> str:
        return f"instance {self.instance} has {self.room} calls under way, and room for no more"


@dataclass(eq=False)
class WorkerLostError(InstanceError):
    """The worker process `pid` is gone: killed by `signal`, or exited with `exit_code`; `last_call` was running.

    Exactly one of `signal` and `exit_code` is given where the status is known.
    """

    pid: int
    signal: int | None = None
    exit_code: int | None = None
    last_call: str | None = None

    def __str__(self) -> str:
        if self.signal is not None:
            cause = f"was killed by {signals.Signals(self.signal).name}"
        elif self.exit_code is not None:
            cause = f"exited with code {self.exit_code}"
        else:
            cause = "is gone"
        during = f" during {self.last_call!r}" if self.last_call else ""
        return f"worker process {self.pid} of instance {self.instance} {cause}{during}"


@dataclass(eq=False)
class CoordinatorError(ShmwasmError):
    """Base of the errors between this process and its coordinator; `reason` says what happened."""

    reason: str

    def __str__(self) -> str:
        return self.reason


@dataclass(eq=False)
class CoordinatorLostError(CoordinatorError):
    """The coordinator is gone, or could not be reached."""


@dataclass(eq=False)
class PeerRefusedError(CoordinatorError):
    """The peer on the other end of a socket may not take part."""


@dataclass(eq=False)
class ProtocolError(CoordinatorError):
    """A peer sent what the protocol does not allow."""


def shown(value: object) -> str:
    """Return a value as an error names it: its `repr`, unless that is too long to read or cannot be had."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001  a value's own code, or a number that has too many digits
        return f"<{type(value).__name__}>"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"


def listed(names: Sequence[str]) -> str:
    """Return names as an error lists them: the first, and how many more there are."""
    rest = len(names) - _LISTED
    return (", ".join(names[:_LISTED]) or "none") + (f", and {rest} more" if rest > 0 else "")


_SHOWN = 200
"""How many characters of a value an error shows."""

_LISTED = 50
"""How many names an error lists."""


def _tree(root: type[ShmwasmError]) -> dict[str, type[ShmwasmError]]:
    found = {root.__name__: root}
    for child in root.__subclasses__():
        found |= _tree(child)
    return found


def to_wire(error: ShmwasmError) -> tuple[str, dict[str, Any]]:
    """Return the error as its code and its facts, all of them plain values that can be sent."""
    return type(error).__name__, {field.name: _sendable(getattr(error, field.name)) for field in fields(error)}


def _sendable(fact: Any) -> Any:
    """Return a fact whose texts are valid Unicode: a host function's exception may quote anything."""
    if isinstance(fact, str):
        return fact.encode(errors="backslashreplace").decode()
    return [_sendable(one) for one in fact] if isinstance(fact, list) else fact


def from_wire(code: str, facts: dict[str, Any]) -> ShmwasmError:
    """Return the error that `to_wire` turned into `code` and `facts`.

    Raises:
        ProtocolError: No class has that code, or its facts are others.
    """
    kind = _tree(ShmwasmError).get(code)
    if kind is None:
        raise ProtocolError(f"an error of the unknown kind {code!r} arrived")
    try:
        return kind(**facts)
    except TypeError as mismatch:
        raise ProtocolError(f"an error {code!r} arrived with other facts: {mismatch}") from None
