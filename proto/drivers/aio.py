"""The asyncio environment: one multiplexed connection per server, on the running loop (uvloop or asyncio).

A call whose caller stops waiting is cancelled at the server; the memory that the server may still move into is kept aside until the
request's reply or the end of the connection says that it has stopped.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import replace
from typing import Any

from .. import frame as wire
from ..env import Call
from ..errors import Status, StatusError, error
from ..frame import Frame
from ..gen import rpc_pb2
from ..hello import ClientHello, Credentials, failure_error
from ..ids import new_client_id
from ..pool import POOL_BYTES, Hold, Pool
from ..region import Region
from ..settings import read_secret, time_scale
from ..subscription import NOTICES_MAX
from ..transport import address as addresses
from ..transport.local import LocalNetwork
from ..transport.stream import Stream
from .calls import (
    REGION_WAIT_SECONDS,
    Backoff,
    Pending,
    connect_seconds,
    encode_call,
    is_shared,
    make_region,
    unreachable,
)


class _Client(Stream):
    """The client's end of a connection, through its hello. `ready` is set when calls may follow."""

    def __init__(
        self,
        sock: socket.socket,
        address: str,
        credentials: Credentials,
        offer: rpc_pb2.RegionOffer | None = None,
        descriptor: int = -1,
    ) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(loop, sock)
        self.address = address
        self.hello: rpc_pb2.HelloReply | None = None
        self.ready: asyncio.Future[None] = loop.create_future()
        self.reason = error(Status.UNAVAILABLE, f"{address} closed the connection")
        self._greeting: ClientHello | None = ClientHello(credentials, address, offer)
        first = self._greeting.first
        if descriptor >= 0:
            socket.send_fds(sock, [first], [descriptor])  # the first bytes on a new socket: there is room
        else:
            self.send(first)

    def frame_received(self, frame: Frame) -> None:
        if self._greeting is None:
            self.reply_received(frame)
            return
        answer = self._greeting.received(frame)
        if answer:
            self.send(answer)
        self.hello = self._greeting.reply
        if self.hello is not None:
            self._greeting = None
            if not self.ready.done():
                self.ready.set_result(None)

    def reply_received(self, frame: Frame) -> None:
        raise NotImplementedError

    def broken(self, reason: StatusError) -> None:
        self.reason = reason
        if self._greeting is not None:
            self.close()
            return
        message = rpc_pb2.Failure(status=reason.status, message=reason.strerror or "")
        self.fail_all()
        self.close_gently(wire.encode(0, wire.GOODBYE, 0, message.SerializeToString()), seconds=None)

    def fail_all(self) -> None:
        """Nobody gets an answer any more."""

    def ended(self) -> None:
        self.close()

    def lost(self) -> None:
        if not self.ready.done():
            self.ready.set_exception(self.reason)
            self.ready.exception()  # whoever waits gets it; nobody need
        self.fail_all()


class _RegionHolder(_Client):
    """A region is known to the server as long as this is open."""

    def reply_received(self, frame: Frame) -> None:
        if frame.flags & wire.FAILURE:
            raise failure_error(frame.message, self.address)


class _Pending(Pending):
    """With what the loop needs: whom to wake, when to give up, and the memory kept aside after that."""

    __slots__ = ("hold", "number", "settled", "timer", "waiter")

    def __init__(self, call: Call, shared: bool, number: int, waiter: asyncio.Future[None]) -> None:
        super().__init__(call, 0.0, shared)
        self.number = number
        self.waiter = waiter  # done when answered, failed or given up
        self.timer: asyncio.TimerHandle | None = None
        self.hold: Hold = []
        self.settled: asyncio.Future[None] | None = None  # after it was given up: done when the server has stopped


