"""The cluster manager: who is there, which chains exist, which clients live.

One writer (writer.py): every change is planned as a `Draft` by pure functions, made durable in the KV engine, applied to the `Book` and
then told to the listeners. Whatever may be lost with the process (when a node was last heard of, what its targets report, until
when a client's lease runs) lives in memory; after a restart everybody gets one whole lease to show up.

Chains change by what is known about their members: with every heartbeat that says something new, and with every lease that is missed or
runs out, which is looked for ten times a lease.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import structlog

from ...proto.blocks import TABLE_OF_BLOCKS, TABLE_OF_FILES
from ...proto.capability import EPOCH_SECONDS
from ...proto.errors import Status, StatusError, error
from ...proto.gen.cluster_pb2 import (
    LOCAL_STATE_OFFLINE,
    LOCAL_STATE_ONLINE,
    LOCAL_STATE_UPTODATE,
    NODE_KIND_STORAGE,
    ChainMembers,
    ChangeChainRequest,
    HeartbeatRequest,
    KvNamespace,
    Node,
    RenewClientReply,
    RenewClientRequest,
    Routing,
    Target,
    TenantQuota,
)
from ...proto.gen.common_pb2 import TARGET_STATE_SERVING, TARGET_STATE_SYNCING, Chain
from ...proto.rpc import Identity
from ..kv.engine import Engine
from ..owners import Owners
from . import administration, namespaces
from .chain import Lease, Report, next_chain
from .clients import CHECKS_PER_LEASE, Clients, Sessions
from .election import Term
from .grants import Grants
from .lease import Leases
from .nodes import Nodes, Usage
from .registration import Registered, register
from .routing import Book, Draft, Kind, table_of
from .store import Space, Store
from .table import TableKeeper
from .writer import Plan, Writer

NODE_LEASE_SECONDS = 5.0  # scaled; a storage node renews it with every heartbeat
SCANS_PER_LEASE = 10  # a node's lease that ran out is noticed that much later at most
STOPPED_PART = 0.25  # of a node's lease: a scan that comes so late shows that this process was stopped
CONFIRM_SECONDS = 0.1  # between looks whether a member that is to go has stopped; scaled

_log = structlog.get_logger("emberfs.manager")


class Clock(Protocol):
    """The part of `proto.env.Environment` that the manager uses."""

    async def sleep(self, seconds: float) -> None: ...

    def now(self) -> float: ...

    def wall_ns(self) -> int: ...

    def random(self) -> float: ...

    def lock(self) -> AbstractAsyncContextManager[None]: ...

    def spawn(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> Any: ...


class Occupied(Exception):
    """A process wants to register that has not heard of the one that has its place: `process`."""

    def __init__(self, process: int) -> None:
        super().__init__(process)
        self.process = process


class Manager(Grants):
    """Made by `Manager.open`; serves after `start`. With a `term` it leads until that is over; then its changes are refused, its
    workers end, and whoever wins next begins with a new one."""

    def __init__(
        self,
        writer: Writer,
        store: Store,
        clock: Clock,
        time_scale: float,
        term: Term | None = None,
        owners: Owners | None = None,
    ) -> None:
        super().__init__(time_scale)
        self.owners = owners or self.owners
        self.node_lease_seconds = NODE_LEASE_SECONDS * time_scale
        self._clients = Clients(writer, store, self.owners, time_scale)
        self._epoch_seconds = EPOCH_SECONDS * time_scale
        self._writer = writer
        self._store = store
        self._clock = clock
        self._time_scale = time_scale
        self._term = term
        self._nodes = self._nobody_heard()
        self._unsettled: set[int] = set()  # nodes with news that the chains do not show yet
        self._leaving: set[int] = set()  # targets that are being removed from their chains
        self._table = TableKeeper(time_scale)

    @classmethod
    async def open(
        cls,
        engine: Engine,
        clock: Clock,
        *,
        time_scale: float = 1.0,
        entropy: Callable[[int], bytes] = os.urandom,
        term: Term | None = None,
        owners: Owners | None = None,
    ) -> Manager:
        """Load the cluster, or make a new one (id and capability key) in an empty engine. `term`: as the primary of
        several managers over the engine. `owners`: what this process knows of clients' ids. Raises BAD_FORMAT, NOT_PRIMARY."""
        store = Store(engine, clock, term.guard) if term is not None else Store(engine, clock)
        loaded = await store.load() or (await store.make(entropy), {})
        writer = Writer(store, Book(*loaded), clock.lock())
        return cls(writer, store, clock, time_scale, term, owners)

    @property
    def book(self) -> Book:
        return self._writer.book

    @property
    def listeners(self) -> list[Callable[[int], None]]:
        """Called after a change, with the version before it."""
        return self._writer.listeners

    @property
    def cluster(self) -> str:
        return self.book.state.cluster

    @property
    def leads(self) -> bool:
        return self._term is None or self._term.holds

    @property
    def leading(self) -> Manager:
        """This manager, if it may act. Raises NOT_PRIMARY, with the addresses of the one that may."""
        if self._term is not None and not self._term.holds:
            raise self._term.refusal()
        return self

    async def start(self, sessions: Sessions, own_client: bytes = b"") -> None:
        """Give every node and client that was here before one lease time, and begin to watch leases and epochs. `own_client`: under which
        identity this process calls storage servers. It needs no renewals; its successor finds the record and ends it like any other."""
        self._nodes = self._nobody_heard()
        await self._clients.load(sessions, self._clock.now())
        if own_client:
            await self._clients.remember(own_client, "metadata server", os.geteuid())
            self.leases.forget(own_client)  # it had one, if this process was not the primary before
        self._clock.spawn(self._watch_nodes, "node leases")
        self._clock.spawn(self._watch_clients, "client leases")
        self._clock.spawn(self._count_epochs, "capability epochs")

    def _nobody_heard(self) -> Nodes:
        storage = [node.id for node in self.book.nodes.values() if node.kind == NODE_KIND_STORAGE]
        return Nodes(storage, self._clock.now(), self.node_lease_seconds, self._time_scale)

    async def _change(self, plan: Plan) -> None:
        def followed(book: Book) -> Draft:
            draft = plan(book)
            namespaces.follow(book, draft, self._clock.wall_ns() // 10**9)
            return draft

        # Whose term is over need not even try, nor load what its successor has made.
        await self.leading._writer.change(followed)

    def routing(self, since: int = 0, *, server: bool = False) -> Routing | None:
        """What changed after version `since` (0: everything), None if nothing did."""
        return self.book.routing(since, server=server)

    # Nodes.

    async def register(
        self,
        node: Node,
        targets: Sequence[Target],
        *,
        spare: bool = False,
        spare_blocks: bool = False,
        dropped: Sequence[int] = (),
        number: int = 0,
        replaces: int | None = None,
    ) -> int:
        """A server process introduces itself; its node number. `spare`, `spare_blocks`: new targets for files, for KV blocks, wait for an
        administrator to put them into chains. `replaces`: the process whose place it takes, if that is checked. Raises INVALID, NOT_FOUND,
        TOO_LARGE, FENCED for a process that another one has followed already, DUPLICATE where it has sent something newer, and
        `Occupied` where another process than `replaces` has the place."""
        found: Registered | None = None
        replaced = 0
        waiting = [table for table, waits in ((TABLE_OF_FILES, spare), (TABLE_OF_BLOCKS, spare_blocks)) if waits]

        def plan(book: Book) -> Draft:
            nonlocal found, replaced
            found = register(book, node, targets, spare=waiting, dropped=dropped, others=self._heard_of)
            if self._nodes.was_replaced(found.node, node.process):
                raise _taken(found.node, node.name)
            known = book.nodes.get(found.node)
            replaced = known.process if known is not None and known.process != node.process else 0
            if replaces is not None and replaced not in (0, replaces):
                raise Occupied(replaced)
            if known is not None and not replaced and self._nodes.is_late(found.node, number):
                raise _late(known)
            return found.draft

        await self._change(plan)
        assert found is not None
        if node.kind == NODE_KIND_STORAGE:
            self._nodes.registered(found.node, replaced, found.targets, self._clock.now(), number=number)
        _log.info("registered", node=found.node, name=node.name, targets=len(targets), routing=self.book.state.version)
        return found.node

    def _heard_of(self, chains: Iterable[Chain]) -> dict[int, Report]:
        reports = self._nodes.reports(self.book, chains, self._clock.now())
        for target in self._leaving & reports.keys():
            # A chain that has little to compare is faster than whoever waits for the member to stop: it would serve again before it can go.
            if reports[target].state == LOCAL_STATE_UPTODATE:
                reports[target] = reports[target]._replace(state=LOCAL_STATE_ONLINE)
        return reports

    async def heartbeat(self, request: HeartbeatRequest) -> None:
        """A server process is alive and this is how its targets are. Raises NOT_FOUND for a node that has to register first, FENCED
        for a process whose place another one has taken, DUPLICATE for one that comes after a newer one."""
        node = self.book.nodes.get(request.node)
        if node is None:
            raise error(Status.NOT_FOUND, f"node {request.node} is not registered here; register again")
        if node.process != request.process:
            raise _taken(node.id, node.name)
        if self._nodes.is_late(node.id, request.number):
            raise _late(node)
        now, targets = self._clock.now(), self.book.targets
        mine = [t for t in request.targets if t.id in targets and targets[t.id].node == node.id]  # others have moved
        chains = dict(zip(request.chain, request.chain_version, strict=False))
        self._nodes.has_routing(node.id, request.routing_version)
        silent = dict(zip(request.unreached, request.unreached_version, strict=False))
        unreached = self._nodes.unreached(self.book, node.id, silent, now)
        if self._nodes.reported(node.id, mine, chains, now, unreached=unreached, number=request.number):
            self._unsettled.add(node.id)
            if unreached:
                _log.warning("members of chains do not answer", node=node.id, targets=sorted(unreached))
        if node.id in self._unsettled:  # also by an earlier report, whose change is still on its way to the disk
            await self._settle({node.id})

    async def _settle(self, nodes: set[int]) -> None:
        """Let the chains of these nodes follow what is known about their members. Raises what the engine does; the next scan tries
        again."""

        def plan(book: Book) -> Draft:
            draft = Draft(book)
            chains = book.chains_of(nodes)
            for node in nodes:
                for target in book.targets_of(node):
                    self._nodes.put_target(book, draft, target)
            reports = self._heard_of(chains)
            for chain in chains:
                after = next_chain(chain, reports)
                if after is not chain:
                    draft.put(Kind.CHAIN, after, chain.id)
            return draft

        try:
            await self._change(plan)
        except BaseException:
            self._unsettled |= nodes
            raise
        self._unsettled -= nodes

    async def _watch_nodes(self) -> None:
        period, scans = self.node_lease_seconds / SCANS_PER_LEASE, 0
        while self.leads:
            before = self._clock.now()
            await self._clock.sleep(period)
            now = self._clock.now()
            if now - before - period > STOPPED_PART * self.node_lease_seconds:
                _log.warning("this process was stopped for a while; nobody loses a place for it", seconds=now - before)
                self._nodes.excuse(now)
            if changed := self._nodes.look(now):
                _log.info("leases", **self._nodes.count(changed, now))
            if nodes := changed | self._unsettled:
                await self._survive(self._settle(nodes), "moving chains")
            scans += 1
            if scans % SCANS_PER_LEASE == 0:
                await self._survive(self._change(self._lay_around), "a new chain table")

    def _lay_around(self, book: Book) -> Draft:
        return self._table.plan(book, self._nodes, self._clock.now())

    def last_end(self) -> int:
        """The version of the routing in which a client ended last."""
        return self.book.last_end

    def is_known(self, chains: Iterable[int], version: int) -> bool:
        """Whether everybody who could take updates of these chains works with this version of the routing by now, and so refuses the
        clients that were over then. (Of a silent sole member only its own answer tells that.)"""
        found = (self.book.chains[number] for number in chains if number in self.book.chains)
        members = (
            m for chain in found for m in chain.members if m.state in (TARGET_STATE_SERVING, TARGET_STATE_SYNCING)
        )
        return all(self._nodes.knows(member.node, version) for member in members)

    def alive(self, node: int) -> bool:
        """Whether a storage node's lease is not over (a chain of one serves on regardless)."""
        return self._nodes.lease(node, self._clock.now()) is not Lease.OVER

    def silent(self) -> list[int]:
        """Storage nodes whose lease is over."""
        storage = (node for node in self.book.nodes.values() if node.kind == NODE_KIND_STORAGE)
        return sorted(self._nodes.silent(storage, self._clock.now()))

    def space(self) -> Usage:
        """What fits into the chains of files and what is in them, each byte counted once, as last reported: of each chain its smallest
        member and its fullest."""
        capacity = used = 0
        for chain in self.book.chains.values():
            targets = [self.book.targets[m.target] for m in chain.members if m.target in self.book.targets]
            if not targets or table_of(targets[0]) != TABLE_OF_FILES:
                continue
            usages = [self._nodes.usage(target) for target in targets if target.state != LOCAL_STATE_OFFLINE]
            capacity += min((usage.capacity for usage in usages), default=0)
            used += max((usage.used for usage in usages), default=0)
        return Usage(capacity, used)

    def free_part_min(self) -> float:
        """Which part of the fullest target for files is free, from 0 to 1, as last reported."""
        return min((1.0 - usage.used / usage.capacity for usage in self._usages() if usage.capacity), default=1.0)

    def _usages(self) -> list[Usage]:
        targets = (target for target in self.book.targets.values() if table_of(target) == TABLE_OF_FILES)
        return [self._nodes.usage(target) for target in targets if target.state != LOCAL_STATE_OFFLINE]

    async def note_space(self, space: Space) -> None:
        """For the metadata servers that no storage server reports to."""
        await self._store.put_space(space)

    def status(self) -> Routing:
        """The whole routing with what is only known now: how full each target is, what it copies, OFFLINE for those of silent nodes."""
        routing = self.book.routing()
        assert routing is not None  # version 0 is nobody's
        silent = set(self.silent())
        del routing.ended_clients[:]
        for target in routing.targets:
            self._nodes.describe(target)
            if target.node in silent:
                target.state = LOCAL_STATE_OFFLINE
        for part in (routing.nodes, routing.targets, routing.chains):
            part.sort(key=lambda entry: entry.id)  # for people
        return routing

    # What an administrator changes.

    async def create_chains(self, wanted: Sequence[ChainMembers], table: int = TABLE_OF_FILES) -> tuple[list[int], int]:
        """New chains over empty spare targets; their ids, and the version of the chain table that has them. Raises as
        `administration.create_chains`."""
        made: list[int] = []

        def plan(book: Book) -> Draft:
            nonlocal made
            draft, made = administration.create_chains(book, self._nodes, wanted, self._clock.now(), table)
            return draft

        await self._change(plan)
        return made, self.book.tables[table].version

    async def change_chain(self, request: ChangeChainRequest, seconds: float) -> Chain:
        """One member more or less, or a revival. A member that serves goes when it has stopped, which is waited for. Raises as
        `administration.change_chain`, and DEADLINE when that takes longer than `seconds`: ask again."""
        until = self._clock.now() + seconds
        wish = ChangeChainRequest()
        wish.CopyFrom(request)
        done = False

        def plan(book: Book) -> Draft:
            nonlocal done
            draft, done = administration.change_chain(book, self._nodes, wish, self._clock.now())
            return draft

        try:
            while True:
                await self._change(plan)
                if done:
                    return self.book.chains[request.chain]
                wish.version = 0  # that was for the first step
                self._leaving.add(request.remove)
                if self._clock.now() >= until:
                    raise error(
                        Status.DEADLINE, f"target {request.remove} has not confirmed yet that it has stopped; ask again"
                    )
                await self._clock.sleep(CONFIRM_SECONDS * self._time_scale)
        finally:
            self._leaving.discard(request.remove)

    async def set_target(self, target: int, *, disabled: bool) -> Target:
        """Take a target out of service, or back. Raises NOT_FOUND."""
        await self._change(lambda book: administration.set_target(book, target, disabled=disabled))
        record = self.book.targets[target]
        await self._settle({record.node})
        return record

    async def set_node(self, node_id: int, *, draining: bool) -> Node:
        """What an administrator wants of a node; it stays so over restarts. Raises NOT_FOUND."""
        await self._change(lambda book: administration.drain(book, node_id, draining=draining))
        return self.book.nodes[node_id]

    async def remove_node(self, node: int) -> None:
        """Forget a node. Raises NOT_FOUND, BUSY_RESOURCE while a chain has a target of it."""
        await self._change(lambda book: administration.remove_node(book, node))
        self._nodes.forget(node)

    # The KV cache's namespaces.

    async def put_namespace(self, wanted: KvNamespace, user: Identity) -> KvNamespace:
        """Make a namespace, or find it. Raises as `namespaces.put_namespace`."""
        found = KvNamespace()

        def plan(book: Book) -> Draft:
            nonlocal found
            draft, found = namespaces.put_namespace(book, wanted, user)
            return draft

        await self._change(plan)
        return found

    async def drop_namespace(self, number: int, user: Identity) -> None:
        """Forget a namespace and its blocks. Raises NOT_FOUND, PERMISSION_DENIED."""
        await self._change(lambda book: namespaces.drop_namespace(book, number, user))

    async def set_tenant_quota(self, quota: TenantQuota, user: Identity) -> None:
        """Limit what all namespaces of a tenant may take together. Raises as `namespaces.set_quota`."""
        await self._change(lambda book: namespaces.set_quota(book, quota, user))

    # Clients.

    @property
    def leases(self) -> Leases:
        return self._clients.leases

    async def renew_client(self, client: bytes, report: RenewClientRequest, uid: int = 0) -> RenewClientReply:
        """See `Clients.renew`. `uid`: the user who says so."""
        return await self._clients.renew(client, report, self._clock.now(), uid)

    async def end_client(self, client: bytes) -> None:
        """See `Clients.end`."""
        await self._clients.end(client)

    async def _watch_clients(self) -> None:
        while self.leads:
            for _ in range(CHECKS_PER_LEASE):
                await self._clock.sleep(self.leases.seconds / CHECKS_PER_LEASE)
                for client in self.leases.expired(self._clock.now()):
                    if not self.leases.is_over(client, self._clock.now()):
                        continue  # it was heard of while others were ended, and told that it lives
                    _log.warning("a client's lease ran out", client=client.hex())
                    await self._survive(self._clients.end(client), "ending a client")
            await self._survive(self._clients.adopt(self._clock.now()), "looking for sessions")

    async def _count_epochs(self) -> None:
        while self.leads:
            await self._clock.sleep(self._epoch_seconds)
            await self._survive(self._change(_next_epoch), "a new capability epoch")

    async def _survive(self, work: Coroutine[Any, Any, None], what: str) -> None:
        """A background step that fails is logged and tried again at its next turn."""
        try:
            await work
        except OSError as failed:
            _log.error("failed; tried again later", what=what, error=str(failed))


def _taken(node: int, name: str) -> StatusError:
    return error(Status.FENCED, f"another process has registered as node {node} ({name}); stop this one")


def _late(node: Node) -> StatusError:
    return error(Status.DUPLICATE, f"node {node.id} ({node.name}) has sent newer reports than this one")


def _next_epoch(book: Book) -> Draft:
    draft = Draft(book)
    draft.next_epoch()
    return draft
