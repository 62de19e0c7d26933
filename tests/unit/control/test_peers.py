"""Connections: the greeting, what breaks the protocol, and when a coordinator ends."""

from __future__ import annotations

import pytest

from shmwasm import errors
from shmwasm.control import events
from shmwasm.control.deadlines import HelloDeadline
from shmwasm.control.slabs import SlabMap
from shmwasm.control.workers import ATTACHMENT, LIFE, Attachment, AttachmentInput, Life, LifeInput
from shmwasm.protocol import messages
from shmwasm.protocol.messages import SlabRange


def connect_silently(shell) -> int:
    shell.feed(events.ClientConnected(len(shell._admitted)))
    return max(shell._admitted.values())


def test_the_welcome_tells_the_peer_s_number_and_the_address(shell, client):
    welcome = shell.last(client, messages.Welcome)
    assert (welcome.peer, welcome.address, welcome.private, welcome.version) == (client, "here", False, messages.VERSION)


def test_numbers_are_never_used_twice(shell, client):
    worker = shell.spawn(client)
    shell.end_worker(worker)
    other = shell.connect()
    shell.kill_client(other)
    assert len({client, worker, other, shell.connect()}) == 4


FATES = {
    "the asker itself": (lambda shell, client, asker: asker, True),
    "its client": (lambda shell, client, asker: client, True),
    "another worker": (lambda shell, client, asker: shell.spawn(client), True),
    "a worker that is still being forked": (lambda shell, client, asker: shell.begin_spawn(client)[0], True),
    "a worker that only hung up": (lambda shell, client, asker: meets(shell, shell.spawn(client), events.ConnectionClosed), True),
    "a worker whose process is gone": (lambda shell, client, asker: meets(shell, shell.spawn(client), events.ProcessGone), False),
    "a client that only hung up": (lambda shell, client, asker: meets(shell, shell.connect(), events.ConnectionClosed), True),
    "a client whose process is gone": (lambda shell, client, asker: meets(shell, shell.connect(), events.ProcessGone), False),
    "nobody": (lambda shell, client, asker: messages.NOBODY, False),
    "a number to come": (lambda shell, client, asker: 1000, False),
    "no number": (lambda shell, client, asker: -1, False),
}


def meets(shell, peer: int, fate) -> int:
    shell.feed(fate(peer))
    return peer


@pytest.mark.parametrize("who", FATES)
def test_a_peer_is_alive_until_the_kernel_says_that_its_process_is_gone(shell, client, who):
    asker = shell.spawn(client)
    find, alive = FATES[who]
    assert shell.ask(asker, messages.IsAlive, number=find(shell, client, asker)).alive is alive


def test_a_client_that_asks_what_only_workers_may_ask_is_disconnected(shell, client):
    shell.tell(client, messages.IsAlive(request=7, number=client))
    assert "IsAlive" in shell.disconnected[client]


@pytest.mark.parametrize(
    "message", [messages.Status(request=1), messages.Goodbye(), messages.OpenHeap(request=1, name="frames"), messages.Ready()]
)
def test_whoever_does_not_say_hello_first_is_disconnected_without_an_answer(shell, message):
    peer = connect_silently(shell)
    shell.tell(peer, message)
    assert shell.disconnected[peer]
    assert not shell.sent[peer]


def test_hello_twice_is_a_violation(shell, client):
    shell.tell(client, messages.Hello(request=9, version=messages.VERSION))
    assert "twice" in shell.disconnected[client]


def test_another_version_is_refused_with_both_versions_and_disconnected(shell):
    peer = connect_silently(shell)
    shell.tell(peer, messages.Hello(request=1, version=99))
    with pytest.raises(errors.PeerRefusedError, match=f"99.*{messages.VERSION}"):
        shell.only_answer(peer, 1)
    assert peer in shell.disconnected


def test_whoever_stays_silent_is_disconnected_and_who_greeted_is_not(shell, client):
    silent = connect_silently(shell)
    for peer in (client, silent, 99):
        shell.feed(events.DeadlinePassed(HelloDeadline(peer)))
    assert set(shell.disconnected) == {silent}


