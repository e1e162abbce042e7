"""Several threads of one client, and two clients in turns, against an oracle: what a file must contain is known at every moment."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import emberfs

CHUNK = 64 << 10
SIZE_MAX = 8 * CHUNK
THREADS = 4
STEPS = 120  # of each thread
TURNS = 60


class Oracle:
    """A file of the cluster, and what it must contain."""

    def __init__(self, client: Any, path: str) -> None:
        self.client = client
        self.path = path
        self.content = bytearray()

    def step(self, draw: random.Random, file: Any) -> None:
        """One random operation through `file`, which is open for reading and writing, or through its path."""
        kind = draw.choices(["write", "read", "cut", "cut path", "append", "flush", "fsync"], [8, 8, 2, 2, 2, 2, 1])[0]
        start = draw.randrange(SIZE_MAX)
        if kind == "write":
            self.write(file, draw, start)
        elif kind == "read":
            length = draw.randrange(SIZE_MAX // 2)
            assert file.pread(length, start) == self.content[start : start + length]
            assert file.size == len(self.content)
        elif kind == "append":
            if len(self.content) < SIZE_MAX:
                self.write(file, draw, len(self.content))
        elif kind.startswith("cut"):
            file.truncate(start) if kind == "cut" else self.client.truncate(self.path, start)
            del self.content[start:]
            self.content.extend(bytes(start - len(self.content)))
        else:
            getattr(file, kind)()

    def write(self, file: Any, draw: random.Random, start: int) -> None:
        data = draw.randbytes(draw.choice([1, 100, 4096, CHUNK - 7, CHUNK, 2 * CHUNK + 5]))
        file.pwrite(data, start)
        self.content.extend(bytes(max(0, start - len(self.content))))
        self.content[start : start + len(data)] = data

    def check(self, client: Any) -> None:
        assert client.stat(self.path).size == len(self.content)
        assert client.read_bytes(self.path) == self.content


@pytest.mark.parametrize("write_back", [0, 256 << 10])
def test_threads_of_one_client(cluster: Any, write_back: int) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    folder = f"/threads-{write_back}"
    with emberfs.connect(cluster.url, memory=16 << 20, write_back=write_back) as client:
        client.mkdir(folder)
        together = Oracle(client, f"{folder}/together")
        mutex = threading.Lock()
        client.open(together.path, "xb", chunk_size=CHUNK).close()

        def work(number: int) -> Oracle:
            draw = random.Random(seed + number)
            own = Oracle(client, f"{folder}/{number}")
            shared, alone = client.open(together.path, "rb+"), client.open(own.path, "xb+", chunk_size=CHUNK)
            for _ in range(STEPS):
                if draw.random() < 0.05:
                    shared.close()
                    shared = client.open(together.path, "rb+")
                own.step(draw, alone)
                with mutex:  # in order, but through other handles in other threads
                    together.step(draw, shared)
            shared.close()
            alone.close()
            return own

        with ThreadPoolExecutor(THREADS) as pool:
            oracles = list(pool.map(work, range(THREADS)))
        assert not client.core.write_budget.held
        with emberfs.connect(cluster.url) as other:
            for oracle in [together, *oracles]:
                oracle.check(client)
                oracle.check(other)


def test_two_clients_in_turns(cluster: Any) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    draw = random.Random(seed)
    with emberfs.connect(cluster.url) as first, emberfs.connect(cluster.url) as second:
        oracle = Oracle(first, "/turns")
        first.open(oracle.path, "xb", chunk_size=CHUNK).close()
        kept: list[Any] = []
        for _ in range(TURNS):
            oracle.client = draw.choice([first, second])
            oracle.check(oracle.client)
            if draw.random() < 0.3:  # a handle that stays open must not keep old bytes alive for those opened later
                kept.append(oracle.client.open(oracle.path, "rb"))
                kept[-1].read(draw.randrange(SIZE_MAX))
            with oracle.client.open(oracle.path, "rb+") as file:
                assert file.read() == oracle.content
                for _ in range(draw.randrange(6)):
                    oracle.step(draw, file)
            if len(kept) > 3:
                kept.pop(0).close()
        for client in (first, second):
            oracle.check(client)
