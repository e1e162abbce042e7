"""Files over the blocking client and one storage server, against the bare machine: sequential and random I/O, latency, tcp.

The client keeps no bytes once they were read: what it reads ahead it gives out once. The rows of reads say how many bytes the
storage server says that it read for them, beside how many were asked for; fewer would mean that a cache answered.
"""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from ...proto.env import Call, drive
from ...proto.errors import Status, error
from ...proto.gen.storage_pb2 import SpaceRequest
from ...proto.rpc import STORAGE
from .measure import (
    MIB,
    Median,
    in_turns,
    median_us,
    peer,
    placed_pings,
    rate,
    row,
    spreads,
    stream,
    stream_mib,
    temporary_cluster,
    warm,
    write_file,
)
from .target import BARE_BYTES, BATCH, SMALL, bare_random, bare_server

CAPACITY_FILES = 4  # of the target: the file, one that is written, and room for what was replaced
SECONDS_MAX = 30.0
AIM_READ, AIM_IOPS, AIM_TCP, AIM_WRITE, AIM_LATENCY = 0.6, 150_000, 0.8, 0.4, 3.0


def run(quick: bool = False) -> dict[str, Any]:
    """Measure over a file of 1 GiB (64 MiB with `quick`); takes about 90 s, or 10."""
    mib, rounds, count = (64, 3, 400) if quick else (1024, 7, 3000)
    with ExitStack() as stack:
        region = os.memfd_create("emberfs-bench")
        stack.callback(os.close, region)
        os.ftruncate(region, BARE_BYTES)
        cluster, folder = stack.enter_context(temporary_cluster(port=0, capacity=CAPACITY_FILES * mib * MIB))
        local = folder / "file"
        write_file(local, mib)
        warm(local)
        # Forked before any client exists: the processes must not inherit its connections.
        pings = stack.enter_context(placed_pings())
        bare = stack.enter_context(peer(lambda end: bare_server(end, region, local)))

        from ...client.blocking import connect

        client = stack.enter_context(connect(cluster.url))
        fill(client, mib)
        rows = [_sequential_read(client, local, mib, rounds), _random_read(client, bare, local, mib, rounds, quick)]
        rows.append(_write(client, folder, mib, rounds))
        rows += _latency(client, pings, rounds, count)
    with ExitStack() as stack:
        streamer = stack.enter_context(peer(stream, socket.AF_INET))
        cluster, _ = stack.enter_context(temporary_cluster(port=0, tcp_only=True, capacity=CAPACITY_FILES * mib * MIB))
        client = stack.enter_context(connect(cluster.url))
        fill(client, mib)
        rows.append(_tcp_read(client, streamer, mib, rounds))
    return {"rows": rows, "file_mib": mib}


def fill(client: Any, mib: int) -> None:
    """The file that is read, larger than any buffer of the client, with no two MiB alike."""
    block = os.urandom(MIB)
    with client.open("/file", "wb") as file:
        for i in range(mib):
            file.write(i.to_bytes(8, "big") + block[8:])


def _served(client: Any, asked: int, before: int) -> dict[str, Any]:
    """What a row says about where its bytes came from. Raises INTERNAL if they did not come from the server."""
    made = {"bytes_asked": asked, "bytes_served": _bytes_read(client) - before}
    if made["bytes_served"] < asked:
        raise error(
            Status.INTERNAL, f"only {made['bytes_served']} of {asked} bytes came from the server: a cache answered"
        )
    return made


def _bytes_read(client: Any) -> int:
    """The storage server's own counter."""
    cluster, env = client.core.cluster, client.core.env
    nodes = {
        replica.node for chain in cluster.table.chains.values() for replica in cluster.table.route(chain.id).serving
    }
    calls = [Call(cluster.node_address(node), STORAGE.Space, SpaceRequest(), SECONDS_MAX) for node in nodes]
    return sum(sum(drive(env.call(call)).bytes_read) for call in calls)


def _read_all(file: Any) -> None:
    buffer = memoryview(bytearray(MIB))
    file.seek(0)
    while file.readinto(buffer):
        pass


