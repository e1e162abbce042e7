"""Replicated clusters of real processes, as tests of recovery see them: who serves, what each member holds on its disk, and files whose
content a model knows."""

from __future__ import annotations

import mmap
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crc32c import crc32c

import emberfs
from emberfs.deploy.local import LocalCluster
from emberfs.proto.drivers.blocking import BlockingEnvironment
from emberfs.proto.env import Call, drive
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen import cluster_pb2, storage_pb2
from emberfs.proto.gen.common_pb2 import TARGET_STATE_SERVING, TARGET_STATE_SYNCING, Chain
from emberfs.proto.ids import ChunkId
from emberfs.proto.rpc import CLUSTER, STORAGE
from emberfs.storage.engine.target import open_target

from .members import holdings

SECONDS = 120.0
POLL_S = 0.05


class Watcher:
    """What the manager says of a cluster with one chain."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster
        self.env = BlockingEnvironment(secret_file=str(cluster.data / "secret"), acts_for_others=True)

    def routing(self) -> Any:
        address = self.cluster.record["servers"]["meta"]["addresses"][0]
        return drive(self.env.call(Call(address, CLUSTER.GetRouting, cluster_pb2.GetRoutingRequest(), SECONDS)))

    @property
    def chain(self) -> Chain:
        return self.routing().chains[0]

    def count(self, state: int) -> int:
        return sum(member.state == state for member in self.chain.members)

    def role_of(self, target: int) -> str:
        """The name of the server that owns a target."""
        routing = self.routing()
        node = next(entry.node for entry in routing.targets if entry.id == target)
        return str(next(entry.name for entry in routing.nodes if entry.id == node))

    def serving(self, count: int, seconds: float = SECONDS) -> None:
        """Until so many members serve."""
        until(lambda: self.count(TARGET_STATE_SERVING) == count, seconds)

    def syncing(self) -> None:
        until(lambda: self.count(TARGET_STATE_SYNCING) == 1)

    # --- one member, asked directly ---

    def read(self, target: int, inode: int, index: int, length: int) -> tuple[Status, bytes]:
        """A chunk from this member and no other; CHECKSUM where the bytes do not match."""
        routing = self.routing()
        node = next(entry.node for entry in routing.targets if entry.id == target)
        address = next(entry.addresses[0] for entry in routing.nodes if entry.id == node)
        chain = routing.chains[0]
        request = storage_pb2.ReadRequest(
            chain=[chain.id], chain_version=[chain.version], inode=[inode], index=[index], offset=[0], length=[length]
        )
        memory = self.env.pool.take(length)
        try:
            reply = drive(self.env.call(Call(address, STORAGE.Read, request, SECONDS, target=(memory,))))
            data = bytes(memory.view[: reply.returned[0]])
        finally:
            self.env.pool.give(memory)
        status = Status(reply.status[0])
        if status is Status.OK:
            (checksum,) = reply.checksum  # of the whole chunk
            status = Status.OK if crc32c(data) == checksum else Status.CHECKSUM
        return status, data

    def report(self, target: int, inode: int, index: int) -> None:
        routing = self.routing()
        node = next(entry.node for entry in routing.targets if entry.id == target)
        address = next(entry.addresses[0] for entry in routing.nodes if entry.id == node)
        request = storage_pb2.ReportCorruptionRequest(
            chain=[routing.chains[0].id], target=[target], inode=[inode], index=[index]
        )
        drive(self.env.call(Call(address, STORAGE.ReportCorruption, request, SECONDS)))

    def close(self) -> None:
        self.env.close()


def until(condition: Callable[[], bool], seconds: float = SECONDS) -> None:
    """Ask again and again, with pauses; AssertionError after `seconds`."""
    end, pause = time.monotonic() + seconds, threading.Event()
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        pause.wait(POLL_S)


def assert_replicas_equal(cluster: LocalCluster) -> int:
    """Stop the cluster, open every target, compare all that they hold; how many chunks each has. Garbage goes first: a chunk that is being
    removed when its servers stop is gone from the tail, and not from the head yet."""
    identity = cluster.cluster_id
    with emberfs.connect(cluster.url) as client:
        until(lambda: client.status().gc_pending == 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBERFS_TIME_SCALE", "8")  # all the time that they need: who is killed has other bytes
        assert not cluster.stop()
    found = []
    for role in cluster.nodes:
        engine, _ = open_target(str(cluster.data / role / "target-1"), cluster=identity, capacity=0)
        found.append(holdings(engine))
        engine.close()
    for other in found[1:]:
        differ = other["chunks"].keys() ^ found[0]["chunks"].keys()
        assert not differ, [str(ChunkId.unpack(chunk)) for chunk in sorted(differ)]
        for chunk, held in found[0]["chunks"].items():
            assert other["chunks"][chunk] == held, f"chunk {chunk.hex()}"
        assert other["receipts"] == found[0]["receipts"]
        assert other["floors"] == found[0]["floors"]
    return len(found[0]["chunks"])


class Files:
    """Random changes of files, and what they should contain."""

    def __init__(self, url: str, folder: str, seed: int) -> None:
        self.client = emberfs.connect(url)
        self.folder = folder
        self.random = random.Random(seed)
        self.model: dict[str, bytearray] = {}
        self.client.mkdir(folder)

    def change(self, count: int, *, files: int = 12, size_max: int = 3 << 20) -> None:
        for _ in range(count):
            self.change_one(f"{self.folder}/{self.random.randrange(files)}", size_max)

    def change_one(self, path: str, size_max: int) -> None:
        chance = self.random
        what = chance.random()
        if path not in self.model or what < 0.2:
            self.model[path] = bytearray(chance.randbytes(chance.randrange(1, size_max)))
            self.client.write_bytes(path, bytes(self.model[path]))
        elif what < 0.35:
            source = chance.choice(sorted(self.model))
            if source != path:
                with self.client.open(source) as taken, self.client.open(path, "wb") as file:
                    file.copy_from(taken, 0, 0, taken.size)  # shares chunks
                self.model[path] = bytearray(self.model[source])
        elif what < 0.7:
            model = self.model[path]
            offset, data = chance.randrange(len(model)), chance.randbytes(chance.choice([10, 5000, 300_000]))
            with self.client.open(path, "r+b") as file:
                file.seek(offset)
                file.write(data)
            model[offset : offset + len(data)] = data
        elif what < 0.85:
            length = chance.randrange(1, len(self.model[path]) + 1)
            self.client.truncate(path, length)
            del self.model[path][length:]
        else:
            self.client.unlink(path)
            del self.model[path]

    def verify(self) -> None:
        for path, content in self.model.items():
            assert self.client.read_bytes(path) == content, path

    def close(self) -> None:
        self.client.close()


class Worker(threading.Thread):
    """Changes files until it is told to stop; `failure` is what went wrong."""

    def __init__(self, files: Files) -> None:
        super().__init__(daemon=True)
        self.files = files
        self.stopping = threading.Event()
        self.failure: BaseException | None = None
        self.changes = 0

    def run(self) -> None:
        try:
            while not self.stopping.is_set():
                self.files.change(1, files=6, size_max=1 << 20)
                self.changes += 1
        except BaseException as failure:
            self.failure = failure

    def end(self) -> None:
        self.stopping.set()
        self.join(SECONDS)
        if self.failure is not None:
            raise self.failure
        assert not self.is_alive(), "its last change takes too long"


def flip(directory: Path, piece: bytes, at: int) -> None:
    """One bit of this piece (4 KiB or more) wherever it lies in the block files of a target: a repaired chunk has left its old slot."""
    found = 0
    for path in sorted(directory.rglob("*")):
        if not path.is_file() or not path.stat().st_size:
            continue
        with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
            place = view.find(piece)
            while place >= 0:
                view[place + at] ^= 4
                found += 1
                place = view.find(piece, place + 1)
    assert found, f"the piece is nowhere in {directory}"


__all__ = ["Files", "StatusError", "Watcher", "Worker", "assert_replicas_equal", "flip", "until"]
