"""The client's end of a connection on an event loop: many requests at once, replies in any order, notices.

A request whose caller stops waiting is cancelled at the server; the memory that the server may still move into is kept aside until the
request's reply or the end of the connection says that it has stopped.
"""

from __future__ import annotations

import asyncio
import math
import socket
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .. import frame as wire
from ..env import Call
from ..errors import Status, StatusError, error
from ..frame import Frame
from ..gen import rpc_pb2
from ..hello import FEATURE_RDMA, ClientHello, Credentials, failure_error
from ..pool import Hold, Pool
from ..region import Region
from ..settings import time_scale
from ..subscription import NOTICES_MAX
from ..transport.choice import PROBE_SECONDS, Choices
from ..transport.stream import Stream
from .calls import Pending, encode_call, unreachable

if TYPE_CHECKING:
    from ..transport.rdma.link import Link
    from ..transport.rdma.upgrade import Upgrade

REQUESTS_EARLY = 4  # in flight: they leave at once, so that the server begins while we go on; more wait for each other
CLOCK_GRAIN_SECONDS = 0.001  # of a loop's timers, which may be early by so much


class Client(Stream):
    """The client's end of a connection, through its hello. `ready` is set when calls may follow."""

    out_bytes_high = float(
        "inf"
    )  # if both sides stopped reading, neither could go on; what waits here is the callers' own memory

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
            try:
                socket.send_fds(sock, [first], [descriptor])  # the first bytes on a new socket: there is room
            except OSError as failed:  # it took the connection, and was killed since
                sock.close()
                raise unreachable(address, failed) from failed
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
            self.greeted()
            self._greeting = None

    def greeted(self) -> None:
        """The hello is complete."""
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


class RegionHolder(Client):
    """A region is known to the server as long as this is open."""

    def reply_received(self, frame: Frame) -> None:
        if frame.flags & wire.FAILURE:
            raise failure_error(frame.message, self.address)


class AioPending(Pending):
    """With what the loop needs: whom to wake, and the memory kept aside after it was given up."""

    __slots__ = ("hold", "number", "settled", "waiter")

    def __init__(self, call: Call, deadline: float, shared: bool, number: int, waiter: asyncio.Future[None]) -> None:
        super().__init__(call, deadline, shared)
        self.number = number
        self.waiter = waiter  # done when answered, failed or given up
        self.hold: Hold = []
        self.settled: asyncio.Future[None] | None = None  # after it was given up: done when the server has stopped


