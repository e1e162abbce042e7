"""The wire alone: a server that does nothing but `preadv`, against bare sockets, a bare shared-memory server and bare `preadv`."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import socket
import struct
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ...proto import rpc
from ...proto.drivers.blocking import BlockingEnvironment
from ...proto.env import Call, drive
from ...proto.gen.storage_pb2 import ReadReply, ReadRequest, SpaceReply, SpaceRequest, WriteReply, WriteRequest
from .measure import MIB, echo, in_turns, median_us, peer, ping_us, rate, row, stream, stream_mib, warm, write_file

BATCH = 64
SMALL = 4096
DEPTH = 2  # requests under way, as a client with readahead has
TIMEOUT = 30.0  # seconds
AIM_LATENCY, AIM_TCP, AIM_IOPS = 3.0, 0.8, 150_000
_MOVE = struct.Struct("<QQQ")  # place in the region, offset in the file, length


class Pieces:
    """Storage without an engine: pieces of one file, by `offset` and `length`."""

    spec = rpc.ServiceSpec(
        rpc.STORAGE.name, rpc.STORAGE.number, (rpc.STORAGE.Read, rpc.STORAGE.Write, rpc.STORAGE.Space)
    )

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY)

    async def read(self, request: ReadRequest, context: rpc.Context) -> ReadReply:
        sink = context.sink(sum(request.length))
        position = 0
        for offset, length in zip(request.offset, request.length, strict=True):
            os.preadv(self._fd, sink.buffers(position, length), offset)
            position += length
        sink.filled(0, position)
        return ReadReply(status=[0] * len(request.length), returned=request.length)

    async def write(self, request: WriteRequest, context: rpc.Context) -> WriteReply:
        return WriteReply(chunk_length=[len(await context.pull())])

    async def space(self, request: SpaceRequest, context: rpc.Context) -> SpaceReply:
        return SpaceReply(target=[1])


def _serve(path: Path, folder: Path) -> Callable[[socket.socket], None]:
    """What the server's process does: serve until the other end of its socket closes."""

    def serve(end: socket.socket) -> None:
        import asyncio

        import uvloop

        from ...proto.server import Server

        async def main() -> None:
            server = Server([Pieces(path)], cluster="bench")
            addresses = [await server.listen(f"unix:{folder}/net.sock"), await server.listen("tcp:127.0.0.1:0")]
            end.sendall(json.dumps(addresses).encode() + b"\n")
            end.setblocking(False)
            await asyncio.get_running_loop().sock_recv(end, 1)
            await server.stop()

        uvloop.run(main())

    return serve


def _bare_region(region: int, size: int, path: Path) -> Callable[[socket.socket], None]:
    """A server that moves pieces into shared memory and knows nothing else."""

    def serve(end: socket.socket) -> None:
        fd = os.open(path, os.O_RDONLY)
        view, buffer = memoryview(mmap.mmap(region, size)), bytearray(_MOVE.size * BATCH)
        while end.recv_into(buffer, len(buffer), socket.MSG_WAITALL):
            for place, offset, length in _MOVE.iter_unpack(buffer):
                os.preadv(fd, [view[place : place + length]], offset)
            end.sendall(b"ok")

    return serve


def run(quick: bool = False) -> dict[str, Any]:
    """Measure; takes about 20 s, or 5 with `quick`."""
    mib, rounds, count = (64, 3, 500) if quick else (256, 7, 3000)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="emberfs-bench-")))
        path = folder / "file"
        write_file(path, mib)
        warm(path)
        bare = os.memfd_create("emberfs-bench")
        stack.callback(os.close, bare)
        os.ftruncate(bare, BATCH * SMALL * DEPTH)
        # Forked before the environment exists: the processes must not inherit its connections.
        pinger = stack.enter_context(peer(echo))
        streamer = stack.enter_context(peer(stream, socket.AF_INET))
        mover = stack.enter_context(peer(_bare_region(bare, BATCH * SMALL * DEPTH, path)))
        server = stack.enter_context(peer(_serve(path, folder)))
        with server.makefile("rb") as lines:
            unix, tcp = json.loads(lines.readline())
        env = BlockingEnvironment(cluster="bench")
        stack.callback(env.close)
        rows = _latency(env, unix, tcp, pinger, count, rounds)
        rows += _bulk(env, unix, tcp, path, streamer, mib, rounds)
        rows.append(_small(env, unix, mover, mib, 50 if quick else 300, rounds))
    return {"rows": rows, "file_mib": mib}


