"""A small service, servers in threads and processes, and both client faces behind one blocking surface, for the wire's tests.

As a program it serves: `python pieces.py CLUSTER SECRET ADDRESS...` prints the addresses as one line of JSON and ends with its stdin.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvloop

from emberfs.proto import rpc
from emberfs.proto.drivers.aio import AioEnvironment
from emberfs.proto.drivers.blocking import BlockingEnvironment
from emberfs.proto.env import Call, drive
from emberfs.proto.errors import Status, StatusError, error
from emberfs.proto.gen import common_pb2, storage_pb2
from emberfs.proto.server import Server
from emberfs.proto.settings import time_scale
from emberfs.proto.subscription import Hub
from emberfs.proto.transport.local import LocalNetwork

SIZE = 4 << 20
SECRET = b"a secret of 22 bytes!!"
# Runs where there is a device: in the machine that tests/rdma boots, or here if this one has some.
RDMA = pytest.param("rdma", marks=pytest.mark.rdma)
METHODS = READ, WRITE, SPACE, SYNC, REMOVE, TRUNCATE = tuple(
    getattr(rpc.STORAGE, name) for name in ("Read", "Write", "Space", "Sync", "Remove", "Truncate")
)


class Pieces:
    """Storage without an engine: one buffer. `Read` and `Write` move parts of it, `Sync` waits for `gate`, `Remove` and
    `Truncate` fail in two ways."""

    spec = rpc.ServiceSpec(rpc.STORAGE.name, rpc.STORAGE.number, METHODS)

    def __init__(self) -> None:
        self.data = bytearray(os.urandom(SIZE))
        self.gate = threading.Event()
        self.entered = threading.Event()  # a handler waits at the gate
        self.contexts: list[Any] = []
        self.listening = False  # what handlers say of themselves when they wait

    async def read(self, request: storage_pb2.ReadRequest, context: rpc.Context) -> storage_pb2.ReadReply:
        sink = context.sink(sum(request.length))
        if request.tenant:  # wait first, so that the bytes move late
            await self._wait(context)
        reply = storage_pb2.ReadReply()
        position = 0
        for i, (offset, length) in enumerate(zip(request.offset, request.length, strict=True)):
            if request.index and request.index[i]:  # this piece is a hole: nothing is filled
                reply.status.append(Status.CHUNK_NOT_FOUND)
            else:
                self._fill(sink, position, offset, length)
                reply.status.append(Status.OK)
            position += length
        return reply

    def _fill(self, sink: rpc.Sink, position: int, offset: int, length: int) -> None:
        at = offset
        for buffer in sink.buffers(position, length):
            buffer[:] = self.data[at : at + len(buffer)]
            at += len(buffer)
        sink.filled(position, length)

    async def write(self, request: storage_pb2.WriteRequest, context: rpc.Context) -> storage_pb2.WriteReply:
        data = await context.pull()
        if request.tenant:
            await self._wait(context)
        self.data[request.offset[0] : request.offset[0] + len(data)] = data
        return storage_pb2.WriteReply(chunk_length=[len(data)])

    async def space(self, request: storage_pb2.SpaceRequest, context: rpc.Context) -> storage_pb2.SpaceReply:
        who = context.peer.identity
        return storage_pb2.SpaceReply(
            target=[who.uid, who.gid, int(who.trusted)], used=list(who.groups), chunks=[os.getpid()]
        )

    async def sync(self, request: storage_pb2.SyncRequest, context: rpc.Context) -> storage_pb2.SyncReply:
        await self._wait(context)
        return storage_pb2.SyncReply()

    async def remove(self, request: storage_pb2.RemoveChunksRequest, context: rpc.Context) -> Any:
        raise error(Status.STALE_CHAIN_VERSION, "the chain has moved on", detail=common_pb2.Chain(id=7, version=9))

    async def truncate(self, request: Any, context: rpc.Context) -> Any:
        raise ZeroDivisionError("a bug")

    async def _wait(self, context: rpc.Context) -> None:
        self.contexts.append(context)
        context.listening = self.listening
        self.entered.set()
        await asyncio.to_thread(self.gate.wait, 60)


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self, make: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop) -> None:
        self.loop = make()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Any], seconds: float = 90.0) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(seconds * max(1.0, time_scale()))

    def do(self, work: Callable[[], Any]) -> Any:
        async def call() -> Any:
            return work()

        return self.run(call())

    def close(self) -> None:
        self.run(self.loop.shutdown_default_executor())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class Running:
    """A server in a thread."""

    def __init__(
        self,
        addresses: Sequence[str],
        service: Pieces | None = None,
        cluster: str = "c1",
        loop: Loop | None = None,
        **options: Any,
    ) -> None:
        self.service = service or Pieces()
        self.hub = Hub(("routing", "invalidate"))
        self.thread = loop or Loop()
        self.server: Server = self.thread.do(lambda: Server([self.service], cluster=cluster, hub=self.hub, **options))
        try:
            self.addresses = [self.thread.run(self.server.listen(address)) for address in addresses]
        except BaseException:
            self.close()
            raise

    def publish(self, topic: str, version: int, body: bytes = b"") -> None:
        self.thread.do(lambda: self.hub.publish(topic, version, body))

    def close(self) -> None:
        self.service.gate.set()
        self.thread.run(self.server.stop())
        self.thread.close()


@contextlib.contextmanager
def running(*addresses: str, **options: Any) -> Iterator[Running]:
    server = Running(addresses, **options)
    try:
        yield server
    finally:
        server.close()


class Process:
    """A server in a process of its own."""

    def __init__(self, *addresses: str, cluster: str = "c1", secret: bytes = b"") -> None:
        command = [sys.executable, __file__, cluster, secret.decode(), *addresses]
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.child.stdout is not None
        self.addresses: list[str] = json.loads(self.child.stdout.readline())
        self.pid = self.child.pid

    def signal(self, number: int) -> None:
        self.child.send_signal(number)

    def close(self) -> None:
        if self.child.poll() is None:
            self.child.kill()
        self.child.communicate()


@contextlib.contextmanager
def process(*addresses: str, **options: Any) -> Iterator[Process]:
    server = Process(*addresses, **options)
    try:
        yield server
    finally:
        server.close()


class Face:
    """The same blocking surface over either driver."""

    def __init__(self, kind: str, loop: Loop | None = None, **options: Any) -> None:
        self.kind = kind
        self.loop = loop or Loop() if kind == "aio" else None
        make = AioEnvironment if kind == "aio" else BlockingEnvironment
        self.env: Any = self.loop.do(lambda: make(**options)) if self.loop else make(**options)

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run(work) if self.loop else drive(work)

    def call(self, address: str, method: rpc.Method, request: Any, timeout: float = 60.0, **bulk: Any) -> Any:
        """Times are multiplied by the time scale, as everybody's."""
        return self._run(self.env.call(Call(address, method, request, timeout * time_scale(), **bulk)))

    def call_many(self, calls: Sequence[Call]) -> list[Any]:
        return list(self._run(self.env.call_many(calls)))

    def start(self, address: str, method: rpc.Method, request: Any, timeout: float = 60.0, **bulk: Any) -> Any:
        call = Call(address, method, request, timeout * time_scale(), **bulk)
        return self.loop.do(lambda: self.env.start(call)) if self.loop else self.env.start(call)

    def collect(self, ticket: Any) -> Any:
        return self._run(self.env.collect(ticket))

    def collect_any(self, tickets: Sequence[Any], seconds: float) -> Any:
        return self._run(self.env.collect_any(tickets, seconds))

    def abandon(self, ticket: Any) -> None:
        if self.loop:
            self.loop.do(lambda: self.env.abandon(ticket))
        else:
            self.env.abandon(ticket)

    def subscribe(self, address: str, topic: str, since: int = 0) -> Callable[[float], Any]:
        """A function that waits so many seconds for the next notice."""
        if self.loop:
            loop = self.loop
            subscriber = loop.run(self.env.subscribe(address, topic, since))
            return lambda seconds: loop.run(subscriber.next(seconds))
        found = self.env.subscribe(address, topic, since)
        wait: Callable[[float], Any] = found.next
        return wait

    def close(self) -> None:
        if self.loop:
            self.loop.run(self.env.close())
            self.loop.close()
        else:
            self.env.close()


