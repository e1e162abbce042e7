"""A member that returns: how fast it is copied to, against `cp` of the same bytes on the same disk, and what clients notice of it.

One of two members is killed, the file is written, the member is started again. The time of a sync counts from the moment when the
manager says SYNCING to the moment when it says SERVING, so everything that was copied is on the disk by then, which cp does not wait for.

Beside clients a sync takes its time on purpose (a fifth of what they move): they are measured for some seconds of it, between two
measurements without one, and the rest is copied when they are gone.
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
LIVE_SECONDS = 3.0  # without a sync, before and after it
BUSY_SECONDS = 6.0  # beside one
BUSY_MIB = 4 << 10  # that are missing then: enough for that long
SECONDS_MAX = 600.0
POLL_SECONDS = 0.02
AIM_COPY, AIM_CLIENTS = 0.5, 0.6


def run(quick: bool = False, mib: int = 0) -> dict[str, Any]:
    """Measure with `mib` MiB (10 GiB, or what the disk has room for; 256 with `quick`)."""
    with temporary_cluster(nodes=2, replicas=2, targets=1, capacity=4 * max(mib, MIB_FULL) * MIB) as (cluster, folder):
        mib = mib or (256 if quick else min(MIB_FULL, shutil.disk_usage(folder).free // MIB // SPACE_PART))
        rows = _idle(cluster, folder, mib)
        rows += [
            _busy(cluster, min(mib, BUSY_MIB), what, work) for what, work in (("reads", _read), ("writes", _write))
        ]
    return {"rows": rows, "file_mib": mib}


def _idle(cluster: LocalCluster, folder: Path, mib: int) -> list[dict[str, Any]]:
    local = folder / "file"
    write_file(local, mib)
    before = _copy(local)
    _miss(cluster, mib, "idle", local)
    cluster.start()
    _wait(cluster, TARGET_STATE_SYNCING, 1)
    value = rate(mib, lambda: _wait(cluster, TARGET_STATE_SERVING, 2))
    after = _copy(local)
    local.unlink()
    # Before and after: what a copy takes depends on whether the machine has had memory for the page cache in hand.
    copied, durable = ((first + second) / 2 for first, second in zip(before, after, strict=True))
    return [
        row("resync without clients, against cp", value, "MiB/s", mib / copied, aim=AIM_COPY),
        row("the same, against cp that is durable too", value, "MiB/s", mib / durable),
    ]


def _copy(local: Path) -> tuple[float, float]:
    """Seconds of cp, and of cp that is durable too."""
    copy = local.with_name("copy")
    begin = time.perf_counter()
    subprocess.run(["cp", local, copy], check=True)
    copied = time.perf_counter() - begin
    subprocess.run(["sync", "-d", copy], check=True)
    durable = time.perf_counter() - begin
    copy.unlink()
    return copied, durable


def _busy(cluster: LocalCluster, mib: int, what: str, work: Callable[[Any, bytearray], None]) -> dict[str, Any]:
    """Clients that do nothing else, beside a sync and without one."""
    with connect(cluster.url) as client:
        client.write_bytes("/live", bytes(LIVE_MIB * MIB))
    before = _alone(cluster, work)
    _miss(cluster, mib, what, None)
    cluster.start()
    _wait(cluster, TARGET_STATE_SYNCING, 1)
    had, begin = _chunks(cluster), time.perf_counter()
    beside = _Clients(cluster, work)
    _wait(cluster, TARGET_STATE_SERVING, 2, BUSY_SECONDS)
    seconds = time.perf_counter() - begin
    value, copied = beside.end(), _chunks(cluster) - had
    _wait(cluster, TARGET_STATE_SERVING, 2)
    return row(
        f"{what} of clients while a resync runs",
        value,
        "MiB/s",
        (before + _alone(cluster, work)) / 2,
        aim=AIM_CLIENTS,
        copied_mib_s=round(copied / seconds, 1),
    )


def _alone(cluster: LocalCluster, work: Callable[[Any, bytearray], None]) -> float:
    clients = _Clients(cluster, work)
    threading.Event().wait(LIVE_SECONDS)
    return clients.end()


def _chunks(cluster: LocalCluster) -> int:
    """Of 1 MiB each, that the member has which lacks most, as of its last heartbeat."""
    with connect(cluster.url) as client:
        return min(int(target.chunks) for target in client.status().routing.targets)


class _Clients:
    """A client that works in a thread of its own until it is ended."""

    def __init__(self, cluster: LocalCluster, work: Callable[[Any, bytearray], None]) -> None:
        self._cluster = cluster
        self._work = work
        self._moved = 0
        self._over = threading.Event()
        self._failure: BaseException | None = None
        self._begin = time.perf_counter()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        data = bytearray(LIVE_MIB * MIB)
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


def _read(client: Any, data: bytearray) -> None:
    with client.open("/live") as file:
        file.readinto(data)


def _write(client: Any, data: bytearray) -> None:
    with client.open("/live", "r+b") as file:
        file.write(data)


def _miss(cluster: LocalCluster, mib: int, name: str, content: Path | None) -> None:
    """Write a file that a killed member then lacks."""
    cluster.kill(cluster.nodes[-1])
    _wait(cluster, TARGET_STATE_SERVING, 1)
    block = bytes(8 * MIB) if content is None else b""
    with connect(cluster.url) as client, client.open(f"/missed-{name}", "wb") as file:
        if content is None:
            for _ in range(mib // 8):
                file.write(block)
        else:
            with open(content, "rb") as source:
                shutil.copyfileobj(source, file, 8 * MIB)


def _wait(cluster: LocalCluster, state: int, count: int, seconds: float = SECONDS_MAX) -> None:
    """Until so many members of the chain are in this state. After `seconds` it is enough, or DEADLINE where those were not given."""
    end, pause = time.monotonic() + seconds, threading.Event()
    with connect(cluster.url) as client:
        while True:
            members = client.status().routing.chains[0].members
            found = sum(member.state == state for member in members)
            if found == count or (
                state == TARGET_STATE_SYNCING and all(m.state == TARGET_STATE_SERVING for m in members)
            ):
                return
            if time.monotonic() > end:
                if seconds < SECONDS_MAX:
                    return
                raise error(Status.DEADLINE, f"the chain did not get there within {SECONDS_MAX:g} s")
            pause.wait(POLL_SECONDS)
