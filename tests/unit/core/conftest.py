"""A heap in one process: several cores, each the stand-in of a process, and an authority that grants leases by the book."""

import contextlib
import itertools
import mmap
import os

import posix_ipc
import pytest
import wasmtime

from shmwasm.addresses import WASM_PAGE, WINDOW_END
from shmwasm.core import CORE_MODULE, RUN, Core, HeapAuthority, layout, metadata_size
from shmwasm.core.dispatching import BELLS, CORE, FUEL, GUEST, cells_of, dispatched, dispatcher_text
from shmwasm.core.dispatching import RUN as DISPATCHER_RUN
from shmwasm.core.rings import ClientRing
from shmwasm.core.worker_ring import WorkerRing
from shmwasm.engine.config import new_engine
from shmwasm.engine.natives import native_function
from shmwasm.posix import bells
from shmwasm.protocol.messages import SlabRange


class RefusedError(Exception):
    """What a guest's bad free raises here."""


class Hooks:
    """A process's way to the authority, without sockets."""

    def __init__(self, machine, owner):
        self.machine = machine
        self.owner = owner
        self.leases = []
        self.scrubbed = []

    def lease(self, _slot, size_class, slabs):
        self.leases.append((size_class, slabs))
        return self.machine.lease(self.owner, size_class, slabs)

    def release(self, _slot, ranges):
        self.machine.authority.release(ranges)

    def refuse(self, address, reason):
        raise RefusedError(address, reason)

    def scrub(self, address, size):
        self.scrubbed.append((address, size))


class Machine:
    """One managed heap, its authority, and processes that use it."""

    def __init__(self, engine, module, slabs, *, batch=2, **options):
        self.engine, self.module = engine, module
        self.slabs, self.batch = slabs, batch
        self.size = metadata_size(slabs)
        memory = posix_ipc.SharedMemory(None, posix_ipc.O_CREX, size=self.size)
        memory.unlink()
        self.metadata = memory.fd
        self.numbers = itertools.count(layout.OWNER_FIRST_PROCESS)
        self.core = Core(self.store(), module, owner=layout.OWNER_COORDINATOR, hooks=Hooks(self, layout.OWNER_COORDINATOR))
        self.authority = HeapAuthority.create(self.core, self.metadata, slabs=slabs, identity=7, name="frames", **options)
        self.start = WINDOW_END - slabs * WASM_PAGE

    def store(self):
        store = wasmtime.Store(self.engine)
        store.set_epoch_deadline(1 << 40)
        return store

    def process(self):
        """Return the heap's slot in a new core, as a new process would have it."""
        owner = next(self.numbers)
        core = Core(self.store(), self.module, owner=owner, hooks=Hooks(self, owner))
        slot = core.open_heap(self.metadata, self.size, start=self.start, name="frames")
        slot.core, slot.owner, slot.hooks = core, owner, core.hooks
        return slot

    def lease(self, owner, size_class, slabs):
        if size_class != RUN:
            adopted = self.authority.find_adopted(size_class)
            if adopted is not None:
                self.authority.assign(adopted, 1, owner)
                return [SlabRange(adopted, 1, adopted=True)]
        wanted = slabs if size_class == RUN else self.batch
        free = [run for run in self.authority.ranges_of(layout.OWNER_NOBODY) if run.count >= (wanted if size_class == RUN else 1)]
        if not free:
            return []
        granted = SlabRange(free[0].first, min(wanted, free[0].count))
        self.authority.assign(granted.first, granted.count, owner)
        return [granted]

    def bury(self, slot, *, free_live):
        """Do what the coordinator does when the kernel says that a process is gone."""
        for held in self.authority.ranges_of(slot.owner):
            self.authority.release(self.authority.reclaim(held.first, held.count, free_live=free_live))

    def poke(self, offset, value):
        """Corrupt one byte of the metadata."""
        with mmap.mmap(self.metadata, self.size) as memory:
            memory[offset] = value

    def close(self):
        os.close(self.metadata)


