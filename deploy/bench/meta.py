"""The namespace from one client process: batched, pipelined and single operations per second.

Pipelined means: the asyncio client on uvloop, with so many operations in flight, each a request of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any

import uvloop

from .measure import Median, rate, row, temporary_cluster

BATCH = 256
DEPTHS = (16, 64)  # operations in flight
AIM_STAT, AIM_CREATE = 20_000, 6_000

Rates = dict[str, float]  # by row

CREATE_BATCHED, STAT_BATCHED = "create + close, batched", "stat, batched"
AIMS = {CREATE_BATCHED: AIM_CREATE, STAT_BATCHED: AIM_STAT}
UNITS = {"list with attributes": "entries/s", "remove tree": "entries/s"}


def run(quick: bool = False) -> dict[str, Any]:
    """Measure; takes about 60 s, or 10 with `quick`. Every round has names of its own."""
    count, single, rounds = (2_048, 200, 3) if quick else (8_192, 1_000, 5)
    with temporary_cluster() as (cluster, _):
        from ...client.blocking import connect

        measured: list[Rates] = []
        with connect(cluster.url) as client:
            for number in range(rounds):
                folder = f"/round{number}"
                client.mkdir(folder)
                found = _batches(client, folder, count) | _singles(client, folder, single)
                found |= uvloop.run(_pipelined(cluster.url, folder, count // 2))
                left = 2 * single + len(DEPTHS) * (count // 2)
                found["remove tree"] = rate(left, partial(client.remove_tree, folder))
                measured.append(found)
    rows = [_row(what, Median([found[what] for found in measured])) for what in measured[0]]
    return {"rows": rows, "files": count}


def _row(what: str, value: Median) -> dict[str, Any]:
    aim = AIMS.get(what)
    if aim is None and what.endswith("in flight"):
        aim = AIM_STAT if what.startswith("stat") else AIM_CREATE
    return row(what, value, UNITS.get(what, "/s"), aim=aim)


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

    data = bytes(4096)
    return {
        "open + create + close, one at a time": each(lambda path: client.open(path, "xb").close()),
        "stat, one at a time": each(client.stat),
        "rename, one at a time": each(lambda path: client.rename(path, path + ".new")),
        "4 KiB file written, one at a time": each(lambda path: client.write_bytes(path, data)),
    }


async def _pipelined(url: str, folder: str, count: int) -> Rates:
    from ...client import aio

    found: Rates = {}
    async with await aio.connect(url) as client:

        async def create(path: str) -> None:
            await (await client.open(path, "xb")).close()

        for depth in DEPTHS:
            paths = [f"{folder}/p{depth}-{i:06}" for i in range(count)]
            found[f"open + create + close, {depth} in flight"] = await _flow(create, paths, depth)
            found[f"stat, {depth} in flight"] = await _flow(client.stat, paths, depth)
    return found


async def _flow(operation: Callable[[str], Awaitable[object]], paths: list[str], depth: int) -> float:
    """Operations per second with `depth` of them in flight."""

    async def one_after_the_other(rest: Iterable[str]) -> None:
        for path in rest:
            await operation(path)

    rest = iter(paths)
    loop = asyncio.get_running_loop()
    begin = loop.time()
    await asyncio.gather(*(one_after_the_other(rest) for _ in range(depth)))
    return len(paths) / (loop.time() - begin)
