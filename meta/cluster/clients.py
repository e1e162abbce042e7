"""Clients: one lease each, renewed by its keeper. When it runs out, or the client says goodbye, first the end is made durable and
pushed, so that storage refuses the client's writes; then the namespace settles what it left behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ...proto.errors import Status, error
from ...proto.gen.cluster_pb2 import RenewClientReply, RenewClientRequest
from ...proto.settings import client_lease
from ..owners import Owners
from .lease import Leases
from .routing import Book, Draft
from .store import Store
from .writer import Writer

CHECKS_PER_LEASE = 12  # a lease that ran out is noticed that much later at most
CLIENTS_MAX = 100_000  # with a lease, or ended and not forgotten yet


class Sessions(Protocol):
    """What the manager tells the namespace about clients."""

    async def renewed(self, client: bytes, report: RenewClientRequest) -> RenewClientReply:
        """A client lives, and this is what it holds open. The reply has the namespace's part."""

    def client_ended(self, client: bytes) -> None:
        """A client's lease is over: settle its sessions, in the background. Told again after a restart: idempotent."""

    async def session_clients(self) -> Sequence[bytes]:
        """Clients that have sessions or other records."""


class Clients:
    """Who has a lease. `sessions` is there from `load` on; time is handed in (seconds on CLOCK_BOOTTIME)."""

    def __init__(self, writer: Writer, store: Store, owners: Owners, scale: float) -> None:
        self.leases = Leases(client_lease() * scale)  # renewed six times as often by the client's keeper
        self._writer = writer
        self._store = store
        self._owners = owners
        self._epochs: dict[bytes, int] = {}  # client -> capability epoch in which its lease began
        self._ending: set[bytes] = set()  # whose end is on its way to the disk
        self._sessions: Sessions | None = None

    async def load(self, sessions: Sessions, now: float) -> None:
        """Give everybody who was here before one lease time to show up."""
        self._sessions = sessions
        for client, (epoch, uid) in (await self._store.leases()).items():
            self._epochs[client] = epoch
            if uid is not None:
                self._owners.leased(client, uid)
            self.leases.renew(client, now)
        for client in self._writer.book.ended:
            sessions.client_ended(client)  # the namespace refuses their late requests
        await self.adopt(now)

    @property
    def _namespace(self) -> Sessions:
        if self._sessions is None:
            raise error(Status.UNAVAILABLE, "the metadata server is starting; try again")
        return self._sessions

    async def renew(self, client: bytes, report: RenewClientRequest, now: float, uid: int) -> RenewClientReply:
        """Begin or renew a lease, as this user's and durably known before it counts. The reply has the epoch in which it began: another one
        than last time means that the lease was lost in between. Raises SESSION_ENDED for a client whose lease ran out (it takes a new
        identity), BUSY over CLIENTS_MAX."""
        ended = self._writer.book.ended
        if client in ended or client in self._ending:
            raise error(Status.SESSION_ENDED, "this client's lease ran out; connect again under a new client id")
        if client not in self._epochs:
            if len(self._epochs) + len(ended) >= CLIENTS_MAX:
                raise error(Status.BUSY, f"over {CLIENTS_MAX} clients; try again later")
            await self.remember(client, report.name, self._owners.of(client, uid))
        self.leases.renew(client, now)
        reply = await self._namespace.renewed(client, report)
        if client not in self._epochs:
            raise error(
                Status.SESSION_ENDED, "this client has said goodbye meanwhile; connect again under a new client id"
            )
        reply.epoch = self._epochs[client]
        reply.lease_ms = int(self.leases.seconds * 1000)
        return reply

    async def remember(self, client: bytes, name: str, uid: int) -> None:
        """Durably: whoever comes after this process knows whose lease it has to end."""
        epoch = self._writer.book.state.capability_epoch
        await self._store.put_lease(client, epoch, name, uid)
        self._owners.leased(client, uid)
        self._epochs[client] = epoch

    async def end(self, client: bytes) -> None:
        """It said goodbye, or its lease ran out: storage refuses its writes from now on, then its sessions are settled."""
        if client in self.leases:
            self._ending.add(client)  # nobody is told any more that it lives
            try:
                await self._writer.change(lambda book: _end(book, client))
            finally:
                self._ending.discard(client)
            self.leases.forget(client)
            self._epochs.pop(client, None)
            self._owners.ended(client)
        self._namespace.client_ended(client)

    async def adopt(self, now: float) -> None:
        """Clients with sessions but without a lease (they never renewed, or this process is new) get one lease time to show up."""
        ended = self._writer.book.ended
        for client in await self._namespace.session_clients():
            if client in ended:
                self._namespace.client_ended(client)
            elif client not in self.leases:
                self.leases.renew(client, now)


def _end(book: Book, client: bytes) -> Draft:
    draft = Draft(book)
    draft.end_client(client)
    return draft
