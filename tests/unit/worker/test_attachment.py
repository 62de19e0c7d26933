from __future__ import annotations

import os

import pytest
import wasmtime

from shmwasm.addresses import WASM_PAGE, WINDOW_END, WINDOW_END_64, AppAddress, address64
from shmwasm.core import CORE_MODULE
from shmwasm.engine.config import new_engine
from shmwasm.engine.guests import Guest
from shmwasm.engine.modules import describe
from shmwasm.engine.nests import Nest, new_store
from shmwasm.errors import AttachError, InvalidFreeError, UnsupportedError
from shmwasm.posix.segments import Segment
from shmwasm.protocol import messages
from shmwasm.rewrite import seam
from shmwasm.worker.attachment import Attachment

SIZE = WASM_PAGE
HEAD, BODY = WINDOW_END - 2 * SIZE, WINDOW_END - SIZE
WHOLE = WINDOW_END_64 // WASM_PAGE
NARROW = '(module (memory (export "memory") 1))'
WIDE = f'(module (memory (export "memory") i64 {WHOLE} {WHOLE}) (global (export "{seam.PAGES}") (mut i64) (i64.const 1)))'


@pytest.fixture(scope="module")
def engine():
    return new_engine(parallel_compilation=False)


@pytest.fixture(scope="module")
def core(engine):
    return wasmtime.Module(engine, CORE_MODULE.read_bytes())


@pytest.fixture
def attach(engine, core):
    """Makes an instance of a module, and attaches it to a preallocated chain of two heaps, the second one read-only."""
    stores, segments, attachments = [], [], []

    def make(text: str) -> Attachment:
        store = new_store(engine)
        stores.append(store)
        attachment = Attachment(store, core)
        module = wasmtime.Module(engine, text)
        nest = Nest(store, attachment.natives, attachment.natives_64)
        guest = Guest(1, nest, module, describe(module), name="unit", functions={}, wasi=None)
        attachment.use(guest.window, describe(module))
        attachments.append(attachment)
        segments.extend(Segment.create(SIZE, name_for_errors=name) for name in ("head", "body"))
        grants = [
            messages.Grant(heap=1, name="head", start=HEAD, size=SIZE, writable=True, managed=False),
            messages.Grant(heap=2, name="body", start=BODY, size=SIZE, writable=False, managed=False),
        ]
        attachment.attach(grants, [os.dup(segments[-2].descriptor), segments[-1].read_only_descriptor()])
        return attachment

    make.segments = segments  # type: ignore[attr-defined]
    yield make
    for attachment in attachments:
        attachment.detach()
    for segment in segments:
        segment.close()
    for store in stores:
        store.close()


@pytest.mark.parametrize(("text", "seen"), [(NARROW, lambda address: address), (WIDE, address64)], ids=["32", "64"])
def test_heaps_are_shown_where_the_guest_has_them(attach, text, seen):
    attachment = attach(text)
    head, body = attachment.regions()
    assert (head.start, body.start) == (seen(HEAD), seen(BODY))
    assert (len(head.bytes), head.bytes.readonly, body.bytes.readonly) == (SIZE, False, True)
    head.bytes[:4] = b"text"
    assert os.pread(attach.segments[0].descriptor, 4, 0) == b"text"


@pytest.mark.parametrize(("text", "seen"), [(NARROW, lambda address: address), (WIDE, address64)], ids=["32", "64"])
def test_refused_free_names_the_heap_and_the_guests_own_address(attach, text, seen):
    with pytest.raises(InvalidFreeError) as caught:
        attach(text).refuse(seen(BODY + 16), "it is no block")
    assert (caught.value.heap, caught.value.address) == ("body", seen(BODY + 16))


@pytest.mark.parametrize("text", [NARROW, WIDE], ids=["32", "64"])
def test_freed_blocks_are_cleared_in_the_heap(attach, text):
    attachment = attach(text)
    os.pwrite(attach.segments[0].descriptor, b"12345678", 32)
    attachment.scrub(AppAddress(HEAD + 33), 4)
    assert os.pread(attach.segments[0].descriptor, 8, 32) == b"1\0\0\0\0" + b"678"


@pytest.mark.parametrize(
    ("text", "refusal"),
    [("(module)", AttachError), ('(module (memory (export "memory") i64 1 2 shared))', UnsupportedError)],
    ids=["no memory", "shared 64-bit memory"],
)
def test_instance_without_a_memory_for_chains_cannot_be_attached(attach, text, refusal):
    with pytest.raises(refusal, match="memory"):
        attach(text)
