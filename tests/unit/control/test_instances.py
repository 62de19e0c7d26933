"""Instances: spawn, attach, detach, and every way in which a worker ends."""

from __future__ import annotations

import math

import pytest

from shmwasm import errors
from shmwasm.control import actions, events
from shmwasm.control.actions import CallChannel, MetadataDescriptor, SegmentDescriptor
from shmwasm.control.deadlines import SpawnDeadline
from shmwasm.protocol import messages
from shmwasm.protocol.messages import COORDINATOR, NOBODY, SlabRange

SLAB = 1 << 16
PLAN = messages.SpawnPlan(module_key="key", module_name="module")


def forked(worker: int) -> events.LauncherSpoke:
    return events.LauncherSpoke(messages.Forked(worker=worker, pid=1000 + worker))


@pytest.mark.parametrize("early", [False, True])
def test_a_spawn_is_answered_once_the_worker_is_ready_and_its_process_known(shell, client, early):
    worker, number = shell.begin_spawn(client)
    steps = [lambda: shell.feed(forked(worker)), lambda: shell.tell(worker, messages.Ready())]
    for step in reversed(steps) if early else steps:
        assert not shell.answers(client, number)
        step()
    assert shell.only_answer(client, number) == messages.Spawned(request=number, instance=worker, pid=1000 + worker)
    assert shell.descriptors[client][-1] == (CallChannel(worker),)


def test_a_spawn_with_a_chain_grants_every_heap_of_it(shell, client):
    head, body = shell.create(client, 1), shell.create(client, 2, managed=False, prefault=True)
    shell.chain(client, head, body)
    shell.spawn(client, head)
    (fork,) = shell.forked
    managed, preallocated = fork.grants
    assert (managed.heap, managed.writable, managed.managed, managed.metadata_size) == (head, True, True, 4096)
    assert (preallocated.heap, preallocated.writable, preallocated.managed, preallocated.prefault) == (body, True, False, True)
    assert managed.start + SLAB == preallocated.start
    assert fork.descriptors == (SegmentDescriptor(head, False), MetadataDescriptor(head), SegmentDescriptor(body, False))


def test_a_read_only_grant_has_a_read_only_descriptor_and_no_metadata(shell, client):
    head, body = shell.create(client), shell.create(client)
    shell.chain(client, head, body)
    worker = shell.spawn(client, head, read_only=True)
    (fork,) = shell.forked
    assert not any(grant.writable or grant.managed for grant in fork.grants)
    assert fork.descriptors == (SegmentDescriptor(head, True), SegmentDescriptor(body, True))
    shell.tell(worker, messages.Lease(request=1, heap=head, size_class=1, slabs=1))
    assert worker in shell.killed


def test_a_heap_that_nobody_may_write_is_granted_for_reading_alone(shell, client):
    file = shell.create(client, managed=False, read_only=True, name="file")
    shell.spawn(client, file)
    assert [grant.writable for grant in shell.forked[0].grants] == [False]
    assert shell.forked[0].descriptors[-1] == SegmentDescriptor(file, read_only=True)


def test_beside_a_writable_heap_a_read_only_one_is_granted_for_reading(shell, client):
    heap, file = shell.create(client), shell.create(client, managed=False, read_only=True)
    shell.chain(client, heap, file)
    shell.spawn(client, heap)
    assert [grant.writable for grant in shell.forked[0].grants] == [True, False]
    assert shell.forked[0].descriptors[-1] == SegmentDescriptor(file, read_only=True)


def test_only_a_head_can_be_attached(shell, client):
    head, body = shell.create(client), shell.create(client)
    shell.chain(client, head, body)
    with pytest.raises(errors.AttachError, match="is a body"):
        shell.begin_spawn(client, body)


