"""A replicated chain of real processes: members are killed and stopped while clients read and write."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import emberfs
from emberfs.client import aio
from emberfs.proto.env import drive

MIB = 1 << 20
MEMBERS = 3
FILE_MIB = 8
TIMEOUT = 300.0  # of an operation, before the time scale: the machine may have much else to do
WAIT_SECONDS_MAX = 100.0
PIECE = 50_000

DATA = random.Random(5).randbytes(FILE_MIB * MIB)


class Load(threading.Thread):
    """One operation after the other until it is told to end; the longest since somebody last asked."""

    def __init__(self, name: str, work: Callable[[random.Random], None]) -> None:
        super().__init__(name=name, daemon=True)
        self.longest = 0.0
        self.done = 0
        self.failure: BaseException | None = None
        self._work = work
        self._ending = threading.Event()

    def run(self) -> None:
        chance = random.Random(self.name)
        try:
            while not self._ending.is_set():
                began = time.monotonic()
                self._work(chance)
                self.longest = max(self.longest, time.monotonic() - began)
                self.done += 1
        except BaseException as failure:
            self.failure = failure

    def end(self) -> None:
        self._ending.set()
        self.join()
        if self.failure is not None:
            raise self.failure

    def take_longest(self) -> float:
        longest, self.longest = self.longest, 0.0
        return longest


class AioLoad(Load):
    """Reads of several tasks on a loop of its own."""

    def __init__(self, url: str) -> None:
        super().__init__("read_asyncio", lambda chance: None)
        self._url = url

    def run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as failure:
            self.failure = failure

    async def _main(self) -> None:
        async with await aio.connect(self._url, timeout=TIMEOUT) as client:
            file = await client.open("/data")
            await asyncio.gather(*(self._read(file, random.Random(i)) for i in range(3)))
            await file.close()

    async def _read(self, file: aio.File, chance: random.Random) -> None:
        while not self._ending.is_set():
            at, began = chance.randrange(len(DATA) - PIECE), time.monotonic()
            assert await file.pread(PIECE, at) == DATA[at : at + PIECE]
            self.longest = max(self.longest, time.monotonic() - began)
            self.done += 1


def serving(client: Any) -> int:
    """How many members of the only chain serve, by the manager's word."""
    cluster = client.core.cluster
    drive(cluster.refresh())
    [chain] = cluster.table.chains
    return len(cluster.table.route(chain).serving)


def wait(good: Callable[[], bool], loads: list[Load]) -> None:
    pause, until = threading.Event(), time.monotonic() + WAIT_SECONDS_MAX
    while not good():
        for load in loads:
            if load.failure is not None:
                raise load.failure
        assert time.monotonic() < until, "the chain did not change"
        pause.wait(0.02)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("fault", ["killed", "stopped"])
def test_members_that_die_or_stop_under_load(
    make_cluster: Any, monkeypatch: pytest.MonkeyPatch, fault: str, record_property: Callable[[str, object], None]
) -> None:
    """No read and no write fails, every byte is right, and the chain is whole again. How long they stood still is printed."""
    monkeypatch.setenv("EMBERFS_TIME_SCALE", "0.2")  # a lease of one second
    cluster = make_cluster(nodes=MEMBERS, replicas=MEMBERS, targets=1, kv_capacity=0)
    with (
        emberfs.connect(cluster.url, timeout=TIMEOUT) as client,
        emberfs.connect(cluster.url, timeout=TIMEOUT) as watcher,
    ):
        client.write_bytes("/data", DATA)
        file, stream = client.open("/data"), client.open("/stream", "wb")
        written = [0]

        def read_piece(chance: random.Random) -> None:
            at = chance.randrange(len(DATA) - PIECE)
            assert file.pread(PIECE, at) == DATA[at : at + PIECE]

        def read_batch(chance: random.Random) -> None:
            ranges = [(chance.randrange(len(DATA) - 4096), 4096) for _ in range(16)]
            for (at, length), view in zip(ranges, file.preadv_batch(ranges), strict=True):
                assert view == DATA[at : at + length]

        def read_through(chance: random.Random) -> None:
            assert client.read_bytes("/data") == DATA

        def write(chance: random.Random) -> None:
            at = written[0] % (len(DATA) - PIECE)
            stream.write(DATA[at : at + PIECE])
            stream.flush()
            written[0] += PIECE

        loads = [Load(work.__name__, work) for work in (read_piece, read_batch, read_through, write)]
        loads.append(AioLoad(cluster.url))
        for load in loads:
            load.start()
        # A manager that has just begun demotes nobody; meanwhile everything warms up.
        wait(lambda: all(load.done >= 3 for load in loads), loads)
        for role in cluster.nodes:
            pid = cluster.servers[role].pid()
            for load in loads:
                load.take_longest()
            os.kill(pid, signal.SIGKILL if fault == "killed" else signal.SIGSTOP)
            wait(lambda: serving(watcher) == MEMBERS - 1, loads)
            done = [load.done for load in loads]
            wait(lambda done=done: all(load.done > before for load, before in zip(loads, done, strict=True)), loads)
            stalls = {load.name: round(load.take_longest(), 3) for load in loads}
            print(f"{role} {fault}, longest operations in seconds: {stalls}")
            record_property(f"{role} {fault}", stalls)
            if fault == "killed":
                cluster.start()
            else:
                os.kill(pid, signal.SIGCONT)
            wait(lambda: serving(watcher) == MEMBERS, loads)
        for load in loads:
            load.end()
        file.close()
        stream.close()
        expected = bytearray()
        while len(expected) < written[0]:
            at = len(expected) % (len(DATA) - PIECE)
            expected += DATA[at : at + PIECE]
        assert client.read_bytes("/stream") == bytes(expected)
