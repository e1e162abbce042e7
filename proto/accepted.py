"""One accepted connection of a server: hello, dispatch, replies, subscriptions, end.

A request is always answered after its handler has ended, also when the client cancelled it or hung up its sending half: the reply,
or the end of the connection, is the promise that nothing moves into the client's memory any more. Therefore handlers are
never cancelled from outside: they look at `context.cancelled`.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog
from google.protobuf.message import DecodeError, Message

from . import frame as wire
from . import rpc
from .errors import Status, StatusError, error
from .frame import Frame
from .gen import rpc_pb2
from .hello import HELLO_BYTES_MAX, HELLO_SECONDS_MAX, NOBODY, ServerHello, failure_frame, parse
from .request import Request, resume
from .settings import time_scale
from .subscription import SUBSCRIPTIONS_MAX, Subscription
from .transport import address as addresses
from .transport.shm import REGIONS_PER_CLIENT_MAX, ClientRegion, MappedSink, Regions, WrittenSink
from .transport.stream import OUT_BYTES_HIGH, Stream
from .transport.tcp import InlineSink, Scratch, span_table

if TYPE_CHECKING:
    from .server import Server
    from .transport.rdma.sinks import RemoteRegions
    from .transport.rdma.socket import RdmaSocket

NOTICE_UNSENT_BYTES_MAX = 1 << 20  # of a connection: no further notice is handed to its socket
BUSY_RETRY_MS = 20
DESCRIPTORS_MAX = 1  # beside a hello
RDMA_CONNECTIONS_MAX = 4096  # of a server, 384 KiB of pinned memory each; more stay on TCP

_log = structlog.get_logger("emberfs.rpc")

Handler = Callable[[Any, Any], Coroutine[Any, Any, Message]]
Entry = tuple[rpc.Method, Callable[[bytes], Message], Handler]  # method, parser, handler


class Connection(Stream):
    """One accepted socket, from its hello to its end."""

    def __init__(self, server: Server, sock: socket.socket, kind: str, where: Any) -> None:
        super().__init__(asyncio.get_running_loop(), sock)
        self.server = server
        self._kind = kind
        self._descriptors: list[int] = []  # received beside the hello
        self._requests: dict[int, Request] = {}
        self._bytes_held = 0
        self._last = b""  # frame to send before closing
        self._retiring = False  # no further request is taken; closes when the last is answered
        self._subscriptions: dict[int, Subscription] = {}
        self._regions: Regions | None = None
        self._memory: Regions | RemoteRegions | None = None  # what requests name: these, or those offered over RDMA
        self._next: RdmaSocket | None = None  # to go on over, when the answer to that has left
        self._region: tuple[int, ClientRegion] | None = None  # of a PURPOSE_REGION connection
        kernel = None
        if kind == "unix":
            kernel, pid = addresses.peer_identity(sock)
            name = f"pid {pid}"
        else:
            addresses.tune_tcp(sock)
            name = addresses.tcp_name(where)
        self.peer = rpc.PeerInfo(b"", rpc.Identity(NOBODY, NOBODY), "shm" if kind == "unix" else "tcp", name)
        self._hello: ServerHello | None = ServerHello(server.settings, name, kernel)
        self.decoder.message_bytes_max = HELLO_BYTES_MAX
        self._hello_timer = self.loop.call_later(HELLO_SECONDS_MAX * time_scale(), self._hello_late)
        server.connections.add(self)
        server.idleness.watch(sock)

    # The hello.

    def receive(self, buffer: memoryview) -> int:
        if self._hello is None or self._kind != "unix":
            return self.sock.recv_into(buffer)
        assert isinstance(self.sock, socket.socket)
        count, ancillary, _, _ = self.sock.recvmsg_into([buffer], socket.CMSG_SPACE(4 * 4), socket.MSG_CMSG_CLOEXEC)
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                whole = len(data) - len(data) % 4
                self._descriptors += memoryview(data[:whole]).cast("i").tolist()
        if len(self._descriptors) > DESCRIPTORS_MAX:
            raise error(
                Status.PROTOCOL, f"{self.peer.name} sent {len(self._descriptors)} descriptors: a region has one"
            )
        return count

    def _hello_received(self, hello: ServerHello, frame: Frame) -> None:
        answer = hello.received(frame)
        if hello.identity is None:
            self.send(answer)
            return
        self._hello = None
        self._hello_timer.cancel()
        self.decoder.message_bytes_max = rpc.MESSAGE_BYTES_MAX
        self.peer.client = hello.hello.client
        self.peer.identity = hello.identity
        key = (self.peer.client, hello.identity.uid)
        regions = self.server.regions.setdefault(key, Regions())
        regions.connections += 1
        self._regions = self._memory = regions
        if hello.hello.purpose == rpc_pb2.PURPOSE_REGION:
            self._accept_region(hello.hello.region, regions)
        elif self._descriptors:
            raise error(Status.PROTOCOL, f"{self.peer.name} sent descriptors without offering a region")
        self.send(answer)

    def _accept_region(self, offer: rpc_pb2.RegionOffer, regions: Regions) -> None:
        if len(self._descriptors) != 1:
            raise error(Status.INVALID, "a region is offered with exactly one descriptor, over a Unix socket")
        if not offer.id or offer.id in regions.by_id or len(regions.by_id) >= REGIONS_PER_CLIENT_MAX:
            raise error(
                Status.INVALID, f"region {offer.id}: taken, zero, or more than {REGIONS_PER_CLIENT_MAX} of one client"
            )
        region = ClientRegion.accept(self._descriptors.pop(), offer.size)
        regions.by_id[offer.id] = region
        self._region = (offer.id, region)

    def _hello_late(self) -> None:
        _log.warning("a peer did not finish its hello", peer=self.peer.name)
        self.close()

    # Frames.

    def place(self, frame: Frame) -> Sequence[memoryview] | None:
        entry = self.server.methods.get(frame.method)
        wanted = entry is not None and entry[0].bulk is rpc.Bulk.TO_SERVER and self._hello is None
        if (
            not wanted
            or len(self._requests) >= self.server.requests_in_flight_max
            or not self._reserve(frame.bulk_bytes)
        ):
            return None  # dropped; the request is answered with the reason
        buffer = self.server.buffers.take(frame.bulk_bytes)
        return (memoryview(buffer)[: frame.bulk_bytes],)

    def _readable(self) -> None:
        super()._readable()
        if not self.server.waiting:
            self.server.idleness.begin()

    def frame_received(self, frame: Frame) -> None:
        if self._hello is not None:
            self._hello_received(self._hello, frame)
            return
        entry = self.server.methods.get(frame.method)
        if entry is None or frame.flags & ~wire.TABLE or self._region is not None:
            self._other_frame(frame)
            return
        if (
            self._retiring
            or len(self._requests) >= self.server.requests_in_flight_max
            or (frame.bulk_bytes and frame.bulk is None)
            or (self.rdma is not None and self.unsent > OUT_BYTES_HIGH)  # over a socket, nothing would be read now
        ):
            self._refuse(frame, entry)
            return
        if frame.request_id in self._requests:
            raise error(Status.PROTOCOL, f"{self.peer.name} used request id {frame.request_id} twice at the same time")
        assert self._memory is not None
        request = Request(frame, self.peer, self._memory, self.server.buffers, self._reserve)
        if frame.bulk_bytes:
            request.bulk_held = frame.bulk_bytes
        try:
            coro = entry[2](entry[1](frame.message), request)
            waits_for = coro.send(None)
        except StopIteration as done:
            self._reply(request, done.value)
        except Exception as failure:
            self._fail(request, failure)
        else:
            self._requests[frame.request_id] = request
            self.server.waiting += not request.listening
            self.loop.create_task(self._finish(request, coro, waits_for))

    async def _finish(self, request: Request, coro: Coroutine[Any, Any, Message], waits_for: Any) -> None:
        """The rest of a handler that had to wait."""
        try:
            reply = await resume(coro, waits_for)
        except asyncio.CancelledError:
            # The loop is being torn down, or the handler awaited something that was cancelled.
            self._fail(request, error(Status.CANCELLED, "the server gave the request up"))
        except Exception as failure:
            self._fail(request, failure)
        else:
            self._reply(request, reply)
        self.server.waiting -= not request.listening
        self._requests.pop(request.frame.request_id, None)
        if self._retiring:
            self._close_if_done()

    def _reply(self, request: Request, reply: Message) -> None:
        frame = request.frame
        sink = request.sink_made
        try:
            if sink is None:
                self.send(wire.encode(wire.REPLY, frame.method, frame.request_id, reply.SerializeToString()))
            elif isinstance(sink, (MappedSink, WrittenSink)):
                sink.finish()
                self.send(wire.encode(wire.REPLY, frame.method, frame.request_id, reply.SerializeToString()))
            else:
                self._reply_inline(request, reply, sink)
                return
        except Exception as failure:
            self._fail(request, failure)
            return
        if sink is not None or request.bulk_held or frame.flags & wire.TABLE:  # most hold nothing
            self._release(request)

    def _reply_inline(self, request: Request, reply: Message, sink: Scratch) -> None:
        """The filled bytes follow the frame; the buffer is free when the socket has taken them."""
        frame = request.frame
        if sink.remote:
            head = wire.encode(wire.REPLY, frame.method, frame.request_id, reply.SerializeToString())
            sink.move(partial(self._release, request))
            self.send(head)
            if self.rdma is not None:
                self.rdma.reap_soon(self.loop)
            return
        pieces = sink.pieces()
        size = sum([len(data) for _, data in pieces])
        head = wire.encode(
            wire.REPLY,
            frame.method,
            frame.request_id,
            reply.SerializeToString(),
            table=span_table(pieces),
            bulk_bytes=size,
        )
        if not pieces:
            self.send(head)
            self._release(request)
            return

        def sent() -> None:
            pieces.clear()
            self._release(request)

        if isinstance(sink, InlineSink) and sink.lent:
            pieces.clear()
            self._reply_from_files(head, sink, sent)
            return
        self.send(head)
        for _, data in pieces[:-1]:
            self.send(data)
        self.send(pieces[-1][1], sent)

    def _reply_from_files(self, head: bytes, sink: InlineSink, sent: Callable[[], None]) -> None:
        """What the socket takes at once leaves from the page cache. The rest is copied here and now: the slots of the files
        must not wait for a peer that reads slowly, or never."""
        room = self.send_now(head)
        rest: list[memoryview] = []
        try:
            for part in sink.parts():
                if isinstance(part, memoryview):
                    if room:
                        room = self.send_now(part)
                    else:
                        rest.append(part)
                    continue
                done = self.send_file(part.descriptor, part.offset, part.length) if room else 0
                if done < part.length:
                    room = False
                    rest.append(sink.copied(part, done))
        except OSError as failed:  # half of a reply has left: there is no other way to say so
            _log.error("a reply broke off", peer=self.peer.name, error=str(failed))
            self.close()
        sink.give_back()
        if not rest or self.closed:
            rest.clear()
            sent()
            return
        for data in rest[:-1]:
            self.send(data)
        self.send(rest.pop(), sent)

    def _fail(self, request: Request, failure: Exception) -> None:
        frame = request.frame
        if not isinstance(failure, StatusError):
            if isinstance(failure, DecodeError):
                failure = error(Status.INVALID, f"the request cannot be read: {failure}")
            else:
                _log.error("a handler failed", method=frame.method, peer=self.peer.name, exc_info=failure)
                failure = error(Status.INTERNAL, f"{type(failure).__name__} in the server; its log has the details")
        self.send(failure_frame(frame.method, frame.request_id, failure))
        self._release(request)

    def _release(self, request: Request) -> None:
        self._bytes_held -= request.bulk_held
        request.bulk_held = 0
        sink = request.sink_made
        if isinstance(sink, Scratch):
            sink.release()
        request.sink_made = None
        request.release()
        if request.frame.bulk is not None:
            buffer = request.frame.bulk[0].obj
            request.frame.bulk = None
            if isinstance(buffer, bytearray):
                self.server.buffers.give(buffer)

    def _reserve(self, length: int) -> bool:
        if self._bytes_held + length > self.server.bytes_in_flight_max:
            return False
        self._bytes_held += length
        return True

    def _refuse(self, frame: Frame, entry: Entry) -> None:
        """Nothing was done and nothing kept."""
        if frame.bulk is not None:
            self._bytes_held -= frame.bulk_bytes
        if frame.bulk_bytes and entry[0].bulk is not rpc.Bulk.TO_SERVER:
            reason = error(Status.INVALID, f"{entry[0].name} takes no bulk from the client")
        elif self._retiring:
            reason = error(Status.UNAVAILABLE, "the server is stopping")
        else:
            reason = error(Status.BUSY, "this client has too much in flight; let earlier requests finish")
        self.send(failure_frame(frame.method, frame.request_id, reason, BUSY_RETRY_MS))

    def _other_frame(self, frame: Frame) -> None:
        """The RPC's own methods, and what nobody serves."""
        if frame.method == wire.CANCEL:
            request = self._requests.get(frame.request_id)
            if request is not None:
                request.cancelled = True
        elif wire.RDMA_CONNECT <= frame.method <= wire.RDMA_WITHDRAW and not frame.flags and self._region is None:
            self._rdma_frame(frame)
        elif frame.method == wire.GOODBYE:
            _log.warning("a peer closes the connection", peer=self.peer.name, reason=str(frame.message[:500]))
        elif self._region is not None or frame.flags & (wire.REPLY | wire.FAILURE):
            raise error(Status.PROTOCOL, f"{self.peer.name} sent a frame that has no meaning on this connection")
        elif frame.method == wire.SUBSCRIBE:
            self._subscribe(frame)
        elif frame.method == wire.UNSUBSCRIBE:
            message = parse(rpc_pb2.Unsubscribe, frame.message, self.peer.name)
            subscription = self._subscriptions.pop(message.subscription, None)
            if subscription is not None:
                self.server.hub.unsubscribe(subscription)
            self.send(wire.encode(wire.REPLY, frame.method, frame.request_id, b""))
        else:
            reason = error(
                Status.UNSUPPORTED,
                f"this server has no method {frame.method}; is it the right server, or an older one?",
            )
            self.send(failure_frame(frame.method, frame.request_id, reason))

    # RDMA.

    def _rdma_frame(self, frame: Frame) -> None:
        if frame.method == wire.RDMA_CONNECT:
            try:
                self._go_on(parse(rpc_pb2.RdmaConnect, frame.message, self.peer.name))
            except StatusError as refused:
                _log.warning("a connection stays on tcp", peer=self.peer.name, reason=refused.strerror)
                self.send(failure_frame(frame.method, frame.request_id, refused))
            return
        if self._memory is None or isinstance(self._memory, Regions):
            raise error(Status.PROTOCOL, f"{self.peer.name} offered memory for RDMA on a connection without")
        if frame.method == wire.RDMA_REGION:
            self._memory.offer(parse(rpc_pb2.RdmaRegion, frame.message, self.peer.name))
        else:
            self._memory.withdraw(parse(rpc_pb2.RdmaWithdraw, frame.message, self.peer.name))

    def _go_on(self, message: rpc_pb2.RdmaConnect) -> None:
        """Raises UNSUPPORTED, PROTOCOL."""
        if not self.server.settings.rdma or self._kind != "tcp" or self._requests or self._next is not None:
            raise error(Status.UNSUPPORTED, "this connection does not go on over RDMA")
        if sum(other.rdma is not None for other in self.server.connections) >= RDMA_CONNECTIONS_MAX:
            raise error(Status.UNSUPPORTED, f"{RDMA_CONNECTIONS_MAX} connections over RDMA: the server takes no more")
        from .transport.rdma.sinks import RemoteRegions
        from .transport.rdma.upgrade import accept

        assert isinstance(self.sock, socket.socket)
        self._next, answer = accept(message.queue, self.sock)
        self._memory = RemoteRegions(self._next.endpoint)
        self.peer.transport = "rdma"
        self.send(answer, self._answered)

    def _answered(self) -> None:
        """The client may send over RDMA as soon as it has read this."""
        assert self._next is not None
        self.go_on_over(self._next)
        self.server.idleness.watch(self._next)

    # Subscriptions.

    def _subscribe(self, frame: Frame) -> None:
        message = parse(rpc_pb2.Subscribe, frame.message, self.peer.name)
        try:
            if message.subscription in self._subscriptions or len(self._subscriptions) >= SUBSCRIPTIONS_MAX:
                raise error(
                    Status.INVALID, f"subscription {message.subscription}: taken, or more than {SUBSCRIPTIONS_MAX}"
                )
            subscription = Subscription(message.subscription, message.topic, self._notify_soon)
            self.server.hub.subscribe(subscription, message.since)
        except StatusError as refused:
            self.send(failure_frame(frame.method, frame.request_id, refused))
            return
        self._subscriptions[message.subscription] = subscription
        self.send(wire.encode(wire.REPLY, frame.method, frame.request_id, b""))

    def _notify_soon(self) -> None:
        self.loop.call_soon(self._notify)

    def _notify(self) -> None:
        """Hand queued notices to the socket as far as it keeps up."""
        for subscription in self._subscriptions.values():
            while self.unsent < NOTICE_UNSENT_BYTES_MAX and not self.closed:
                notice = subscription.take()
                if notice is None:
                    break
                self.send(wire.encode(0, wire.NOTICE, 0, notice.SerializeToString()))

    def drained(self) -> None:
        if self._subscriptions:
            self._notify()
        if self._retiring:
            self._close_if_done()

    # The end.

    def broken(self, reason: StatusError) -> None:
        _log.warning("closing a connection", peer=self.peer.name, reason=reason.strerror)
        self._give_up()
        self._last = failure_frame(wire.GOODBYE if self._hello is None else wire.HELLO, 0, reason)
        self._close_if_done()

    def ended(self) -> None:
        self._give_up()
        self._close_if_done()

    def retire(self) -> None:
        """The server stops: what runs is finished and answered."""
        if not self.is_region:
            self._retiring = True
            for request in self._requests.values():
                request.stopping = True
            self._close_if_done()

    @property
    def is_region(self) -> bool:
        return self._region is not None

    def _give_up(self) -> None:
        self._retiring = True
        for request in self._requests.values():
            request.cancelled = True

    def _close_if_done(self) -> None:
        # Never earlier: the client takes the end of this connection as the promise that nothing moves into its memory any more.
        if self._requests or self.closed or self.lingers:
            return
        if self._last:
            last, self._last = self._last, b""
            self.close_gently(last)
        elif self.rdma is not None and not self._ended and self.rdma.pending:
            self.rdma.when_settled(self.loop, self._close_if_done)  # with the queue pair would go what is on its way
        elif not self.unsent or self._ended:
            self.close()

    def lost(self) -> None:
        self._hello_timer.cancel()
        if self._next is not None:
            self._next.close()
            self._next = None
        self._give_up()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()
        for subscription in self._subscriptions.values():
            self.server.hub.unsubscribe(subscription)
        self._subscriptions.clear()
        if self._region is not None and self._regions is not None:
            number, region = self._region
            self._regions.by_id.pop(number, None)
            region.withdraw()
            self._region = None
        if self._regions is not None:
            self._regions.connections -= 1
            if not self._regions.connections:
                self.server.regions.pop((self.peer.client, self.peer.identity.uid), None)
            self._regions = None
        self.server.forget(self)