def test_an_instance_is_attached_and_detached_again_and_again(shell, client):
    first, second = shell.create(client), shell.create(client)
    worker = shell.spawn(client)
    for heap in (first, second, first):
        shell.attach(client, worker, heap)
        assert shell.last(worker, messages.MapChain).grants[0].heap == heap
        shell.mind.invariants()
        shell.detach(client, worker)
        shell.mind.invariants()


def test_attach_and_detach_are_refused_where_the_instance_is_not_ready_for_them(shell, client):
    heap = shell.create(client, name="frames")
    worker = shell.spawn(client)
    with pytest.raises(errors.AttachError, match="attached to nothing"):
        shell.ask(client, messages.Detach, instance=worker)
    attach = {"kind": messages.Attach, "instance": worker, "chain_head": heap, "read_only": False}
    shell.begin(client, **attach)
    with pytest.raises(errors.AttachError, match=r"'frames'.* is being attached"):
        shell.ask(client, **attach)
    with pytest.raises(errors.AttachError, match="is being attached"):
        shell.ask(client, messages.Detach, instance=worker)
    shell.answer_last(worker)
    with pytest.raises(errors.AttachError, match="is attached already"):
        shell.ask(client, **attach)
    shell.begin(client, messages.Detach, instance=worker)
    for refused in (attach, {"kind": messages.Detach, "instance": worker}):
        with pytest.raises(errors.AttachError, match="is being detached"):
            shell.ask(client, **refused)
    shell.mind.invariants()


def test_an_attach_that_the_worker_refuses_leaves_it_detached(shell, client):
    heap = shell.create(client)
    worker = shell.spawn(client)
    number = shell.begin(client, messages.Attach, instance=worker, chain_head=heap, read_only=False)
    code, facts = errors.to_wire(errors.AttachError("frames", "linear memory reaches the heap"))
    shell.tell(worker, messages.Failed(request=shell.sent[worker][-1].request, code=code, facts=facts))
    with pytest.raises(errors.AttachError, match="linear memory"):
        shell.only_answer(client, number)
    shell.mind.invariants()
    shell.ask(client, messages.ResetChain, head=heap)
    shell.attach(client, worker, heap)


def test_detach_takes_the_leases_that_the_worker_did_not_give_back(shell, client):
    heap = shell.create(client, free_on_death=True)
    worker = shell.spawn(client, heap)
    shell.lease(worker, heap, size_class=0, slabs=3)
    shell.heaps[heap].live[1] = 1
    number = shell.begin(client, messages.Detach, instance=worker)
    shell.tell(worker, messages.Release(heap=heap, ranges=[SlabRange(0, 1)]))
    shell.answer_last(worker)
    shell.only_answer(client, number)
    assert shell.heaps[heap].owners[:3] == [NOBODY, COORDINATOR, NOBODY]
    shell.mind.invariants()


def test_a_late_answer_to_a_recall_is_fine(shell, client):
    heap = shell.create(client)
    worker = shell.spawn(client, heap)
    shell.detach(client, worker)
    shell.tell(worker, messages.Recalled(heap=heap))
    assert worker not in shell.killed


@pytest.mark.parametrize(
    "kind",
    [messages.Attach, messages.Detach, messages.Kill, messages.CloseInstance],
)
def test_a_client_may_touch_only_its_own_instances(shell, client, kind):
    heap = shell.create(client, name="frames")
    worker = shell.spawn(client, heap)
    stranger = shell.connect()
    shell.ask(stranger, messages.OpenHeap, name="frames")
    fields = {"chain_head": heap, "read_only": False} if kind is messages.Attach else {}
    for instance in (worker, client, stranger, 0, -1, COORDINATOR + 1000):
        with pytest.raises(errors.ArgumentError, match=f"instance {instance} "):
            shell.ask(stranger, kind, instance=instance, **fields)
    assert worker not in shell.killed


# ---------------------------------------------------------------- starting fails


