"""Guests that allocate by themselves: wasm calls wasm, and Python is entered for leases only."""

import threading

import pytest
import wasmtime

from shmwasm.addresses import ORIGIN_64, WASM_PAGE, signed32, unsigned32
from shmwasm.core import CORE_MODULE, layout
from shmwasm.engine.config import SETTINGS

SLAB = layout.SLAB_SIZE

PLENTY = 1 << 40
"""Fuel that no test uses up."""

GUEST = """
(module
  (import "env" "shared_heap_malloc" (func $malloc (param i32) (result i32)))
  (import "env" "shared_heap_free" (func $free (param i32)))
  (memory (export "memory") 1)
  (func (export "malloc") (param i32) (result i32) (call $malloc (local.get 0)))
  (func (export "free") (param i32) (call $free (local.get 0)))
  (func (export "churn") ;; for ever: replaces one of 4096 blocks by one of another size
    (local $seed i32) (local $place i32)
    (loop $again
      (local.set $seed (i32.add (i32.mul (local.get $seed) (i32.const 1664525)) (i32.const 1013904223)))
      (local.set $place (i32.shl (i32.and (i32.shr_u (local.get $seed) (i32.const 8)) (i32.const 4095)) (i32.const 2)))
      (call $free (i32.load (local.get $place)))
      (i32.store (local.get $place) (i32.const 0))
      (i32.store (local.get $place) (call $malloc (i32.shr_u (local.get $seed) (i32.const 20))))
      (br $again))))
"""

GUEST_64 = """
(module
  (import "env" "shared_heap_malloc" (func $malloc (param i64) (result i64)))
  (import "env" "shared_heap_free" (func $free (param i64)))
  (func (export "malloc") (param i64) (result i64) (call $malloc (local.get 0)))
  (func (export "free") (param i64) (call $free (local.get 0))))
"""


class Guest:
    """A 32-bit guest, whose addresses are taken and given as they are."""

    origin = 0
    text = GUEST

    def __init__(self, core, engine):
        self.store = core._store
        linker = wasmtime.Linker(engine)
        for name, function in self.natives(core).items():
            linker.define(self.store, "env", name, function)
        self.exports = linker.instantiate(self.store, wasmtime.Module(engine, self.text)).exports(self.store)

    @staticmethod
    def natives(core):
        return core.guest_functions

    def malloc(self, size):
        return unsigned32(self.exports["malloc"](self.store, size))

    def free(self, address):
        self.exports["free"](self.store, signed32(address))


class Guest64(Guest):
    """A 64-bit guest, whose addresses are taken and given as a 32-bit guest would see them."""

    origin = ORIGIN_64
    text = GUEST_64

    @staticmethod
    def natives(core):
        return core.guest_functions | core.guest_functions_64

    def malloc(self, size):
        address = self.exports["malloc"](self.store, size)
        return address and address - self.origin

    def free(self, address):
        self.exports["free"](self.store, address and address + self.origin)


@pytest.fixture
def guest(slot, engine):
    slot.core.set_chain([slot])
    return Guest(slot.core, engine)


@pytest.fixture
def guest_64(slot, engine):
    slot.core.set_chain([slot])
    return Guest64(slot.core, engine)


@pytest.fixture(params=["guest", "guest_64"])
def any_guest(request):
    return request.getfixturevalue(request.param)


def test_guest_allocates_and_frees_in_its_heap(machine, slot, any_guest):
    blocks = [any_guest.malloc(size) for size in (1, 64, 5000, 32768, 3 * SLAB)]
    assert all(machine.start <= block < 1 << 32 for block in blocks)
    assert slot.statistics().live_blocks == 5
    for block in blocks:
        any_guest.free(block)
    assert slot.statistics().live_blocks == 0
    slot.verify()


def test_guest_gets_null_as_in_c_where_there_is_no_block(machine, any_guest):
    assert any_guest.malloc(0) == 0
    assert any_guest.malloc(-1) == 0
    assert any_guest.malloc(65 * SLAB) == 0
    any_guest.free(0)
    assert any_guest.malloc(64 * SLAB) == machine.start
    assert any_guest.malloc(1) == 0


