"""The namespace under several client processes: in one directory and in separate ones, at one metadata server and at two over PostgreSQL.

Clients are processes of their own; they begin each phase together, and what counts is the time from the first one's begin to the last
one's end. The servers' own counters say how many transactions were done again after a conflict.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import uvloop

from ..local import LocalCluster
from .measure import Median, row, temporary_cluster

PHASES = ("create + close", "stat", "unlink")
DEPTH = 16  # operations in flight of one client
CLIENTS, CLIENTS_CONTENDING = 8, 4
WAIT_SECONDS_MAX = 300.0  # for the clients of one run
AIM_SHARED, AIM_TWO_SERVERS, AIM_RETRIES = 0.8, 1.5, 0.05

_RETRIES = b"emberfs_kv_retries_total "

Operation = Callable[[str], Awaitable[object]]
Rates = dict[str, float]  # operations per second, by phase


async def flow(operation: Operation, paths: Iterable[str], depth: int) -> None:
    """Do all of them, with `depth` in flight."""

    async def one_after_the_other(rest: Iterator[str]) -> None:
        for path in rest:
            await operation(path)

    rest = iter(paths)
    await asyncio.gather(*(one_after_the_other(rest) for _ in range(depth)))


# --- client processes -----------------------------------------------------------------------------------------------------------------


def work(url: str, paths: list[str], begin: Any, results: Any) -> None:
    """One client process: all phases over its paths."""
    uvloop.run(_work(url, paths, begin, results))


async def _work(url: str, paths: list[str], begin: Any, results: Any) -> None:
    from ...client import aio

    async with await aio.connect(url) as client:

        async def create(path: str) -> None:
            await (await client.open(path, "xb")).close()

        loop = asyncio.get_running_loop()
        operations: tuple[Operation, ...] = (create, client.stat, client.unlink)
        for phase, operation in zip(PHASES, operations, strict=True):
            await loop.run_in_executor(None, begin.wait, WAIT_SECONDS_MAX)
            started = loop.time()  # the same clock in all processes
            await flow(operation, paths, DEPTH)
            results.put((phase, started, loop.time()))


def run_clients(url: str, clients: int, count: int, folder: Callable[[int], str]) -> Rates:
    """Operations per second of all clients together; each works on `count` names of its own in the directory that `folder` gives it."""
    spawn = multiprocessing.get_context("spawn")
    begin, results = spawn.Barrier(clients), spawn.Queue()
    processes = [
        spawn.Process(
            target=work,
            args=(url, [f"{folder(number)}/c{number}-{i:06}" for i in range(count)], begin, results),
            daemon=True,
        )
        for number in range(clients)
    ]
    for process in processes:
        process.start()
    try:
        spans = [results.get(timeout=WAIT_SECONDS_MAX) for _ in range(clients * len(PHASES))]
    finally:
        for process in processes:
            process.join(1)
            process.kill()
    rates = {}
    for phase in PHASES:
        begins, ends = zip(*((begin, end) for name, begin, end in spans if name == phase), strict=True)
        rates[phase] = clients * count / (max(ends) - min(begins))
    return rates


def retries(cluster: LocalCluster) -> float:
    """Transactions of all metadata servers that were done again so far."""
    return sum(_retries(str(cluster.metrics_socket(role))) for role in cluster.metas)


def _retries(path: str) -> float:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    [line] = [line for line in answer.splitlines() if line.startswith(_RETRIES)]
    return float(line.removeprefix(_RETRIES))


# --- one directory against separate ones ----------------------------------------------------------------------------------------------


def contention(quick: bool) -> list[dict[str, Any]]:
    """8 clients that create in one directory, against the same in separate ones. In turns: so many processes on few cores tell little
    by themselves."""
    from ...client.blocking import connect

    count, rounds = (100, 1) if quick else (500, 5)
    shared: list[float] = []
    apart: list[float] = []
    with temporary_cluster(metrics=True) as (cluster, _):
        with connect(cluster.url) as client:
            client.mkdir("/shared")
            for number in range(CLIENTS):
                client.mkdir(f"/own{number}")
        before = retries(cluster)
        again = 0.0
        for _ in range(rounds):
            apart.append(run_clients(cluster.url, CLIENTS, count, lambda number: f"/own{number}")[PHASES[0]])
            before = retries(cluster)
            shared.append(run_clients(cluster.url, CLIENTS, count, lambda number: "/shared")[PHASES[0]])
            again += retries(cluster) - before
    made = row(
        f"{CLIENTS} clients create in one directory, against separate ones",
        Median(shared),
        "/s",
        Median(apart),
        aim=AIM_SHARED,
    )
    changes = rounds * CLIENTS * count * 3  # create, close, unlink
    return [made, row("transactions done again there", again / changes, "of all", aim=AIM_RETRIES, least=False)]


# --- two servers over PostgreSQL ------------------------------------------------------------------------------------------------------


@contextmanager
def _shared_store() -> Iterator[Callable[[], str] | None]:
    """URLs of new databases of a PostgreSQL of our own; None where it is not installed."""
    from .postgres import PostgresServer, find_programs

    programs = find_programs()
    try:
        import psycopg  # noqa: F401
    except ImportError:
        programs = None
    if programs is None:
        yield None
        return
    server = PostgresServer(programs)
    try:
        yield server.database
    finally:
        server.close()


def servers(quick: bool) -> tuple[list[dict[str, Any]], str]:
    """Two metadata servers over one PostgreSQL, against one; a sentence instead where there is no PostgreSQL."""
    count, rounds = (100, 1) if quick else (500, 3)
    measured: dict[int, list[Rates]] = {1: [], 2: []}
    with ExitStack() as stack:
        database = stack.enter_context(_shared_store())
        if database is None:
            return [], "Two metadata servers were not measured: PostgreSQL, or psycopg, is not installed here."
        clusters = {metas: stack.enter_context(_over(database(), metas)) for metas in measured}
        for _ in range(rounds):
            for metas, cluster in clusters.items():
                measured[metas].append(run_clients(cluster.url, CLIENTS_CONTENDING, count, lambda number: "/shared"))
        again = retries(clusters[2]) / (rounds * CLIENTS_CONTENDING * count * 3)  # create, close, unlink
    cores = len(os.sched_getaffinity(0))
    aim = AIM_TWO_SERVERS if cores > CLIENTS_CONTENDING + 2 else None  # else they have the cores of one between them
    rows = []
    for phase in PHASES:
        one, two = (Median([rates[phase] for rates in measured[metas]]) for metas in (1, 2))
        what = f"{phase}, 2 metadata servers on PostgreSQL against 1"
        rows.append(row(what, two, "/s", one, aim=aim, cores=cores))
    what = f"transactions done again: {CLIENTS_CONTENDING} clients in one directory, 2 servers"
    return [*rows, row(what, again, "of all", aim=AIM_RETRIES, least=False)], ""


@contextmanager
def _over(database: str, metas: int) -> Iterator[LocalCluster]:
    """A cluster with so many metadata servers over this database."""
    from ...client.blocking import connect

    with temporary_cluster(metas=metas, kv=database, metrics=True) as (cluster, _):
        with connect(cluster.url) as client:
            client.mkdir("/shared")
        yield cluster