class AioConnection(_Client):
    """Calls and subscriptions to one server."""

    def __init__(self, sock: socket.socket, address: str, credentials: Credentials, pool: Pool) -> None:
        super().__init__(sock, address, credentials)
        self.credentials = credentials
        self.unix = address.startswith("unix:")
        self.offered: dict[int, _RegionHolder] = {}
        self.subscribers: dict[int, AioSubscriber] = {}
        self._pool = pool
        self._pendings: dict[int, _Pending] = {}
        self._given_up: dict[int, _Pending] = {}  # cancelled, and not answered yet
        self._number = 0
        self._retiring = False

    def post(self, call: Call, shared: bool, seconds: float) -> _Pending:
        """Send a request. Raises TOO_LARGE."""
        self._number += 1
        pending = _Pending(call, shared, self._number, self.loop.create_future())
        head, bulk = encode_call(call, pending.number, shared, seconds)
        self._pendings[pending.number] = pending
        self.send(head)
        for view in bulk:
            self.send(view)
        pending.end = self.posted
        pending.timer = self.loop.call_later(seconds, self._expire, pending)
        return pending

    def post_own(self, method: int, message: bytes) -> None:
        """A request of the RPC's own service."""
        self._number += 1
        self.send(wire.encode(0, method, self._number, message))

    def _expire(self, pending: _Pending) -> None:
        self.give_up(pending, pending.too_late())

    def give_up(self, pending: _Pending, failure: StatusError) -> None:
        """Nobody waits for this request any more: cancel it, and keep its memory aside until the server is done with it."""
        if self._pendings.pop(pending.number, None) is None:
            return
        if pending.shared:
            pending.hold = self._pool.hold(pending.slices)
        pending.settled = self.loop.create_future()
        self._given_up[pending.number] = pending
        self.send(wire.encode(0, wire.CANCEL, pending.number, b""))
        self._answer(pending, failure)

    @staticmethod
    def _answer(pending: _Pending, failure: StatusError | None) -> None:
        pending.failure = failure
        if pending.timer is not None:
            pending.timer.cancel()
        if not pending.waiter.done():
            pending.waiter.set_result(None)

    def _settle(self, pending: _Pending) -> None:
        """The server moves nothing for this request any more."""
        self._pool.release(pending.hold)
        if pending.settled is not None and not pending.settled.done():
            pending.settled.set_result(None)

    def place(self, frame: Frame) -> Sequence[memoryview] | None:
        pending = self._pendings.get(frame.request_id)
        if pending is not None:
            return pending.place(frame)
        if frame.request_id in self._given_up:
            return None
        raise error(Status.PROTOCOL, f"{self.address} sent bulk for request {frame.request_id}, which is not open")

    def reply_received(self, frame: Frame) -> None:
        if frame.method < 256:
            self._own_received(frame)
            return
        pending = self._pendings.pop(frame.request_id, None)
        if pending is not None:
            pending.frame = frame
            self._answer(pending, None)
        else:
            pending = self._given_up.pop(frame.request_id, None)
            if pending is None:
                raise error(Status.PROTOCOL, f"{self.address} answered request {frame.request_id}, which is not open")
            self._settle(pending)
        if self._retiring:
            self.retire()

    def retire(self) -> None:
        """Close as soon as nothing is open on it."""
        self._retiring = True
        if not self._pendings and not self._given_up:
            self.close()

    def _own_received(self, frame: Frame) -> None:
        if frame.method == wire.NOTICE:
            notice = rpc_pb2.Notice.FromString(frame.message)
            subscriber = self.subscribers.get(notice.subscription)
            if subscriber is not None:
                subscriber.offer(notice)
        elif frame.flags & wire.FAILURE:
            reason = failure_error(frame.message, self.address)
            if frame.method == wire.GOODBYE:
                raise reason
            for subscriber in self.subscribers.values():  # the only requests of the RPC's own that can be refused
                subscriber.failed(reason)

    def fail_all(self) -> None:
        # Also called when the goodbye was sent but the server has not closed yet: what it may still move into stays aside until
        # the connection is lost.
        for pending in list(self._pendings.values()):
            failure = self.reason if self.reason.status is Status.PROTOCOL else None
            failure = failure or pending.broke(self.taken >= pending.end, "the server closed the connection")
            self.give_up(pending, failure)
        for subscriber in list(self.subscribers.values()):
            subscriber.failed(self.reason)
        self.subscribers.clear()

    def lost(self) -> None:
        super().lost()
        for pending in self._given_up.values():
            self._settle(pending)
        self._given_up.clear()


class AioTicket:
    """A started call: posted at once, or a task where the connection had to be made first."""

    __slots__ = ("connection", "failure", "pending", "task")

    def __init__(self) -> None:
        self.connection: AioConnection | None = None
        self.pending: _Pending | None = None
        self.task: asyncio.Task[Any] | None = None
        self.failure: StatusError | None = None


