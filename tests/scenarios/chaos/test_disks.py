"""A disk fills up under a member of a chain: the chain goes on, new files go around it, and once there is room it serves as before."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import emberfs
from emberfs.deploy.local import LocalCluster
from emberfs.proto.gen.cluster_pb2 import Routing
from emberfs.proto.gen.common_pb2 import Chain

from .aftermath import REPLICAS, answered, await_whole_chains, finish
from .disks import cannot, others_take, small_disk
from .load import Load, until
from .local import Local
from .registers import CHUNK_BYTES

LEFT_BYTES = 1 << 20  # on the full disk: the index still has its place
FILE_BYTES = 4 << 20
NEW_FILES = 4
PATIENCE_S = 600.0  # before the time scale
OLD_FILES = 8  # enough for one on every chain


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with tempfile.TemporaryDirectory(prefix="emberfs-") as folder:
        made = LocalCluster(
            Path(folder) / "data",
            nodes=3,
            replicas=REPLICAS,
            targets=2,
            kv_capacity=0,
            capacity=1 << 30,
            bound=True,
            trash=0,
        )
        try:
            yield made
        finally:
            made.stop()


@pytest.fixture
def mounts() -> Iterator[ExitStack]:
    if why := cannot():
        pytest.skip(why)
    with ExitStack() as stack:
        yield stack


def routing_of(cluster: LocalCluster) -> Routing:
    return answered(cluster.url).routing


def folder_of(routing: Routing, target: int) -> Path:
    return Path(next(entry.path for entry in routing.targets if entry.id == target))


def laid_out_over(cluster: LocalCluster) -> set[int]:
    """The chains that new files use."""
    tables = [table for table in routing_of(cluster).tables if table.id == 1]
    return set(max(tables, key=lambda table: table.version).chains)


def move_to_small_disk(target: Path, mounts: ExitStack, image: Path) -> None:
    """While the cluster is down."""
    held = target.with_name("held")
    target.rename(held)
    target.mkdir(mode=0o700)
    mounts.enter_context(small_disk(image, target))
    shutil.copytree(held, target, dirs_exist_ok=True)
    shutil.rmtree(held)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("place", ["head", pytest.param("tail", marks=pytest.mark.soak)])
def test_a_full_disk(
    cluster: LocalCluster, mounts: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("EMBERFS_TIME_SCALE", "0.2")
    cluster.start()
    before = routing_of(cluster)
    assert not cluster.stop()
    for member in before.chains[0].members:  # all, as they do not come back in the same order
        move_to_small_disk(folder_of(before, member.target), mounts, tmp_path / f"image-{member.target}")
    cluster.start()
    await_whole_chains(cluster.url)
    chain: Chain = routing_of(cluster).chains[0]
    assert chain.id == before.chains[0].id
    target = folder_of(before, chain.members[0 if place == "head" else -1].target)
    load = Load(cluster.url, tmp_path, seed=0)
    try:
        load.prepare()
        load.start()
        with emberfs.connect(cluster.url, timeout=PATIENCE_S) as client:
            client.mkdir("/new")
            client.mkdir("/old")
            for number in range(OLD_FILES):
                client.write_bytes(f"/old/{number}", b"")  # laid out over all chains
            with others_take(target, LEFT_BYTES):
                for number in range(OLD_FILES):
                    client.write_bytes(f"/old/{number}", bytes([number]) * CHUNK_BYTES)
                load.advance()
                until(lambda: laid_out_over(cluster).isdisjoint({chain.id}), "new files go around the full disk")
                data = random.Random(place).randbytes(FILE_BYTES)
                for number in range(NEW_FILES):
                    client.write_bytes(f"/new/{number}", data)
                load.advance()
                for number in range(NEW_FILES):
                    assert client.read_bytes(f"/new/{number}") == data
            for number in range(OLD_FILES):
                assert client.read_bytes(f"/old/{number}") == bytes([number]) * CHUNK_BYTES
            client.remove_tree("/new")
            until(lambda: chain.id in laid_out_over(cluster), "new files come back")
            load.advance()
        finish(Local(cluster), load)
    finally:
        load.kill()