def _latency(
    env: BlockingEnvironment, unix: str, tcp: str, pinger: socket.socket, count: int, rounds: int
) -> list[dict[str, Any]]:
    def call(address: str) -> Callable[[], float]:
        request = Call(address, rpc.STORAGE.Space, SpaceRequest(), TIMEOUT)
        return lambda: median_us(lambda: drive(env.call(request)), count)

    each = max(count // rounds, 100)
    over_unix, over_tcp, bare = in_turns([call(unix), call(tcp), lambda: ping_us(pinger, each)], rounds)
    return [
        row("small call over a Unix socket, one in flight, p50", over_unix, "µs", bare, aim=AIM_LATENCY, least=False),
        row("small call over loopback TCP, one in flight, p50", over_tcp, "µs", bare),
    ]


def _bulk(
    env: BlockingEnvironment, unix: str, tcp: str, path: Path, streamer: socket.socket, mib: int, rounds: int
) -> list[dict[str, Any]]:
    targets = [env.pool.take(MIB) for _ in range(DEPTH)]
    source = env.register(bytearray(os.urandom(MIB)))
    buffer = memoryview(bytearray(MIB))
    fd = os.open(path, os.O_RDONLY)

    def read(address: str) -> Callable[[], float]:
        def calls() -> Iterator[Call]:
            for i in range(mib):
                request = ReadRequest(offset=[i * MIB], length=[MIB])
                yield Call(address, rpc.STORAGE.Read, request, TIMEOUT, target=[targets[i % DEPTH]])

        return lambda: rate(mib, lambda: pipelined(env, calls()))

    def write(address: str) -> Callable[[], float]:
        pieces = targets if address == unix else [targets[0]._replace(region=source, offset=0)] * DEPTH

        def calls() -> Iterator[Call]:
            for i in range(mib):
                yield Call(address, rpc.STORAGE.Write, WriteRequest(), TIMEOUT, source=[pieces[i % DEPTH]])

        return lambda: rate(mib, lambda: pipelined(env, calls()))

    def local() -> float:
        return rate(mib, lambda: [os.preadv(fd, [buffer], i * MIB) for i in range(mib)])

    def socket_only() -> float:
        return rate(mib, lambda: stream_mib(streamer, mib))

    ways = [read(unix), read(tcp), write(unix), write(tcp), local, socket_only]
    shm, loopback, shm_write, tcp_write, disk, bare = in_turns(ways, rounds)
    os.close(fd)
    for target in targets:
        env.pool.give(target)
    return [
        row("read 1 MiB, shm, against preadv", shm, "MiB/s", disk),
        row("read 1 MiB, tcp, against a bare loopback socket", loopback, "MiB/s", bare, aim=AIM_TCP),
        row("pull 1 MiB, shm, against preadv", shm_write, "MiB/s", disk),
        row("send 1 MiB, tcp, against a bare loopback socket", tcp_write, "MiB/s", bare),
    ]


def pipelined(env: BlockingEnvironment, calls: Iterator[Call]) -> None:
    under_way: deque[Any] = deque()
    for call in calls:
        under_way.append(env.start(call))
        if len(under_way) == DEPTH:
            drive(env.collect(under_way.popleft()))
    while under_way:
        drive(env.collect(under_way.popleft()))


def _small(
    env: BlockingEnvironment, unix: str, mover: socket.socket, mib: int, batches: int, rounds: int
) -> dict[str, Any]:
    places = mib * MIB // SMALL
    targets = [env.pool.take(SMALL * BATCH) for _ in range(DEPTH)]
    lengths = [SMALL] * BATCH

    def offsets() -> list[int]:
        return [random.randrange(places) * SMALL for _ in range(BATCH)]  # noqa: S311 - a benchmark

    def calls() -> Iterator[Call]:
        for i in range(batches):
            request = ReadRequest(offset=offsets(), length=lengths)
            yield Call(unix, rpc.STORAGE.Read, request, TIMEOUT, target=[targets[i % DEPTH]])

    def bare() -> float:
        begin = time.perf_counter()
        for i in range(batches + DEPTH):
            if i < batches:
                base = i % DEPTH * BATCH
                moves = [_MOVE.pack((base + k) * SMALL, at, SMALL) for k, at in enumerate(offsets())]
                mover.sendall(b"".join(moves))
            if i >= DEPTH:
                mover.recv(2, socket.MSG_WAITALL)
        return batches * BATCH / (time.perf_counter() - begin)

    wire, probe = in_turns([lambda: rate(batches * BATCH, lambda: pipelined(env, calls())), bare], rounds)
    for target in targets:
        env.pool.give(target)
    return row("read 4 KiB at random in batches of 64, shm, against a bare shared-memory server", wire, "IOPS", probe)


def main() -> None:
    """Print the rows as JSON."""
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(json.dumps(run("--quick" in sys.argv), indent=1) + "\n")


if __name__ == "__main__":
    main()
