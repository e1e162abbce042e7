"""Wrong data under eviction, kill -9 and concurrent overwrite: there must be none.

    python -m emberfs.tests.kvcache.soak [--seconds 600] [--seed N] [--workers 3]

starts a cluster whose target for blocks holds a third of the working set, and worker processes that put, read, delete and put anew (other
bytes under the same key), while the storage server is killed and started again. Each key has one owner, who alone changes it; all read all
keys. A block says which key it is and which version, and its bytes follow from that. A miss is always right, for there is eviction; what
comes must be

- whole, and of the key that was asked for;
- for its owner: the version that was put last (or one whose put was never answered);
- for others: never an older version than one that they have seen.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from emberfs.kvcache import KVCache, NamespaceSpec
from emberfs.proto.errors import StatusError

BLOCK = 64 << 10
CAPACITY = 64 << 20
KEYS = 3000  # of all workers together: three times what fits
BATCH = 8
HEAD = struct.Struct("<32sQ")
SPEC = NamespaceSpec(
    engine="soak", model="m", revision="1", dtype="bf16", page_tokens=16, layout="page_first", object_bytes=BLOCK
)


def key_of(number: int) -> bytes:
    return blake2b(number.to_bytes(4, "little"), digest_size=32).digest()


def block_of(key: bytes, version: int) -> bytes:
    head = HEAD.pack(key, version)
    return head + random.Random(head).randbytes(BLOCK - HEAD.size)


@dataclass
class Known:
    """What an owner knows of a key."""

    current: set[int] = field(default_factory=set)  # one of these is there, or nothing
    floating: set[int] = field(default_factory=set)  # puts that were never answered: they may still arrive


PATIENCE_SECONDS = 60.0  # a machine that stops for a moment is no miss
BLOCKS_MIN = 50  # that each worker puts and gets


class Worker:
    """One process. `failures` are sentences; there must be none."""

    def __init__(self, url: str, number: int, workers: int, seed: int) -> None:
        self.kv = KVCache(url, timeout=PATIENCE_SECONDS)
        self.namespace = self.kv.namespace(SPEC)
        self.draw = random.Random(seed * 1000 + number)
        self.own = {key_of(i): Known() for i in range(KEYS) if i % workers == number}
        self.keys = [key_of(i) for i in range(KEYS)]
        self.seen: dict[bytes, int] = {}
        self.version = time.time_ns()
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self.pool = self.kv.allocate(BATCH * BLOCK)
        self.slots = (self.pool, [row * BLOCK for row in range(BATCH)], BLOCK)

    def run(self, seconds: float) -> None:
        """For so long, and until there was enough of both."""
        end = time.monotonic() + seconds
        while (time.monotonic() < end or self.moved() < BLOCKS_MIN) and not self.failures:
            self.draw.choices((self.read, self.put, self.delete), (5, 4, 1))[0]()

    def moved(self) -> int:
        return min(self.counts[f"get {BLOCK}"], self.counts[f"put {BLOCK}"])

    def read(self) -> None:
        keys = self.draw.sample(list(self.own) if self.draw.random() < 0.5 else self.keys, BATCH)
        self.pool.array[:] = 0
        if self.draw.random() < 0.5:
            statuses = self.kv.get_into(self.namespace, keys, self.slots)
            blocks = [bytes(self.pool.view[at : at + BLOCK]) for at in self.slots[1]]
        else:
            buffers = [bytearray(BLOCK) for _ in keys]
            statuses = self.kv.get_into(self.namespace, keys, buffers)
            blocks = [bytes(buffer) for buffer in buffers]
        if self.pool.dead:
            self.pool = self.kv.allocate(BATCH * BLOCK)
            self.slots = (self.pool, self.slots[1], BLOCK)
        for key, status, block in zip(keys, statuses.tolist(), blocks, strict=True):
            self.counts[f"get {status}"] += 1
            if status >= 0:
                self.check(key, block)

    def check(self, key: bytes, block: bytes) -> None:
        named, version = HEAD.unpack_from(block)
        if named != key or block != block_of(key, version):
            self.failures.append(f"asked for {key.hex()}, got other bytes (they say {named.hex()} version {version})")
            return
        known = self.own.get(key)
        if known is None:
            if version < self.seen.get(key, 0):
                self.failures.append(f"{key.hex()}: version {version} after {self.seen[key]}")
            self.seen[key] = version
        elif version not in known.current | known.floating:
            self.failures.append(f"{key.hex()}: version {version}, but {known.current} is what was put")
        else:
            known.current = {version}

    def put(self) -> None:
        keys = self.draw.sample(list(self.own), BATCH)
        versions = [self.version + row + 1 for row in range(BATCH)]
        self.version += BATCH
        statuses = self.kv.put_from(self.namespace, keys, list(map(block_of, keys, versions))).tolist()
        for key, version, status in zip(keys, versions, statuses, strict=True):
            self.counts[f"put {status}"] += 1
            (self.own[key].current if status >= 0 else self.own[key].floating).add(version)

    def delete(self) -> None:
        keys = self.draw.sample(list(self.own), BATCH)
        statuses = self.kv.delete(self.namespace, keys).tolist()
        for key, status in zip(keys, statuses, strict=True):
            self.counts[f"delete {status}"] += 1
            if status in (0, -2):
                self.own[key].current = set()


def work(options: argparse.Namespace) -> None:
    worker = Worker(options.url, options.worker, options.workers, options.seed)
    worker.run(options.seconds)
    print(json.dumps({"counts": worker.counts, "failures": worker.failures}), flush=True)
    sys.exit(bool(worker.failures))


def start(cluster: Any) -> None:
    """Again where it was refused: the registration of the one that was killed may come after its own."""
    for last in (False, False, True):
        try:
            cluster.start()
            return
        except StatusError:
            if last:
                raise


def soak(seconds: float, seed: int, workers: int = 3) -> dict[str, Any]:
    """Run it; counts of what happened, how often the server was killed, and the failures."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "plugin"))
    from emberfs_cluster import running_cluster

    draw, kills = random.Random(seed), 0
    with running_cluster(kv_capacity=CAPACITY) as cluster:
        with KVCache(cluster.url, timeout=PATIENCE_SECONDS) as kv:
            kv.namespace(SPEC)
        command = [sys.executable, "-m", "emberfs.tests.kvcache.soak", "--url", cluster.url, "--seed", str(seed)]
        command += ["--seconds", str(seconds), "--workers", str(workers), "--worker"]
        running = [subprocess.Popen([*command, str(i)], stdout=subprocess.PIPE, text=True) for i in range(workers)]
        try:
            end = time.monotonic() + seconds
            while time.monotonic() < end - 4 and all(process.poll() is None for process in running):
                time.sleep(draw.uniform(1, 4))  # the moment is the point: it is drawn, not waited for
                cluster.kill("storage-1")
                kills += 1
                start(cluster)
            told = [process.communicate(timeout=seconds + 120)[0] for process in running]
        finally:
            for process in running:
                process.send_signal(signal.SIGKILL)
                process.wait()
        with KVCache(cluster.url) as kv:
            evictions = sum(one.evictions for one in kv.usage().namespaces.values())
    counts: Counter[str] = Counter()
    failures: list[str] = []
    for text in told:
        found = json.loads(text) if text else {"counts": {}, "failures": ["a worker died"]}
        counts.update(found["counts"])
        failures += found["failures"]
    return {"seed": seed, "seconds": seconds, "kills": kills, "evictions": evictions, **counts, "wrong": failures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--worker", type=int)
    parser.add_argument("--url", default="")
    options = parser.parse_args()
    if options.worker is not None:
        work(options)
    found = soak(options.seconds, options.seed, options.workers)
    print(json.dumps(found, indent=1))
    sys.exit(bool(found["wrong"]))


if __name__ == "__main__":
    main()
