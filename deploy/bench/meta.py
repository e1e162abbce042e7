"""The namespace from one client process: batched and single operations per second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .measure import rate, row, temporary_cluster

BATCH = 256
AIM_STAT, AIM_CREATE = 20_000, 6_000


def run(quick: bool = False) -> dict[str, Any]:
    """Measure; takes about 20 s, or 5 with `quick`."""
    count = 2_048 if quick else 16_384
    single = 200 if quick else 2_000
    with temporary_cluster() as (cluster, _):
        from ...client.blocking import connect

        with connect(cluster.url) as client:
            client.mkdir("/many")
            paths = [f"/many/f{i:06}" for i in range(count)]
            singles = [f"/many/s{i:06}" for i in range(single)]
            rows = [
                row(
                    "create + close, batched",
                    rate(count, lambda: _batched(client.create_many, paths)),
                    "/s",
                    aim=AIM_CREATE,
                ),
                row("stat, batched", rate(count, lambda: _batched(client.stat_many, paths)), "/s", aim=AIM_STAT),
                row("list with attributes", rate(count, lambda: list(client.scandir("/many"))), "entries/s"),
                row("unlink, batched", rate(count, lambda: _batched(client.unlink_many, paths)), "/s"),
                row("open + create + close, one at a time", rate(single, lambda: _create(client, singles)), "/s"),
                row("stat, one at a time", rate(single, lambda: [client.stat(path) for path in singles]), "/s"),
                row("rename, one at a time", rate(single, lambda: _rename(client, singles)), "/s"),
                row("4 KiB file written, one at a time", rate(single, lambda: _small(client, singles)), "/s"),
            ]
            rows.append(row("remove tree", rate(2 * single, lambda: client.remove_tree("/many")), "entries/s"))
    return {"rows": rows, "files": count}


def _batched(operation: Callable[[list[str]], list[Any]], paths: list[str]) -> None:
    for i in range(0, len(paths), BATCH):
        for result in operation(paths[i : i + BATCH]):
            if isinstance(result, OSError):
                raise result


def _create(client: Any, paths: list[str]) -> None:
    for path in paths:
        client.open(path, "xb").close()


def _rename(client: Any, paths: list[str]) -> None:
    for path in paths:
        client.rename(path, path + ".new")


def _small(client: Any, paths: list[str]) -> None:
    data = bytes(4096)
    for path in paths:
        client.write_bytes(path, data)