def test_a_worker_that_cannot_be_forked_answers_the_spawn(shell, client):
    heap = shell.create(client)
    worker, number = shell.begin_spawn(client, heap)
    shell.feed(events.LauncherSpoke(messages.ForkFailed(worker=worker, reason="out of memory")))
    with pytest.raises(errors.InstantiationError, match="out of memory"):
        shell.only_answer(client, number)
    assert worker in shell.forgotten
    shell.ask(client, messages.ResetChain, head=heap)


def test_an_instance_that_cannot_be_made_answers_the_spawn_with_the_worker_s_error(shell, client):
    worker, number = shell.begin_spawn(client)
    shell.feed(forked(worker))
    code, facts = errors.to_wire(errors.ModuleError("module", "it has no memory"))
    shell.tell(worker, messages.StartFailed(code=code, facts=facts))
    with pytest.raises(errors.ModuleError, match="no memory"):
        shell.only_answer(client, number)
    shell.end_worker(worker, signal=None, exit_code=0)
    assert not shell.received(client, messages.InstanceExited)
    assert len(shell.answers(client, number)) == 1


def test_a_worker_that_dies_before_it_is_ready_answers_the_spawn(shell, client):
    worker, number = shell.begin_spawn(client)
    shell.feed(forked(worker))
    shell.end_worker(worker, signal=11)
    with pytest.raises(errors.WorkerLostError, match="SIGSEGV"):
        shell.only_answer(client, number)
    assert not shell.received(client, messages.InstanceExited)


def test_without_a_launcher_spawning_fails_by_name(shell, client):
    shell.feed(events.LauncherGone())
    with pytest.raises(errors.InstantiationError, match="launcher"):
        shell.begin_spawn(client)
    shell.mind.invariants()


def test_a_launcher_that_dies_takes_its_workers_along(shell, client):
    heap = shell.create(client)
    running = shell.spawn(client, heap)
    unheard, number = shell.begin_spawn(client, heap)
    shell.lease(running, heap)
    shell.feed(events.LauncherGone())
    assert shell.heaps[heap].owners[0] == running
    shell.feed(events.ConnectionClosed(unheard))
    with pytest.raises(errors.WorkerLostError):
        shell.only_answer(client, number)
    shell.feed(events.ConnectionClosed(running))
    shell.feed(events.ProcessGone(running))
    assert shell.last(client, messages.InstanceExited).signal == 9
    assert set(shell.heaps[heap].owners) == {NOBODY}
    shell.mind.invariants()


# ---------------------------------------------------------------- ending


def test_a_worker_s_leases_are_reclaimed_before_its_client_hears_of_its_end(shell, client):
    heap = shell.create(client)
    worker = shell.spawn(client, heap)
    shell.lease(worker, heap)
    shell.heaps[heap].live[0] = 1
    exited = events.LauncherSpoke(messages.Exited(worker=worker, pid=1000 + worker, signal=9, exit_code=None))
    decided = shell.mind.handle(exited)
    kinds = [type(action) for action in decided]
    farewell = messages.InstanceExited(instance=worker, pid=1000 + worker, signal=9, exit_code=None)
    assert kinds.index(actions.Reclaim) < decided.index(actions.Send(client, farewell))


def test_a_death_frees_live_blocks_where_the_heap_says_so_and_keeps_them_elsewhere(shell, client):
    keeps, frees = shell.create(client), shell.create(client, free_on_death=True)
    shell.chain(client, keeps, frees)
    worker = shell.spawn(client, keeps)
    for heap in (keeps, frees):
        shell.lease(worker, heap)
        shell.heaps[heap].live[0] = 1
    shell.end_worker(worker)
    assert shell.heaps[keeps].owners[0] == COORDINATOR
    assert shell.heaps[frees].owners[0] == NOBODY
    assert shell.received(client, messages.InstanceExited) == [
        messages.InstanceExited(instance=worker, pid=1000 + worker, signal=9, exit_code=None)
    ]
    assert worker in shell.forgotten


