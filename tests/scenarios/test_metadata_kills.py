"""The metadata server and clients are killed in the middle of everything that clients do to names and files. Afterwards every invariant
of the key space holds, and no chunk lies on a target that no file has."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import emberfs
from emberfs.deploy.local import LocalCluster
from emberfs.deploy.metadata import check_engine, opened, own_engine
from emberfs.deploy.metadata import run as drive
from emberfs.meta import keys
from emberfs.proto.errors import StatusError
from emberfs.proto.ids import SYSTEM_TENANT, ChunkId
from emberfs.storage.engine.target import open_target

WORKERS = 3
ROUNDS = 6  # kills of the metadata server
SOAK_ROUNDS = 60
LEASE_SECONDS = 5
SETTLED_SECONDS = 200.0  # until what killed clients left behind is gone

WORK = """
import os, random, sys, emberfs
url, seed = sys.argv[1:]
chance = random.Random(int(seed))
folders = ["/", "/a/", "/a/b/", "/c/"]
path = lambda: chance.choice(folders) + chance.choice("stuvwxyz")
client = emberfs.connect(url, timeout=20)

def write():
    with client.open(path(), chance.choice(("wb", "r+b", "ab", "xb")), permissions=0o666) as file:
        for _ in range(chance.randrange(4)):
            file.write(chance.randbytes(chance.choice((1, 100, 3000, 6000, 300_000, 2_000_000))))
            if chance.random() < 0.2:
                file.fsync()
            if chance.random() < 0.1:
                file.truncate(chance.choice((0, 50, 5000)))

def locked():
    with client.open(path(), "r+b") as file:
        file.flock("exclusive")
        file.lock(10, 20)
        file.write(b"x" * 30)
        file.unlock()

def swap():
    client.rename(path(), path(), exchange=True)

def quota():
    folder = chance.choice(folders[1:]).rstrip("/")
    if chance.random() < 0.5:
        client.set_quota(path=folder, bytes_max=chance.choice((0, 10_000_000)), inodes_max=chance.choice((0, 30)))
    else:
        client.remove_quota(path=folder)

def trash():
    entries = [entry.id for entry in client.trash()][:3]
    if entries:
        client.restore(entries[0], path()) if chance.random() < 0.5 else client.purge(entries)

STEPS = [
    write, write, write, write, locked, swap, quota, trash,
    lambda: client.write_bytes(path(), chance.randbytes(chance.choice((10, 4000, 5000)))),
    lambda: client.mkdir(path()),
    lambda: client.symlink("a", path()),
    lambda: client.link(path(), path()),
    lambda: client.rename(path(), path()),
    lambda: client.rename(path(), path()),
    lambda: client.unlink(path(), forever=chance.random() < 0.5),
    lambda: client.remove_tree(path(), forever=chance.random() < 0.5),
    lambda: client.truncate(path(), chance.choice((0, 10, 4096, 10_000))),
    lambda: client.setxattr(path(), "user.x", b"y" * 20),
    lambda: client.chmod(path(), chance.choice((0o600, 0o755))),
    lambda: client.clone(path(), path()),
    lambda: client.unlink_many([path() for _ in range(3)]),
]
print("ready", flush=True)
while True:
    try:
        chance.choice(STEPS)()
    except OSError:
        pass
"""


class Worker:
    """A client process that changes things until it is killed."""

    def __init__(self, cluster: LocalCluster, seed: int) -> None:
        command = [sys.executable, "-P", "-c", WORK, cluster.url, str(seed)]
        environment = {**os.environ, "EMBERFS_CLIENT_LEASE": str(LEASE_SECONDS)}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd="/", text=True
        )
        assert self.process.stdout is not None and self.process.stdout.readline() == "ready\n"

    def kill(self) -> None:
        assert self.process.poll() is None, self.process.stderr and self.process.stderr.read()
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


@pytest.mark.timeout(600)
def test_nothing_is_half_done_and_nothing_leaks(
    make_cluster: Callable[..., LocalCluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    _kill_for(ROUNDS, make_cluster, monkeypatch)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_nothing_leaks_in_many_kills(
    make_cluster: Callable[..., LocalCluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    _kill_for(SOAK_ROUNDS, make_cluster, monkeypatch)


def _kill_for(rounds: int, make_cluster: Callable[..., LocalCluster], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBERFS_CLIENT_LEASE", str(LEASE_SECONDS))
    seed = random.SystemRandom().randrange(1 << 30)
    print("seed", seed)
    chance = random.Random(seed)
    cluster = make_cluster(trash=3)
    with emberfs.connect(cluster.url) as client:
        for folder in ("/a", "/a/b", "/c"):
            client.mkdir(folder)
    workers = [Worker(cluster, chance.randrange(1 << 30)) for _ in range(WORKERS)]
    try:
        for number in range(rounds):
            _let_them_work(cluster, chance.uniform(0.2, 1.5))
            cluster.kill("meta")
            if number % 2:
                workers.pop(chance.randrange(WORKERS)).kill()
            if number % 3 == 0:
                assert check_engine(own_engine(cluster.data)) == []  # as the crash has left it
            cluster.start()
            if len(workers) < WORKERS:
                workers.append(Worker(cluster, chance.randrange(1 << 30)))
    finally:
        for worker in workers:
            worker.kill()
    _await_settled(cluster)
    assert not cluster.stop()
    engine = own_engine(cluster.data)
    assert check_engine(engine) == []
    inodes, chunks = drive(_inodes(engine)), _inodes_of_chunks(cluster)
    assert chunks <= inodes, sorted(chunks - inodes)


def _let_them_work(cluster: LocalCluster, seconds: float) -> None:
    """Until so much time has passed in which the namespace answered."""
    with emberfs.connect(cluster.url) as client:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(StatusError):
                client.listdir("/")


def _await_settled(cluster: LocalCluster) -> None:
    """The leases of the killed have run out, their sessions are settled, the trash and the garbage are gone."""
    with emberfs.connect(cluster.url) as client:
        end = time.monotonic() + SETTLED_SECONDS
        while True:
            status = client.status()
            if not status.clients and not status.gc_pending and not client.trash():
                return
            assert time.monotonic() < end, (status.clients, status.gc_pending, len(client.trash()))
            client.keep_removed("/", None)  # a request, so that this does not spin


async def _inodes(engine: str) -> set[int]:
    async with opened(engine) as store:
        found: set[int] = set()
        begin, end = keys.prefix_range(keys.INODE)
        while page := await store.begin().scan(begin, end, 1000, snapshot=True):
            found |= {keys.inode_of(key) for key, _ in page}
            begin = page[-1][0] + b"\0"
        for letters in (
            keys.SESSION,
            keys.LOCK,
            keys.APPEND_TOKEN,
            keys.TRIM,
            keys.TRASH,
            keys.DEAD_FILE,
            keys.DEAD_CHUNKS,
        ):
            rows = await store.begin().scan(*keys.prefix_range(letters), 10, snapshot=True)
            assert rows == [], letters
        return found


def _inodes_of_chunks(cluster: LocalCluster) -> set[int]:
    found: set[int] = set()
    for place in sorted(Path(cluster.data).glob("storage-*/target-*")):
        chunks, _ = open_target(str(place), cluster=cluster.cluster_id)
        first = bytes(16)
        while page := chunks.chunks(first, b"\xff" * 17, 1000):
            ids = [ChunkId.unpack(info.chunk) for info in page if info.version]
            found |= {chunk.inode for chunk in ids if chunk.tenant != SYSTEM_TENANT}
            first = page[-1].chunk + b"\0"
        chunks.close()
    return found
