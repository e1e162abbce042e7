"""GraySort: records of 100 bytes sorted in two phases, on a mount and through the client, against the local disk, in turns.

A sort reads and writes everything twice, by several processes at once, and is over when the output is durable. Each output is validated.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ...proto.errors import Status, error
from ..sorting import external, parallel
from ..sorting.parallel import File, Kind, Workers
from .measure import MIB, Median, in_turns, row, temporary_cluster
from .mount import mounted

GIB = 1 << 30
RECORD_BYTES = 100


class Sizes(NamedTuple):
    mib: int  # of the input
    memory: int  # bytes of all processes: less than the input, so that there are two phases
    rounds: int


FULL = Sizes(2048, GIB, 3)
QUICK = Sizes(128, 96 * MIB, 1)
# Inputs, runs and outputs of two places in the cluster, the ones that are replaced too, and what was removed and has not been freed yet.
ROOM = 18
AIM = 0.6


class Way(NamedTuple):
    """A place to sort in."""

    name: str
    source: File
    target: File


def run(quick: bool = False) -> dict[str, Any]:
    """Measure on a cluster and a mount of its own. Needs root (to mount) and numpy."""
    sizes = QUICK if quick else FULL
    with (
        temporary_cluster(port=0, capacity=ROOM * sizes.mib * MIB + GIB, trash=0) as (cluster, folder),
        mounted(cluster.url, folder / "mount", "") as mount,
        parallel.workers(parallel.jobs_default()) as pool,
    ):
        local = folder / "local"
        local.mkdir()
        ways = [
            Way("on the mount", *_files("", mount)),
            Way("through the client, no mount", *_files(cluster.url, Path("/client"))),
            Way("on the local disk", *_files("", local)),
        ]
        parallel.place(cluster.url).make_directory("/client")
        rows = _measured(pool, ways, sizes)
    return {"rows": rows, "input_mib": sizes.mib, "memory_mib": sizes.memory // MIB, "processes": pool.jobs}


def _files(url: str, folder: Path) -> tuple[File, File]:
    return File(url, str(folder / "in")), File(url, str(folder / "out"))


def _measured(pool: Workers, ways: list[Way], sizes: Sizes) -> list[dict[str, Any]]:
    records = sizes.mib * MIB // RECORD_BYTES
    sums: set[int] = set()
    steps: dict[str, Callable[[Way], object]] = {
        "records made": lambda way: sums.add(parallel.generate(pool, way.source, records, Kind(), checksum=True)),
        f"GraySort of {sizes.mib} MiB": lambda way: external.sort(pool, way.source, way.target, memory=sizes.memory),
        "records validated": lambda way: _check(pool, way, records, sums),
    }
    taken: dict[tuple[str, str], list[float]] = {}

    def all_of(way: Way) -> float:
        for what, step in steps.items():
            begin = time.perf_counter()
            step(way)
            taken.setdefault((what, way.name), []).append(sizes.mib / (time.perf_counter() - begin))
        return 0.0

    pool.start([way.source.url for way in ways])
    in_turns([lambda way=way: all_of(way) for way in ways], sizes.rounds)  # type: ignore[misc]
    *ours, bare = ways
    return [
        row(
            f"{what}, {way.name}",
            Median(taken[what, way.name]),
            "MiB/s",
            Median(taken[what, bare.name]),
            aim=AIM if what.startswith("GraySort") and way is ours[0] else None,
        )
        for what in steps
        for way in ours
    ]


def _check(pool: Workers, way: Way, records: int, sums: set[int]) -> None:
    """What was sorted is what was made, in order."""
    found = parallel.validate(pool, [way.target])
    if not found.ordered or found.records != records or {found.checksum} != sums:
        raise error(Status.INTERNAL, f"sorted {way.name}, the records are not what they were: {found.lines()}")