class AioEnvironment:
    """`cluster` empty: accept whichever answers first. `secret`, or a file with it: for TCP. Made and used on one running loop, and
    never after a fork."""

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
        self.credentials = Credentials(
            cluster, secret or read_secret(secret_file), client or new_client_id(), acts_for_others
        )
        self.pool = Pool(pool_bytes)
        self._local = local
        self._connections: dict[str, AioConnection] = {}
        self._connecting: dict[str, asyncio.Task[AioConnection]] = {}
        self._offers: dict[
            tuple[str, int, bytes], dict[int, _RegionHolder]
        ] = {}  # by address, process, client; then region
        self._offer_lock = asyncio.Lock()
        self._backoff = Backoff()
        self._workers: set[asyncio.Task[Any]] = set()
        self._subscriptions = 0
        self._closed = False

    @property
    def client(self) -> bytes:
        """Our identity: 16 bytes."""
        return self.credentials.client

    # Calls.

    async def call(self, call: Call) -> Any:
        if call.address.startswith("local:"):
            return await self._call_local(call)
        posted = self._post_now(call)
        connection, pending = posted or await self._post(call)
        return await self._wait(connection, pending)

    def _post_now(self, call: Call) -> tuple[AioConnection, _Pending] | None:
        """Send without waiting for anything; None if something has to be made first."""
        connection = self._connections.get(call.address)
        if connection is None or connection.closed:
            return None
        shared = is_shared(call, connection.unix)
        if shared and not all(slice_.region.id in connection.offered for slice_ in call.source or call.target):
            return None
        return connection, connection.post(call, shared, call.timeout)

    async def _post(self, call: Call) -> tuple[AioConnection, _Pending]:
        end = self._monotonic() + call.timeout
        connection = await self._connection(call.address, call.timeout)
        shared = is_shared(call, connection.unix)
        if shared:
            for slice_ in call.source or call.target:
                if slice_.region.id not in connection.offered:
                    await self._offer(connection, slice_.region, call.timeout)
        if connection.closed:
            raise unreachable(call.address, "it closed the connection")
        return connection, connection.post(call, shared, end - self._monotonic())

    async def _wait(self, connection: AioConnection, pending: _Pending) -> Any:
        try:
            await pending.waiter
        except asyncio.CancelledError:
            connection.give_up(pending, error(Status.CANCELLED, "the caller gave up"))
            self._mark_dead(pending)
            raise
        if pending.settled is not None and pending.shared:
            await self._wait_settled(pending)
        return pending.result()

    async def _wait_settled(self, pending: _Pending) -> None:
        """Registered memory is not handed back before it is known that nothing moves into it, or it is dead."""
        assert pending.settled is not None
        if all(slice_.region is self.pool.region for slice_ in pending.slices):
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(pending.settled), REGION_WAIT_SECONDS * time_scale())
        self._mark_dead(pending)

    def _mark_dead(self, pending: _Pending) -> None:
        if pending.shared and pending.settled is not None and not pending.settled.done():
            for slice_ in pending.slices:
                if slice_.region is not self.pool.region:
                    slice_.region.dead = True

    async def call_many(self, calls: Sequence[Call]) -> list[Any]:
        tickets = [self.start(call) for call in calls]
        results: list[Any] = []
        try:
            for ticket in tickets:
                try:
                    results.append(await self.collect(ticket))
                except StatusError as failure:
                    results.append(failure)
        except BaseException:
            for ticket in tickets[len(results) :]:
                self.abandon(ticket)
            raise
        return results

    def start(self, call: Call) -> AioTicket:
        ticket = AioTicket()
        try:
            posted = None if call.address.startswith("local:") else self._post_now(call)
        except StatusError as refused:
            ticket.failure = refused
            return ticket
        if posted is None:
            ticket.task = asyncio.ensure_future(self.call(call))
        else:
            ticket.connection, ticket.pending = posted
        return ticket

    async def collect(self, ticket: Any) -> Any:
        if ticket.failure is not None:
            raise ticket.failure
        if ticket.task is not None:
            return await ticket.task
        assert ticket.connection is not None and ticket.pending is not None
        return await self._wait(ticket.connection, ticket.pending)

    def abandon(self, ticket: Any) -> None:
        if ticket.task is not None:
            ticket.task.cancel()
        elif ticket.connection is not None and ticket.pending is not None:
            ticket.connection.give_up(ticket.pending, error(Status.CANCELLED, "the caller gave up"))
            self._mark_dead(ticket.pending)

    async def _call_local(self, call: Call) -> Any:
        if self._local is None:
            raise error(Status.UNAVAILABLE, "local: addresses need a LocalNetwork, given to the environment as local=")
        return await self._local.call_aio(call, self.credentials)

    # Connections.

    async def _connection(self, address: str, seconds: float) -> AioConnection:
        """The connection to this server; whoever needs it first makes it, the others wait for the same attempt."""
        connection = self._connections.get(address)
        if connection is not None and not connection.closed:
            return connection
        if self._closed:
            raise error(Status.CANCELLED, "the client was closed")
        task = self._connecting.get(address)
        if task is None:
            self._backoff.check(address, self._monotonic())
            task = self._connecting[address] = asyncio.ensure_future(self._connect(address, connect_seconds(seconds)))
            task.add_done_callback(lambda done: self._connected(address, done))
        try:
            return await asyncio.wait_for(asyncio.shield(task), seconds)
        except TimeoutError as late:
            if isinstance(late, StatusError):
                raise
            raise unreachable(address, late) from late

    def _connected(self, address: str, task: asyncio.Task[AioConnection]) -> None:
        self._connecting.pop(address, None)
        if not task.cancelled() and (failure := task.exception()) is not None and isinstance(failure, StatusError):
            self._backoff.failed(address, self._monotonic(), self.random(), failure)

    async def _connect(self, address: str, seconds: float) -> AioConnection:
        credentials = self.credentials
        sock = await _open_socket(address, seconds)
        connection = AioConnection(sock, address, credentials, self.pool)
        await _greet(connection, seconds)
        assert connection.hello is not None
        self._backoff.succeeded(address)
        self._connections[address] = connection
        if not self.credentials.cluster:
            self.credentials.cluster = connection.hello.cluster
        if connection.unix:
            connection.offered = self._offers_of(address, connection.hello.process, credentials.client)
        return connection

    # Regions.

    def register(self, buffer: Any, descriptor: int = -1) -> Region:
        return make_region(buffer, descriptor)

    def unregister(self, region: Region) -> None:
        for offers in self._offers.values():
            holder = offers.pop(region.id, None)
            if holder is not None:
                holder.close()
        if region.fd >= 0:
            os.close(region.fd)
            region.fd = -1

    def _offers_of(self, address: str, process: int, client: bytes) -> dict[int, _RegionHolder]:
        mine = (address, process, client)
        for key in [key for key in self._offers if key[0] == address and key != mine]:
            for holder in self._offers.pop(key).values():
                holder.close()
        return self._offers.setdefault(mine, {})

    async def _offer(self, connection: AioConnection, region: Region, seconds: float) -> None:
        """Make a region known to the server, on a connection of its own that lives as long."""
        async with self._offer_lock:
            if region.id in connection.offered:
                return
            seconds = connect_seconds(seconds)
            offer = rpc_pb2.RegionOffer(id=region.id, size=region.size, sealed=region.sealed)
            sock = await _open_socket(connection.address, seconds)
            holder = _RegionHolder(sock, connection.address, connection.credentials, offer, region.fd)
            await _greet(holder, seconds)
            assert holder.hello is not None and connection.hello is not None
            if holder.hello.process != connection.hello.process:
                holder.close()
                connection.close()
                raise unreachable(connection.address, "it was restarted")
            connection.offered[region.id] = holder

    # The rest of the environment.

    def shares_memory(self, address: str) -> bool:
        return address.startswith(("unix:", "local:"))

    def reachable(self, address: str) -> bool:
        return not address.startswith("unix:") or os.path.exists(address[5:])

    def renew_identity(self) -> None:
        self.credentials = replace(self.credentials, client=new_client_id())
        for connection in self._connections.values():
            connection.retire()
        self._connections.clear()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(seconds, 0.0))

    def now(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    @staticmethod
    def _monotonic() -> float:
        return time.monotonic()

    def wall_ns(self) -> int:
        return time.time_ns()

    def random(self) -> float:
        return random.random()  # noqa: S311 - jitter

    def lock(self) -> AbstractAsyncContextManager[None]:
        return asyncio.Lock()

    def spawn(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work(), name=f"emberfs-{name}")
        self._workers.add(task)
        task.add_done_callback(self._workers.discard)
        return task

    async def subscribe(self, address: str, topic: str, since: int = 0, seconds: float = 5.0) -> AioSubscriber:
        """Notices of a topic. Raises as `call` does; a refusal comes with the first notice."""
        connection = await self._connection(address, seconds)
        self._subscriptions += 1
        return AioSubscriber(connection, self._subscriptions, topic, since)

    def close(self) -> Awaitable[None]:
        return self._close()

    async def _close(self) -> None:
        self._closed = True
        workers = [worker for worker in self._workers if worker is not asyncio.current_task()]
        for worker in workers:
            worker.cancel()
        attempts = list(self._connecting.values())
        for attempt in attempts:
            attempt.cancel()
        await asyncio.gather(*workers, *attempts, return_exceptions=True)
        for connection in list(self._connections.values()):
            connection.close()
        for offers in self._offers.values():
            for holder in list(offers.values()):
                holder.close()
        self.pool.close()


async def _open_socket(address: str, seconds: float) -> socket.socket:
    """A connected, non-blocking socket. Raises UNAVAILABLE."""
    kind, rest = addresses.split(address)
    loop = asyncio.get_running_loop()
    sock: socket.socket | None = None
    try:
        if kind == "unix":
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.setblocking(False)
            addresses.connect_unix(sock, rest)
            return sock
        if kind != "tcp":
            raise error(Status.INVALID, f"{address}: needs a LocalNetwork given to the environment")
        host, port = addresses.host_port(rest)
        found = await asyncio.wait_for(loop.getaddrinfo(host, port, type=socket.SOCK_STREAM), seconds)
        sock = socket.socket(found[0][0], socket.SOCK_STREAM)
        sock.setblocking(False)
        await asyncio.wait_for(loop.sock_connect(sock, found[0][4]), seconds)
        addresses.tune_tcp(sock)
        return sock
    except StatusError:
        raise
    except OSError as failed:  # TimeoutError is one
        if sock is not None:
            sock.close()
        raise unreachable(address, failed) from failed
    except BaseException:
        if sock is not None:
            sock.close()
        raise


async def _greet(client: _Client, seconds: float) -> None:
    """Wait for the end of the hello. Raises UNAVAILABLE, WRONG_CLUSTER, UNAUTHENTICATED, PROTOCOL."""
    client.begin()
    try:
        await asyncio.wait_for(client.ready, seconds)
    except TimeoutError as late:
        client.close()
        if isinstance(late, StatusError):
            raise
        raise unreachable(client.address, late) from late
    except BaseException:
        client.close()
        raise


class AioSubscriber:
    """An async iterator of notices. A queue that is not emptied becomes one notice with `resync`."""

    def __init__(self, connection: AioConnection, number: int, topic: str, since: int) -> None:
        self._connection = connection
        self._number = number
        self._queue: deque[rpc_pb2.Notice] = deque()
        self._failure: StatusError | None = None
        self._arrived = asyncio.Event()
        connection.subscribers[number] = self
        message = rpc_pb2.Subscribe(subscription=number, topic=topic, since=since)
        connection.post_own(wire.SUBSCRIBE, message.SerializeToString())

    def offer(self, notice: rpc_pb2.Notice) -> None:
        if len(self._queue) >= NOTICES_MAX:
            self._queue.clear()
            notice = rpc_pb2.Notice(subscription=self._number, version=notice.version, resync=True)
        self._queue.append(notice)
        self._arrived.set()

    def failed(self, reason: StatusError) -> None:
        self._failure = reason
        self._arrived.set()

    async def next(self, seconds: float | None = None) -> rpc_pb2.Notice | None:
        """The next notice; None if there is none within this time. Raises when the connection is gone: subscribe again, with
        the last version seen as `since`."""
        while not self._queue:
            if self._failure is not None:
                raise self._failure
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), seconds)
            except TimeoutError:
                return None
        return self._queue.popleft()

    def __aiter__(self) -> AioSubscriber:
        return self

    async def __anext__(self) -> rpc_pb2.Notice:
        while True:
            notice = await self.next()
            if notice is not None:
                return notice

    def close(self) -> None:
        if self._connection.subscribers.pop(self._number, None) is not None and not self._connection.closed:
            self._connection.post_own(
                wire.UNSUBSCRIBE, rpc_pb2.Unsubscribe(subscription=self._number).SerializeToString()
            )