@contextlib.contextmanager
def face(kind: str, **options: Any) -> Iterator[Face]:
    made = Face(kind, **options)
    try:
        yield made
    finally:
        made.close()


@dataclass
class Pair:
    """A client and the server's address."""

    client: Face
    address: str
    service: Pieces
    transport: str
    running: Running | None = None

    def failure(self, *args: Any, **options: Any) -> StatusError:
        with pytest.raises(StatusError) as raised:
            self.client.call(self.address, *args, **options)
        return raised.value


@contextlib.contextmanager
def paired(transport: str, kind: str, folder: Path, **options: Any) -> Iterator[Pair]:
    """A client of this kind and a server that it reaches by this transport."""
    if transport == "local":
        loop = Loop()
        network = LocalNetwork(loop.loop)
        service = Pieces()
        address = network.serve("storage", [service])
        with face(kind, local=network) as client:
            yield Pair(client, address, service, "local")
            service.gate.set()
        loop.close()
        return
    with (
        pinned(transport),
        running(listening_on(transport, folder), secret=SECRET, **options) as server,
        face(kind, secret=SECRET) as client,
    ):
        yield Pair(client, server.addresses[0], server.service, transport, server)


def read(*pieces: tuple[int, int], late: bool = False, holes: Sequence[int] = ()) -> storage_pb2.ReadRequest:
    """A read of (offset, length) each."""
    return storage_pb2.ReadRequest(
        offset=[offset for offset, _ in pieces], length=[length for _, length in pieces], index=holes, tenant=int(late)
    )


def write(offset: int, late: bool = False) -> storage_pb2.WriteRequest:
    return storage_pb2.WriteRequest(offset=[offset], tenant=int(late))


def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Whether it becomes true: for what another process does without telling."""
    end = time.monotonic() + seconds * max(1.0, time_scale())
    pause = threading.Event()
    while not condition():
        if time.monotonic() > end:
            return False
        pause.wait(0.005)
    return True


@contextlib.contextmanager
def pinned(transport: str) -> Iterator[None]:
    """Whoever connects over TCP speaks this transport, or fails: with a device, "tcp" would be "rdma" and the other way round."""
    with pytest.MonkeyPatch.context() as patch:
        if transport in ("tcp", "rdma"):
            patch.setenv("EMBERFS_TRANSPORT", transport)
        yield


def listening_on(transport: str, folder: Path) -> str:
    """Where a server listens for this transport."""
    return unix_address(folder) if transport == "shm" else "tcp:127.0.0.1:0"


def unix_address(folder: Path, name: str = "s") -> str:
    return f"unix:{folder}/{name}"


async def _serve(cluster: str, secret: str, addresses: Sequence[str]) -> None:
    service = Pieces()
    service.data[:] = bytes(range(256)) * (SIZE // 256)
    server = Server([service], cluster=cluster, secret=secret.encode())
    print(json.dumps([await server.listen(address) for address in addresses]), flush=True)
    await asyncio.to_thread(sys.stdin.buffer.read)
    service.gate.set()
    await server.stop()


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1], sys.argv[2], sys.argv[3:]))
