"""The storage server as a real process beside a real metadata server: killed, restarted, cut off, refused, stopped."""

from __future__ import annotations

import json
import random
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from emberfs.proto.drivers.aio import AioEnvironment
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen import cluster_pb2, storage_pb2
from emberfs.proto.ids import ROOT_INODE
from emberfs.proto.routing import RoutingTable
from emberfs.proto.rpc import CLUSTER, STORAGE
from emberfs.storage.membership import Membership

from .processes import Client, Cluster, running_cluster


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with running_cluster() as made:
        made.start_meta()
        yield made


def content(index: int, sequence: int) -> bytes:
    """Names its own chunk and version, and has a length of its own."""
    word = index.to_bytes(4, "big") + sequence.to_bytes(4, "big")
    return word * (1 + (index * 7919 + sequence * 104729) % 9000)


class Writer(threading.Thread):
    """Overwrites its chunks again and again; knows what was acknowledged and what was tried."""

    def __init__(self, cluster: Cluster, chunks: range, seed: int) -> None:
        super().__init__()
        self.client = Client(cluster)
        self.chunks = chunks
        self.draw = random.Random(seed)
        self.tried = dict.fromkeys(chunks, 0)
        self.acknowledged = dict.fromkeys(chunks, 0)
        self.count = 0
        self.stopping = threading.Event()
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.stopping.is_set():
                index = self.draw.choice(self.chunks)
                sequence = self.tried[index] = self.tried[index] + 1
                assert self.client.write_surely(content(index, sequence), index, sequence, 120) is Status.OK
                self.acknowledged[index] = sequence
                self.count += 1
        except BaseException as failed:
            self.failure = failed
        finally:
            self.client.close()


def test_killed_under_write_load_nothing_acknowledged_is_lost(cluster: Cluster) -> None:
    server = cluster.start_storage()
    writers = [Writer(cluster, range(10 * i, 10 * i + 10), i) for i in range(3)]
    for writer in writers:
        writer.start()
    draw = random.Random(1)
    for _ in range(3):
        wanted = sum(writer.count for writer in writers) + draw.randrange(20, 200)
        while sum(writer.count for writer in writers) < wanted and all(writer.is_alive() for writer in writers):
            writers[0].join(0.01)
        server.end(signal.SIGKILL)
        server = cluster.start_storage()
        assert "error" not in server.report
    for writer in writers:
        writer.stopping.set()
    for writer in writers:
        writer.join()
        assert writer.failure is None
    server.end(signal.SIGKILL)
    server = cluster.start_storage()
    client = Client(cluster)
    for writer in writers:
        for index in writer.chunks:
            status, data = client.read(index)
            if not writer.acknowledged[index]:
                assert status in (Status.OK, Status.CHUNK_NOT_FOUND)
                continue
            possible = range(writer.acknowledged[index], writer.tried[index] + 1)
            longest = max(len(content(index, s)) for s in range(1, writer.tried[index] + 1))
            assert status is Status.OK
            assert any(data.startswith(content(index, s)) for s in possible), (index, list(possible), data[:8])
            assert len(data) <= longest
    client.close()
    assert [line["how"] for line in server.lines() if line["event"] == "target opened"] == ["new"] + ["killed"] * 4


def test_a_clean_stop_and_the_next_start(cluster: Cluster) -> None:
    server = cluster.start_storage()
    client = Client(cluster)
    assert client.write(b"hello", 0, 1) is Status.OK
    assert server.end() == 0
    status = client.call(cluster.address, CLUSTER.Status, cluster_pb2.StatusRequest())
    assert status.routing.targets[0].state == cluster_pb2.LOCAL_STATE_OFFLINE
    again = cluster.start_storage()
    assert again.report["node"] == server.report["node"]
    client.learn()
    assert client.chains[1] > 1  # a new process costs the chain a version
    assert client.read(0) == (Status.OK, b"hello")
    assert [line["how"] for line in again.lines() if line["event"] == "target opened"] == ["new", "clean"]
    client.close()


def test_it_serves_on_without_the_manager_and_finds_it_again(cluster: Cluster) -> None:
    meta = cluster.started[0]
    cluster.start_storage()
    client = Client(cluster)
    assert client.write(b"before", 0, 1) is Status.OK
    meta.end(signal.SIGKILL)
    assert client.write(b"during", 0, 2) is Status.OK
    assert client.read(0) == (Status.OK, b"during")
    cluster.start_meta()
    client.learn()
    assert client.write(b"after!", 0, 3) is Status.OK

    def used() -> int:
        reply = client.call(cluster.address, CLUSTER.Status, cluster_pb2.StatusRequest())
        return reply.routing.targets[0].used

    deadline = threading.Event()
    while not used():  # the heartbeat has found the new manager
        assert not deadline.wait(0.1)
    client.close()


async def test_the_namespace_is_asked_which_inodes_live(cluster: Cluster) -> None:
    env = AioEnvironment(acts_for_others=True)
    membership = Membership(env, [cluster.address], RoutingTable(), lambda change: None, structlog.get_logger())
    assert await membership.living([ROOT_INODE, 123_456]) == {ROOT_INODE}
    cluster.started[0].end(signal.SIGKILL)
    assert await membership.living([ROOT_INODE, 123_456]) == {
        ROOT_INODE,
        123_456,
    }  # nobody answers: nothing is said to be dead
    await env.close()


