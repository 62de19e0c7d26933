"""What a worker does with the chain that its coordinator grants it."""

import os
import pickle
import sys
from pathlib import Path

import msgspec
import pytest

from shmwasm import errors
from shmwasm.addresses import SLAB_SIZE, WINDOW_END
from shmwasm.posix.mappings import map_anywhere
from shmwasm.posix.segments import Segment
from shmwasm.protocol import messages

GUEST = """(module
  (import "env" "shared_heap_malloc" (func $malloc (param i32) (result i32)))
  (import "env" "shared_heap_free" (func $free (param i32)))
  (memory (export "memory") 1)
  (func (export "malloc") (param i32) (result i32) (call $malloc (local.get 0)))
  (func (export "free") (param i32) (call $free (local.get 0)))
  (func (export "load") (param i32) (result i32) (i32.load (local.get 0)))
  (func (export "store") (param i32 i32) (i32.store (local.get 0) (local.get 1)))
  (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0))))"""

ASKING = """(module
  (import "env" "shared_heap_self" (func $self (result i32)))
  (import "env" "shared_heap_peer_alive" (func $alive (param i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "self") (result i32) (call $self))
  (func (export "alive") (param i32) (result i32) (call $alive (local.get 0))))"""

SMALL = 64


@pytest.fixture
def segment():
    with Segment.create(SLAB_SIZE, name_for_errors="raw") as made:
        yield made


def raw_grant(*, writable=True, start=WINDOW_END - SLAB_SIZE):
    """Return the grant of a preallocated heap."""
    return messages.Grant(heap=9, name="raw", start=start, size=SLAB_SIZE, writable=writable, managed=False)


def attached(launcher, heap):
    """Fork a guest that is attached to a managed heap from the start."""
    return launcher.fork(GUEST, grants=[heap.grant], descriptors=heap.descriptors)


def malloc(worker, heap, size=SMALL):
    """Allocate in the guest, serving one lease meanwhile; return the unsigned address."""
    request = worker.start_call("malloc", size)
    heap.grant_lease(worker, worker.hear())
    return worker.end_call(request)[0] % 2**32


def test_a_guest_reaches_a_heap_that_is_mapped_between_calls_until_it_is_unmapped(launcher, segment):
    worker = launcher.fork(GUEST)
    address = WINDOW_END - SLAB_SIZE
    with pytest.raises(errors.WorkerTrapError):
        worker.call("load", address)
    worker.tell(messages.MapChain(request=4, grants=[raw_grant()]), [segment.descriptor])
    assert worker.hear() == messages.Done(request=4)
    with map_anywhere(segment.descriptor, SLAB_SIZE, writable=True) as mapping:
        mapping.view.cast("I")[1] = 1234
        assert worker.call("load", address + 4) == [1234]
        worker.call("store", address, 77)
        assert mapping.view[0] == 77
    worker.tell(messages.UnmapChain(request=5))
    assert worker.hear() == messages.Done(request=5)
    with pytest.raises(errors.WorkerTrapError) as caught:
        worker.call("load", address)
    assert caught.value.code == "memory_out_of_bounds"


def test_a_read_only_heap_can_be_read_and_not_written(launcher, segment):
    descriptor = segment.read_only_descriptor()
    worker = launcher.fork(GUEST, grants=[raw_grant(writable=False)], descriptors=[descriptor])
    os.close(descriptor)
    assert worker.call("load", WINDOW_END - 4) == [0]
    with pytest.raises(errors.WorkerTrapError):
        worker.call("store", WINDOW_END - 4, 1)
    with map_anywhere(segment.descriptor, SLAB_SIZE, writable=False) as mapping:
        assert mapping.view[-4] == 0


def test_memory_does_not_grow_into_the_window(launcher, segment):
    worker = launcher.fork(GUEST, grants=[raw_grant(start=3 * SLAB_SIZE)], descriptors=[segment.descriptor])
    assert worker.call("grow", 2) == [1]
    assert worker.call("grow", 1) == [-1]
    worker.tell(messages.UnmapChain(request=1))
    assert worker.hear() == messages.Done(request=1)
    assert worker.call("grow", 1) == [3]


