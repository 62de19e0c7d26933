"""Random histories of clients, instances, heaps, leases and deaths: whatever happens, the mind stays consistent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from shmwasm.control import events
from shmwasm.control.slabs import ranges_of
from shmwasm.protocol import messages
from shmwasm.protocol.messages import COORDINATOR, NOBODY, SlabRange

SLAB = 1 << 16
picks = st.integers(0, 1 << 16)
small = st.integers(0, 3)


class Histories(RuleBasedStateMachine):
    """Drives a mind through the fake shell, with peers that behave, misbehave and die."""

    new_shell: ClassVar[Callable[[], Any]]

    def __init__(self) -> None:
        super().__init__()
        self.shell = self.new_shell()
        self.asked: list[tuple[int, int]] = []
        self.starting: dict[int, int] = {}
        self.ready: set[int] = set()
        self.launcher = True

    # ------------------------------------------------------------ choosing

    @property
    def state(self) -> Any:
        return self.shell.mind._state

    def client(self, pick: int) -> int | None:
        """Return one of the clients that still listen."""
        return self.one(pick, [peer.number for peer in self.state.clients.values() if peer.connected])

    def instance(self, pick: int) -> int | None:
        """Return one of the running instances."""
        return self.one(pick, [worker for worker in self.ready if worker in self.state.workers])

    def heap(self, pick: int) -> int:
        """Return a heap that exists, or one that does not."""
        return self.one(pick, [*self.state.heaps.heaps, 999]) or 999

    @staticmethod
    def one(pick: int, among: list[int]) -> int | None:
        return among[pick % len(among)] if among else None

    def ask(self, peer: int | None, kind: Any, **fields: Any) -> int:
        if peer is None:
            return 0
        number = int(self.shell.begin(peer, kind, **fields))
        self.asked.append((peer, number))
        return number

    # ------------------------------------------------------------ clients and heaps

    @rule(quota=st.sampled_from([0, 0, 3 * SLAB, 10 * SLAB + 7]))
    def connect(self, *, quota: int) -> None:
        self.shell.connect(quota)

    @rule(pick=picks, managed=st.booleans(), slabs=st.integers(1, 12), read_only=st.booleans(), free=st.booleans(), name=small)
    def create(self, *, pick: int, managed: bool, slabs: int, read_only: bool, free: bool, name: int) -> None:
        fields = {"name": "", "size": slabs * SLAB, "managed": managed, "read_only": read_only, "free_on_death": free}
        self.ask(self.client(pick), messages.CreateHeap, **{**fields, "name": f"name-{name}" if name else ""})

    @rule(pick=picks, heap=picks)
    def open(self, *, pick: int, heap: int) -> None:
        known = self.state.heaps.heaps.get(self.heap(heap))
        self.ask(self.client(pick), messages.OpenHeap, token=known.token if known else "none")

    @rule(pick=picks, heap=picks)
    def close(self, *, pick: int, heap: int) -> None:
        self.ask(self.client(pick), messages.CloseHeap, heap=self.heap(heap))

    @rule(pick=picks, head=picks, body=picks)
    def chain(self, *, pick: int, head: int, body: int) -> None:
        self.ask(self.client(pick), messages.ChainHeaps, head=self.heap(head), body=self.heap(body))

    @rule(pick=picks, head=picks, entire=st.booleans())
    def unchain(self, *, pick: int, head: int, entire: bool) -> None:
        self.ask(self.client(pick), messages.UnchainHeaps, head=self.heap(head), entire_chain=entire)

    @rule(pick=picks, head=picks)
    def reset(self, *, pick: int, head: int) -> None:
        self.ask(self.client(pick), messages.ResetChain, head=self.heap(head))

    # ------------------------------------------------------------ leases

    @rule(pick=picks, heap=picks, size_class=small, slabs=st.integers(0, 5))
    def lease(self, *, pick: int, heap: int, size_class: int, slabs: int) -> None:
        self.ask(self.client(pick), messages.Lease, heap=self.heap(heap), size_class=size_class, slabs=slabs)

    @rule(pick=picks, heap=picks, size_class=small, slabs=st.integers(1, 5))
    def lease_for_an_instance(self, *, pick: int, heap: int, size_class: int, slabs: int) -> None:
        worker = self.instance(pick)
        chain = self.state.workers[worker].chain if worker else []
        if chain and self.state.workers[worker].writable:
            number = chain[heap % len(chain)].number
            if self.state.heaps.heaps[number].managed:
                self.ask(worker, messages.Lease, heap=number, size_class=size_class, slabs=slabs)

    @rule(heap=picks, slab=picks, live=st.integers(0, 4), size_class=st.integers(1, 3))
    def allocate(self, *, heap: int, slab: int, live: int, size_class: int) -> None:
        """Blocks come to life, or are freed, in a slab that somebody has."""
        fake = self.shell.heaps.get(self.heap(heap))
        if fake is not None and fake.owners:
            slab %= len(fake.owners)
            if fake.owners[slab] != NOBODY:
                fake.live[slab] = live
                fake.classes.setdefault(slab, size_class)

    @rule(pick=picks, heap=picks, share=st.integers(1, 3))
    def release(self, *, pick: int, heap: int, share: int) -> None:
        fake = self.shell.heaps.get(self.heap(heap))
        holders = sorted(set(fake.owners) - {NOBODY, COORDINATOR}) if fake is not None else []
        holder = self.one(pick, [peer for peer in holders if self.state.peer(peer).connected])
        if fake is not None and holder is not None:
            held = [slab for slab, owner in enumerate(fake.owners) if owner == holder]
            self.shell.tell(holder, messages.Release(heap=self.heap(heap), ranges=list(ranges_of(held[::share]))))

    @rule(pick=picks, heap=picks)
    def answer_a_recall(self, *, pick: int, heap: int) -> None:
        peer = self.one(pick, [*self.state.clients, *self.state.workers])
        if peer is not None:
            self.shell.tell(peer, messages.Recalled(heap=self.heap(heap)))

    @rule()
    def time_passes(self) -> None:
        self.shell.time_passes()

    @rule(memory=st.sampled_from([None, None, 0, 3]))
    def memory_is_short(self, *, memory: int | None) -> None:
        self.shell.storage.memory_left = memory

    # ------------------------------------------------------------ instances

    @rule(pick=picks, heap=picks, attached=st.booleans(), read_only=st.booleans(), quota=st.sampled_from([0, 2 * SLAB]))
    def spawn(self, *, pick: int, heap: int, attached: bool, read_only: bool, quota: int) -> None:
        forks = len(self.shell.forked)
        plan = messages.SpawnPlan(module_key="key", module_name="module")
        head = self.heap(heap) if attached else 0
        self.ask(self.client(pick), messages.Spawn, plan=plan, chain_head=head, read_only=read_only, quota=quota)
        if len(self.shell.forked) > forks:
            self.starting[self.shell.forked[-1].worker] = 0

    @precondition(lambda self: self.starting)
    @rule(pick=picks, outcome=st.sampled_from(["forked", "forked", "ready", "ready", "ready", "failed", "not forked"]))
    def start(self, *, pick: int, outcome: str) -> None:
        worker = self.one(pick, list(self.starting))
        assert worker is not None
        if outcome == "not forked" and not self.starting[worker] and self.launcher:
            self.shell.feed(events.LauncherSpoke(messages.ForkFailed(worker=worker, reason="why not")))
            del self.starting[worker]
        elif outcome == "forked" and not self.starting[worker] & 1 and self.launcher:
            self.shell.feed(events.LauncherSpoke(messages.Forked(worker=worker, pid=1000 + worker)))
            self.starting[worker] |= 1
        elif outcome == "ready" and not self.starting[worker] & 2:
            self.shell.tell(worker, messages.Ready())
            self.starting[worker] |= 2
        elif outcome == "failed" and self.starting[worker] == 1:
            self.shell.tell(worker, messages.StartFailed(code="ModuleError", facts={"module": "m", "reason": "r"}))
            self.exit(worker, launcher_first=True)
        if self.starting.get(worker) == 3:
            del self.starting[worker]
            self.ready.add(worker)

    @rule(pick=picks, instance=picks, heap=picks, read_only=st.booleans())
    def attach(self, *, pick: int, instance: int, heap: int, read_only: bool) -> None:
        worker = self.instance(instance) or 3
        self.ask(self.client(pick), messages.Attach, instance=worker, chain_head=self.heap(heap), read_only=read_only)

    @rule(pick=picks, instance=picks)
    def detach(self, *, pick: int, instance: int) -> None:
        self.ask(self.client(pick), messages.Detach, instance=self.instance(instance) or 3)

    @rule(instance=picks, refused=st.booleans())
    def answer(self, *, instance: int, refused: bool) -> None:
        """An instance does what it was asked, or cannot."""
        worker = self.instance(instance)
        if worker is None or self.state.workers[worker].attachment.name not in {"ATTACHING", "DETACHING"}:
            return
        asked = self.state.workers[worker].asked
        if refused and self.state.workers[worker].attachment.name == "ATTACHING":
            facts = {"heap": "h", "reason": "r"}
            self.shell.tell(worker, messages.Failed(request=asked, code="AttachError", facts=facts))
        else:
            self.shell.tell(worker, messages.Done(request=asked))

    @rule(pick=picks, instance=picks, kind=st.sampled_from([messages.Kill, messages.CloseInstance]))
    def end(self, *, pick: int, instance: int, kind: Any) -> None:
        self.ask(self.client(pick), kind, instance=self.instance(instance) or 3)

    # ------------------------------------------------------------ misfortunes

    @rule(pick=picks, launcher_first=st.booleans())
    def worker_dies(self, *, pick: int, launcher_first: bool) -> None:
        worker = self.one(pick, [number for number, worker in self.state.workers.items() if worker.pid])
        if worker is not None:
            self.exit(worker, launcher_first=launcher_first)

    def exit(self, worker: int, *, launcher_first: bool) -> None:
        """A worker's process ends: its socket, the kernel and the launcher tell so, in some order."""
        exited = events.LauncherSpoke(messages.Exited(worker=worker, pid=1000 + worker, signal=None, exit_code=1))
        told = [events.ProcessGone(worker), *([exited] if self.launcher else [])]
        for event in [*(reversed(told) if launcher_first else told), events.ConnectionClosed(worker)]:
            self.shell.feed(event)
        self.starting.pop(worker, None)
        self.ready.discard(worker)

    @precondition(lambda self: len(self.shell.forked) > 3)
    @rule(pick=st.integers(0, 9))
    def launcher_dies(self, *, pick: int) -> None:
        if pick == 0 and self.launcher:
            self.launcher = False
            self.shell.feed(events.LauncherGone())
            for worker in list(self.state.workers):
                self.shell.feed(events.ConnectionClosed(worker))
                if worker in self.state.workers:
                    self.shell.feed(events.ProcessGone(worker))
            self.starting.clear()
            self.ready.clear()

    @rule(pick=picks, how=st.sampled_from(["goodbye", "killed", "closed", "gone"]))
    def client_leaves(self, *, pick: int, how: str) -> None:
        client = self.client(pick)
        if client is None:
            return
        match how:
            case "goodbye":
                self.shell.tell(client, messages.Goodbye())
            case "killed":
                self.shell.kill_client(client)
            case "closed":
                self.shell.feed(events.ConnectionClosed(client))
            case "gone":
                self.shell.feed(events.ProcessGone(client))

    @rule(pick=picks)
    def a_disconnected_client_ends(self, *, pick: int) -> None:
        client = self.one(pick, [peer.number for peer in self.state.clients.values() if not peer.connected])
        if client is not None:
            self.shell.feed(events.ProcessGone(client))

    @rule(pick=picks, heap=picks, first=st.integers(-1, 9), count=st.integers(0, 4))
    def somebody_breaks_the_protocol(self, *, pick: int, heap: int, first: int, count: int) -> None:
        peer = self.one(pick, [*self.state.clients, *self.state.workers])
        known = self.state.heaps.heaps.get(self.heap(heap))
        wrong = SlabRange(first, count)
        if peer is not None and not (known is not None and known.slabs.holds_all(peer, wrong)):
            self.shell.tell(peer, messages.Release(heap=self.heap(heap), ranges=[wrong]))

    # ------------------------------------------------------------ what always holds

    @invariant()
    def the_mind_is_consistent(self) -> None:
        self.shell.mind.invariants()

    @invariant()
    def the_metadata_has_the_owners_that_the_mind_knows(self) -> None:
        assert set(self.shell.heaps) == set(self.state.heaps.heaps)
        for number, fake in self.shell.heaps.items():
            if fake.owners:
                assert list(memoryview(self.state.heaps.heaps[number].slabs.owners()).cast("I")) == fake.owners
            assert all(owner in {NOBODY, COORDINATOR} or self.state.peer(owner) for owner in fake.owners)

    @invariant()
    def no_request_is_answered_twice(self) -> None:
        for peer, number in self.asked:
            assert len(self.shell.answers(peer, number)) <= 1

    def teardown(self) -> None:
        """In the end every request of a client that still listens was answered once, and nothing is left of those that went."""
        for worker in list(self.state.workers):
            self.exit(worker, launcher_first=True)
            if worker in self.state.workers:  # one that the launcher never told of
                self.shell.feed(events.LauncherSpoke(messages.ForkFailed(worker=worker, reason="gone")))
        self.shell.time_passes()
        assert not self.state.workers
        for peer, number in self.asked:
            if self.state.peer(peer) is not None and self.state.peer(peer).connected:
                assert len(self.shell.answers(peer, number)) == 1
        for client in list(self.state.clients):
            self.shell.kill_client(client)
        self.shell.mind.invariants()
        assert not self.shell.heaps


def test_no_history_of_clients_and_workers_breaks_the_coordinator(new_shell):
    class Bound(Histories):
        pass

    Bound.new_shell = new_shell
    run_state_machine_as_test(
        Bound,
        settings=settings(max_examples=60, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]),
    )
