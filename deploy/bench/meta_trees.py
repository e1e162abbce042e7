"""A directory of a million entries, listed in pages; and a tree of a hundred thousand files, removed in one request and freed behind it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from ...proto.env import drive
from ...proto.errors import Status, error
from ...proto.settings import time_scale
from ..local import META, LocalCluster
from .measure import MIB, Median, median_us, row, temporary_cluster

ENTRIES, ENTRIES_QUICK = 1_000_000, 50_000
FILES, FILES_QUICK = 100_000, 10_000
FILES_PER_DIRECTORY = 10_000
BATCH = 1000
FIRST_PAGES = 20  # readings of the first page
LOOK_SECONDS = 0.02
FREED_SECONDS_MAX = 120.0
AIM_FIRST_PAGE_MS, AIM_ENTRIES = 20.0, 60_000
AIM_GROWTH_MIB = 16.0  # "flat": what one page may take
AIM_ACCEPTED_MS, AIM_FREED = 50.0, 10_000


def resident(pid: int) -> int:
    """Bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def create_files(client: Any, folder: str, count: int) -> None:
    """Empty files, in batches."""
    for start in range(0, count, BATCH):
        client.create_many([f"{folder}/{i:07}" for i in range(start, min(count, start + BATCH))])


def listing(quick: bool) -> list[dict[str, Any]]:
    """Page after page, as whoever lists a directory asks for them, and each forgotten before the next."""
    from ...client.blocking import connect

    count = ENTRIES_QUICK if quick else ENTRIES
    with temporary_cluster() as (cluster, _), connect(cluster.url) as client:
        client.mkdir("/big")
        create_files(client, "/big", count)
        server = cluster.servers[META].pid()
        assert server is not None
        core = client.core
        first_us = median_us(lambda: drive(core.names_page("/big", b"")), FIRST_PAGES)
        seconds, seen = _walk(core, "/big")
        before = resident(server), resident(os.getpid())  # by now the engine's cache holds what it may
        _walk(core, "/big")
        grown = resident(server) - before[0], resident(os.getpid()) - before[1]
        begin = time.perf_counter()
        told = sum(1 for _ in client.scandir("/big"))
        told_seconds = time.perf_counter() - begin
    if seen != count or told != count:
        raise error(Status.INTERNAL, f"{seen} and {told} of {count} entries were listed")
    what = f"list {count:,} names"
    return [
        row(f"{what}: first page", first_us / 1000, "ms", aim=AIM_FIRST_PAGE_MS, least=False),
        row(f"{what}: all", count / seconds, "entries/s", aim=AIM_ENTRIES),
        row(f"{what}: all, with attributes", count / told_seconds, "entries/s"),
        row(f"{what}: the server grows by", max(0, grown[0]) / MIB, "MiB", aim=AIM_GROWTH_MIB, least=False),
        row(f"{what}: the client grows by", max(0, grown[1]) / MIB, "MiB", aim=AIM_GROWTH_MIB, least=False),
    ]


def _walk(core: Any, path: str) -> tuple[float, int]:
    """All names of a directory, page by page; how long that took, and how many there are."""
    begin = time.perf_counter()
    seen = 0
    cookie: bytes | None = b""
    while cookie is not None:
        names, cookie = drive(core.names_page(path, cookie))
        seen += len(names)
    return time.perf_counter() - begin, seen


def removal(quick: bool) -> list[dict[str, Any]]:
    """Remove a tree for good; how soon that is answered, and how long it takes until all its inodes are gone."""
    from ...client.blocking import connect

    count, rounds = (FILES_QUICK, 1) if quick else (FILES, 3)
    accepted: list[float] = []
    freed: list[float] = []
    costs: list[float] = []  # of a file, µs of the server
    with temporary_cluster() as (cluster, _), connect(cluster.url) as client:
        for number in range(rounds):
            top = f"/tree{number}"
            client.mkdir(top)
            for part in range(count // FILES_PER_DIRECTORY):
                client.mkdir(f"{top}/{part}")
                create_files(client, f"{top}/{part}", FILES_PER_DIRECTORY)
            full, spent = client.statfs().inodes, _processor_s(cluster)
            begin = time.perf_counter()
            client.remove_tree(top, forever=True)
            accepted.append(1000 * (time.perf_counter() - begin))
            freed.append(count / (_wait_for(client, full - count) - begin))
            costs.append(1e6 * (_processor_s(cluster) - spent) / count)
    what = f"remove a tree of {count:,} files"
    return [
        row(f"{what}: accepted", Median(accepted), "ms", aim=AIM_ACCEPTED_MS, least=False),
        row(f"{what}: freed", Median(freed), "files/s", aim=AIM_FREED, server_us=round(Median(costs), 1)),
    ]


def _processor_s(cluster: LocalCluster) -> float:
    return float(cluster.servers[META].usage()["processor_s"])


def _wait_for(client: Any, inodes: int) -> float:
    """When no more than so many inodes are left. Raises DEADLINE."""
    until = time.perf_counter() + FREED_SECONDS_MAX * time_scale()
    while (now := time.perf_counter()) < until:
        left = client.statfs().inodes - inodes
        if left <= 0:
            return now
        time.sleep(LOOK_SECONDS)
    raise error(Status.DEADLINE, f"{left} files were not freed in time")