@pytest.mark.parametrize(
    ("message", "descriptors"),
    [
        (messages.CreateHeap(request=7, name="", size=1 << 16, managed=True), 0),
        (messages.CreateHeap(request=7, name="", size=1 << 16, managed=True), 2),
        (messages.Status(request=7), 1),
        (messages.Spawn(request=7, plan=messages.SpawnPlan(module_key="", module_name="")), 0),
        (messages.Spawn(request=7, plan=messages.SpawnPlan(module_key="", module_name="")), 1),
        (messages.Ready(), 0),
        (messages.Hello(request=7, version=messages.VERSION, quota=-1), 0),
    ],
)
def test_a_violation_costs_one_client_its_connection_and_nobody_else(shell, client, message, descriptors):
    other = shell.connect()
    shell.tell(other, message, descriptors)
    assert set(shell.disconnected) == {other}
    assert not shell.answers(other, 7)
    shell.create(client)
    shell.mind.invariants()


def test_a_refused_release_or_lease_of_an_unknown_heap_differ(shell, client):
    with pytest.raises(errors.UnknownHeapError):
        shell.lease(client, 5)
    shell.tell(client, messages.Release(heap=5, ranges=[SlabRange(0, 1)]))
    assert client in shell.disconnected


def test_a_disconnected_client_keeps_its_heaps_until_its_process_is_gone(shell):
    other = shell.connect()
    heap = shell.create(other)
    shell.lease(other, heap)
    shell.tell(other, messages.Hello(request=9, version=messages.VERSION))
    assert shell.heaps[heap].owners[0] == other
    shell.tell(other, messages.Status(request=10))
    assert not shell.answers(other, 10)
    shell.feed(events.ProcessGone(other))
    assert not shell.heaps
    assert other in shell.forgotten
    shell.mind.invariants()


def test_a_shared_coordinator_outlives_its_clients(shell, client):
    shell.tell(client, messages.Goodbye())
    assert not shell.exited


@pytest.mark.parametrize("end", ["goodbye", "closed", "gone"])
def test_a_private_coordinator_exits_with_its_last_client(new_shell, end):
    shell = new_shell(private=True)
    first, last = shell.connect(), shell.connect()
    shell.tell(first, messages.Goodbye())
    assert not shell.exited
    match end:
        case "goodbye":
            shell.tell(last, messages.Goodbye())
        case "closed":
            shell.feed(events.ConnectionClosed(last))
        case "gone":
            shell.feed(events.ProcessGone(last))
    assert shell.exited


def test_what_happens_to_a_forgotten_peer_is_ignored(shell):
    other = shell.connect()
    shell.tell(other, messages.Goodbye())
    shell.feed(events.ConnectionClosed(other))
    shell.feed(events.ProcessGone(other))
    shell.tell(other, messages.Goodbye())
    shell.mind.invariants()


def test_every_state_of_a_worker_can_be_reached_and_only_ends_have_no_way_on():
    assert {Life.FORKING, *LIFE.values()} == set(Life)
    assert {Attachment.DETACHED, *ATTACHMENT.values()} == set(Attachment)
    assert {given for _, given in LIFE} == set(LifeInput)
    assert {given for _, given in ATTACHMENT} == set(AttachmentInput)
    assert set(Life) - {state for state, _ in LIFE} == {Life.STOPPING}
    assert set(Attachment) == {state for state, _ in ATTACHMENT}


@pytest.mark.parametrize("damage", ["owner", "flag", "count", "set"])
def test_a_slab_map_whose_views_disagree_is_found(damage):
    slabs = SlabMap(8)
    slabs.take([SlabRange(2, 3)], 7)
    slabs.verify("frames")
    match damage:
        case "owner":
            slabs._owners[2] = 9
        case "flag":
            slabs._free[2] = 1
            slabs.free_count += 1
        case "count":
            slabs.free_count += 1
        case "set":
            slabs._held[9] = {2}
    with pytest.raises(errors.HeapCorruptError, match="frames"):
        slabs.verify("frames")
