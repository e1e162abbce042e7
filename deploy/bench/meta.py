"""The namespace: what one client process gets done, alone and in batches; small files; then `meta_trees` and `meta_clients`.

"In flight" means: the asyncio client on uvloop, with so many operations under way, each a request of its own. Beside these rates stands
what one operation costs both processes in processor time: that moves less with what else the machine does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import uvloop

from ...proto.drivers.blocking import BlockingEnvironment
from ...proto.env import Call, drive
from ...proto.rpc import CLUSTER
from ...proto.settings import parse_url
from ..local import META, LocalCluster
from . import meta_clients, meta_trees
from .measure import Median, rate, row, temporary_cluster
from .meta_clients import DEPTH, Operation, flow

BATCH = 256
DEPTHS = (DEPTH, 64)  # operations in flight
SMALL_BYTES = 4096
AIM_BATCHED_STAT, AIM_BATCHED_CREATE = 20_000, 6_000
AIM_SMALL_REQUESTS = 2  # create, write and close of a small file: open and close, and nobody else is asked

Rates = dict[str, float]  # by row
Costs = dict[str, tuple[float, float]]  # by row: µs of the server and of the client

CREATE_BATCHED, STAT_BATCHED = "create + close, batched", "stat, batched"
FLOWING = {"create + close": 8_000, "stat": 25_000, "unlink": 8_000}  # aims with 16 in flight
AIMS = {CREATE_BATCHED: AIM_BATCHED_CREATE, STAT_BATCHED: AIM_BATCHED_STAT} | {
    f"{what}, {DEPTH} in flight": aim for what, aim in FLOWING.items()
}
UNITS = {"list with attributes": "entries/s"}


def run(quick: bool = False) -> dict[str, Any]:
    """Measure; takes some minutes, or 25 s with `quick`, which lists and removes less."""
    count, single, rounds = (2_048, 200, 3) if quick else (8_192, 1_000, 5)
    measured: list[Rates] = []
    costs: list[Costs] = []
    with temporary_cluster() as (cluster, _):
        from ...client.blocking import connect

        with connect(cluster.url) as client:
            for number in range(rounds):
                folder = f"/round{number}"
                client.mkdir(folder)
                found = _batches(client, folder, count) | _singles(client, folder, single)
                flowing, cost = uvloop.run(_in_flight(cluster, folder, count // 2))
                measured.append(found | flowing)
                costs.append(cost)
                client.remove_tree(folder, forever=True)
            requests = _requests_of_small_file(cluster.url)
    rows = [_row(what, [found[what] for found in measured], [cost.get(what) for cost in costs]) for what in measured[0]]
    rows.append(
        row("requests of a 4 KiB file: create, write, close", requests, "requests", aim=AIM_SMALL_REQUESTS, least=False)
    )
    rows += meta_trees.listing(quick) + meta_trees.removal(quick) + meta_clients.contention(quick)
    with_postgres, left_out = meta_clients.servers(quick)
    return {"rows": rows + with_postgres, "files": count, **({"left_out": left_out} if left_out else {})}


def _row(what: str, rates: list[float], costs: list[tuple[float, float] | None]) -> dict[str, Any]:
    more: dict[str, Any] = {}
    known = [cost for cost in costs if cost is not None]
    if known:
        more = {
            "server_us": round(Median([cost[0] for cost in known]), 1),
            "client_us": round(Median([cost[1] for cost in known]), 1),
        }
    return row(what, Median(rates), UNITS.get(what, "/s"), aim=AIMS.get(what), **more)


def _batches(client: Any, folder: str, count: int) -> Rates:
    paths = [f"{folder}/f{i:06}" for i in range(count)]
    return {
        CREATE_BATCHED: rate(count, lambda: _batched(client.create_many, paths)),
        STAT_BATCHED: rate(count, lambda: _batched(client.stat_many, paths)),
        "list with attributes": rate(count, lambda: list(client.scandir(folder))),
        "unlink, batched": rate(count, lambda: _batched(client.unlink_many, paths)),
    }


def _batched(operation: Callable[[list[str]], list[Any]], paths: list[str]) -> None:
    for i in range(0, len(paths), BATCH):
        for result in operation(paths[i : i + BATCH]):
            if isinstance(result, OSError):
                raise result


def _singles(client: Any, folder: str, count: int) -> Rates:
    paths = [f"{folder}/s{i:06}" for i in range(count)]

    def each(operation: Callable[[str], object]) -> float:
        return rate(count, lambda: [operation(path) for path in paths])

    data = bytes(SMALL_BYTES)
    return {
        "create + close, one at a time": each(lambda path: client.open(path, "xb").close()),
        "stat, one at a time": each(client.stat),
        "rename, one at a time": each(lambda path: client.rename(path, path + ".new")),
        "4 KiB file written, one at a time": each(lambda path: client.write_bytes(path, data)),
    }


async def _in_flight(cluster: LocalCluster, folder: str, count: int) -> tuple[Rates, Costs]:
    from ...client import aio

    rates: Rates = {}
    costs: Costs = {}
    data = os.urandom(SMALL_BYTES)
    async with await aio.connect(cluster.url) as client:

        async def create(path: str) -> None:
            await (await client.open(path, "xb")).close()

        async def write(path: str) -> None:
            async with await client.open(path, "xb") as file:
                await file.write(data)

        for depth in DEPTHS:
            steps: list[tuple[str, Operation]] = [
                ("create + close", create),
                ("stat", client.stat),
                ("unlink", partial(client.unlink, forever=True)),
            ]
            if depth == DEPTH:
                steps.append(("4 KiB file written", write))
            for name, operation in steps:
                what = f"{name}, {depth} in flight"
                paths = [f"{folder}/p{depth}-{i:06}" for i in range(count)]
                rates[what], costs[what] = await _timed(cluster, operation, paths, depth)
    return rates, costs


async def _timed(
    cluster: LocalCluster, operation: Operation, paths: list[str], depth: int
) -> tuple[float, tuple[float, float]]:
    """Operations per second, and what one costs the metadata server and this process, in µs of a processor."""
    server, client = _processor_s(cluster), time.process_time()
    begin = time.perf_counter()
    await flow(operation, paths, depth)
    seconds = time.perf_counter() - begin
    spent = _processor_s(cluster) - server, time.process_time() - client
    return len(paths) / seconds, (1e6 * spent[0] / len(paths), 1e6 * spent[1] / len(paths))


def _processor_s(cluster: LocalCluster) -> float:
    return float(cluster.servers[META].usage()["processor_s"])


class _Counting(BlockingEnvironment):
    """Knows how many requests it has sent that are about files."""

    requests = 0

    def _post(self, connection: Any, call: Call, *rest: Any) -> Any:
        self.requests += call.method.service != CLUSTER.name
        return super()._post(connection, call, *rest)


def _requests_of_small_file(url: str) -> float:
    """What creating, writing and closing one takes."""
    from ...client.blocking import Client
    from ...client.core.client import Core
    from ...client.core.options import Options

    location = parse_url(url)
    env = _Counting(cluster=location.cluster, secret_file=location.secret_file)
    core = Core(env, location.addresses, Options(), 0o022)
    drive(core.connect())
    with Client(core) as client:
        client.stat("/")
        before = env.requests
        with client.open("/small", "xb") as file:
            file.write(bytes(SMALL_BYTES))
        return env.requests - before
