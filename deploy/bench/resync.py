"""A member that returns: how fast it is copied to, against `cp` of the same bytes on the same disk, and what clients notice of it.

One of two members is killed, the file is written, the member is started again. The time of a sync counts from the moment when the
manager says SYNCING to the moment when it says SERVING, so everything that was copied is on the disk by then, which cp does not wait for.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ... import connect
from ...proto.errors import Status, error
from ...proto.gen.common_pb2 import TARGET_STATE_SERVING, TARGET_STATE_SYNCING
from ..local import LocalCluster
from .measure import MIB, rate, row, temporary_cluster, write_file

MIB_FULL = 10 << 10
SPACE_PART = 6  # a sixth of the free space at most: two replicas, the file, its copy, and room
LIVE_MIB = 64  # of the file that clients work on
LIVE_SECONDS = 4.0  # without a sync
SECONDS_MAX = 600.0
POLL_SECONDS = 0.02
AIM_COPY, AIM_CLIENTS = 0.5, 0.6


def run(quick: bool = False, mib: int = 0) -> dict[str, Any]:
    """Measure with `mib` MiB (10 GiB, or what the disk has room for; 256 with `quick`)."""
    with temporary_cluster(nodes=2, replicas=2, targets=1, capacity=4 * MIB_FULL * MIB) as (cluster, folder):
        mib = mib or (256 if quick else min(MIB_FULL, shutil.disk_usage(folder).free // MIB // SPACE_PART))
        rows = _idle(cluster, folder, mib)
        rows += [_busy(cluster, mib, what, work) for what, work in (("reads", _read), ("writes", _write))]
    return {"rows": rows, "file_mib": mib}


def _idle(cluster: LocalCluster, folder: Path, mib: int) -> list[dict[str, Any]]:
    local, copy = folder / "file", folder / "copy"
    write_file(local, mib)
    begin = time.perf_counter()
    subprocess.run(["cp", local, copy], check=True)
    copied = time.perf_counter() - begin
    subprocess.run(["sync", "-d", copy], check=True)
    durable = time.perf_counter() - begin
    copy.unlink()
    _miss(cluster, mib, local)
    local.unlink()
    cluster.start()
    _wait(cluster, TARGET_STATE_SYNCING, 1)
    value = rate(mib, lambda: _wait(cluster, TARGET_STATE_SERVING, 2))
    return [
        row("resync without clients, against cp", value, "MiB/s", mib / copied, aim=AIM_COPY),
        row("the same, against cp that is durable too", value, "MiB/s", mib / durable),
    ]


def _busy(cluster: LocalCluster, mib: int, what: str, work: Callable[[Any, bytes], None]) -> dict[str, Any]:
    """Clients that do nothing else, beside a sync and without one."""
    with connect(cluster.url) as client:
        client.write_bytes("/live", bytes(LIVE_MIB * MIB))
    quiet = _Clients(cluster, work)
    threading.Event().wait(LIVE_SECONDS)
    baseline = quiet.end()
    _miss(cluster, mib, None)
    cluster.start()
    _wait(cluster, TARGET_STATE_SYNCING, 1)
    beside = _Clients(cluster, work)
    copied = rate(mib, lambda: _wait(cluster, TARGET_STATE_SERVING, 2))
    return row(
        f"{what} of clients while a resync runs",
        beside.end(),
        "MiB/s",
        baseline,
        aim=AIM_CLIENTS,
        copied_mib_s=round(copied, 1),
    )


class _Clients:
    """A client that works in a thread of its own until it is ended."""

    def __init__(self, cluster: LocalCluster, work: Callable[[Any, bytes], None]) -> None:
        self._cluster = cluster
        self._work = work
        self._moved = 0
        self._over = threading.Event()
        self._failure: BaseException | None = None
        self._begin = time.perf_counter()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        data = bytes(LIVE_MIB * MIB)
        try:
            with connect(self._cluster.url) as client:
                while not self._over.is_set():
                    self._work(client, data)
                    self._moved += LIVE_MIB
        except BaseException as failure:
            self._failure = failure

    def end(self) -> float:
        """MiB a second."""
        self._over.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return self._moved / (time.perf_counter() - self._begin)


def _read(client: Any, data: bytes) -> None:
    client.read_bytes("/live")


def _write(client: Any, data: bytes) -> None:
    with client.open("/live", "r+b") as file:
        file.write(data)


def _miss(cluster: LocalCluster, mib: int, content: Path | None) -> None:
    """Write what a killed member then lacks."""
    cluster.kill(cluster.nodes[-1])
    _wait(cluster, TARGET_STATE_SERVING, 1)
    block = bytes(8 * MIB) if content is None else b""
    with connect(cluster.url) as client, client.open("/missed", "wb") as file:
        if content is None:
            for _ in range(mib // 8):
                file.write(block)
        else:
            with open(content, "rb") as source:
                shutil.copyfileobj(source, file, 8 * MIB)


def _wait(cluster: LocalCluster, state: int, count: int) -> None:
    """Until so many members of the chain are in this state. Raises DEADLINE."""
    end, pause = time.monotonic() + SECONDS_MAX, threading.Event()
    with connect(cluster.url) as client:
        while True:
            members = client.status().routing.chains[0].members
            found = sum(member.state == state for member in members)
            if found == count or (
                state == TARGET_STATE_SYNCING and all(m.state == TARGET_STATE_SERVING for m in members)
            ):
                return
            if time.monotonic() > end:
                raise error(Status.DEADLINE, f"the chain did not get there within {SECONDS_MAX:g} s")
            pause.wait(POLL_SECONDS)