def test_requests_that_wait_for_a_worker_are_answered_when_it_dies(shell, client):
    heap = shell.create(client)
    worker = shell.spawn(client)
    attach = shell.begin(client, messages.Attach, instance=worker, chain_head=heap, read_only=False)
    close = shell.begin(client, messages.CloseInstance, instance=worker)
    shell.end_worker(worker, signal=None, exit_code=3)
    with pytest.raises(errors.WorkerLostError, match="code 3"):
        shell.only_answer(client, attach)
    assert shell.only_answer(client, close) == messages.Done(request=close)
    shell.mind.invariants()


def test_kill_is_done_at_once_and_the_end_follows(shell, client):
    worker = shell.spawn(client)
    shell.ask(client, messages.Kill, instance=worker)
    assert worker in shell.killed
    assert not shell.received(client, messages.InstanceExited)
    shell.end_worker(worker)
    assert shell.last(client, messages.InstanceExited).instance == worker


def test_close_lets_the_worker_finish_and_answers_everybody_who_asked(shell, client):
    worker = shell.spawn(client)
    numbers = [shell.begin(client, messages.CloseInstance, instance=worker) for _ in range(2)]
    assert shell.received(worker, messages.Stop) == [messages.Stop()]
    assert worker not in shell.killed
    heap = shell.create(client)
    with pytest.raises(errors.ClosedError):
        shell.attach(client, worker, heap)
    assert not any(shell.answers(client, number) for number in numbers)
    shell.end_worker(worker, signal=None, exit_code=0)
    for number in numbers:
        shell.only_answer(client, number)


def test_an_instance_that_is_gone_can_be_closed_and_killed_but_not_attached(shell, client):
    heap = shell.create(client)
    worker = shell.spawn(client)
    shell.end_worker(worker)
    shell.ask(client, messages.CloseInstance, instance=worker)
    shell.ask(client, messages.Kill, instance=worker)
    with pytest.raises(errors.WorkerLostError):
        shell.attach(client, worker, heap)
    with pytest.raises(errors.WorkerLostError):
        shell.detach(client, worker)


def test_a_worker_whose_connection_ends_is_killed(shell, client):
    worker = shell.spawn(client)
    shell.feed(events.ConnectionClosed(worker))
    assert worker in shell.killed
    assert worker not in shell.forgotten


def test_a_client_s_death_kills_its_workers_and_nobody_else_s(shell, client):
    mine = shell.spawn(client)
    other = shell.connect()
    theirs = shell.spawn(other)
    shell.feed(events.ConnectionClosed(other))
    assert shell.killed == {theirs}
    shell.feed(events.ProcessGone(other))
    shell.end_worker(theirs)
    assert mine not in shell.forgotten
    shell.mind.invariants()


def test_a_worker_that_is_forked_after_its_client_died_is_killed_when_it_is_known(shell):
    other = shell.connect()
    worker, _ = shell.begin_spawn(other)
    shell.kill_client(other)
    assert worker not in shell.killed
    shell.feed(forked(worker))
    assert worker in shell.killed
    shell.tell(worker, messages.Ready())
    shell.end_worker(worker)
    shell.mind.invariants()


def test_a_report_about_a_forgotten_worker_is_ignored(shell, client):
    worker = shell.spawn(client)
    shell.end_worker(worker)
    shell.end_worker(worker)
    shell.feed(forked(worker))
    shell.tell(worker, messages.Ready())
    shell.mind.invariants()


