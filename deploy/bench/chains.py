"""Replicated chains: what three replicas cost against one, and how long reads and writes stand still when a member dies or stops.

All processes share this one machine, so three replicas are three times the bytes written, and nobody reads faster. The stalls are what a
caller sees: the longest single read or write around the fault (`before`: the longest read in the second before it, for comparison: the
machine itself makes a caller wait at times). Before the first one the manager has run for longer than a lease.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from ...proto.env import drive
from ...proto.errors import Status, error
from ...proto.settings import time_scale
from ..local import LocalCluster
from .fs import fill
from .measure import MIB, in_turns, median_us, rate, row, temporary_cluster

REPLICAS = 3
SMALL, BATCH = 4096, 64
CAPACITY_FILES = 4  # of each target: the file, one that is written, and room for what was replaced
AIM_READ, AIM_WRITE = 0.95, 0.3
AIM_READ_STALL, AIM_WRITE_STALL = 0.1, 1.0  # seconds; for writes beyond the moment at which the routing changed
SETTLE_SECONDS = 7.0  # a manager that has just begun demotes nobody
BEFORE_SECONDS, AFTER_SECONDS = 1.0, 1.5  # of load around a fault and its detection
READ_SECONDS = 0.5  # of one measurement in sequence, at least
WAIT_SECONDS_MAX = 60.0  # for a chain to change, and to be whole again
LOOK_SECONDS = 0.02
PIECES = 64  # MiB of the file that the load reads


def run(quick: bool = False) -> dict[str, Any]:
    """Measure over files of 512 MiB (64 MiB with `quick`); takes about 2 minutes, or 30 s."""
    from ...client.blocking import connect

    mib, rounds, count = (64, 3, 400) if quick else (512, 7, 2000)
    options = {"port": 0, "targets": 1, "capacity": CAPACITY_FILES * mib * MIB}
    with ExitStack() as stack:
        one, _ = stack.enter_context(temporary_cluster(**options))
        three, _ = stack.enter_context(temporary_cluster(nodes=REPLICAS, replicas=REPLICAS, **options))
        started = time.monotonic()
        clients = [stack.enter_context(connect(cluster.url)) for cluster in (three, one)]
        for client in clients:
            fill(client, mib)
        rows = _speed(clients, mib, rounds, count)
        clients.pop().close()
        time.sleep(max(0.0, started + SETTLE_SECONDS * time_scale() - time.monotonic()))
        faults = [("killed", "head")] if quick else [(f, p) for f in ("killed", "stopped") for p in PLACES]
        for fault, place in faults:
            rows += _stalls(three, clients[0], fault, place)
    return {"rows": rows, "file_mib": mib, "replicas": REPLICAS}


# --- speed ----------------------------------------------------------------------------------------------------------------------------


def _speed(clients: list[Any], mib: int, rounds: int, count: int) -> list[dict[str, Any]]:
    """Each way over three replicas and over one, in turns."""

    def turns(way: Callable[[Any], float]) -> list[Any]:
        for client in clients:
            way(client)  # the first time is not like the others
        return in_turns([lambda client=client: way(client) for client in clients], rounds)  # type: ignore[misc]

    rows = []
    value, base = turns(lambda client: _read_rate(client, mib))
    rows.append(row("sequential read, 1 MiB, R = 3 against R = 1", value, "MiB/s", base, aim=AIM_READ))
    value, base = turns(lambda client: rate(count * BATCH / 10, lambda: _read_batches(client, mib, count // 10)))
    rows.append(row("4 KiB reads in batches of 64, R = 3 against R = 1", value, "IOPS", base, aim=AIM_READ))
    value, base = turns(lambda client: _read_us(client, mib, count))
    rows.append(row("one 4 KiB read, p50, R = 3 against R = 1", value, "µs", base))
    value, base = turns(lambda client: rate(mib, lambda: _write_all(client, mib)))
    rows.append(row("sequential write, 1 MiB, R = 3 against R = 1", value, "MiB/s", base, aim=AIM_WRITE))
    return rows


def _read_rate(client: Any, mib: int) -> float:
    """MiB a second, over several reads of the file: one takes less than a tenth of a second, in which anything may happen."""
    buffer = memoryview(bytearray(MIB))
    count, begin = 0, time.perf_counter()
    while not count or time.perf_counter() - begin < READ_SECONDS:
        with client.open("/file") as file:
            while file.readinto(buffer):
                pass
        count += 1
    return count * mib / (time.perf_counter() - begin)


def _read_batches(client: Any, mib: int, batches: int) -> None:
    choose = random.Random(1)  # noqa: S311
    buffer = bytearray(BATCH * SMALL)
    with client.open("/file") as file:
        for _ in range(batches):
            plan = [(choose.randrange(mib * MIB // SMALL) * SMALL, SMALL) for _ in range(BATCH)]
            file.preadv_batch(plan, buffer)


def _read_us(client: Any, mib: int, count: int) -> float:
    choose = random.Random(2)  # noqa: S311
    with client.open("/file") as file:
        return median_us(lambda: file.pread(SMALL, choose.randrange(mib * MIB // SMALL) * SMALL), count)


def _write_all(client: Any, mib: int) -> None:
    block = os.urandom(MIB)
    with client.open("/written", "wb") as file:
        for _ in range(mib):
            file.write(block)


# --- stalls ---------------------------------------------------------------------------------------------------------------------------

PLACES = {"head": 0, "middle": 1, "tail": 2}


class _Load(threading.Thread):
    """One operation after the other, until `stop`; how long the longest took. A failure ends it."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.longest = 0.0
        self.failure: BaseException | None = None
        self._work = work
        self._stopping = threading.Event()

    def run(self) -> None:
        try:
            while not self._stopping.is_set():
                begin = time.monotonic()
                self._work()
                self.longest = max(self.longest, time.monotonic() - begin)
        except BaseException as failure:
            self.failure = failure

    def stop(self) -> float:
        self._stopping.set()
        self.join()
        if self.failure is not None:
            raise self.failure
        return self.longest


