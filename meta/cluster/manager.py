"""The cluster manager: who is there, which chains exist, which clients live.

One writer: every change is planned as a `Draft` by pure functions, made durable in the KV engine, applied to the `Book` and
then told to the listeners, in this order and under one lock. Whatever may be lost with the process (when a node was last heard of, how full
its disks are, until when a client's lease runs) lives in memory; after a restart everybody gets one whole lease to show up.

With the embedded engine there is one manager, inside the metadata server's process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, Protocol

import structlog

from ...proto.capability import EPOCH_SECONDS, KEY_BYTES, issue
from ...proto.errors import Status, error
from ...proto.gen.cluster_pb2 import (
    LOCAL_STATE_OFFLINE,
    LOCAL_STATE_ONLINE,
    NODE_KIND_STORAGE,
    HeartbeatRequest,
    Node,
    Routing,
    Target,
)
from ..kv.engine import Engine
from .chain import Report
from .lease import Leases
from .registration import TABLE_OF_FILES, drain, move_chains, register
from .routing import Book, Draft, Kind, State
from .store import Store

NODE_LEASE_SECONDS = 5.0  # scaled; a storage node renews it with every heartbeat
CLIENT_LEASE_SECONDS = 60.0  # scaled; renewed six times as often by the client's keeper
CHECKS_PER_LEASE = 12  # a lease that ran out is noticed that much later at most
CLIENTS_MAX = 100_000  # with a lease, or ended and not forgotten yet
CLUSTER_ID_BYTES = 8

_log = structlog.get_logger("emberfs.manager")


class Clock(Protocol):
    """The part of `proto.env.Environment` that the manager uses."""

    async def sleep(self, seconds: float) -> None: ...

    def now(self) -> float: ...

    def lock(self) -> AbstractAsyncContextManager[None]: ...

    def spawn(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> Any: ...


class Sessions(Protocol):
    """What the manager tells the namespace about clients."""

    async def renewed(self, client: bytes, open_inodes: Sequence[int], acknowledged_request: int) -> None:
        """A client lives, and this is what it holds open."""

    def client_ended(self, client: bytes) -> None:
        """A client's lease is over: settle its sessions, in the background. Told again after a restart: idempotent."""

    async def session_clients(self) -> Sequence[bytes]:
        """Clients that have sessions or other records."""


class Usage(NamedTuple):
    capacity: int  # bytes
    used: int  # bytes


