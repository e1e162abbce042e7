"""`emberfs meta` and `emberfs fsck` on real clusters, up to the loss of the metadata server's disk."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from emberfs.deploy.local import LocalCluster
from emberfs.deploy.metadata import _chunks_of, dump_to, find_copies, own_engine, restore, targets_of
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.ids import SYSTEM_TENANT, chunk_key

from .command import Command


def test_dump_and_fsck_of_a_running_cluster(cluster: LocalCluster, tmp_path: Path) -> None:
    run = Command(cluster.environment)
    run("mkdir", "/dumped")
    plain, packed = tmp_path / "all.jsonl", tmp_path / "all.gz"
    assert run("meta", "dump", "--json", str(plain)).json["rows"] == len(plain.read_bytes().splitlines()) - 2
    assert any("dumped" in json.loads(line)[0] for line in plain.read_bytes().splitlines()[1:-1])
    run("meta", "dump", str(packed))
    assert [path.stat().st_mode & 0o777 for path in (plain, packed)] == [0o600, 0o600]  # the cluster's key is in it
    damaged, middle = tmp_path / "damaged.gz", packed.stat().st_size // 2
    damaged.write_bytes(packed.read_bytes()[:middle] + b"\xff" * middle)
    said = run.fail(4, "meta", "load", "--kv", f"rocksdb://{tmp_path}/bad", str(damaged))
    assert "cannot be read" in said or "is damaged" in said  # a packed stream may go on for a line before it ends
    assert run("meta", "load", "--kv", f"rocksdb://{tmp_path}/kv", str(packed)).lines
    assert run("fsck").lines == ["no problems"]
    assert run("fsck", "--kv", f"rocksdb://{tmp_path}/kv").lines == ["no problems"]
    assert "empty store" in run.fail(1, "meta", "load", "--kv", f"rocksdb://{tmp_path}/kv", str(plain))
    assert "in use" in run.fail(1, "fsck", "--repair")
    assert not list((cluster.data / "meta").glob("backup-*"))
    run("rm", "-r", "/dumped")


@pytest.mark.parametrize("shape", [{}, {"nodes": 3, "replicas": 3, "targets": 1}], ids=["one copy", "three copies"])
def test_metadata_comes_back_from_the_chunks(
    make_cluster: Callable[..., LocalCluster], shape: dict[str, int], tmp_path: Path
) -> None:
    cluster = make_cluster(**shape)
    run = Command(cluster.environment)
    content = os.urandom(3_000_000)
    run("put", "-", "/kept", data=content)
    run("put", "-", "/changed", data=b"old")
    number = run("meta", "backup", "--json").json["number"]
    run("put", "-", "/changed", data=b"newer")  # other bytes under another inode
    run("put", "-", "/lost", data=b"made after the copy")
    assert "emberfs down" in run.fail(1, "meta", "backups")
    with pytest.raises(StatusError) as running:
        restore(cluster.data)
    assert running.value.status is Status.BUSY_RESOURCE
    cluster.stop()
    with pytest.raises(StatusError) as there:
        restore(cluster.data)
    assert there.value.status is Status.EXISTS
    assert [copy.manifest.number for copy in find_copies(targets_of(cluster.data))] == [number]
    shutil.rmtree(cluster.data / "meta")
    for _ in range(2):  # no empty metadata are made, which would only be in the way
        assert "meta restore" in run.fail(4, "up")
    assert "holds copy 7" in run.fail(1, "meta", "restore", "7")
    if shape:  # a member of the chain that lost a piece of it does not cost the copy that the others have
        with _chunks_of(find_copies(targets_of(cluster.data))[0].target) as chunks:
            assert chunks.remove_range(*(chunk_key(number, index, SYSTEM_TENANT) for index in (0, 1)), 1)[0] == 1

    if shape:  # nor does one that cannot be opened
        broken = targets_of(cluster.data)[1] / "format.json"
        form = broken.read_bytes()
        broken.write_bytes(b"{")
        with pytest.raises(StatusError) as damaged:
            restore(cluster.data)
        assert damaged.value.status is Status.BAD_FORMAT
        done = run.any("meta", "restore", "--json")
        assert (done.code, done.json["number"]) == (0, number)
        assert f"{broken} is damaged" in done.err
        broken.write_bytes(form)
    else:
        assert run("meta", "restore", "--json").json["number"] == number
    assert run("fsck").lines == ["no problems"]
    cluster.start()
    assert run("cat", "/kept").out == content
    assert run("ls", "/").lines == ["changed", "kept"]
    before = run("info", "--json", "/kept").json
    run("put", "-", "/new", data=content)  # under an inode that nobody had
    assert run("cat", "/new").out == content and before
    cluster.stop()
    assert run("fsck").lines == ["no problems"]


def test_looking_at_a_store_makes_none(tmp_path: Path) -> None:
    run, place = Command({"EMBERFS_DATA": str(tmp_path / "none"), "EMBERFS_URL": ""}), tmp_path / "a store"
    for command in (["fsck"], ["fsck", "--repair"], ["meta", "dump", str(tmp_path / "dump")]):
        assert "there is no metadata store" in run.fail(1, *command, "--kv", f"rocksdb://{tmp_path}/a%20store")
    assert not place.exists() and "postgresql://" in run.fail(1, "fsck", "--kv", "mysql://host/database")


def test_fsck_mends(make_cluster: Callable[..., LocalCluster], tmp_path: Path) -> None:
    cluster = make_cluster()
    run = Command(cluster.environment)
    run("put", "-", "/file", data=b"content")
    cluster.stop()
    engine = own_engine(cluster.data)
    dump_to(engine, str(tmp_path / "dump"))
    rows = (tmp_path / "dump").read_bytes()
    assert rows

    from emberfs.deploy.metadata import opened
    from emberfs.deploy.metadata import run as drive
    from emberfs.meta import keys

    async def damage() -> None:
        async with opened(engine) as store:
            txn = store.begin()
            txn.delete(keys.dentry_key(1, b"file"))
            await txn.commit()

    drive(damage())
    assert run.any("fsck").code == 4
    assert run("fsck", "--repair").lines[-1].endswith("0 left")
    assert run("fsck").lines == ["no problems"]
    cluster.start()
    [name] = run("ls", "/lost+found").lines
    assert run("cat", f"/lost+found/{name}").out == b"content"