def test_a_chain_that_linear_memory_reaches_is_refused_and_changes_nothing(launcher, segment):
    worker = launcher.fork(GUEST)
    assert worker.call("grow", 3) == [1]
    worker.tell(messages.MapChain(request=1, grants=[raw_grant(start=3 * SLAB_SIZE)]), [segment.descriptor])
    failed = worker.hear()
    assert (failed.request, failed.code) == (1, "AttachError")
    worker.call("store", 3 * SLAB_SIZE, 5)
    with map_anywhere(segment.descriptor, SLAB_SIZE, writable=False) as mapping:
        assert mapping.view[0] == 0


def test_a_module_whose_memory_reaches_the_window_cannot_start_attached(launcher, segment):
    guest = '(module (memory (export "memory") 4))'
    with pytest.raises(errors.AttachError, match="reaches the window"):
        launcher.fork(guest, grants=[raw_grant(start=3 * SLAB_SIZE)], descriptors=[segment.descriptor])


def test_a_module_without_memory_runs_and_cannot_be_attached(launcher, segment):
    worker = launcher.fork('(module (func (export "number") (result i32) (i32.const 7)))')
    worker.tell(messages.MapChain(request=1, grants=[raw_grant()]), [segment.descriptor])
    failed = worker.hear()
    assert failed.code == "AttachError"
    assert "no memory" in str(errors.from_wire(failed.code, failed.facts))
    assert worker.call("number") == [7]


def test_a_guest_allocates_from_slabs_that_its_worker_leases(launcher, heap):
    worker = attached(launcher, heap)
    first = malloc(worker, heap)
    assert heap.grant.start <= first < WINDOW_END
    second = worker.call("malloc", SMALL)[0] % 2**32  # from the same slab: nobody is asked
    assert second != first
    heap.authority.verify()
    assert heap.authority.statistics().live_blocks == 2
    worker.call("free", first)
    worker.call("free", second)
    assert heap.authority.statistics().live_blocks == 0


def test_a_refused_lease_is_a_null_pointer(launcher, heap):
    worker = attached(launcher, heap)
    request = worker.start_call("malloc", SMALL)
    asked = worker.hear()
    assert (asked.heap, asked.slabs) == (heap.NUMBER, 1)
    worker.tell(messages.Leased(request=asked.request, ranges=[]))
    assert worker.end_call(request) == [0]


def test_what_the_coordinator_wants_during_a_lease_is_done_after_the_call(launcher, heap):
    worker = attached(launcher, heap)
    request = worker.start_call("malloc", SMALL)
    asked = worker.hear()
    worker.tell(messages.Recall(heap=heap.NUMBER))
    worker.tell(messages.UnmapChain(request=8))
    heap.grant_lease(worker, asked)
    address = worker.end_call(request)[0]
    assert address != 0
    assert worker.hear() == messages.Recalled(heap=heap.NUMBER)
    assert worker.hear() == messages.Done(request=8)
    with pytest.raises(errors.WorkerTrapError):
        worker.call("load", address)


@pytest.mark.parametrize("alive", [True, False])
def test_what_a_guest_asks_about_a_peer_is_the_coordinators_to_answer(launcher, heap, alive):
    worker = launcher.fork(ASKING, grants=[heap.grant], descriptors=heap.descriptors)
    request = worker.start_call("alive", -2)
    asked = worker.hear()
    assert isinstance(asked, messages.IsAlive)
    assert asked.number == 2**32 - 2
    worker.tell(messages.Recall(heap=heap.NUMBER))
    worker.tell(messages.Alive(request=asked.request, alive=alive))
    assert worker.end_call(request) == [int(alive)]
    assert worker.hear() == messages.Recalled(heap=heap.NUMBER)


def test_a_guest_knows_its_own_number_and_that_it_is_alive_without_asking(launcher):
    worker = launcher.fork(ASKING)
    assert worker.call("self") == [worker.number]
    assert worker.call("alive", worker.number) == [1]


@pytest.mark.parametrize("answer", [messages.Alive(request=1, alive=True), messages.Leased(request=1, ranges=[])])
def test_an_answer_that_was_not_asked_for_ends_the_worker(launcher, answer):
    worker = launcher.fork(ASKING)
    worker.tell(answer)
    exited = launcher.hear()
    assert isinstance(exited, messages.Exited)
    assert exited.exit_code == os.EX_PROTOCOL