@pytest.mark.parametrize(
    "message",
    [
        messages.Ready(),
        messages.StartFailed(code="ModuleError", facts={}),
        messages.Done(request=0),
        messages.Done(request=1),
        messages.Failed(request=1, code="AttachError", facts={}),
        messages.Lease(request=1, heap=77, size_class=1, slabs=1),
        messages.Release(heap=1, ranges=[SlabRange(5, 1)]),
        messages.Lease(request=1, heap=1, size_class=1, slabs=0),
    ],
)
def test_a_message_that_the_worker_s_state_does_not_allow_costs_its_life_and_changes_nothing(shell, client, message):
    heap = shell.create(client)
    assert heap == 1
    worker = shell.spawn(client, heap)
    before = shell.mind._report(messages.Status(request=0))
    sent = len(shell.sent[client])
    shell.tell(worker, message)
    assert shell.killed == {worker}
    assert len(shell.sent[client]) == sent
    assert shell.mind._report(messages.Status(request=0)) == before
    shell.end_worker(worker)
    assert shell.last(client, messages.InstanceExited).signal == 9
    shell.mind.invariants()


def test_spawn_refuses_a_negative_quota_by_name(shell, client):
    with pytest.raises(errors.ArgumentError, match="-1"):
        shell.begin_spawn(client, quota=-1)
    assert not shell.forked


# ---------------------------------------------------------------- starts with a time limit


def begin_limited(shell, client, **options):
    worker, number = shell.begin_spawn(client, time_limit=2.5, **options)
    (deadline,) = [one for one in shell.deadlines if isinstance(one, SpawnDeadline)]
    return worker, number, events.DeadlinePassed(deadline)


@pytest.mark.parametrize("forked_before", [False, True])
@pytest.mark.parametrize("ready", [False, True])
def test_a_worker_that_is_not_ready_in_time_is_killed_and_its_client_told_once_it_is_gone(shell, client, forked_before, ready):
    heap = shell.create(client)
    worker, number, passes = begin_limited(shell, client, heap=heap)
    if forked_before:
        shell.feed(forked(worker))
    shell.feed(passes)
    assert shell.killed == ({worker} if forked_before else set())
    if not forked_before:
        shell.feed(forked(worker))
    if ready:  # it says so just before the kill
        shell.tell(worker, messages.Ready())
    assert shell.killed == {worker}
    assert not shell.answers(client, number)
    shell.end_worker(worker)
    with pytest.raises(errors.InstantiationError, match=r"not ready within 2\.5 s"):
        shell.only_answer(client, number)
    assert not shell.received(client, messages.InstanceExited)
    assert worker in shell.forgotten
    shell.mind.invariants()
    shell.ask(client, messages.ResetChain, head=heap)


def test_a_worker_that_was_ready_before_its_process_was_known_is_not_announced_after_its_time(shell, client):
    worker, number, passes = begin_limited(shell, client)
    shell.tell(worker, messages.Ready())
    shell.feed(passes)
    shell.feed(forked(worker))
    assert not shell.answers(client, number)
    shell.end_worker(worker)
    with pytest.raises(errors.InstantiationError, match="not ready"):
        shell.only_answer(client, number)


def test_a_start_that_fails_after_its_time_is_told_as_it_failed(shell, client):
    worker, number, passes = begin_limited(shell, client)
    shell.feed(forked(worker))
    shell.feed(passes)
    code, facts = errors.to_wire(errors.InstantiationError(worker, "unreachable"))
    shell.tell(worker, messages.StartFailed(code=code, facts=facts))
    shell.end_worker(worker)
    with pytest.raises(errors.InstantiationError, match="unreachable"):
        shell.only_answer(client, number)


def test_the_time_of_a_start_means_nothing_to_a_worker_that_runs_or_is_gone(shell, client):
    worker, number, passes = begin_limited(shell, client)
    shell.feed(forked(worker))
    shell.tell(worker, messages.Ready())
    shell.feed(passes)
    assert not shell.killed
    assert isinstance(shell.only_answer(client, number), messages.Spawned)
    shell.end_worker(worker)
    shell.feed(passes)
    assert shell.received(client, messages.InstanceExited)


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan])
def test_spawn_refuses_a_time_limit_that_is_not_above_0_by_name(shell, client, limit):
    with pytest.raises(errors.ArgumentError, match=str(limit)):
        shell.begin_spawn(client, time_limit=limit)
    assert not shell.forked