class AioConnection(Client):
    """Calls and subscriptions to one server."""

    def __init__(
        self, sock: socket.socket, address: str, credentials: Credentials, pool: Pool, choices: Choices
    ) -> None:
        super().__init__(sock, address, credentials)
        self.credentials = credentials
        self.unix = address.startswith("unix:")
        self.link: Link | None = None  # over RDMA
        self._choices = choices
        self._upgrade: Upgrade | None = None  # under way
        self.fell_back = False  # RDMA was agreed on and does not work: connect anew
        self.offered: dict[int, RegionHolder] = {}
        self.subscribers: dict[int, AioSubscriber] = {}
        self._pool = pool
        self._pendings: dict[int, AioPending] = {}
        self._given_up: dict[int, AioPending] = {}  # cancelled, and not answered yet
        self._number = 0
        self._retiring = False
        self._timer: asyncio.TimerHandle | None = None  # one for all requests
        self._timer_due = math.inf  # on the loop's clock; not after the earliest deadline

    # RDMA.

    def greeted(self) -> None:
        assert self.hello is not None
        if not self._choices.tries(self.address, bool(self.hello.features & FEATURE_RDMA), self.loop.time()):
            super().greeted()
            return
        from ..transport.rdma.upgrade import Upgrade, peer_address

        assert isinstance(self.sock, socket.socket)
        self._upgrade = Upgrade(self.address, peer_address(self.sock))
        self._go_on(self._upgrade, self._upgrade.next())

    def _go_on(self, upgrade: Upgrade, frame: bytes) -> None:
        if frame:
            self.send(frame)
        elif upgrade.endpoint is None:
            self._upgrade = None
            self._choices.failed(self.address, upgrade.refused, self.loop.time())
            super().greeted()
        else:
            from ..transport.rdma.socket import RdmaSocket

            assert isinstance(self.sock, socket.socket)
            rdma = RdmaSocket(upgrade.endpoint, self.sock)
            self.go_on_over(rdma)
            upgrade.endpoint.probe()
            rdma.when_settled(self.loop, self._probed)
            self.loop.call_later(PROBE_SECONDS * time_scale(), self._probed)

    def _upgrade_received(self, upgrade: Upgrade, frame: Frame) -> None:
        try:
            answer = upgrade.received(frame)
        except StatusError as failed:
            if failed.status is not Status.UNSUPPORTED:
                raise
            upgrade.drop()
            self._fall_back(failed.strerror or "")
        else:
            self._go_on(upgrade, answer)

    def _probed(self) -> None:
        """Something went over the queue pair, or could not, or it is too late."""
        if self._upgrade is None or self.closed:
            return
        endpoint = self._upgrade.endpoint
        assert endpoint is not None
        if endpoint.failed or endpoint.pending:
            self._fall_back(endpoint.failed or f"nothing came through within {PROBE_SECONDS * time_scale():g} s")
            return
        from ..transport.rdma.link import Link

        self._upgrade = None
        self.link = Link(endpoint, self.send)
        self._choices.upgraded(self.address, endpoint.port.name)
        super().greeted()

    def _fall_back(self, reason: str) -> None:
        """The server has gone on over RDMA: over TCP the connection begins anew."""
        self._upgrade = None
        self.fell_back = True
        try:
            self._choices.failed(self.address, reason, self.loop.time())
        except StatusError as pinned:
            self.reason = pinned
        self.close()

    # Calls.

    def moves_in(self, region: Region) -> bool:
        """Whether a request that the server has not answered may move bytes there."""
        pendings = [*self._pendings.values(), *self._given_up.values()]
        return any(slice_.region is region for pending in pendings if pending.shared for slice_ in pending.slices)

    def post(self, call: Call, shared: bool, seconds: float) -> AioPending:
        """Send a request. Raises TOO_LARGE."""
        self._number += 1
        deadline = self.loop.time() + seconds
        pending = AioPending(call, deadline, shared, self._number, self.loop.create_future())
        head, bulk = encode_call(call, pending.number, shared, seconds)
        self._pendings[pending.number] = pending
        self.send(head, at_once=not bulk and len(self._pendings) <= REQUESTS_EARLY)
        for view in bulk:
            self.send(view)
        pending.end = self.posted
        if deadline < self._timer_due:
            self._arm(deadline)
        return pending

    def post_own(self, method: int, message: bytes) -> None:
        """A request of the RPC's own service."""
        self._number += 1
        self.send(wire.encode(0, method, self._number, message))

    def _arm(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due = due
        self._timer = self.loop.call_at(due, self._expire)

    def _expire(self) -> None:
        """Give up what is too late. The timer was set for a request that may be answered since: to move it with each would cost more."""
        self._timer, self._timer_due = None, math.inf
        now = self.loop.time() + CLOCK_GRAIN_SECONDS
        for pending in [pending for pending in self._pendings.values() if pending.deadline <= now]:
            self.give_up(pending, pending.too_late())
        if self._pendings:
            self._arm(min(pending.deadline for pending in self._pendings.values()))

    def give_up(self, pending: AioPending, failure: StatusError) -> None:
        """Nobody waits for this request any more: cancel it, and keep its memory aside until the server is done with it."""
        if self._pendings.pop(pending.number, None) is None:
            return
        if pending.shared:
            pending.hold = self._pool.hold(pending.slices)
        else:
            self.decoder.forget(pending.number)  # its memory may be another request's from now on
        pending.settled = self.loop.create_future()
        self._given_up[pending.number] = pending
        self.send(wire.encode(0, wire.CANCEL, pending.number, b""))
        self._answer(pending, failure)

    @staticmethod
    def _answer(pending: AioPending, failure: StatusError | None) -> None:
        pending.failure = failure
        if not pending.waiter.done():
            pending.waiter.set_result(None)

    def _settle(self, pending: AioPending) -> None:
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
        if self._upgrade is not None:
            self._upgrade_received(self._upgrade, frame)
        elif frame.method == wire.NOTICE:
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
        if self._upgrade is not None:  # it was given up half-way: a broken queue pair, or no time left
            upgrade, self._upgrade = self._upgrade, None
            upgrade.drop()
            if upgrade.endpoint is not None:
                self._fall_back(upgrade.endpoint.failed)
        super().lost()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for pending in self._given_up.values():
            self._settle(pending)
        self._given_up.clear()


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
