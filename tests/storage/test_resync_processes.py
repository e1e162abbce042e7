"""Recovery with real processes: members are killed while clients work, come back, are synced, serve, and hold the same bytes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from emberfs.deploy.local import LocalCluster
from emberfs.proto.errors import Status

from .replicas import Files, Watcher, Worker, assert_replicas_equal, flip, until

MakeCluster = Callable[..., LocalCluster]


@pytest.fixture(autouse=True)
def shorter_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBERFS_TIME_SCALE", "0.4")  # 2 s


@pytest.fixture
def watch() -> Iterator[Callable[[LocalCluster], Watcher]]:
    made: list[Watcher] = []

    def watcher(cluster: LocalCluster) -> Watcher:
        made.append(Watcher(cluster))
        return made[-1]

    yield watcher
    for each in made:
        each.close()


@pytest.mark.timeout(400)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_member_returns_and_is_synced_while_clients_write(make_cluster: MakeCluster, watch: Any, place: int) -> None:
    cluster = make_cluster(nodes=3, replicas=3, targets=1, kv_capacity=0)
    watcher = watch(cluster)
    files, live = Files(cluster.url, "/a", place), Files(cluster.url, "/b", 100 + place)
    files.change(25)
    gone = watcher.role_of(watcher.chain.members[place].target)
    cluster.kill(gone)
    files.change(40)
    watcher.serving(2)
    worker = Worker(live)
    worker.start()
    cluster.start()
    watcher.serving(3)
    worker.end()
    assert worker.changes
    for each in (files, live):
        each.verify()
        each.close()
    assert assert_replicas_equal(cluster) > 10


@pytest.mark.timeout(400)
@pytest.mark.parametrize("who", ["the one that is synced", "the one that copies"])
def test_killed_in_the_middle_of_the_sync(make_cluster: MakeCluster, watch: Any, who: str) -> None:
    cluster = make_cluster(nodes=3, replicas=3, targets=1, kv_capacity=0)
    watcher = watch(cluster)
    files, live = Files(cluster.url, "/a", 1), Files(cluster.url, "/b", 2)
    files.change(20)
    gone = watcher.role_of(watcher.chain.members[1].target)
    cluster.kill(gone)
    watcher.serving(2)
    for number in range(40):
        files.client.write_bytes(f"/a/more-{number}", random.Random(number).randbytes(5 << 20))
    worker = Worker(live)  # beside clients a sync takes long enough to be met in its middle
    worker.start()
    cluster.start()
    watcher.syncing()
    chain = watcher.chain
    members = chain.members
    assert members[2].target == next(m.target for m in members if watcher.role_of(m.target) == gone)
    cluster.kill(gone if who == "the one that is synced" else watcher.role_of(members[1].target))
    until(lambda: watcher.chain.version > chain.version)
    cluster.start()
    watcher.serving(3)
    worker.end()
    files.verify()
    live.verify()
    for number in range(40):
        assert files.client.read_bytes(f"/a/more-{number}") == random.Random(number).randbytes(5 << 20)
    files.close()
    live.close()
    assert assert_replicas_equal(cluster) > 200


@pytest.mark.timeout(400)
def test_a_flipped_byte_on_any_member_is_repaired(make_cluster: MakeCluster, watch: Any) -> None:
    cluster = make_cluster(nodes=3, replicas=3, targets=1, kv_capacity=0)
    watcher = watch(cluster)
    files = Files(cluster.url, "/a", 1)
    data = random.Random(5).randbytes(1_000_000)
    files.client.write_bytes("/a/file", data)
    inode = files.client.stat("/a/file").inode
    for member in watcher.chain.members:
        directory = cluster.data / watcher.role_of(member.target) / "target-1"
        for at in (0, len(data) // 2, len(data) - 1):
            assert watcher.read(member.target, inode, 0, len(data)) == (Status.OK, data)
            unit = min(at // 4096 * 4096, len(data) - 4096)
            flip(directory, data[unit : unit + 4096], at - unit)
            assert watcher.read(member.target, inode, 0, len(data))[0] is Status.CHECKSUM
            watcher.report(member.target, inode, 0)
            until(lambda: watcher.read(member.target, inode, 0, len(data)) == (Status.OK, data))
    assert files.client.read_bytes("/a/file") == data
    files.close()
    assert assert_replicas_equal(cluster) == 1
