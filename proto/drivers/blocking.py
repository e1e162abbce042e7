"""The blocking environment: every method runs in the caller's thread and never suspends, so `drive(coro)` runs a core to its end.

A connection belongs to one thread while a request is under way on it, and is dropped when anything is raised meanwhile,
KeyboardInterrupt included: who comes next must not find half a frame or somebody else's reply. A connection dropped with
requests that the server answers through shared memory is only half closed, and the memory kept aside, until the server closes its
end: it does that when nothing moves any more, or by dying.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..env import Call
from ..errors import Status, StatusError, error
from ..hello import Credentials
from ..ids import new_client_id
from ..pool import POOL_BYTES, Pool
from ..region import Region, Slice
from ..settings import read_secret, time_scale
from ..transport import choice
from ..transport.choice import Choices, Spoken
from . import forks
from .calls import REGION_WAIT_SECONDS, Backoff, Pending, connect_seconds, is_shared, make_region, unreachable
from .connection import Broken, Connection, exchange
from .offers import Offers
from .quarantine import Quarantine
from .subscriber import Subscriber
from .threads import Threads
from .waiting import Ticket

if TYPE_CHECKING:
    from ..transport.local import LocalNetwork  # it loads asyncio, which a blocking program does without

IDLE_PER_ADDRESS_MAX = 32  # connections kept for the next call
QUARANTINED_MAX = 128  # connections per address with requests given up and not known to be over
STALE_SECONDS = 0.5  # unused for longer: look whether the server hung up before trusting it with a request


class BlockingEnvironment(Threads):
    """`cluster` empty: accept whichever answers first. `secret`, or a file with it: for TCP. `client`: 16 bytes, random if not given."""

    def __init__(
        self,
        *,
        client: bytes = b"",
        cluster: str = "",
        secret: bytes = b"",
        secret_file: str = "",
        acts_for_others: bool = False,
        pool_bytes: int = POOL_BYTES,
        local: LocalNetwork | None = None,
    ) -> None:
        super().__init__()
        self.credentials = Credentials(
            cluster, secret or read_secret(secret_file), client or new_client_id(), acts_for_others
        )
        self.pool = Pool(pool_bytes, self._reap)
        self._local = local
        self._reset()
        forks.follow(self)

    def _reset(self) -> None:
        self._idle: dict[str, list[Connection]] = {}
        self._live: set[Connection] = set()
        self._quarantine = Quarantine(self.pool)
        self._offers = Offers()
        self._backoff = Backoff()
        self.choices = Choices()

    @property
    def client(self) -> bytes:
        """Our identity: 16 bytes, another one after a fork."""
        return self.credentials.client

    # Calls.

    async def call(self, call: Call) -> Any:
        if call.address.startswith("local:"):
            return self._network().call(call, self.credentials)
        shared = is_shared(call)
        deadline = time.monotonic() + call.timeout
        while True:
            connection, fresh = self._checkout(call)
            try:
                pending = self._post(connection, call, shared, deadline)
                connection.wait(pending)
            except BaseException as raised:
                if isinstance(raised, StatusError) and not connection.pendings:
                    self._checkin(connection)  # the call was refused here, before anything was sent
                    raise
                failure = self._drop(connection, raised)
                if failure is None:
                    raise
                if not fresh and failure.status is Status.UNAVAILABLE:
                    continue  # the server had gone while the connection was idle, and got nothing of this
                raise failure from raised
            self._checkin(connection)
            return pending.result()

    async def call_many(self, calls: Sequence[Call]) -> list[Any]:
        if len(calls) == 1:
            try:
                return [await self.call(calls[0])]
            except StatusError as failure:
                return [failure]
        results: list[Any] = [None] * len(calls)
        tickets: list[tuple[int, Ticket]] = []
        shared: dict[str, Connection] = {}  # calls to one server share a connection
        try:
            for i, call in enumerate(calls):
                tickets.append((i, self._start(call, shared)))
            self._wait_all([ticket for _, ticket in tickets])
        except BaseException as raised:
            for connection in set(shared.values()):
                self._drop(connection, raised)
            raise
        for i, ticket in tickets:
            try:
                results[i] = self._result(ticket)
            except StatusError as failure:
                results[i] = failure
        for connection in shared.values():
            if connection in self._live:
                self._checkin(connection)
        return results

    def start(self, call: Call) -> Ticket:
        connections: dict[str, Connection] = {}
        ticket = self._start(call, connections)
        if ticket.connection is None:
            for connection in connections.values():
                if connection in self._live:
                    self._checkin(connection)
        return ticket

    async def collect(self, ticket: Any) -> Any:
        connection, pending = ticket.connection, ticket.pending
        if connection is not None and pending.failure is None:
            try:
                connection.wait(pending)
            except BaseException as raised:
                failure = self._drop(connection, raised)
                if failure is None:
                    raise
                raise failure from raised
            finally:
                ticket.connection = None
            self._checkin(connection)
        return self._result(ticket)

    async def collect_any(self, tickets: Sequence[Any], seconds: float) -> Any:
        until = time.monotonic() + seconds
        try:
            while True:
                for ticket in tickets:
                    if ticket.is_over:
                        return ticket
                waiting = [(ticket.connection, ticket.pending) for ticket in tickets]
                if not self._wait_any(waiting, until) and not any(ticket.is_over for ticket in tickets):
                    return None
        except BaseException as raised:
            for ticket in tickets:
                if ticket.connection in self._live:
                    self._drop(ticket.connection, raised)
            raise

    def _wait_any(self, waiting: list[tuple[Connection, Pending]], until: float) -> bool:
        """Until something has happened on one of these connections; False at `until`. What broke or is too late is dropped."""
        deadline = min(until, *[pending.deadline for _, pending in waiting])
        try:
            if len(waiting) == 1:
                waiting[0][0].wait(waiting[0][1], deadline)
            else:
                for connection, reason in exchange([connection for connection, _ in waiting], deadline):
                    self._drop(connection, reason)
        except TimeoutError as late:
            now = time.monotonic()
            for connection, pending in waiting:
                if pending.deadline <= now:
                    self._drop(connection, late)
                else:
                    self._look(connection)
            return False
        except Broken as reason:
            self._drop(waiting[0][0], reason)
        return True

    def _look(self, connection: Connection) -> None:
        """Take in what is here already."""
        try:
            connection.pump()
        except Broken as reason:
            self._drop(connection, reason)

    def abandon(self, ticket: Any) -> None:
        connection, ticket.connection = ticket.connection, None
        if connection is None or connection not in self._live:
            return
        with suppress(Broken):
            connection.pump()
            if not connection.pendings and not connection.unsent:
                self._checkin(connection)
                return
        self._drop(connection, Broken("abandoned"))

    def _start(self, call: Call, shared: dict[str, Connection]) -> Ticket:
        if call.address.startswith("local:"):
            ticket = Ticket(None, None)
            try:
                ticket.local = self._network().call(call, self.credentials)
            except StatusError as failure:
                ticket.failure = failure
            return ticket
        try:
            moves = is_shared(call)
        except StatusError as refused:
            return Ticket(None, None, refused)
        deadline = time.monotonic() + call.timeout
        for _ in range(2):
            connection = shared.get(call.address)
            fresh = True
            try:
                if connection is None or connection not in self._live:
                    connection, fresh = self._checkout(call)
                    shared[call.address] = connection
                return Ticket(connection, self._post(connection, call, moves, deadline))
            except Broken as raised:
                assert connection is not None
                broke = self._drop(connection, raised)
                if broke is None or fresh or broke.status is not Status.UNAVAILABLE:
                    return Ticket(None, None, broke)
            except StatusError as refused:
                return Ticket(None, None, refused)
            except BaseException as raised:
                if connection is not None:
                    self._drop(connection, raised)
                raise
        return Ticket(None, None, unreachable(call.address, "it hung up twice"))

    def _wait_all(self, tickets: Sequence[Ticket]) -> None:
        """Until each is answered, failed or too late."""
        while True:
            waiting = {
                t.connection: t
                for t in tickets
                if t.connection and t.pending and not t.pending.frame and not t.pending.failure
            }
            if not waiting:
                return
            pendings = [t.pending for t in tickets if t.connection in waiting and t.pending and not t.pending.frame]
            deadline = min(pending.deadline for pending in pendings)
            try:
                if len(waiting) == 1 and len(pendings) == 1:
                    next(iter(waiting)).wait(pendings[0])
                else:
                    for connection, reason in exchange(waiting, deadline):
                        self._drop(connection, reason)
            except Broken as reason:
                self._drop(next(iter(waiting)), reason)
            except TimeoutError as late:
                now = time.monotonic()
                for connection in waiting:
                    if any(p.deadline <= now for p in connection.pendings.values()):
                        self._drop(connection, late)

    @staticmethod
    def _result(ticket: Ticket) -> Any:
        if ticket.failure is not None:
            raise ticket.failure
        return ticket.local if ticket.pending is None else ticket.pending.result()

    def _post(self, connection: Connection, call: Call, shared: bool, deadline: float) -> Pending:
        if connection.link is not None:
            shared = connection.link.shares(call)
        elif shared:
            for slice_ in call.source or call.target:
                if slice_.region.id not in connection.offered:
                    self._offers.make(connection, slice_.region, call.connect or call.timeout)
        return connection.post(call, deadline, shared)

    # Connections.

    def _checkout(self, call: Call) -> tuple[Connection, bool]:
        """A connection for this thread alone, and whether it is a new one."""
        address = call.address
        if self._quarantine:
            self._quarantine.reap()
            if self._quarantine.count(address) >= QUARANTINED_MAX:
                raise error(
                    Status.BUSY,
                    f"{address} has not ended {QUARANTINED_MAX} requests that were given up; is it stopped?",
                )
        idle = self._idle.get(address)
        while idle:
            try:
                connection = idle.pop()
            except IndexError:
                break  # another thread was faster
            spent = connection.credentials is not self.credentials or self._is_outdone(connection)
            if spent or self._may_be_stale(connection):
                self._forget(connection)
                continue
            return connection, False
        if self._closing.is_set():
            raise error(Status.CANCELLED, "the client was closed")
        return self._connect(address, call.connect or call.timeout), True

    @staticmethod
    def _may_be_stale(connection: Connection) -> bool:
        """Whether the server has hung up. A Unix socket says so by itself when something is sent; TCP takes it, and loses it."""
        if connection.unix and time.monotonic() - connection.used < STALE_SECONDS:
            return False
        return connection.is_stale()

    def _is_outdone(self, connection: Connection) -> bool:
        """Whether it speaks TCP where RDMA works by now. From time to time somebody is sent to look."""
        if connection.unix or connection.link is not None:
            return False
        address = connection.address
        if self.choices.look_again(address, time.monotonic()):
            self.spawn(lambda: self._look_again(address), "rdma")
        return self.choices.moves(address)

    async def _look_again(self, address: str) -> None:
        try:
            connection = self._connect(address, math.inf)
        except StatusError:
            return
        finally:
            self.choices.looked(address, time.monotonic())
        self._checkin(connection)

    def _connect(self, address: str, timeout: float, bulk: bool = True) -> Connection:
        self._backoff.check(address, time.monotonic())
        try:
            credentials = self.credentials
            connection = Connection.open(address, credentials, connect_seconds(timeout), self.choices if bulk else None)
        except StatusError as failure:
            self._backoff.failed(address, time.monotonic(), self.random(), failure)
            raise
        self._backoff.succeeded(address)
        self._live.add(connection)
        if not self.credentials.cluster:
            self.credentials.cluster = connection.cluster
        if connection.unix:
            connection.offered = self._offers.known_to(connection)
        return connection

    def _checkin(self, connection: Connection) -> None:
        connection.used = time.monotonic()
        idle = self._idle.setdefault(connection.address, [])
        spent = connection.credentials is not self.credentials or self._closing.is_set()
        if len(idle) >= IDLE_PER_ADDRESS_MAX or connection.pendings or spent:
            self._drop(connection, Broken("not needed any more"))
        else:
            idle.append(connection)

    def _forget(self, connection: Connection) -> None:
        self._live.discard(connection)
        connection.close()

    def _drop(self, connection: Connection, raised: BaseException) -> StatusError | None:
        """End a connection on which something was raised. Every request open on it fails; returns the failure for the caller to
        raise, None if `raised` is to go on as it is."""
        ended = isinstance(raised, Broken) and raised.ended
        pendings = list(connection.pendings.values())
        connection.pendings.clear()
        failure = None
        for pending in pendings:
            failure = pending.failure = self._failure(connection, pending, raised)
        if isinstance(raised, Broken):
            failure = failure or raised.failure or unreachable(connection.address, raised.reason)
        elif not isinstance(raised, TimeoutError):
            failure = None
        moving = [slice_ for pending in pendings if pending.shared for slice_ in pending.slices]
        filling = {slice_.region for pending in pendings if pending.shared for slice_ in pending.call.target}
        self._live.discard(connection)
        if ended or not moving or connection.link is not None:  # RDMA: with the queue pair goes the server's way in
            connection.close()
            return failure
        self._keep_aside(connection, moving, filling, wait=isinstance(raised, TimeoutError))
        return failure

    @staticmethod
    def _failure(connection: Connection, pending: Pending, raised: BaseException) -> StatusError:
        if isinstance(raised, Broken):
            return raised.failure or pending.broke(connection.has_left(pending), raised.reason)
        if isinstance(raised, TimeoutError) and not isinstance(raised, StatusError):
            return pending.too_late()
        return error(Status.CANCELLED, "the caller gave up")

    def _keep_aside(self, connection: Connection, slices: list[Slice], filling: set[Region], *, wait: bool) -> None:
        """The server may still move these slices: tell it to stop, and keep them until it has. What it reads of the caller's own memory it
        compares with checksums; what it may fill of that is dead meanwhile, if it does not stop soon."""
        sock = connection.sock
        assert isinstance(sock, socket.socket)
        self._quarantine.add(connection.address, sock, self.pool.hold(slices))
        registered = {region for region in filling if region is not self.pool.region}
        if registered and not self._quarantine.resolved(sock, REGION_WAIT_SECONDS * time_scale() if wait else 0.0):
            self._quarantine.condemn(sock, registered)

    def _reap(self) -> None:
        self._quarantine.reap()

    # Regions.

    def register(self, buffer: Any, descriptor: int = -1) -> Region:
        return make_region(buffer, descriptor)

    def unregister(self, region: Region) -> None:
        self._offers.withdraw(region)
        choice.forget(region, self._moves_in)
        if region.fd >= 0:
            os.close(region.fd)
            region.fd = -1

    def _moves_in(self, region: Region) -> bool:
        return any(connection.moves_in(region) for connection in list(self._live))

    # The rest of the environment.

    def _network(self) -> LocalNetwork:
        if self._local is None:
            raise error(Status.UNAVAILABLE, "local: addresses need a LocalNetwork, given to the environment as local=")
        return self._local

    def shares_memory(self, address: str) -> bool:
        return address.startswith("unix:") or self.choices.moves(address)

    def spoken(self) -> Mapping[str, Spoken]:
        return dict(self.choices.spoken)

    def reachable(self, address: str) -> bool:
        return not address.startswith("unix:") or os.path.exists(address[5:])

    def renew_identity(self) -> None:
        self.credentials = replace(self.credentials, client=new_client_id())

    def subscribe(self, address: str, topic: str, since: int = 0, seconds: float = 5.0) -> Subscriber:
        """Notices of a topic, on a connection of their own. Raises as `call` does."""
        return Subscriber(self._connect(address, seconds, bulk=False), topic, since, self._forget)

    def close(self) -> None:
        """Ends workers and connections; what is under way in other threads fails: at once, but for what servers move into memory of the
        caller's own, which is his again when they say that they have stopped."""
        if self._closing.is_set():
            return
        self._say_closing()
        for connection in list(self._live):
            with suppress(OSError):
                connection.sock.shutdown(socket.SHUT_WR if self._fills_others(connection) else socket.SHUT_RDWR)
        self._join_workers()
        for idle in self._idle.values():
            while idle:
                self._forget(idle.pop())
        self._close_inherited()
        choice.forget(self.pool.region, self._moves_in)
        self.pool.close()

    def _fills_others(self, connection: Connection) -> bool:
        """Whether the server moves bytes into memory that is not the pool's."""
        if connection.link is not None:
            return False
        targets = [
            slice_ for pending in list(connection.pendings.values()) if pending.shared for slice_ in pending.call.target
        ]
        return any(slice_.region is not self.pool.region for slice_ in targets)

    def _close_inherited(self) -> None:
        self._quarantine.close()
        self._offers.close()

    def before_fork(self) -> None:
        self._offers.lock.acquire()
        self.pool.before_fork()

    def after_fork_in_parent(self) -> None:
        self.pool.after_fork_in_parent()
        self._offers.lock.release()

    def after_fork_in_child(self) -> None:
        """A new identity and no connections: the sockets, their replies and the memory are the parent's. They are closed, not shut
        down, and the keeper does not exist here."""
        for connection in self._live:
            connection.close()
        self._close_inherited()
        self.renew_identity()
        self.pool.after_fork_in_child()
        self._begin_anew()
        self._reset()