@pytest.mark.parametrize(
    ("what", "reason"), [("wild", "no part"), ("outside", "no part"), ("inside", "no block"), ("twice", "already")]
)
def test_bad_free_of_a_guest_is_refused_with_its_address_and_changes_nothing(slot, any_guest, what, reason):
    block = any_guest.malloc(64)
    address = {"wild": (1 << 32) - 64, "outside": 4096, "inside": block + 16, "twice": any_guest.malloc(64)}[what]
    if what == "twice":
        any_guest.free(address)
    before = slot.statistics()
    with pytest.raises(Exception, match=reason) as refusal:
        any_guest.free(address)
    assert refusal.value.args[0] == any_guest.origin + address
    assert slot.statistics() == before
    slot.verify()


def test_guest_frees_a_block_of_another_process_and_the_other_way_round(machine, slot, any_guest):
    other = machine.process()
    any_guest.free(other.malloc(64))
    other.free(any_guest.malloc(64))
    assert slot.statistics().remote_freed_blocks == 2
    slot.verify()


@pytest.mark.parametrize("size", [1 << 32, (1 << 32) + 64, 1 << 63, (1 << 64) - 1])
def test_64_bit_guest_gets_null_for_a_size_whose_low_bits_would_fit(slot, guest_64, size):
    assert guest_64.exports["malloc"](guest_64.store, size) == 0
    assert slot.statistics().live_blocks == 0


@pytest.mark.parametrize("place", ["low", "origin", "beyond", "wrapped"])
def test_64_bit_free_outside_the_window_is_refused_with_all_its_bits(slot, guest_64, place):
    block = guest_64.malloc(64)
    addresses = {"low": block, "origin": ORIGIN_64, "beyond": ORIGIN_64 + block + (1 << 32), "wrapped": (1 << 64) - 16}
    with pytest.raises(Exception, match="no part") as refusal:
        guest_64.exports["free"](guest_64.store, addresses[place])
    assert refusal.value.args[0] == addresses[place]
    assert slot.statistics().live_blocks == 1


def test_core_and_addresses_agree_on_where_64_bit_windows_lie():
    assert layout.ORIGIN_64 == ORIGIN_64


def test_guest_is_told_the_number_of_its_process(machine, engine):
    slot = machine.process()
    own = slot.core.guest_functions["shared_heap_self"]
    assert own(slot.core._store) == slot.owner


def test_chain_is_tried_in_order_and_frees_find_their_heap(new_machine, engine):
    machine, second = new_machine(slabs=2), new_machine(slabs=4)
    head = machine.process()
    body = head.core.open_heap(second.metadata, second.size, start=second.start, name="body")
    head.move(second.start - 2 * SLAB)
    head.core.hooks.lease = lambda slot, *wanted: (machine if slot is head else second).lease(head.owner, *wanted)
    head.core.hooks.release = lambda slot, ranges: (machine if slot is head else second).authority.release(ranges)
    head.core.set_chain([head, body])
    guest = Guest(head.core, engine)
    blocks = [guest.malloc(30000) for _ in range(12)]
    assert [block >= second.start for block in blocks] == [False] * 4 + [True] * 8
    assert guest.malloc(30000) == 0
    for block in blocks:
        guest.free(block)
    assert guest.malloc(30000) < second.start
    assert head.statistics().live_blocks == 1
    with pytest.raises(Exception, match="guests allocate"):
        body.close()
    head.core.set_chain([])
    assert guest.malloc(64) == 0
    body.close()
    machine.close()
    second.close()


def test_blocks_of_a_scrubbed_heap_are_cleared_before_they_are_freed(new_machine, engine):
    machine = new_machine(scrub=True)
    slot = machine.process()
    slot.core.set_chain([slot])
    guest = Guest(slot.core, engine)
    blocks = [guest.malloc(60), guest.malloc(2 * SLAB)]
    for block in blocks:
        guest.free(block)
    assert slot.hooks.scrubbed == [(blocks[0], 64), (blocks[1], 2 * SLAB)]
    machine.close()