def _stalls(cluster: LocalCluster, client: Any, fault: str, place: str) -> list[dict[str, Any]]:
    """Read and write while a member is killed or stopped, and bring it back."""
    role = _role_at(client, PLACES[place])
    pid = cluster.servers[role].pid()
    assert pid is not None
    choose = random.Random(3)  # noqa: S311
    block = os.urandom(MIB)
    with client.open("/file") as file, client.open("/stalled", "wb", buffering=0) as written:
        reading = _Load(lambda: file.pread(SMALL, choose.randrange(PIECES * MIB // SMALL) * SMALL))
        writing = _Load(lambda: written.pwrite(block, choose.randrange(PIECES) * MIB))
        reading.start()
        writing.start()
        time.sleep(BEFORE_SECONDS)
        calm, reading.longest, writing.longest = reading.longest, 0.0, 0.0
        struck = time.monotonic()
        os.kill(pid, signal.SIGKILL if fault == "killed" else signal.SIGSTOP)
        _wait(client, lambda serving: serving == REPLICAS - 1)
        detected = time.monotonic() - struck
        time.sleep(AFTER_SECONDS)
        read, write = reading.stop(), writing.stop()
    if fault == "killed":
        cluster.start()
    else:
        os.kill(pid, signal.SIGCONT)
    _wait(client, lambda serving: serving == REPLICAS)
    return [
        row(f"read stall, the {place} {fault}", read, "s", aim=AIM_READ_STALL, least=False, before=round(calm, 3)),
        row(
            f"write stall beyond detection, the {place} {fault}",
            max(0.0, write - detected),
            "s",
            aim=AIM_WRITE_STALL,
            least=False,
            stall=round(write, 3),
            detection=round(detected, 3),
        ),
    ]


def _role_at(client: Any, place: int) -> str:
    """The server process that holds this place in the only chain."""
    table = client.core.cluster.table
    drive(client.core.cluster.refresh())
    [chain] = table.chains
    return str(table.nodes[table.route(chain).serving[place].node].name)


def _wait(client: Any, good: Callable[[int], bool]) -> None:
    """Until so many members of the chain serve. Raises DEADLINE."""
    cluster = client.core.cluster
    until = time.monotonic() + WAIT_SECONDS_MAX * time_scale()
    while time.monotonic() < until:
        drive(cluster.refresh())
        if all(good(len(cluster.table.route(chain).serving)) for chain in list(cluster.table.chains)):
            return
        time.sleep(LOOK_SECONDS)
    raise error(Status.DEADLINE, "the chain did not change in time; 'emberfs status' shows its members")
