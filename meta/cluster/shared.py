"""A metadata server among several over one KV engine: it takes part in the election, and follows whoever leads.

Every server serves the namespace; what they decide about names lies in the engine's transactions. Of the cluster each has a book: the
elected manager's own while this process leads, else a copy that is brought up to date from the engine, `LOOKS_PER_SECOND` times. From
that copy it lays out new files, grants capabilities and answers who asks for routing. Everything else that concerns the cluster is
refused with NOT_PRIMARY and the addresses of the one that leads.

The background work on the namespace (garbage, what clients leave behind) is the leader's: its queues are in the engine, and the next
leader goes on where the last one stopped.

Like every process that changes chunks this one has a lease as a client. While it leads nobody counts it; otherwise it renews it with
the leader.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

import structlog

from ...proto.env import Call
from ...proto.errors import Status, StatusError, error
from ...proto.gen.cluster_pb2 import Node, RegisterNodeRequest, RenewClientRequest, Routing, Target
from ...proto.rpc import CLUSTER, Method
from ...proto.settings import client_lease
from ..kv.engine import Engine
from .clients import Sessions
from .election import Candidate, Term
from .grants import Grants
from .lease import Leases
from .manager import Clock, Manager
from .nodes import Usage
from .routing import Book
from .seat import Seat
from .store import Space, Store

LOOKS_PER_SECOND = 10  # of a follower at the engine; scaled
SPACE_SECONDS = 2.0  # between the leader's notes of how full storage is, and the followers' looks at them; scaled
RENEWALS_PER_LEASE = 6
CALL_SECONDS = 2.0  # of one request to the leader; scaled
RETRY_SECONDS = 0.1  # between tries to reach a leader; scaled

_log = structlog.get_logger("emberfs.manager")


class Environment(Clock, Protocol):
    """The part of `proto.env.Environment` that is used here."""

    @property
    def client(self) -> bytes: ...

    async def call(self, call: Call) -> Any: ...

    def reachable(self, address: str) -> bool: ...

    def renew_identity(self) -> None: ...


class Namespace(Sessions, Protocol):
    """What the manager tells the namespace, and that it is this process now that does so."""

    async def take_charge(self) -> None:
        """Another server did the background work until now: read what it left."""


class Shared(Grants):
    """Made by `open`; takes part in the election after `start`. `listeners` are called after a change of the routing, with the version
    before it."""

    def __init__(self, engine: Engine, env: Environment, store: Store, book: Book, time_scale: float) -> None:
        super().__init__(time_scale)
        self.listeners: list[Callable[[int], None]] = []
        self._engine = engine
        self._env = env
        self._store = store
        self._book = book  # a follower's
        self._scale = time_scale
        self._manager: Manager | None = None  # of this process's newest term
        self._seat: Seat | None = None
        self._candidate: Candidate | None = None
        self._namespace: Namespace | None = None
        self._space = Space(0, 0)

    @classmethod
    async def open(
        cls, engine: Engine, env: Environment, *, time_scale: float = 1.0, entropy: Callable[[int], bytes] = os.urandom
    ) -> Shared:
        """Load the cluster, or make a new one in an empty engine. Raises BAD_FORMAT."""
        store = Store(engine, env)
        if (loaded := await store.load()) is None:
            with suppress(FileExistsError):  # another server was faster
                await store.make(entropy)
            loaded = await store.load()
        assert loaded is not None
        return cls(engine, env, store, Book(*loaded), time_scale)

    def start(self, process: int, addresses: Sequence[str], namespace: Namespace) -> None:
        """Serve under these addresses, to be told to whoever asks the wrong one. `process`: this one's random number."""
        self._namespace = namespace
        self._candidate = Candidate(self._engine, self._env, process, addresses, self._scale)
        self._seat = Seat(self._candidate, self._env, self._begin)
        self._env.spawn(self._seat.run, "elections")
        self._env.spawn(self._follow, "cluster records")
        self._env.spawn(self._watch_space, "space")
        self._env.spawn(self._keep_lease, "our own lease")

    async def stop(self) -> None:
        """Let another one lead at once."""
        if self._candidate is not None and self.leads:
            with suppress(StatusError):
                await self._candidate.resign()

    # What this process knows.

    @property
    def leads(self) -> bool:
        return self._manager is not None and self._manager.leads

    @property
    def in_charge(self) -> bool:
        """Whether this process leads, and has taken over the namespace's background work."""
        return self._seat is not None and self._seat.taken

    @property
    def leading(self) -> Manager:
        """The manager, while this process leads. Raises NOT_PRIMARY, with the addresses of the one that does."""
        if self._seat is None:
            raise error(Status.NOT_PRIMARY, "this metadata server is starting; try again", detail=[])
        return self._seat.leading

    @property
    def book(self) -> Book:
        return self._manager.book if self._manager is not None else self._book

    @property
    def cluster(self) -> str:
        return self._book.state.cluster

    @property
    def leases(self) -> Leases:
        """Those of clients; none while another process counts them."""
        return self._manager.leases if self._manager is not None and self.leads else Leases(0.0)

    def routing(self, since: int = 0, *, server: bool = False) -> Routing | None:
        """As `Manager.routing`."""
        return self.book.routing(since, server=server)

    def space(self) -> Usage:
        if self._manager is not None and self.leads:
            return self._manager.space()
        return Usage(self._space.capacity, self._space.used)

    def free_part_min(self) -> float:
        """Which part of the fullest target is free, from 0 to 1."""
        return self._manager.free_part_min() if self._manager is not None and self.leads else self._space.free_part_min

    def last_end(self) -> int:
        """The version of the routing in which a client ended last."""
        return self.book.last_end

    def is_known(self, chains: Sequence[int], version: int) -> bool:
        """Whether all who could take updates of these chains know that version. Files of clients that are gone are settled where this is
        known: by the leader. A follower measures files for clients that live; their own late writes are their own business."""
        return self._manager.is_known(chains, version) if self._manager is not None and self.leads else True

    # Leading.

    async def _begin(self, term: Term) -> Manager:
        assert self._namespace is not None
        manager = await Manager.open(self._engine, self._env, time_scale=self._scale, term=term, owners=self.owners)
        before, self._manager = self.book.state.version, manager
        manager.listeners.append(self._tell)
        self._tell(before)
        await self._namespace.take_charge()
        await manager.start(self._namespace, self._env.client)
        return manager

    def _tell(self, before: int) -> None:
        for listener in self.listeners:
            listener(before)

    # Following.

    async def _follow(self) -> None:
        while True:
            await self._env.sleep(self._scale / LOOKS_PER_SECOND)
            if not self.leads:
                with suppress(StatusError):  # the engine does not answer: nobody can change anything either
                    await self.look()

    async def look(self) -> None:
        """Bring our copy of the records up to date."""
        version = self.book.state.version
        news = await self._store.news(version)
        loaded = await self._store.load() if news is None else None
        if self.leads:
            return  # elected meanwhile
        self._book, self._manager = self.book, None  # that of a term that is over is as good as any
        if loaded is not None:
            self._book = Book(*loaded)
        elif news is not None and news.state.version > version:
            self._book.apply(news)
        if self._book.state.version != version:
            self._tell(version)

    async def _watch_space(self) -> None:
        while True:
            await self._env.sleep(SPACE_SECONDS * self._scale)
            with suppress(StatusError):
                if self._manager is None or not self.leads:
                    self._space = await self._store.space() or self._space
                    continue
                usage = self._manager.space()
                now = Space(usage.capacity, usage.used, self._manager.free_part_min())
                if now != self._space:
                    await self._manager.note_space(now)
                    self._space = now

    async def _keep_lease(self) -> None:
        pause = client_lease() / RENEWALS_PER_LEASE * self._scale
        while True:
            if not self.leads:
                try:
                    await self._ask(CLUSTER.RenewClient, RenewClientRequest(name="metadata server"))
                except StatusError as failed:
                    if failed.status is Status.SESSION_ENDED:  # this process was stopped for so long
                        _log.warning("our lease as a client ran out; going on under another identity")
                        self._env.renew_identity()
                    await self._env.sleep(RETRY_SECONDS * self._scale)
                    continue
            await self._env.sleep(pause)

    async def register(self, node: Node, targets: Sequence[Target]) -> int:
        """Put this server into the routing, here or with whoever leads; waits for a leader. Its node number. Raises what a manager
        refuses for good."""
        while True:
            try:
                if self.leads:
                    return await self.leading.register(node, targets)
                reply = await self._ask(CLUSTER.RegisterNode, RegisterNodeRequest(node=node, targets=targets))
                return int(reply.node)
            except StatusError as failed:
                if not failed.retryable:
                    raise
            await self._env.sleep(RETRY_SECONDS * self._scale)

    async def _ask(self, method: Method, request: Any) -> Any:
        """The leader, as far as it is known. Raises NOT_PRIMARY where none is, and what it answers."""
        assert self._candidate is not None
        refused = self._candidate.refusal()
        for address in refused.detail or ():
            if self._env.reachable(address):
                try:
                    return await self._env.call(Call(address, method, request, CALL_SECONDS * self._scale))
                except StatusError as failed:
                    refused = failed
                    if failed.status not in {Status.UNAVAILABLE, Status.DEADLINE}:
                        break
        raise refused