async def test_who_is_not_registered_yet_reports_nothing(cluster: Cluster) -> None:
    """Clients' requests come in before, and may ask for news: until then the place is another process's, and a report would be refused."""
    env = AioEnvironment(acts_for_others=True)
    taken: list[StatusError] = []
    before = 0
    for process in (1, 2):
        log = structlog.get_logger()
        membership = Membership(env, [cluster.address], RoutingTable(), lambda change: None, log, taken=taken.append)
        membership.node.id, membership.node.kind, membership.node.name = (
            before,
            cluster_pb2.NODE_KIND_STORAGE,
            "storage-9",
        )
        membership.node.process = process
        await membership.heartbeat()
        assert not taken
        await membership.register()
        await membership.heartbeat()
        assert before in (0, membership.node.id) and not taken
        before = membership.node.id
    await env.close()


def test_a_client_whose_session_ended_is_refused_at_once(cluster: Cluster) -> None:
    cluster.start_storage()
    client, other = Client(cluster), Client(cluster)
    assert client.write(b"mine", 0, 1) is Status.OK
    client.call(cluster.address, CLUSTER.RenewClient, cluster_pb2.RenewClientRequest(name="test"))
    other.call(cluster.address, CLUSTER.RenewClient, cluster_pb2.RenewClientRequest(name="test"))
    client.call(cluster.address, CLUSTER.EndClient, cluster_pb2.EndClientRequest())
    sequence = 2
    while (status := client.write(b"late", 0, sequence)) is Status.OK:  # until the routing change has arrived
        sequence += 1
    assert status is Status.SESSION_ENDED
    assert other.write(b"next", 0, 1) is Status.OK
    assert other.read(0) == (Status.OK, b"next")
    client.close()
    other.close()


def test_several_targets_and_a_damaged_block_file(cluster: Cluster) -> None:
    folders = [cluster.folder / "disk-1", cluster.folder / "disk-2"]
    options = [option for folder in folders for option in ("--target", str(folder))]
    server = cluster.start_storage(*options)
    client = Client(cluster)
    assert len(client.chains) == 2
    for chain in client.chains:
        assert client.write(b"x" * 50_000, 3, 1, chain=chain) is Status.OK
    server.end()
    block_file = next(path for path in sorted((folders[0] / "blocks").iterdir()) if b"x" * 4096 in path.read_bytes())
    with open(block_file, "r+b") as file:
        file.seek(file.read().index(b"x" * 50_000) + 9000)
        file.write(b"y")
    server = cluster.start_storage(*options)
    client.learn()
    target = dict(zip(client.chains, client.targets, strict=True))
    statuses = {chain: client.read(3, 9000, 10, chain=chain)[0] for chain in client.chains}
    assert sorted(statuses.values()) == [Status.OK, Status.CHECKSUM]
    bad = next(chain for chain, status in statuses.items() if status is Status.CHECKSUM)
    found = [line for line in server.lines() if line["event"] == "damaged chunk"]
    assert [(line["target"], line["chunk"], line["level"]) for line in found] == [(target[bad], "5.3", "error")]
    assert server.end() == 0
    client.close()


def test_the_space_that_a_target_may_take(cluster: Cluster) -> None:
    cluster.start_storage("--capacity", str(64 << 20), "--metrics", f"unix:{cluster.folder / 'metrics.sock'}")
    client = Client(cluster)
    sequence = 0
    while (status := client.write(b"z" * (1 << 20), sequence, sequence + 1)) is Status.OK:
        sequence += 1
    assert status is Status.NO_SPACE
    space = client.storage(STORAGE.Space, storage_pb2.SpaceRequest())
    assert list(space.capacity) == [64 << 20]
    assert space.chunks[0] == sequence
    assert client.read(0)[0] is Status.OK
    with socket.socket(socket.AF_UNIX) as metrics:
        metrics.connect(str(cluster.folder / "metrics.sock"))
        metrics.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        text = b"".join(iter(lambda: metrics.recv(65536), b"")).decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("emberfs_target"))
    assert float(values['emberfs_target_bytes_written{target="1"}']) == sequence << 20
    assert float(values['emberfs_target_online{target="1"}']) == 1
    client.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--capacity", "1000"], "a target needs at least"),
        (["--listen", "tcp:0.0.0.0:0"], "--secret-file"),
        (["--secret-file", "/nowhere/secret"], "/nowhere/secret"),
        (["--target", "/proc/nowhere"], "/proc/nowhere"),
    ],
)
def test_what_it_cannot_start_with_is_said(cluster: Cluster, options: list[str], said: str) -> None:
    server = cluster.start_storage(*options)
    assert said in server.report["error"]
    assert server.process.wait(60) == 1


def test_a_second_server_on_the_same_directory_and_one_of_another_cluster(cluster: Cluster, tmp_path: Path) -> None:
    server = cluster.start_storage("--target", str(tmp_path / "disk"))
    assert "in use" in cluster.start_storage().report["error"]
    assert (
        "served by another process"
        in cluster.start_storage("--target", str(tmp_path / "disk"), data="b").report["error"]
    )
    server.end()
    with running_cluster() as other:
        other.start_meta()
        assert "belongs to cluster" in other.start_storage("--target", str(tmp_path / "disk")).report["error"]
    newer = tmp_path / "disk" / "format.json"
    newer.write_text(json.dumps({**json.loads(newer.read_text()), "version": 99}))
    assert "use a newer emberfs" in cluster.start_storage("--target", str(tmp_path / "disk")).report["error"]
