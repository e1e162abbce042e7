"""A member that returns: how fast it is copied to, against `cp` of the same bytes on the same disk, and what clients notice of it.

One of two members is killed, the file is written, the member is started again. The time of a sync counts from the moment when the
manager says SYNCING to the moment when it says SERVING, so everything that was copied is on the disk by then. `cp` copies the block
files of the member that was not killed, before and after: the same bytes from the same place, and as much of them in memory. It is
measured with and without the `sync` that makes its copy durable, too. Each of these begins when nothing else is left to write.

Beside clients a sync takes its time on purpose (a fifth of what they move): they are measured for some seconds of it, between two
measurements without one, and the rest is copied when they are gone.
"""

from __future__ import annotations

import os
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
from .measure import MIB, rate, row, temporary_cluster

MIB_FULL = 10 << 10
SPACE_PART = 6  # a sixth of the free space at most: two replicas, the file, its copy, and room
LIVE_MIB = 64  # of the file that clients work on
LIVE_SECONDS = 3.0  # without a sync, before and after it
BUSY_SECONDS = 6.0  # beside one
BUSY_MIB = 4 << 10  # that are missing then: enough for that long
SECONDS_MAX = 600.0
POLL_SECONDS = 0.02
TELL_SECONDS = 5.0
BLOCK_MIB = 8  # of one write
AIM_COPY, AIM_CLIENTS = 0.5, 0.6

Tell = Callable[[str], None]  # a line about how far it has come