def _sequential_read(client: Any, local: Path, mib: int, rounds: int) -> dict[str, Any]:
    before = _bytes_read(client)
    with client.open("/file") as ours, open(local, "rb", buffering=0) as bare:
        buffer = bytearray(MIB)

        def preadv() -> None:
            for i in range(mib):
                os.preadv(bare.fileno(), [buffer], i * MIB)

        value, base = in_turns([lambda: rate(mib, lambda: _read_all(ours)), lambda: rate(mib, preadv)], rounds)
    served = _served(client, rounds * mib * MIB, before)
    return row("sequential read, 1 MiB, warm, shm", value, "MiB/s", base, aim=AIM_READ, **served)


def _random_read(client: Any, server: socket.socket, local: Path, mib: int, rounds: int, quick: bool) -> dict[str, Any]:
    batches = 100 if quick else 500
    choose = random.Random(1)  # noqa: S311
    plans = [[(choose.randrange(mib * MIB // SMALL) * SMALL, SMALL) for _ in range(BATCH)] for _ in range(batches)]
    buffer = bytearray(BATCH * SMALL)
    view = memoryview(buffer)
    before = _bytes_read(client)
    with client.open("/file") as ours, open(local, "rb", buffering=0) as bare:

        def batched() -> None:
            for plan in plans:
                ours.preadv_batch(plan, buffer)

        def single() -> None:
            for plan in plans:
                for i, (offset, _) in enumerate(plan):
                    os.preadv(bare.fileno(), [view[i * SMALL : (i + 1) * SMALL]], offset)

        ways = [batched, lambda: bare_random(server, mib, batches), single]
        value, base, preadv = in_turns([partial(rate, batches * BATCH, way) for way in ways], rounds)
    served = _served(client, rounds * batches * BATCH * SMALL, before)
    made = row(f"random read, 4 KiB, batches of {BATCH}, one in flight, shm", value, "IOPS", aim=AIM_IOPS, **served)
    compared = {"baseline": round(base), "baseline_is": "bare shared memory", "ratio": round(value / base, 3)}
    return {**made, **compared, **spreads(value, base), "preadv": round(preadv)}


def _write(client: Any, folder: Path, mib: int, rounds: int) -> dict[str, Any]:
    block = os.urandom(MIB)

    def ours() -> None:
        with client.open("/written", "wb") as file:
            for _ in range(mib):
                file.write(block)

    def bare() -> None:
        with open(folder / "written", "wb", buffering=0) as file:
            for i in range(mib):
                os.pwrite(file.fileno(), block, i * MIB)

    value, base = in_turns([lambda: rate(mib, ours), lambda: rate(mib, bare)], rounds)
    return row("sequential write, 1 MiB, checksums on, shm", value, "MiB/s", base, aim=AIM_WRITE)


def _latency(client: Any, pings: dict[str, Callable[[int], float]], rounds: int, count: int) -> list[dict[str, Any]]:
    client.write_bytes("/small", bytes(1 << 20))
    buffer = bytearray(SMALL)
    with client.open("/small", buffering=0) as file:
        ours = [
            lambda: median_us(lambda: client.stat("/small"), count),
            lambda: median_us(lambda: file.pread_into(buffer, 8192), count),
        ]
        measured = in_turns([*ours, *(partial(ping, count) for ping in pings.values())], rounds)
    stat_us, read_us, *bases = measured
    placed = dict(zip(pings, bases, strict=True))
    made = [
        _against("stat, one in flight, median", stat_us, placed),
        _against("read of 4 KiB, one in flight, median", read_us, placed),
    ]
    return made + [row(f"bare ping-pong, Unix socket, {where}, median", base, "µs") for where, base in placed.items()]


def _against(what: str, value: Median, placed: dict[str, Median]) -> dict[str, Any]:
    """A latency's row: judged by the ping-pong that the kernel placed, as it placed us; the others stand beside it."""
    ratios = {where: round(value / base, 3) for where, base in placed.items()}
    return row(what, value, "µs", next(iter(placed.values())), aim=AIM_LATENCY, least=False, ratios=ratios)


def _tcp_read(client: Any, streamer: socket.socket, mib: int, rounds: int) -> dict[str, Any]:
    before = _bytes_read(client)
    with client.open("/file") as ours:
        ways = [lambda: rate(mib, lambda: _read_all(ours)), lambda: rate(mib, lambda: stream_mib(streamer, mib))]
        value, base = in_turns(ways, rounds)
    served = _served(client, rounds * mib * MIB, before)
    return row("sequential read, 1 MiB, tcp", value, "MiB/s", base, aim=AIM_TCP, **served)
