"""A worker as two small state machines, each a table: its life, and its mapping of a chain.

What a table does not have is refused and changes nothing.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping


class Life(Enum):
    """How far a worker's process has come."""

    FORKING = auto()
    """The launcher was asked; nothing was heard."""
    EARLY = auto()
    """The worker was ready before the launcher told its process id."""
    STARTING = auto()
    """The process exists; its instance is being made."""
    RUNNING = auto()
    """The instance exists, and its client knows it."""
    FAILED = auto()
    """The instance could not be made; the process is ending."""
    STOPPING = auto()
    """The worker was told to exit between calls."""


class LifeInput(Enum):
    """What moves a worker's life."""

    FORKED = auto()
    READY = auto()
    START_FAILED = auto()
    STOP = auto()


LIFE: Mapping[tuple[Life, LifeInput], Life] = {
    (Life.FORKING, LifeInput.FORKED): Life.STARTING,
    (Life.FORKING, LifeInput.READY): Life.EARLY,
    (Life.FORKING, LifeInput.START_FAILED): Life.FAILED,
    (Life.EARLY, LifeInput.FORKED): Life.RUNNING,
    (Life.STARTING, LifeInput.READY): Life.RUNNING,
    (Life.STARTING, LifeInput.START_FAILED): Life.FAILED,
    (Life.FAILED, LifeInput.FORKED): Life.FAILED,
    (Life.RUNNING, LifeInput.STOP): Life.STOPPING,
}
"""A worker may end in every state: that is no transition, the worker is forgotten."""


class Attachment(Enum):
    """What a worker has mapped into its instance."""

    DETACHED = auto()
    ATTACHING = auto()
    ATTACHED = auto()
    DETACHING = auto()


class AttachmentInput(Enum):
    """What moves a worker's mapping: a client's request, or the worker's answer."""

    ATTACH = auto()
    DETACH = auto()
    DONE = auto()
    FAILED = auto()


ATTACHMENT: Mapping[tuple[Attachment, AttachmentInput], Attachment] = {
    (Attachment.DETACHED, AttachmentInput.ATTACH): Attachment.ATTACHING,
    (Attachment.ATTACHING, AttachmentInput.DONE): Attachment.ATTACHED,
    (Attachment.ATTACHING, AttachmentInput.FAILED): Attachment.DETACHED,
    (Attachment.ATTACHED, AttachmentInput.DETACH): Attachment.DETACHING,
    (Attachment.DETACHING, AttachmentInput.DONE): Attachment.DETACHED,
}

S = TypeVar("S")
G = TypeVar("G")


def step(table: Mapping[tuple[S, G], S], state: S, given: G) -> S | None:
    """Return the next state, or None where the table refuses."""
    return table.get((state, given))