def test_recalled_slabs_are_those_in_which_nothing_lives(launcher, heap):
    worker = attached(launcher, heap)
    kept, dropped = malloc(worker, heap), malloc(worker, heap, 4096)
    worker.call("free", dropped)
    worker.tell(messages.Recall(heap=heap.NUMBER))
    released = worker.hear()
    assert isinstance(released, messages.Release)
    assert [(one.first, one.count) for one in released.ranges] == [((dropped - heap.grant.start) // SLAB_SIZE, 1)]
    assert worker.hear() == messages.Recalled(heap=heap.NUMBER)
    worker.call("free", kept)


def test_unmapping_gives_free_slabs_back_first(launcher, heap):
    worker = attached(launcher, heap)
    worker.call("free", malloc(worker, heap))
    worker.tell(messages.UnmapChain(request=3))
    assert isinstance(worker.hear(), messages.Release)
    assert worker.hear() == messages.Done(request=3)
    assert worker.call("malloc", SMALL) == [0]


@pytest.mark.parametrize("offset", [8, 16, -4096])
def test_a_bad_free_traps_with_the_address_and_changes_nothing(launcher, heap, offset):
    worker = attached(launcher, heap)
    address = malloc(worker, heap)
    with pytest.raises(errors.WorkerTrapError, match=f"{address + offset:#x}") as caught:
        worker.call("free", address + offset)
    assert caught.value.code == "invalid_free"
    assert heap.NAME in caught.value.trap
    assert heap.authority.statistics().live_blocks == 1
    worker.call("free", address)
    with pytest.raises(errors.WorkerTrapError, match="freed already"):
        worker.call("free", address)
    worker.call("free", 0)


def test_a_scrubbed_heap_is_cleared_by_free(launcher, scrubbed_heap):
    worker = attached(launcher, scrubbed_heap)
    address = malloc(worker, scrubbed_heap)
    worker.call("store", address, 0x55555555)
    worker.call("free", address)
    assert worker.call("load", address) == [0]


def test_a_host_function_sees_heaps_as_they_are_granted(launcher, segment, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    import worker_host_functions  # noqa: PLC0415 - on the path only here

    guest = """(module (import "env" "write_at" (func $write (param i32 i32))) (memory (export "memory") 1)
      (func (export "write") (param i32 i32) (call $write (local.get 0) (local.get 1))))"""
    given = messages.HostImport(
        module="env", name="write_at", on_client=False, pickled=pickle.dumps(worker_host_functions.write_at)
    )
    worker = launcher.fork(
        guest, imports=[given], search_path=list(sys.path), grants=[raw_grant()], descriptors=[segment.descriptor]
    )
    worker.call("write", WINDOW_END - 8, 321)
    with map_anywhere(segment.descriptor, SLAB_SIZE, writable=False) as mapping:
        assert mapping.view.cast("I")[-2] == 321
    with pytest.raises(errors.HostFunctionError, match="0xfffefffc"):
        worker.call("write", WINDOW_END - SLAB_SIZE - 4, 1)
    worker.tell(messages.UnmapChain(request=1))
    assert worker.hear() == messages.Done(request=1)
    with pytest.raises(errors.HostFunctionError):
        worker.call("write", WINDOW_END - 8, 1)
    descriptor = segment.read_only_descriptor()
    worker.tell(messages.MapChain(request=2, grants=[raw_grant(writable=False)]), [descriptor])
    os.close(descriptor)
    assert worker.hear() == messages.Done(request=2)
    with pytest.raises(errors.HostFunctionError) as caught:
        worker.call("write", WINDOW_END - 8, 1)
    assert caught.value.exception == "TypeError"


def test_a_metadata_segment_of_another_layout_is_refused_and_leaves_nothing_attached(launcher, heap, segment):
    worker = launcher.fork(GUEST)
    broken = msgspec.structs.replace(heap.grant, metadata_size=SLAB_SIZE)
    worker.tell(messages.MapChain(request=1, grants=[broken]), [heap.segment.descriptor, segment.descriptor])
    assert worker.hear().code == "UnsupportedError"
    with pytest.raises(errors.WorkerTrapError):
        worker.call("load", WINDOW_END - 4)
    worker.tell(messages.MapChain(request=2, grants=[heap.grant]), heap.descriptors)
    assert worker.hear() == messages.Done(request=2)
    assert malloc(worker, heap) != 0
