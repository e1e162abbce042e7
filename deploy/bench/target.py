"""One storage target as its clients see it, without the file layer above: Read and Write requests of the Storage service from one client
process to one server process, checksums and index on, against what the bare machine does in the same rounds.

The bare shared-memory server does nothing but `preadv` into the client's memory: no index, no checksums, no protocol.
"""

from __future__ import annotations

import mmap
import os
import random
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from crc32c import crc32c

from ...proto.drivers.blocking import BlockingEnvironment
from ...proto.env import Call, drive
from ...proto.errors import Status, error
from ...proto.gen.cluster_pb2 import GetRoutingRequest
from ...proto.gen.storage_pb2 import ReadRequest, SpaceRequest, WriteRequest
from ...proto.ids import channel_of
from ...proto.layout import CHUNK_BYTES_DEFAULT, UNIT_SMALL
from ...proto.region import Slice
from ...proto.rpc import CLUSTER, STORAGE
from .measure import MIB, in_turns, peer, rate, row, spreads, stream, stream_mib, temporary_cluster, write_file

BATCH = 64
SMALL = UNIT_SMALL
DEPTH = 2  # requests in flight
LARGE_PER_REQUEST = 2  # pieces of 1 MiB in one request
INODE = (1 << 63) + 4711  # far above what the metadata server gives out
SECONDS_MAX = 60.0
AIM_READ, AIM_IOPS, AIM_TCP, AIM_WRITE = 0.6, 150_000, 0.8, 0.4
_BARE = struct.Struct("<QQQ")  # place in the region, offset in the file, length
BARE_BYTES = SMALL * BATCH * DEPTH


class Client:
    """Requests to one target: a blocking environment, and the chain that the target is alone in."""

    def __init__(self, meta: str, tcp: bool, secret_file: str) -> None:
        self.env = BlockingEnvironment(secret_file=secret_file, acts_for_others=True)
        routing = drive(self.env.call(Call(meta, CLUSTER.GetRouting, GetRoutingRequest(), SECONDS_MAX)))
        self.chain = routing.chains[0]
        node = next(n for n in routing.nodes if n.id == self.chain.members[0].node)
        self.address = next(a for a in node.addresses if a.startswith("tcp:") == tcp)
        self.sequence = time.time_ns()
        self.slices = [self.env.pool.take(LARGE_PER_REQUEST * MIB) for _ in range(DEPTH)]

    def close(self) -> None:
        self.env.close()

    def pipelined(self, calls: int, make: Callable[[int], Call], done: Callable[[Call, Any], None]) -> None:
        """`calls` requests, DEPTH of them in flight."""
        flying: deque[tuple[Call, Any]] = deque()
        for i in range(calls + DEPTH):
            if i >= DEPTH and flying:
                call, ticket = flying.popleft()
                done(call, drive(self.env.collect(ticket)))
            if i < calls:
                call = make(i)
                flying.append((call, self.env.start(call)))

    def reads(self, pieces: list[tuple[int, int, int]], place: int) -> Call:
        """One request for pieces of (index, offset, length), into memory number `place`."""
        count = len(pieces)
        request = ReadRequest(
            chain=[self.chain.id] * count,
            chain_version=[self.chain.version] * count,
            inode=[INODE] * count,
            index=[piece[0] for piece in pieces],
            offset=[piece[1] for piece in pieces],
            length=[piece[2] for piece in pieces],
        )
        region, offset, _ = self.slices[place % DEPTH]
        target = Slice(region, offset, sum([piece[2] for piece in pieces]))
        return Call(self.address, STORAGE.Read, request, SECONDS_MAX, target=(target,))

    def writes(self, indexes: range, place: int, checksums: list[int]) -> Call:
        """One request that writes whole chunks from memory number `place`."""
        count = len(indexes)
        self.sequence += 1
        request = WriteRequest(
            chain=[self.chain.id] * count,
            chain_version=[self.chain.version] * count,
            inode=[INODE] * count,
            index=indexes,
            offset=[0] * count,
            length=[MIB] * count,
            checksum=checksums,
            channel=[channel_of(INODE, index) for index in indexes],
            sequence=[self.sequence] * count,
            truncate_version=[0] * count,
            chunk_size=[CHUNK_BYTES_DEFAULT] * count,
        )
        region, offset, _ = self.slices[place % DEPTH]
        return Call(self.address, STORAGE.Write, request, SECONDS_MAX, source=(Slice(region, offset, count * MIB),))


def verified(call: Call, reply: Any) -> None:
    """Check every byte that arrived, as a client does. Raises CHECKSUM, or the status of a failed operation."""
    _check(reply)
    view = call.target[0].view
    if len(reply.checksum) != len(reply.returned):
        raise error(Status.INTERNAL, "whole units and whole chunks have one checksum each")
    position = 0
    for length, checksum in zip(reply.returned, reply.checksum, strict=True):
        if crc32c(view[position : position + length]) != checksum:
            raise error(Status.CHECKSUM, f"the bytes at {position} do not match")
        position += length
    if position != len(view):
        raise error(Status.LOST_DATA, f"{position} of {len(view)} bytes arrived")


def _check(reply: Any) -> None:
    if any(reply.status):
        raise error(Status(next(filter(None, reply.status))))