class Manager:
    """Made by `Manager.open`; serves after `start`."""

    def __init__(self, store: Store, clock: Clock, book: Book, time_scale: float) -> None:
        self.book = book
        self.listeners: list[Callable[[int], None]] = []  # called after a change, with the version before it
        self.node_lease_seconds = NODE_LEASE_SECONDS * time_scale
        self.leases = Leases(CLIENT_LEASE_SECONDS * time_scale)
        self._epoch_seconds = EPOCH_SECONDS * time_scale
        self.valid_ms = int(
            self._epoch_seconds * 1000
        )  # a capability issued now is good for the whole next epoch at least
        self._store = store
        self._clock = clock
        self._lock = clock.lock()
        self._heard: dict[int, float] = {}  # node -> when it was last heard of
        self._epochs: dict[bytes, int] = {}  # client -> capability epoch in which its lease began
        self._usage: dict[int, Usage] = {}  # target -> as last reported
        self._sessions: Sessions | None = None
        self._doubtful = False  # a commit failed halfway: memory and store may differ

    @classmethod
    async def open(
        cls, engine: Engine, clock: Clock, *, time_scale: float = 1.0, entropy: Callable[[int], bytes] = os.urandom
    ) -> Manager:
        """Load the cluster, or make a new one (id and capability key) in an empty engine. Raises BAD_FORMAT."""
        store = Store(engine)
        loaded = await store.load()
        if loaded is None:
            state = State(cluster=entropy(CLUSTER_ID_BYTES).hex(), capability_key=entropy(KEY_BYTES))
            await store.create(state)
            loaded = state, {}
        return cls(store, clock, Book(*loaded), time_scale)

    @property
    def cluster(self) -> str:
        return self.book.state.cluster

    async def start(self, sessions: Sessions, own_client: bytes = b"") -> None:
        """Give every client that was here before one lease time, and begin to watch leases and epochs. `own_client`: under which
        identity this process calls storage servers. It needs no renewals; its successor finds the record and ends it like any other."""
        self._sessions = sessions
        now = self._clock.now()
        self._heard = dict.fromkeys(self.book.nodes, now)
        for client, epoch in (await self._store.leases()).items():
            self._epochs[client] = epoch
            self.leases.renew(client, now)
        for client in self.book.ended:
            sessions.client_ended(client)  # the namespace refuses their late requests
        await self._adopt_session_clients()
        if own_client:
            await self._remember(own_client, "metadata server")
        self._clock.spawn(self._watch_clients, "client leases")
        self._clock.spawn(self._count_epochs, "capability epochs")

    # Changes.

    async def _change(self, plan: Callable[[Book], Draft]) -> None:
        """Plan, make durable, apply, tell. Raises what the plan and the engine raise; then nothing took effect."""
        async with self._lock:
            await self._reload_if_doubtful()
            draft = plan(self.book)
            if not draft:
                return
            self._doubtful = True
            await self._store.save(draft)
            self._doubtful = False
            before = self.book.state.version
            self.book.apply(draft)
        self._tell(before)

    async def _reload_if_doubtful(self) -> None:
        # A commit that failed may still have happened; its version must not be used for another change.
        if not self._doubtful:
            return
        loaded = await self._store.load()
        if loaded is None:
            raise error(Status.INTERNAL, "the cluster's records are gone from the KV engine")
        before = self.book.state.version
        self.book = Book(*loaded)
        self._doubtful = False
        if self.book.state.version != before:
            self._tell(before)

    def _tell(self, before: int) -> None:
        for listener in self.listeners:
            listener(before)

    def routing(self, since: int = 0, *, server: bool = False) -> Routing | None:
        """What changed after version `since` (0: everything), None if nothing did."""
        return self.book.routing(since, server=server)

    # Nodes.

    async def register(self, node: Node, targets: Sequence[Target]) -> int:
        """A server process introduces itself; its node number. Raises INVALID, NOT_FOUND, TOO_LARGE."""
        number = 0

        def plan(book: Book) -> Draft:
            nonlocal number
            draft, number = register(book, node, targets)
            return draft

        await self._change(plan)
        self._heard[number] = self._clock.now()
        _log.info("registered", node=number, name=node.name, targets=len(targets), routing=self.book.state.version)
        return number

    async def heartbeat(self, request: HeartbeatRequest) -> None:
        """A server process is alive and this is how its targets are. Raises NOT_FOUND for a node that has to register first, FENCED
        for a process whose place another one has taken."""
        node = self.book.nodes.get(request.node)
        if node is None:
            raise error(Status.NOT_FOUND, f"node {request.node} is not registered here; register again")
        if node.process != request.process:
            raise error(
                Status.FENCED, f"another process has registered as node {request.node} ({node.name}); stop this one"
            )
        self._heard[request.node] = self._clock.now()
        changed: dict[int, Target] = {}
        for target in request.targets:
            known = self.book.targets.get(target.id)
            if known is None or known.node != request.node:
                continue  # it has moved to another node meanwhile; that node reports it
            self._usage[target.id] = Usage(target.capacity, target.used)
            if target.state and target.state != known.state:
                changed[target.id] = target
        if changed:
            await self._change(lambda book: _report(book, changed))

    async def set_node(self, node_id: int, *, draining: bool) -> Node:
        """What an administrator wants of a node; it stays so over restarts. Raises NOT_FOUND."""
        await self._change(lambda book: drain(book, node_id, draining=draining))
        return self.book.nodes[node_id]

    def alive(self, node_id: int) -> bool:
        """Whether a node was heard of within two leases (a chain of one serves on regardless; this is for people)."""
        return self._clock.now() - self._heard.get(node_id, float("-inf")) <= 2 * self.node_lease_seconds

    def space(self) -> Usage:
        """Bytes of all targets that are not offline, as last reported."""
        capacity = used = 0
        for target in self.book.targets.values():
            if target.state != LOCAL_STATE_OFFLINE:
                usage = self._usage.get(target.id, Usage(target.capacity, target.used))
                capacity += usage.capacity
                used += usage.used
        return Usage(capacity, used)

    def status(self) -> Routing:
        """The whole routing with what is only known now: how full each target is, and OFFLINE for those of silent nodes."""
        routing = self.book.routing()
        assert routing is not None  # version 0 is nobody's
        silent = {n.id for n in routing.nodes if n.kind == NODE_KIND_STORAGE and not self.alive(n.id)}
        del routing.ended_clients[:]
        for target in routing.targets:
            usage = self._usage.get(target.id)
            if usage:
                target.capacity, target.used = usage
            if target.node in silent:
                target.state = LOCAL_STATE_OFFLINE
        for part in (routing.nodes, routing.targets, routing.chains):
            part.sort(key=lambda entry: entry.id)  # for people
        return routing

    # Clients.

    async def renew_client(
        self, client: bytes, name: str, open_inodes: Sequence[int], acknowledged_request: int
    ) -> int:
        """Begin or renew a client's lease, durably known before it counts. Returns the epoch in which the lease began: another one than
        last time means that the lease was lost in between. Raises SESSION_ENDED for a client whose lease ran out (it takes a new
        identity), BUSY over CLIENTS_MAX."""
        if client in self.book.ended:
            raise error(Status.SESSION_ENDED, "this client's lease ran out; connect again under a new client id")
        if client not in self._epochs:
            if len(self._epochs) + len(self.book.ended) >= CLIENTS_MAX:
                raise error(Status.BUSY, f"over {CLIENTS_MAX} clients; try again later")
            await self._remember(client, name)
        self.leases.renew(client, self._clock.now())
        await self._namespace.renewed(client, open_inodes, acknowledged_request)
        return self._epochs[client]

    async def _remember(self, client: bytes, name: str) -> None:
        epoch = self.book.state.capability_epoch
        await self._store.put_lease(client, epoch, name)
        self._epochs[client] = epoch

    async def end_client(self, client: bytes) -> None:
        """A client said goodbye, or its lease ran out: storage refuses its writes from now on, then its sessions are settled."""
        if client in self.leases:
            await self._change(lambda book: _end(book, client))
            self.leases.forget(client)
            self._epochs.pop(client, None)
        self._namespace.client_ended(client)

    @property
    def _namespace(self) -> Sessions:
        if self._sessions is None:
            raise error(Status.UNAVAILABLE, "the metadata server is starting; try again")
        return self._sessions

    async def _adopt_session_clients(self) -> None:
        """Clients with sessions but without a lease (they never renewed, or this process is new) get one lease time to show up."""
        now = self._clock.now()
        for client in await self._namespace.session_clients():
            if client in self.book.ended:
                self._namespace.client_ended(client)
            elif client not in self.leases:
                self.leases.renew(client, now)

    async def _watch_clients(self) -> None:
        while True:
            for _ in range(CHECKS_PER_LEASE):
                await self._clock.sleep(self.leases.seconds / CHECKS_PER_LEASE)
                for client in self.leases.expired(self._clock.now()):
                    _log.warning("a client's lease ran out", client=client.hex())
                    await self._survive(self.end_client(client), "ending a client")
            await self._survive(self._adopt_session_clients(), "looking for sessions")

    async def _count_epochs(self) -> None:
        while True:
            await self._clock.sleep(self._epoch_seconds)
            await self._survive(self._change(_next_epoch), "a new capability epoch")

    async def _survive(self, work: Coroutine[Any, Any, None], what: str) -> None:
        """A background step that fails is logged and tried again at its next turn."""
        try:
            await work
        except OSError as failed:
            _log.error("failed; tried again later", what=what, error=str(failed))

    # For the namespace: its seams Layouts and Capabilities.

    def table(self) -> tuple[int, int, int]:
        """(table, version, chains) that new files are laid out over. Raises UNAVAILABLE without a chain."""
        newest = self.book.tables.get(TABLE_OF_FILES)
        if newest is None:
            raise error(Status.UNAVAILABLE, "no storage server has registered yet; start one")
        return TABLE_OF_FILES, newest.version, len(newest.chains)

    def issue(self, client: bytes, inode: int, rights: int) -> bytes:
        """A capability under the current key and epoch."""
        state = self.book.state
        return issue(state.capability_key, client=client, inode=inode, rights=rights, epoch=state.capability_epoch)


def _report(book: Book, changed: dict[int, Target]) -> Draft:
    """Targets came online or went offline by themselves (a disk that errs)."""
    draft = Draft(book)
    reports: dict[int, Report] = {}
    for target_id, reported in changed.items():
        known = book.targets.get(target_id)
        if known is None:
            continue
        record = Target()
        record.CopyFrom(known)
        record.state = reported.state
        draft.put(Kind.TARGET, record, target_id)
        reports[target_id] = Report(reported.state or LOCAL_STATE_ONLINE, reported.incarnation or known.incarnation)
    move_chains(book, draft, reports)
    return draft


def _end(book: Book, client: bytes) -> Draft:
    draft = Draft(book)
    draft.end_client(client)
    return draft


def _next_epoch(book: Book) -> Draft:
    draft = Draft(book)
    draft.next_epoch()
    return draft
