"""The asyncio environment: one multiplexed connection per server, on the running loop (uvloop or asyncio)."""

from __future__ import annotations

import asyncio
import math
import os
import random
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import replace
from typing import Any

from ..env import Call
from ..errors import Status, StatusError, error
from ..gen import rpc_pb2
from ..hello import Credentials
from ..ids import new_client_id
from ..pool import POOL_BYTES, Pool
from ..region import Region
from ..settings import read_secret, time_scale
from ..transport import address as addresses
from ..transport import choice
from ..transport.choice import Choices, Spoken, wanted
from ..transport.local import LocalNetwork
from .aio_connection import AioConnection, AioPending, AioSubscriber, Client, RegionHolder
from .calls import REGION_WAIT_SECONDS, Backoff, connect_seconds, is_shared, make_region, unreachable


class AioTicket:
    """A started call: posted at once, or a task where the connection had to be made first."""

    __slots__ = ("connection", "failure", "pending", "task")

    def __init__(self) -> None:
        self.connection: AioConnection | None = None
        self.pending: AioPending | None = None
        self.task: asyncio.Task[Any] | None = None
        self.failure: StatusError | None = None


class AioPromise:
    """Each waiter has a future of its own: one that is cancelled takes nothing from the others. Without waiters there is none at all."""

    __slots__ = ("_failure", "_value", "_waiters", "done")

    def __init__(self) -> None:
        self.done = False
        self._failure: BaseException | None = None
        self._value: Any = None
        self._waiters: list[asyncio.Future[None]] = []

    def set(self, value: Any) -> None:
        if not self.done:
            self._value = value
            self._settle()

    def fail(self, failure: BaseException) -> None:
        if not self.done:
            self._failure = failure
            self._settle()

    def _settle(self) -> None:
        self.done = True
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def __await__(self) -> Generator[Any, Any, Any]:
        if not self.done:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            yield from waiter
        if self._failure is not None:
            raise self._failure
        return self._value


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
        self.choices = Choices()
        self._local = local
        self._connections: dict[str, AioConnection] = {}
        self._retired: set[AioConnection] = set()  # that take no more calls
        self._connecting: dict[str, asyncio.Task[AioConnection]] = {}
        self._offers: dict[
            tuple[str, int, bytes], dict[int, RegionHolder]
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

    def _post_now(self, call: Call) -> tuple[AioConnection, AioPending] | None:
        """Send without waiting for anything; None if something has to be made first."""
        connection = self._connections.get(call.address)
        if connection is None or connection.closed:
            return None
        shared = is_shared(call)
        if connection.link is not None:
            shared = connection.link.shares(call)
        elif self.choices.look_again(call.address, self._monotonic()):
            self.spawn(lambda: self._look_again(connection), "rdma")
        elif shared and not all(slice_.region.id in connection.offered for slice_ in call.source or call.target):
            return None
        return connection, connection.post(call, shared, call.timeout)

    async def _post(self, call: Call) -> tuple[AioConnection, AioPending]:
        end = self._monotonic() + call.timeout
        shared = is_shared(call)
        connection = await self._connection(call.address, call.connect or call.timeout)
        if connection.link is not None:
            shared = connection.link.shares(call)
        elif shared:
            for slice_ in call.source or call.target:
                if slice_.region.id not in connection.offered:
                    await self._offer(connection, slice_.region, call.connect or call.timeout)
        if connection.closed:
            raise unreachable(call.address, "it closed the connection")
        return connection, connection.post(call, shared, end - self._monotonic())

    async def _wait(self, connection: AioConnection, pending: AioPending) -> Any:
        try:
            await pending.waiter
        except asyncio.CancelledError:
            connection.give_up(pending, error(Status.CANCELLED, "the caller gave up"))
            self._mark_dead(pending)
            raise
        if pending.settled is not None and pending.shared:
            await self._wait_settled(pending)
        return pending.result()

    async def _wait_settled(self, pending: AioPending) -> None:
        """Registered memory is not handed back before it is known that nothing moves into it, or it is dead."""
        assert pending.settled is not None
        if all(slice_.region is self.pool.region for slice_ in pending.slices):
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(pending.settled), REGION_WAIT_SECONDS * time_scale())
        self._mark_dead(pending)

    def _mark_dead(self, pending: AioPending) -> None:
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
            try:
                return await ticket.task
            except asyncio.CancelledError:
                if ticket.failure is not None:  # somebody else has given it up: whoever waits is not cancelled himself
                    raise ticket.failure from None
                raise
        assert ticket.connection is not None and ticket.pending is not None
        return await self._wait(ticket.connection, ticket.pending)

    async def collect_any(self, tickets: Sequence[Any], seconds: float) -> Any:
        waiters: list[asyncio.Future[Any]] = []
        for ticket in tickets:
            waiter = ticket.task if ticket.pending is None else ticket.pending.waiter
            if ticket.failure is not None or waiter.done():
                return ticket
            waiters.append(waiter)
        done, _ = await asyncio.wait(waiters, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        return next((ticket for ticket, waiter in zip(tickets, waiters, strict=True) if waiter in done), None)

    def abandon(self, ticket: Any) -> None:
        if ticket.task is not None:
            ticket.failure = error(Status.CANCELLED, "the caller gave up")
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
        connection = await self._greeted(address, seconds)
        assert connection.hello is not None
        self._backoff.succeeded(address)
        self._connections[address] = connection
        if not self.credentials.cluster:
            self.credentials.cluster = connection.hello.cluster
        if connection.unix:
            connection.offered = self._offers_of(address, connection.hello.process, credentials.client)
        return connection

    async def _greeted(self, address: str, seconds: float) -> AioConnection:
        while True:
            sock = await _open_socket(address, seconds)
            connection = AioConnection(sock, address, self.credentials, self.pool, self.choices)
            try:
                await _greet(connection, seconds)
            except StatusError:
                if connection.fell_back and wanted() != "rdma":
                    continue  # once: the choice is tcp now
                raise
            return connection

    async def _look_again(self, old: AioConnection) -> None:
        """Whether RDMA works by now; if so, what comes next goes over it, and the old connection ends with its last request."""
        address = old.address
        try:
            made = await self._greeted(address, connect_seconds(math.inf))
        except (StatusError, OSError):
            return
        finally:
            self.choices.looked(address, self._monotonic())
        if made.link is None or self._closed or self._connections.get(address) is not old:
            made.close()
            return
        self._connections[address] = made
        self._retire(old)

    def _retire(self, connection: AioConnection) -> None:
        """What is under way on it is finished, and no more."""
        self._retired = {kept for kept in self._retired if not kept.closed}
        self._retired.add(connection)
        connection.retire()

    # Regions.

    def register(self, buffer: Any, descriptor: int = -1) -> Region:
        return make_region(buffer, descriptor)

    def unregister(self, region: Region) -> None:
        for offers in self._offers.values():
            holder = offers.pop(region.id, None)
            if holder is not None:
                holder.close()
        choice.forget(region, self._moves_in)
        if region.fd >= 0:
            os.close(region.fd)
            region.fd = -1

    def _moves_in(self, region: Region) -> bool:
        return any(connection.moves_in(region) for connection in [*self._connections.values(), *self._retired])

    def _offers_of(self, address: str, process: int, client: bytes) -> dict[int, RegionHolder]:
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
            holder = RegionHolder(sock, connection.address, connection.credentials, offer, region.fd)
            await _greet(holder, seconds)
            assert holder.hello is not None and connection.hello is not None
            if holder.hello.process != connection.hello.process:
                holder.close()
                connection.close()
                raise unreachable(connection.address, "it was restarted")
            connection.offered[region.id] = holder

    # The rest of the environment.

    def shares_memory(self, address: str) -> bool:
        return address.startswith("unix:") or self.choices.moves(address)

    def spoken(self) -> Mapping[str, Spoken]:
        return dict(self.choices.spoken)

    def reachable(self, address: str) -> bool:
        return not address.startswith("unix:") or os.path.exists(address[5:])

    def renew_identity(self) -> None:
        self.credentials = replace(self.credentials, client=new_client_id())
        for connection in self._connections.values():
            self._retire(connection)
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

    def promise(self) -> AioPromise:
        return AioPromise()

    def spawn(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work(), name=f"emberfs-{name}")
        # A loop that just ends (a thread's at interpreter exit) has no news for anybody in a worker that was still waiting.
        task._log_destroy_pending = False  # type: ignore[attr-defined]
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
        for connection in [*self._connections.values(), *self._retired]:
            connection.close()
        for offers in self._offers.values():
            for holder in list(offers.values()):
                holder.close()
        choice.forget(self.pool.region, self._moves_in)
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


async def _greet(client: Client, seconds: float) -> None:
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