class RingHooks:
    """The host of a core that has rings and no heaps."""

    def __init__(self):
        self.woken = []
        self.absorbed = 0

    def wake(self, slot):
        self.woken.append(slot)

    def absorb(self):
        self.absorbed += 1


class Pair:
    """Both ends of a ring in one process: a client's core, and a worker's core with a guest and its dispatcher."""

    def __init__(self, engine, module, guest, functions, cells=None, *, metered=False):
        self.client_core = self.new_core(engine, module)
        self.client = ClientRing(self.client_core, cells_of(functions) if cells is None else cells)
        self.store = wasmtime.Store(engine)
        self.store.set_epoch_deadline(1 << 40)
        self.hooks = RingHooks()
        core = Core(self.store, module, owner=layout.OWNER_FIRST_PROCESS, hooks=self.hooks)
        self.worker = WorkerRing(core, self.client.descriptor)
        self.exports = wasmtime.Instance(self.store, wasmtime.Module(engine, guest), []).exports(self.store)
        linker = wasmtime.Linker(engine)
        for name, item in self.worker.imports().items():
            linker.define(self.store, CORE, name, item)
        for name, function, bell in (("sleep", "sem_wait", self.worker.bell), ("ring", "sem_post", self.worker.end_bell)):
            linker.define(self.store, BELLS, name, native_function(self.store, bells.native(function), bell))
        for number, name in enumerate(dispatched(functions)):
            linker.define(self.store, GUEST, str(number), self.exports[name])
        for name in FUEL if metered else ():
            linker.define(self.store, GUEST, name, self.exports[name])
        text = dispatcher_text(functions, metered=metered)
        dispatcher = linker.instantiate(self.store, wasmtime.Module(engine, text))
        self._run = dispatcher.exports(self.store)[DISPATCHER_RUN]

    @staticmethod
    def new_core(engine, module):
        store = wasmtime.Store(engine)
        store.set_epoch_deadline(1 << 40)
        return Core(store, module, owner=layout.OWNER_FIRST_PROCESS, hooks=RingHooks())

    def submit(self, number, kind, arguments, flags=0):
        """Submit a call, and return its request."""
        request = self.client.request(number, kind)
        if not request.pack(arguments):  # some integers are negative, and some do not fit signed
            bits = [(1 << int(value[1:])) - 1 if value[0] == "i" else None for value in kind.parameters]
            unsigned = [number if mask is None else number & mask for mask, number in zip(bits, arguments, strict=True)]
            assert request.pack(unsigned)
        assert self.client.submit(request, flags) & ~layout.RING_DOORBELL == layout.RING_PENDING
        return request

    def run(self, *, may_sleep=False):
        """Let the worker run calls until it needs its host; return why."""
        return self._run(self.store, self.worker.address, int(may_sleep))

    def close(self):
        self.worker.close()
        self.client.close()


@pytest.fixture(scope="session")
def engine():
    return new_engine(parallel_compilation=True)


@pytest.fixture(scope="session")
def core_module(engine):
    return wasmtime.Module.from_file(engine, str(CORE_MODULE))


@pytest.fixture(scope="session")
def new_machine(engine, core_module):
    """Return a function that makes a `Machine`; its owner closes it."""

    def make(slabs=64, **options):
        return Machine(engine, core_module, slabs, **options)

    return make


@pytest.fixture
def machine(new_machine):
    made = new_machine()
    yield made
    made.close()


@pytest.fixture
def slot(machine):
    return machine.process()


@pytest.fixture(scope="session")
def new_pair(engine, core_module):
    """Return a function that gives a `Pair` for a guest in the text format, and closes it."""

    @contextlib.contextmanager
    def make(guest, functions, **options):
        pair = Pair(engine, core_module, guest, functions, **options)
        try:
            yield pair
        finally:
            pair.close()

    return make