def run(quick: bool = False, mib: int = 0) -> dict[str, Any]:
    """Measure over a file of `mib` MiB (1024; 128 with `quick`)."""
    mib = mib or (128 if quick else 1024)
    rounds, batches = (3, 300) if quick else (7, 2000)
    with ExitStack() as stack:
        region = os.memfd_create("emberfs-bench")
        stack.callback(os.close, region)
        os.ftruncate(region, BARE_BYTES)
        cluster, folder = stack.enter_context(temporary_cluster(port=0, capacity=4 * mib * MIB))
        local = folder / "file"
        write_file(local, mib)
        # Forked before any client exists: the children must not inherit its connections.
        bare = stack.enter_context(peer(lambda end: bare_server(end, region, local)))
        streamer = stack.enter_context(peer(stream, socket.AF_INET))
        client, tcp = (Client(_unix(cluster), way, str(cluster.data / "secret")) for way in (False, True))
        stack.callback(client.close)
        stack.callback(tcp.close)
        _write_all(client, mib)
        rows = [
            _random(client, bare, mib, rounds, batches),
            _sequential(client, local, mib, rounds),
            _write(client, folder, mib, rounds),
            _tcp(tcp, streamer, mib, rounds),
        ]
        space = drive(client.env.call(Call(client.address, STORAGE.Space, SpaceRequest(), SECONDS_MAX)))
    served = {"bytes_read": sum(space.bytes_read), "bytes_written": sum(space.bytes_written)}
    return {"rows": rows, "file_mib": mib, "served": served}


def _unix(cluster: Any) -> str:
    servers = {server["name"]: server for server in cluster.status()["servers"]}
    return str(next(address for address in servers["meta"]["addresses"] if address.startswith("unix:")))


def bare_server(end: socket.socket, region: int, path: Path) -> None:
    """The other side of `bare_random`: `preadv` into shared memory, and nothing else."""
    fd = os.open(path, os.O_RDONLY)
    view = memoryview(mmap.mmap(region, BARE_BYTES))
    size = _BARE.size * BATCH
    buffer = bytearray(size)
    while end.recv_into(buffer, size, socket.MSG_WAITALL) == size:
        for place, offset, length in _BARE.iter_unpack(buffer):
            os.preadv(fd, [view[place : place + length]], offset)
        end.send(b"k")


def bare_random(end: socket.socket, mib: int, batches: int) -> None:
    """Batches of small reads from the bare server, DEPTH of them in flight."""
    places = mib * MIB // SMALL
    for i in range(batches + DEPTH):
        if i < batches:
            base = i % DEPTH * BATCH
            end.sendall(
                b"".join(
                    [_BARE.pack((base + k) * SMALL, random.randrange(places) * SMALL, SMALL) for k in range(BATCH)]  # noqa: S311
                )
            )
        if i >= DEPTH:
            end.recv(1)


def _random(client: Client, bare: socket.socket, mib: int, rounds: int, batches: int) -> dict[str, Any]:
    units = MIB // SMALL

    def make(place: int) -> Call:
        return client.reads(
            [(at // units, at % units * SMALL, SMALL) for at in random.choices(range(mib * units), k=BATCH)],  # noqa: S311
            place,
        )

    def ours() -> None:
        client.pipelined(batches, make, verified)

    count = batches * BATCH
    value, base = in_turns(
        [lambda: rate(count, ours), lambda: rate(count, lambda: bare_random(bare, mib, batches))], rounds
    )
    made = row(f"random read, {SMALL >> 10} KiB, batches of {BATCH}, verified, shm", value, "IOPS", aim=AIM_IOPS)
    compared = {"baseline": round(base), "baseline_is": "bare shared memory", "ratio": round(value / base, 3)}
    return {**made, **compared, **spreads(value, base)}


def _read_all(client: Client, mib: int) -> None:
    step = LARGE_PER_REQUEST

    def make(i: int) -> Call:
        return client.reads([(index, 0, MIB) for index in range(i * step, (i + 1) * step)], i)

    client.pipelined(mib // step, make, verified)


def _sequential(client: Client, local: Path, mib: int, rounds: int) -> dict[str, Any]:
    buffer = bytearray(MIB)

    def preadv() -> None:
        with open(local, "rb", buffering=0) as file:
            for i in range(mib):
                os.preadv(file.fileno(), [buffer], i * MIB)

    value, base = in_turns([lambda: rate(mib, lambda: _read_all(client, mib)), lambda: rate(mib, preadv)], rounds)
    return row("sequential read, 1 MiB, verified, shm", value, "MiB/s", base, aim=AIM_READ)


def _write_all(client: Client, mib: int) -> None:
    step = LARGE_PER_REQUEST
    for slice_ in client.slices:
        slice_.view[:] = os.urandom(MIB) * step

    def make(i: int) -> Call:
        view = client.slices[i % DEPTH].view
        checksums = [crc32c(view[k * MIB : (k + 1) * MIB]) for k in range(step)]
        return client.writes(range(i * step, (i + 1) * step), i, checksums)

    client.pipelined(mib // step, make, lambda _, reply: _check(reply))


def _write(client: Client, folder: Path, mib: int, rounds: int) -> dict[str, Any]:
    block = os.urandom(MIB)

    def bare() -> None:
        with open(folder / "written", "wb", buffering=0) as file:
            for i in range(mib):
                os.pwrite(file.fileno(), block, i * MIB)

    value, base = in_turns([lambda: rate(mib, lambda: _write_all(client, mib)), lambda: rate(mib, bare)], rounds)
    return row("sequential write, 1 MiB, checksums on, shm", value, "MiB/s", base, aim=AIM_WRITE)


def _tcp(client: Client, streamer: socket.socket, mib: int, rounds: int) -> dict[str, Any]:
    ways = [lambda: rate(mib, lambda: _read_all(client, mib)), lambda: rate(mib, lambda: stream_mib(streamer, mib))]
    value, base = in_turns(ways, rounds)
    return row("sequential read, 1 MiB, verified, tcp", value, "MiB/s", base, aim=AIM_TCP)
