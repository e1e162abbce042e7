"""RDMA beside TCP between the same two processes of this machine: how fast, what the server pays, and what is asked of the device.

Beside both stands what bare verbs and a bare socket do (`verbs.py`): what of the difference is the machine's, and what is ours.
Emulated devices (Soft-RoCE) move bytes with the CPU, a packet at a time, and are slower than the loopback: there only the counts and what
is ours mean something elsewhere. Needs a device; tests/rdma boots a machine that has some.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ...proto import rpc
from ...proto.drivers.blocking import BlockingEnvironment
from ...proto.env import Call, drive
from ...proto.errors import Status, error
from ...proto.gen.storage_pb2 import ReadRequest, SpaceReply, SpaceRequest, WriteRequest
from ...proto.transport import choice
from .measure import MIB, Median, in_turns, peer, row, warm, write_file
from .net import DEPTH, TIMEOUT, Pieces, pipelined
from .verbs import Bare, bare_tcp, bare_verbs

BATCH, BLOCK = 32, 128 << 10  # a batch of pieces in one request, as of the KV cache
AIM_RATIO, AIM_CPU, AIM_BARE = 1.0, 1.0, 0.8
AIM_COMPLETIONS = 3.0  # the request that came in, and at most two of what was posted for it


class Counting(Pieces):
    """Tells of itself: processor time in ns, and of all queue pairs the posts, work requests and completions."""

    async def space(self, request: SpaceRequest, context: rpc.Context) -> SpaceReply:
        from ...proto.transport.rdma.endpoint import endpoints

        found = endpoints()
        sums = (sum(getattr(one, name) for one in found) for name in ("posts", "requests", "completions"))
        return SpaceReply(used=[time.process_time_ns(), *sums])


def _serve(path: Path) -> Callable[[socket.socket], None]:
    def serve(end: socket.socket) -> None:
        import asyncio

        import uvloop

        from ...proto.server import Server

        async def main() -> None:
            server = Server([Counting(path)], cluster="bench")
            end.sendall(json.dumps(await server.listen("tcp:127.0.0.1:0")).encode() + b"\n")
            end.setblocking(False)
            await asyncio.get_running_loop().sock_recv(end, 1)
            await server.stop()

        uvloop.run(main())

    return serve


@contextmanager
def _speaking(transport: str) -> Iterator[None]:
    """Connections that are made meanwhile speak this, or fail."""
    before = os.environ.get("EMBERFS_TRANSPORT")
    os.environ["EMBERFS_TRANSPORT"] = transport
    try:
        yield
    finally:
        if before is None:
            del os.environ["EMBERFS_TRANSPORT"]
        else:
            os.environ["EMBERFS_TRANSPORT"] = before


class Way:
    """One transport to the server."""

    def __init__(self, transport: str, address: str, mib: int) -> None:
        self.transport = transport
        self.address = address
        self.mib = mib
        self.env = BlockingEnvironment(cluster="bench")
        self.costs: dict[str, list[float]] = {"read": [], "write": []}  # of the server, in s/GiB, of every round
        self.targets = [self.env.pool.take(BATCH * BLOCK) for _ in range(DEPTH)]
        self.run(self.reads(DEPTH))

    def run(self, calls: Iterator[Call]) -> None:
        with _speaking(self.transport):
            pipelined(self.env, calls)

    def told(self) -> list[int]:
        """What the server says: nanoseconds, posts, work requests, completions."""
        with _speaking(self.transport):
            return list(drive(self.env.call(Call(self.address, rpc.STORAGE.Space, SpaceRequest(), TIMEOUT))).used)

    def reads(self, count: int, pieces: int = 1, length: int = MIB) -> Iterator[Call]:
        size = pieces * length
        for i in range(count):
            begin = i * size % (self.mib * MIB - size + 1)
            request = ReadRequest(offset=[begin + k * length for k in range(pieces)], length=[length] * pieces)
            target = self.targets[i % DEPTH]._replace(length=size)
            yield Call(self.address, rpc.STORAGE.Read, request, TIMEOUT, target=[target])

    def writes(self, count: int) -> Iterator[Call]:
        for i in range(count):
            source = self.targets[i % DEPTH]._replace(length=MIB)
            yield Call(self.address, rpc.STORAGE.Write, WriteRequest(), TIMEOUT, source=[source])

    def rate(self, kind: str) -> float:
        """MiB/s of reads or writes of 1 MiB; notes what the server paid, in s/GiB."""
        before, begin = self.told(), time.perf_counter()
        self.run(self.reads(self.mib) if kind == "read" else self.writes(self.mib))
        seconds = time.perf_counter() - begin
        self.costs[kind].append((self.told()[0] - before[0]) / 1e9 * 1024 / self.mib)
        return self.mib / seconds

    def counts(self, count: int, pieces: int, length: int) -> list[float]:
        """Posts, work requests and completions of the server for one such request, by their mean over `count`."""
        idle, before = self.told(), self.told()
        self.run(self.reads(count, pieces, length))
        after = self.told()
        # What a question of `told` costs itself is taken off.
        return [
            (end - start - (start - first)) / count
            for end, start, first in zip(after[1:], before[1:], idle[1:], strict=True)
        ]


def run(quick: bool = False) -> dict[str, Any]:
    """Measure; takes about 10 s on hardware. Raises UNSUPPORTED without a device."""
    if reason := choice.why_not_here():
        raise error(Status.UNSUPPORTED, f"{reason}: nothing to measure; deploy/rdma.md says how to try it without")
    mib, rounds, count = (16, 3, 16) if quick else (256, 7, 64)
    with ExitStack() as stack:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="emberfs-bench-"))) / "file"
        write_file(path, mib)
        warm(path)
        # Forked before the environments exist: the processes must not inherit their connections.
        server = stack.enter_context(peer(_serve(path)))
        bare = {"tcp": stack.enter_context(bare_tcp()), "rdma": stack.enter_context(bare_verbs())}
        with server.makefile("rb") as lines:
            address = json.loads(lines.readline())
        tcp, rdma = Way("tcp", address, mib), Way("rdma", address, mib)
        stack.callback(tcp.env.close)
        stack.callback(rdma.env.close)
        rows = [made for kind in ("read", "write") for made in _rates(kind, tcp, rdma, bare, rounds)]
        posts, requests, completions = rdma.counts(count, 1, MIB)
        batch = rdma.counts(count, BATCH, BLOCK)
        one = "1 MiB in one piece"
        rows += [
            row(f"posts of the server, {one}", posts, "calls"),
            row(f"work requests of the server, {one}", requests, "work requests"),
            row(f"completions of the server, {one}", completions, "", aim=AIM_COMPLETIONS, least=False),
            row("posts of the server, 32 × 128 KiB in one request", batch[0], "calls"),
            row("work requests of the server, 32 × 128 KiB in one request", batch[1], "work requests"),
            row(
                "completions of the server, 32 × 128 KiB in one request", batch[2], "", aim=AIM_COMPLETIONS, least=False
            ),
        ]
    return {"rows": rows, "file_mib": mib}


def _rates(kind: str, tcp: Way, rdma: Way, bare: dict[str, Bare], rounds: int) -> list[dict[str, Any]]:
    costs: dict[str, list[float]] = {"tcp": [], "rdma": []}  # of the bare ones

    def alone(transport: str) -> float:
        cost = bare[transport](kind, tcp.mib)
        costs[transport].append(cost.cpu * 1024 / tcp.mib)
        return tcp.mib / cost.seconds

    ways = [partial(rdma.rate, kind), partial(tcp.rate, kind), partial(alone, "rdma"), partial(alone, "tcp")]
    ours, ours_tcp, verbs, sock = in_turns(ways, rounds)
    cpu, cpu_tcp = Median(rdma.costs[kind]), Median(tcp.costs[kind])
    cpu_verbs, cpu_sock = Median(costs["rdma"]), Median(costs["tcp"])
    paid, unit = "processor time of the server", "s/GiB"
    return [
        row(f"{kind} 1 MiB, rdma, against tcp", ours, "MiB/s", ours_tcp, aim=AIM_RATIO),
        row(f"{kind} 1 MiB, bare verbs, against a bare socket", verbs, "MiB/s", sock),
        row(f"{kind} 1 MiB, rdma, against bare verbs", ours, "MiB/s", verbs, aim=AIM_BARE),
        row(f"{paid}, {kind}, rdma, against tcp", cpu, unit, cpu_tcp, aim=AIM_CPU, least=False),
        row(f"{paid}, {kind}, bare verbs, against a bare socket", cpu_verbs, unit, cpu_sock),
        row(f"of it ours, {kind}, rdma, against tcp", cpu - cpu_verbs, unit, cpu_tcp - cpu_sock),
    ]
