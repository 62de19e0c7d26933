"""Hypothesis looks for a history of allocations, frees, trims and deaths after which an invariant does not hold."""

import itertools

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule, run_state_machine_as_test

from shmwasm.core import layout
from shmwasm.errors import InvalidFreeError

SLAB = layout.SLAB_SIZE
PROCESSES = st.integers(0, 2)
SIZES = st.one_of(st.integers(1, 200), st.integers(1, layout.MAXIMUM_SMALL), st.integers(layout.MAXIMUM_SMALL, 6 * SLAB))
ALIGNMENTS = st.sampled_from([16, 16, 16, 64, 4096, 65536])


def history_of(new_machine):
    class History(RuleBasedStateMachine):
        blocks = Bundle("blocks")

        def __init__(self):
            super().__init__()
            self.machine = new_machine(slabs=24)
            self.processes = [self.machine.process() for _ in range(3)]
            self.live = {}  # address: (usable size, owner)
            self.freed = set()

        def teardown(self):
            self.machine.close()

        def allocate(self, process, size, alignment=16):
            address = process.malloc(size, alignment)
            if address:
                assert address not in self.live
                assert address % alignment == 0
                usable = process.usable_size(address - self.machine.start)
                assert usable >= size
                self.live[address] = (usable, process.owner)
                self.freed.discard(address)
            return address

        @rule(target=blocks, who=PROCESSES, size=SIZES, alignment=ALIGNMENTS)
        def malloc(self, who, size, alignment):
            return self.allocate(self.processes[who], size, alignment)

        @rule(who=PROCESSES, size=SIZES, count=st.integers(1, 300))
        def malloc_many_and_free_them_elsewhere(self, who, size, count):
            got = [self.allocate(self.processes[who], size) for _ in range(count)]
            for index, address in enumerate(filter(None, got)):
                self.release(self.processes[(who + index % 2) % 3], address)

        def release(self, process, address):
            process.free(address)
            del self.live[address]
            self.freed.add(address)

        @rule(who=PROCESSES, block=consumes(blocks))
        def free(self, who, block):
            if block in self.live:
                self.release(self.processes[who], block)

        @rule(who=PROCESSES, data=st.data())
        def free_twice(self, who, data):
            if self.freed:
                address = data.draw(st.sampled_from(sorted(self.freed)))
                with pytest.raises(InvalidFreeError):
                    self.processes[who].free(address)

        @rule(who=PROCESSES, block=blocks, inside=st.integers(1, 70000))
        def free_the_inside_of_a_block(self, who, block, inside):
            if block in self.live and inside < self.live[block][0]:
                with pytest.raises(InvalidFreeError):
                    self.processes[who].free(block + inside)

        @rule(who=PROCESSES)
        def trim(self, who):
            self.machine.authority.release(self.processes[who].trim())

        @rule(who=PROCESSES, free_live=st.booleans())
        def die(self, who, free_live):
            dead = self.processes[who]
            self.processes[who] = self.machine.process()
            # What the dead process adopted from others before is its own by now, so the slab decides, not who allocated.
            slabs = {
                slab
                for held in self.machine.authority.ranges_of(dead.owner)
                for slab in range(held.first, held.first + held.count)
            }
            self.machine.bury(dead, free_live=free_live)
            if free_live:
                gone = [address for address in self.live if (address - self.machine.start) // SLAB in slabs]
                for address in gone:
                    del self.live[address]
                    self.freed.add(address)

        @invariant()
        def every_invariant_of_the_metadata_holds(self):
            for process in self.processes:
                process.verify()
            self.machine.authority.verify()

        @invariant()
        def live_blocks_are_those_of_the_model(self):
            counted = self.machine.authority.statistics()
            assert counted.live_blocks == len(self.live)
            assert counted.live_bytes == sum(usable for usable, _ in self.live.values())

        @invariant()
        def live_blocks_do_not_overlap(self):
            for address, following in itertools.pairwise(sorted(self.live)):
                assert address + self.live[address][0] <= following

    return History


def test_no_history_breaks_the_allocator(new_machine):
    options = settings(max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(history_of(new_machine), settings=options)
