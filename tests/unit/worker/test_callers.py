from pickle import PickleBuffer

import pytest

from shmwasm import errors
from shmwasm.engine.callers import Caller, Region, Views

MEMORY = 256
HEAP_START = 0xFFFF_F000
HEAP_SIZE = 0x1000


@pytest.fixture
def memory():
    return memoryview(bytearray(MEMORY))


@pytest.fixture
def heap():
    return memoryview(bytearray(HEAP_SIZE))


@pytest.fixture
def caller(memory, heap):
    return Caller(7, memory=lambda: memory, heaps=lambda: [Region(HEAP_START, heap)])


def test_a_view_of_memory_is_the_memory(caller, memory):
    caller.view(250, 6)[:] = b"abcdef"
    assert bytes(memory[250:]) == b"abcdef"
    assert caller.memory is memory
    assert caller.instance == 7


@pytest.mark.parametrize("address", [HEAP_START + 8, HEAP_START + 8 - 2**32])
def test_a_heap_is_seen_at_its_signed_and_unsigned_address(caller, heap, address):
    caller.view(address, 4)[:] = b"abcd"
    assert bytes(heap[8:12]) == b"abcd"


def test_a_view_of_a_read_only_heap_is_read_only(memory):
    caller = Caller(7, memory=lambda: memory, heaps=lambda: [Region(HEAP_START, memoryview(bytes(HEAP_SIZE)))])
    assert caller.view(HEAP_START, 4).readonly


@pytest.mark.parametrize(
    ("address", "size"),
    [
        (MEMORY - 1, 2),
        (MEMORY, 1),
        (HEAP_START - 1, 1),
        (HEAP_START - 1, 2),
        (HEAP_START + HEAP_SIZE - 1, 2),
        (-1, 2),
        (2**32, 1),
    ],
)
def test_bytes_that_are_not_all_in_one_place_are_refused_with_their_address(caller, address, size):
    with pytest.raises(errors.ArgumentError, match=f"{address % 2**32 if address < 0 else address:#x}"):
        caller.view(address, size)


def test_a_negative_size_is_refused(caller):
    with pytest.raises(errors.ArgumentError, match="-1"):
        caller.view(0, -1)


def test_an_empty_view_at_the_end_is_allowed(caller):
    assert len(caller.view(MEMORY, 0)) == 0
    assert len(caller.view(HEAP_START + HEAP_SIZE, 0)) == 0


@pytest.mark.parametrize("use", [lambda caller: caller.memory, lambda caller: caller.instance, lambda caller: caller.view(0, 1)])
def test_a_caller_is_closed_once_its_function_returned(caller, use):
    with caller:
        use(caller)
    with pytest.raises(errors.ClosedError):
        use(caller)


def test_views_of_linear_memory_end_and_what_was_made_of_them_does_not(memory, heap):
    views = Views()
    caller = Caller(7, memory=lambda: memory[:], heaps=lambda: [Region(HEAP_START, heap)], lend=views.lend)
    assert not views.were_lent
    of_heap = caller.view(HEAP_START, 4)
    assert not views.were_lent
    whole, some, viewed = caller.memory, caller.view(8, 4), caller.view(8, 4)
    assert views.were_lent
    part, held = some[:2], PickleBuffer(viewed)
    views.end()
    for ended in (whole, some):
        with pytest.raises(ValueError, match="released"):
            ended[0]
    part[0], viewed[1], of_heap[0] = 5, 6, 7
    assert (memory[8], bytes(held)[1], heap[0]) == (5, 6, 7)