def test_exception_of_a_hook_ends_the_guests_call_and_leaves_the_heap_sound(slot, guest):
    def fail(*_):
        raise TimeoutError("the coordinator is silent")

    slot.hooks.lease, lease = fail, slot.hooks.lease
    with pytest.raises(TimeoutError, match="silent"):
        guest.malloc(64)
    slot.hooks.lease = lease
    slot.verify()
    assert guest.malloc(64)


def test_guest_interrupted_at_any_moment_leaves_a_sound_heap_that_it_can_go_on_with(new_machine, engine):
    machine = new_machine(slabs=200)
    slot = machine.process()
    slot.core.set_chain([slot])
    guest = Guest(slot.core, engine)
    for round_ in range(80):
        guest.store.set_epoch_deadline(1)
        interruption = threading.Timer(0.0003 * (1 + round_ % 7), engine.increment_epoch)
        interruption.start()
        with pytest.raises(wasmtime.Trap, match="interrupt"):
            guest.exports["churn"](guest.store)
        interruption.join()
        guest.store.set_epoch_deadline(1 << 40)
        slot.verify()
    # Nothing is lost: what was about to become a block is live or free, and a trim finds every free slab.
    assert slot.statistics().live_blocks <= 4096 + 80
    machine.authority.release(slot.trim())
    slot.verify()
    machine.bury(slot, free_live=True)
    assert machine.authority.statistics().free_slabs == 200
    machine.close()


@pytest.fixture
def fuelled_machine(machine):
    """Return a machine whose cores stop exactly where an engine may interrupt them: where their fuel ends."""
    config = wasmtime.Config()
    for name, value in {**SETTINGS, "epoch_interruption": False, "consume_fuel": True}.items():
        setattr(config, name, value)
    engine = wasmtime.Engine(config)
    module = wasmtime.Module.from_file(engine, str(CORE_MODULE))

    class FuelledMachine(type(machine)):
        def store(self):
            store = wasmtime.Store(self.engine)
            store.set_fuel(PLENTY)
            return store

    fuelled = FuelledMachine(engine, module, 24)
    yield fuelled
    fuelled.close()


@pytest.mark.parametrize("size", [20_000, WASM_PAGE, 3 * WASM_PAGE])
def test_slabs_are_never_lost_wherever_a_guest_is_interrupted(fuelled_machine, size):
    """Interrupts a malloc that leases and a free that releases after each amount of fuel that they can run out of."""
    slot = fuelled_machine.process()
    slot.core.set_chain([slot])
    store, functions = slot.core._store, slot.core.guest_functions
    malloc, free = functions["shared_heap_malloc"], functions["shared_heap_free"]

    def interrupted(function, argument, fuel):
        store.set_fuel(fuel)
        try:
            return function(store, argument), False
        except wasmtime.Trap:
            return 0, True
        finally:
            store.set_fuel(PLENTY)

    fuel, going_on = 1, True
    while going_on:
        address, going_on = interrupted(malloc, size, fuel)
        blocks = [address] if address else []
        while address := malloc(store, size):
            blocks.append(address)
        for block in blocks:
            _, cut = interrupted(free, block, fuel)
            going_on |= cut
            if slot.usable_size(unsigned32(block) - fuelled_machine.start):
                free(store, block)
        slot.verify()
        fuelled_machine.authority.release(slot.trim())
        slot.verify()
        assert not fuelled_machine.authority.ranges_of(slot.owner), f"lost with {fuel} units of fuel"
        fuel += 1 + fuel // 16


def test_interrupted_call_from_python_says_so_and_not_that_the_heap_is_corrupt(slot, engine):
    store = slot.core._store
    store.set_epoch_deadline(1)
    engine.increment_epoch()
    for use in (slot.statistics, lambda: slot.malloc(64)):
        with pytest.raises(wasmtime.Trap, match="interrupt"):
            use()
    store.set_epoch_deadline(1 << 40)
    slot.free(slot.malloc(64))
    slot.verify()
