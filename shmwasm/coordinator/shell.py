"""The coordinator's loop: what happens outside becomes events, the mind's actions are performed. It decides nothing.

Nothing here waits for a peer. Whatever a peer sends, and however it ends, costs that peer alone.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import secrets
import selectors
import signal
import time
from typing import TYPE_CHECKING, Final, Self, assert_never

from shmwasm.control import actions, events
from shmwasm.control.mind import Coordinator
from shmwasm.coordinator.authority import compile_core, new_core
from shmwasm.coordinator.launching import LauncherProcess, compiled_adapters
from shmwasm.coordinator.links import Link
from shmwasm.coordinator.storage import Storage
from shmwasm.errors import PeerRefusedError, ProtocolError, ShmwasmError, UnsupportedError
from shmwasm.posix.channels import Channel
from shmwasm.posix.processes import peer_pidfd, send_signal, wait_gone
from shmwasm.protocol import codec, messages
from shmwasm.protocol.messages import NOBODY

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from shmwasm.posix.listening import Listener

_log = logging.getLogger("shmwasm.coordinator")

_MESSAGES_OF_THE_DEAD: Final = 4096
"""More than any socket holds: what a process that is gone may have left to be read."""

_RETRY_SECONDS: Final = 0.5
"""When to try again to accept, after the kernel had no descriptor for it."""

_LONGEST_WAIT: Final = 86400.0
"""Seconds to wait for events at most: the kernel's own limit is 24 days, a client's need not be."""

_PATIENCE: Final = 5.0
"""How long killed workers may take to vanish, in seconds."""


class Shell:
    """One coordinator. `client` is the first client of a private one, which ends with its clients."""

    def __init__(self, listener: Listener, client: Channel | None) -> None:
        self._listener = listener
        self._mind = Coordinator(new_token=lambda: secrets.token_hex(16), address=listener.address, private=client is not None)
        self._selector = selectors.DefaultSelector()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._connections: dict[int, Channel] = {}
        self._connection_numbers = itertools.count(1)
        self._links: dict[int, Link] = {}
        self._workers: set[int] = set()
        self._call_channels: dict[int, Channel] = {}
        self._received: list[int] = []
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_numbers = itertools.count()
        self._running = True
        with compile_core() as core, compiled_adapters() as wasi:
            self._launcher = LauncherProcess(core.descriptor, wasi)
            self._storage = Storage(new_core(core))
        self._watch(self._wake, lambda: os.eventfd_read(self._wake))
        self._watch(self._launcher.link.channel.fileno(), self._launcher_ready)
        assert self._launcher.link.pidfd is not None
        self._watch(self._launcher.link.pidfd, self._launcher_gone)
        self._watch(listener.fileno(), self._accept)
        if client is not None:
            self._connected(client)

    def run(self) -> None:
        """Serve until told to stop, or until nobody needs this coordinator any more."""
        while self._running:
            for key, _ in self._selector.select(self._patience()):
                # An earlier one may have closed this descriptor, or closed it and got its number for something else.
                if self._selector.get_map().get(key.fd) == key:
                    key.data()
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                heapq.heappop(self._timers)[2]()

    def stop(self) -> None:
        """Make `run` return. Safe in a signal handler."""
        self._running = False
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """End every worker and the launcher, and release everything."""
        for worker in self._workers:
            self._kill(worker)
        self._launcher.end()
        deadline = time.monotonic() + _PATIENCE
        for worker in self._workers:
            pidfd = self._links[worker].pidfd
            if pidfd is not None and not wait_gone(pidfd, max(0.0, deadline - time.monotonic())):
                _log.warning("worker %d did not end", worker)
        for peer in list(self._links):
            self._forget(peer)
        for channel in self._connections.values():
            channel.close()
        self._storage.close()
        self._selector.close()
        os.close(self._wake)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # ------------------------------------------------------------ events

    def _feed(self, event: events.Event) -> None:
        for action in self._mind.handle(event):
            answer = self._perform(action)
            if answer is not None:
                self._feed(answer)

    def _accept(self) -> None:
        try:
            self._connected(self._listener.accept())
        except PeerRefusedError as refusal:
            _log.warning("%s", refusal)
        except UnsupportedError as shortage:
            _log.warning("%s", shortage)
            self._selector.unregister(self._listener.fileno())
            self._after(_RETRY_SECONDS, lambda: self._watch(self._listener.fileno(), self._accept))

    def _connected(self, channel: Channel) -> None:
        number = next(self._connection_numbers)
        self._connections[number] = channel
        self._feed(events.ClientConnected(number))

    def _peer_ready(self, peer: int) -> None:
        link = self._links[peer]
        if link.has_queue and not self._flush(link):
            self._hang_up(peer)
        else:
            self._read(peer)

    def _launcher_ready(self) -> None:
        if self._launcher.link.has_queue:
            self._flush(self._launcher.link)
        self._read_launcher()

    def _read(self, peer: int, limit: int = 1) -> None:
        """Hand in what the peer has sent, and then perhaps its end: one message, before the others have their turn."""
        decoder = codec.worker_messages if peer in self._workers else codec.client_messages
        for _ in range(limit):
            link = self._links.get(peer)
            if link is None or not link.is_open:
                return
            try:
                packet = link.channel.receive(timeout=0)
                if packet is None:
                    self._hang_up(peer)
                    return
                self._received = packet[1]
                message = decoder.decode(packet[0])
                self._feed(events.MessageReceived(peer, message, len(packet[1])))
            except TimeoutError:
                return
            except ProtocolError as violation:
                _log.warning("peer %d is disconnected: %s", peer, violation)
                self._hang_up(peer)
                return
            finally:
                self._close_received()

    def _hang_up(self, peer: int) -> None:
        """The peer's connection is of no use any more."""
        link = self._links.get(peer)
        if link is None or not link.is_open:
            return
        self._close_channel(link)
        self._feed(events.ConnectionClosed(peer))
        if link.pidfd is None and peer not in self._workers:
            # Its process could not be watched, see `_admit`: the end of its connection is all that can be known.
            self._feed(events.ProcessGone(peer))

    def _process_gone(self, peer: int) -> None:
        self._read(peer, _MESSAGES_OF_THE_DEAD)
        link = self._links.get(peer)
        if link is not None and link.pidfd is not None:
            self._selector.unregister(link.pidfd)
            link.close_pidfd()
            self._feed(events.ProcessGone(peer))

    def _read_launcher(self, limit: int = 1) -> None:
        link = self._launcher.link
        for _ in range(limit):
            if not link.is_open:
                return
            try:
                packet = link.channel.receive(timeout=0)
                if packet is None:
                    self._close_channel(link)
                    return
                self._received = packet[1]
                self._hear_launcher(codec.launcher_messages.decode(packet[0]))
            except TimeoutError:
                return
            except ProtocolError as violation:
                _log.warning("the launcher is ended: %s", violation)
                self._close_channel(link)
                self._launcher.kill()
                return
            finally:
                self._close_received()

    def _hear_launcher(self, message: messages.LauncherMessage) -> None:
        link = self._links.get(message.worker)
        if isinstance(message, messages.Forked) and link is not None and self._received:
            link.pidfd = self._received.pop(0)
            self._watch(link.pidfd, lambda: self._process_gone(message.worker))
        elif isinstance(message, messages.Exited):
            self._read(message.worker, _MESSAGES_OF_THE_DEAD)
        self._feed(events.LauncherSpoke(message))

    def _launcher_gone(self) -> None:
        """The launcher ended, which it does not while it is wanted."""
        self._read_launcher(_MESSAGES_OF_THE_DEAD)
        link = self._launcher.link
        self._close_channel(link)
        if link.pidfd is not None:
            self._selector.unregister(link.pidfd)
        link.close_pidfd()
        _log.warning("the launcher ended with status %d: no more instances can be spawned", self._launcher.reap())
        self._feed(events.LauncherGone())

    # ------------------------------------------------------------ actions

    def _perform(self, action: actions.Action) -> events.Event | None:
        """Perform an action; return the event that answers it, if it has one."""
        if isinstance(action, actions.HeapAction):
            return self._perform_on_heap(action)
        match action:
            case actions.Send():
                self._send(action)
            case actions.Admit(connection, peer):
                return self._admit(connection, peer)
            case actions.Disconnect(peer, problem):
                if problem:
                    _log.warning("peer %d is disconnected: %s", peer, problem)
                self._close_channel(self._links[peer])
            case actions.Forget(peer):
                self._forget(peer)
            case actions.KillWorker(worker, problem):
                if problem:
                    _log.warning("worker %d is killed: %s", worker, problem)
                self._kill(worker)
            case actions.ForkWorker():
                return self._fork(action)
            case actions.StartDeadline(deadline, seconds):
                self._after(seconds, lambda: self._feed(events.DeadlinePassed(deadline)))
            case actions.Exit():
                self._running = False
            case _:
                assert_never(action)
        return None

    def _perform_on_heap(self, action: actions.HeapAction) -> events.Event | None:
        match action:
            case actions.WriteOwners(lease, heap, ranges, owner):
                return events.OwnersWritten(lease, self._storage.write_owners(heap, ranges, owner))
            case actions.StoreHeap(heap=heap):
                try:
                    return events.HeapStored(heap, self._storage.store(action, self._received[0]))
                except ShmwasmError as error:
                    return events.HeapNotStored(heap, error)
            case actions.DropHeap(heap):
                self._storage.drop(heap)
                return None
            case actions.FindAdopted(lease, heap, size_class):
                return events.AdoptedFound(lease, self._storage.find_adopted(heap, size_class))
            case actions.LetAskAgain(heap):
                self._storage.let_ask_again(heap)
                return None
            case actions.ReleaseSlabs(heap, ranges):
                return events.SlabsReclaimed(heap, NOBODY, *self._storage.release(heap, ranges))
            case actions.Reclaim(heap, owner, ranges, free_live):
                return events.SlabsReclaimed(heap, owner, *self._storage.reclaim(heap, ranges, free_live=free_live))
            case actions.ResetMetadata(heap, used):
                self._storage.reset(heap, used)
                return None
            case actions.VerifyHeaps(verification, heaps):
                broken = next(filter(None, map(self._storage.verify, heaps)), None)
                return events.HeapsVerified(verification, broken)
            case _:
                assert_never(action)

    def _admit(self, connection: int, peer: int) -> events.Event | None:
        channel = self._connections.pop(connection)
        link = self._links[peer] = Link(channel)
        self._watch(channel.fileno(), lambda: self._peer_ready(peer))
        try:
            link.pidfd = peer_pidfd(channel.socket)
        except UnsupportedError as limitation:
            _log.warning("%s", limitation)
            return None
        if link.pidfd is None:
            return events.ProcessGone(peer)
        self._watch(link.pidfd, lambda: self._process_gone(peer))
        return None

    def _send(self, action: actions.Send) -> None:
        link = self._links[action.peer]
        passed_on: Channel | None = None
        descriptors: list[int] = []
        try:
            for wanted in action.descriptors:
                if isinstance(wanted, actions.CallChannel):
                    passed_on = self._call_channels.pop(wanted.worker)
                    descriptors.append(passed_on.fileno())
                else:
                    descriptors.append(self._storage.descriptor(wanted))
            if link.send(codec.encode(action.message), descriptors):
                self._watch_room(link)
                return
            problem = "it does not read its messages"
        except ShmwasmError as error:
            problem = str(error)
        finally:
            if passed_on is not None:
                passed_on.close()
        _log.warning("peer %d is disconnected: %s", action.peer, problem)
        self._after(0, lambda: self._hang_up(action.peer))

    def _fork(self, action: actions.ForkWorker) -> events.Event | None:
        """Ask the launcher for a worker; a failure on our side is told like one of the launcher's."""
        mine: list[Channel] = []
        theirs: list[Channel] = []
        try:
            for _ in range(2):
                ours, workers = Channel.pair()
                mine.append(ours)
                theirs.append(workers)
            granted = [self._storage.descriptor(wanted) for wanted in action.descriptors]
            descriptors = [*self._received, *(channel.fileno() for channel in theirs), *granted]
            message = messages.Fork(worker=action.worker, plan=action.plan, grants=list(action.grants))
            if not self._launcher.link.send(codec.encode(message), descriptors):
                raise UnsupportedError("one more instance", "the launcher has too many to fork already")
        except (ShmwasmError, OSError) as error:
            for channel in mine:
                channel.close()
            return events.LauncherSpoke(messages.ForkFailed(worker=action.worker, reason=str(error)))
        finally:
            for channel in theirs:
                channel.close()
        control, self._call_channels[action.worker] = mine
        self._links[action.worker] = Link(control)
        self._workers.add(action.worker)
        self._watch(control.fileno(), lambda: self._peer_ready(action.worker))
        self._watch_room(self._launcher.link)
        return None

    def _kill(self, worker: int) -> None:
        link = self._links.get(worker)
        if link is not None and link.pidfd is not None:
            send_signal(link.pidfd, signal.SIGKILL)

    def _forget(self, peer: int) -> None:
        link = self._links.pop(peer, None)
        self._workers.discard(peer)
        if link is not None:
            self._close_channel(link)
            if link.pidfd is not None:
                self._selector.unregister(link.pidfd)
            link.close_pidfd()
        call_channel = self._call_channels.pop(peer, None)
        if call_channel is not None:
            call_channel.close()

    # ------------------------------------------------------------ helpers

    def _watch(self, descriptor: int, callback: Callable[[], object]) -> None:
        self._selector.register(descriptor, selectors.EVENT_READ, callback)

    def _watch_room(self, link: Link) -> None:
        """Wait for room at the other end exactly while something is queued for it."""
        if link.is_open and link.has_queue != link.watches_room:
            link.watches_room = link.has_queue
            key = self._selector.get_key(link.channel.fileno())
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if link.has_queue else 0)
            self._selector.modify(key.fd, wanted, key.data)

    def _flush(self, link: Link) -> bool:
        going_on = link.flush()
        self._watch_room(link)
        return going_on

    def _after(self, seconds: float, callback: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._timer_numbers), callback))

    def _patience(self) -> float | None:
        return min(max(0.0, self._timers[0][0] - time.monotonic()), _LONGEST_WAIT) if self._timers else None

    def _close_channel(self, link: Link) -> None:
        if link.is_open:
            self._selector.unregister(link.channel.fileno())
            link.close_channel()

    def _close_received(self) -> None:
        for descriptor in self._received:
            os.close(descriptor)
        self._received = []
