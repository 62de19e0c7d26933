"""Making a few instances before the first fork, so that the workers' own start costs less time and less private memory.

Theory
------
A worker's private memory is mostly pages of the interpreter that it shares with the launcher until it writes to them. Much of
that writing happens once in a process's life: the interpreter specializes code that it runs for the first times, libraries fill
their caches. What is written before the fork need not be written after it. (Measured: 0.7 of 3.4 MiB, and a third of the time.)

The instances are kept. Were they dropped, a worker's first objects would be put into the holes that they leave, each on another
shared page, and all would be lost again.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Final

import wasmtime

from shmwasm.addresses import SLAB_SIZE, WINDOW_END
from shmwasm.core import Core, HeapAuthority, layout, metadata_size
from shmwasm.core.dispatching import cells_of, dispatcher_text
from shmwasm.core.rings import ClientRing
from shmwasm.engine.modules import FunctionType, describe
from shmwasm.engine.nests import Nest, new_store
from shmwasm.posix.channels import Channel
from shmwasm.posix.segments import Segment
from shmwasm.protocol import codec, messages
from shmwasm.rewrite import seam
from shmwasm.worker.attachment import Attachment
from shmwasm.worker.instance import Ground, Instance
from shmwasm.worker.links import ControlLink
from shmwasm.worker.service import Service

ROUNDS: Final = 10
"""The interpreter specializes a function after it was called eight times; more bring little."""

_NUMBER: Final = messages.COORDINATOR + 1
_NAME: Final = "rehearsal"
_GUEST: Final = f"""(module (memory (export "memory") 1)
  (func (export "same") (param i32) (result i32) (local.get 0))
  (memory (export "{seam.ALIAS}") 0)
  (global (export "{seam.START}") (mut i64) (i64.const {seam.NOTHING}))
  (global (export "{seam.END}") (mut i64) (i64.const 0))
  (global (export "{seam.MIXED}") (mut i32) (i32.const 0))
  (table (export "{seam.HOST}") {seam.HOST_FUNCTIONS} funcref))"""
"""A module as the rewriter leaves it."""

_FUNCTIONS: Final = {"same": FunctionType(("i32",), ("i32",))}


def rehearse(engine: wasmtime.Engine, core: wasmtime.Module) -> list[object]:
    """Make instances as a worker does, attach and call them; return what must be kept.

    Raises:
        ShmwasmError: Something is missing here that the workers will miss, too.
    """
    kept: list[object] = []
    with ExitStack() as stack:
        code = wasmtime.Module(engine, _GUEST)
        dispatcher = wasmtime.Module(engine, dispatcher_text(_FUNCTIONS))
        segment = stack.enter_context(Segment.create(SLAB_SIZE, name_for_errors=_NAME))
        metadata = stack.enter_context(Segment.create(metadata_size(1), name_for_errors=_NAME))
        idle = Attachment(new_store(engine), core)
        authority = Core(new_store(engine), core, owner=messages.COORDINATOR, hooks=idle)
        kept += [idle, HeapAuthority.create(authority, metadata.descriptor, slabs=1, identity=1, name=_NAME)]
        for _ in range(ROUNDS):
            store = new_store(engine)
            attachment = Attachment(store, core)
            nest = Nest(store, attachment.natives, attachment.natives_64)
            kept.append(_perform(Ground(nest, attachment, code, describe(code), dispatcher), authority, segment, metadata))
    return kept


def _perform(ground: Ground, core: Core, segment: Segment, metadata: Segment) -> object:
    """Make an instance, and be its client and its coordinator; `core` is the client's."""
    control, coordinator = Channel.pair()
    calls, client = Channel.pair()
    grant = messages.Grant(
        heap=1,
        name=_NAME,
        start=WINDOW_END - SLAB_SIZE,
        size=SLAB_SIZE,
        writable=True,
        managed=True,
        metadata_size=metadata.size,
    )
    plan = messages.SpawnPlan(module_key=_NAME, module_name=_NAME)
    with control, coordinator, calls, client:
        instance = Instance(
            messages.Fork(worker=_NUMBER, plan=plan, grants=[grant]),
            ground,
            granted=[os.dup(segment.descriptor), os.dup(metadata.descriptor)],
            control=ControlLink(control),
            calls=calls,
        )
        with ClientRing(core, cells_of(_FUNCTIONS)) as ring:
            _call(Service(instance, ControlLink(control)), ring, client)
        assert instance.calls is not None
        instance.calls.close()
        instance.attachment.detach()
    return instance


def _call(service: Service, ring: ClientRing, client: Channel) -> None:
    """Open the ring, and call through it until the worker has done whatever it does with every call."""
    events = [os.eventfd(0) for _ in range(2)]
    client.send(codec.encode(messages.OpenRing()), [ring.descriptor, *events])
    calls = service.wait_for_ring()
    for _ in range(ROUNDS):
        request = ring.request(0, _FUNCTIONS["same"])
        packed = request.pack([1])
        assert packed, "the number is one that the function takes"
        ring.submit(request)
        calls.run(may_sleep=False)
        answer = ring.wait(request)
        assert answer == layout.RING_DONE, "the function returns"
        ring.give(request)
    for event in events:
        os.close(event)