def run(quick: bool = False, mib: int = 0, tell: Tell = lambda line: None) -> dict[str, Any]:
    """Measure with `mib` MiB (10 GiB, or what the disk has room for; 256 with `quick`). `tell` hears how far it has come."""
    with temporary_cluster(nodes=2, replicas=2, targets=1, capacity=4 * max(mib, MIB_FULL) * MIB) as (cluster, folder):
        mib = mib or (256 if quick else min(MIB_FULL, shutil.disk_usage(folder).free // MIB // SPACE_PART))
        rows = _idle(cluster, folder, mib, tell)
        rows += [
            _busy(cluster, min(mib, BUSY_MIB), what, work, tell)
            for what, work in (("reads", _read), ("writes", _write))
        ]
    return {"rows": rows, "file_mib": mib}


def _idle(cluster: LocalCluster, folder: Path, mib: int, tell: Tell) -> list[dict[str, Any]]:
    _miss(cluster, mib, "idle", tell)
    blocks = cluster.data / cluster.nodes[0] / "target-1" / "blocks"
    before = _copy(blocks, folder, tell)
    os.sync()
    cluster.start()
    _wait(cluster, TARGET_STATE_SYNCING, 1)
    value = rate(mib, lambda: _wait(cluster, TARGET_STATE_SERVING, 2, tell=tell))
    tell(f"resync: {mib / value:.1f} s")
    after = _copy(blocks, folder, tell)
    # Before and after: what a copy takes depends on whether the machine has had memory for the page cache in hand.
    copied, durable = ((first + second) / 2 for first, second in zip(before, after, strict=True))
    spread: dict[str, Any] = {
        "cp_s": [round(before[0], 2), round(after[0], 2)],
        "durable_s": [round(before[1], 2), round(after[1], 2)],
    }
    return [
        row(
            "resync without clients, against cp that is durable too",
            value,
            "MiB/s",
            mib / durable,
            aim=AIM_COPY,
            **spread,
        ),
        row("the same, against cp that leaves its bytes in memory", value, "MiB/s", mib / copied, aim=AIM_COPY),
        row("the same, against dd around the page cache", value, "MiB/s", _dd_rate(blocks, folder, tell)),
    ]


def _copy(blocks: Path, folder: Path, tell: Tell) -> tuple[float, float]:
    """Seconds of cp, and of cp that is durable too."""
    copy = folder / "copy"
    os.sync()
    begin = time.perf_counter()
    subprocess.run(["cp", "-r", "--reflink=never", blocks, copy], check=True)
    copied = time.perf_counter() - begin
    subprocess.run(["sync", "-d", *copy.iterdir()], check=True)
    durable = time.perf_counter() - begin
    shutil.rmtree(copy)
    tell(f"cp: {copied:.1f} s, {durable:.1f} s until its copy is durable")
    return copied, durable


def _dd_rate(blocks: Path, folder: Path, tell: Tell) -> float:
    """MiB a second at which the disk itself copies; 0 where the file system has no direct I/O."""
    copy, amount = folder / "copy", 0
    os.sync()
    begin = time.perf_counter()
    for source in blocks.iterdir():
        done = subprocess.run(
            ["dd", f"if={source}", f"of={copy}", "bs=4M", "iflag=direct", "oflag=direct", "status=none"], check=False
        )
        if done.returncode:
            return 0.0
        amount += source.stat().st_size
    seconds = time.perf_counter() - begin
    copy.unlink()
    tell(f"dd: {seconds:.1f} s")
    return amount / MIB / seconds


def _busy(
    cluster: LocalCluster, mib: int, what: str, work: Callable[[Any, bytearray], None], tell: Tell
) -> dict[str, Any]:
    """Clients that do nothing else, beside a sync and without one."""
    with connect(cluster.url) as client:
        client.write_bytes("/live", bytes(LIVE_MIB * MIB))
    before = _alone(cluster, work)
    _miss(cluster, mib, what, tell)
    cluster.start()
    _wait(cluster, TARGET_STATE_SYNCING, 1)
    had, begin = _chunks(cluster), time.perf_counter()
    beside = _Clients(cluster, work)
    _wait(cluster, TARGET_STATE_SERVING, 2, BUSY_SECONDS)
    seconds = time.perf_counter() - begin
    value, copied = beside.end(), _chunks(cluster) - had
    _wait(cluster, TARGET_STATE_SERVING, 2, tell=tell)
    tell(f"{what} beside a resync: {value:.0f} MiB/s, {before:.0f} before it")
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


def _miss(cluster: LocalCluster, mib: int, name: str, tell: Tell) -> None:
    """Write a file that a killed member then lacks."""
    cluster.kill(cluster.nodes[-1])
    _wait(cluster, TARGET_STATE_SERVING, 1)
    block = bytearray(os.urandom(BLOCK_MIB * MIB))
    begin = told = time.monotonic()
    with connect(cluster.url) as client, client.open(f"/missed-{name}", "wb") as file:
        for number in range(-(-mib // BLOCK_MIB)):
            block[:8] = number.to_bytes(8, "big")
            file.write(block)
            if time.monotonic() - told > TELL_SECONDS:
                told = time.monotonic()
                tell(f"written: {(number + 1) * BLOCK_MIB} of {mib} MiB")
    tell(f"written: {mib} MiB in {time.monotonic() - begin:.1f} s")


def _wait(
    cluster: LocalCluster, state: int, count: int, seconds: float = SECONDS_MAX, tell: Tell = lambda line: None
) -> None:
    """Until so many members of the chain are in this state. After `seconds` it is enough, or DEADLINE where those were not given."""
    pause = threading.Event()
    begin = told = time.monotonic()
    with connect(cluster.url) as client:
        while True:
            table = client.status().routing
            states = [member.state for member in table.chains[0].members]
            if states.count(state) == count:
                return
            if state == TARGET_STATE_SYNCING and all(found == TARGET_STATE_SERVING for found in states):
                return  # over already
            now = time.monotonic()
            if now > begin + seconds:
                if seconds < SECONDS_MAX:
                    return
                raise error(Status.DEADLINE, f"the chain did not get there within {SECONDS_MAX:g} s")
            if now > told + TELL_SECONDS:
                told = now
                done = max(target.sync_done for target in table.targets)
                tell(f"compared: {done} of {max(target.sync_total for target in table.targets)} chunks")
            pause.wait(POLL_SECONDS)
