"""Targets that are added to a running storage process and dropped from it, over restarts."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from emberfs.proto.blocks import TABLE_OF_BLOCKS, TABLE_OF_FILES
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen import cluster_pb2, storage_pb2
from emberfs.proto.rpc import CLUSTER, STORAGE
from emberfs.storage.engine.target import FORMAT_FILE, open_target, read_format

from .processes import Client, Cluster, running_cluster


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with running_cluster() as made:
        made.start_meta()
        yield made


def shown(client: Client) -> dict[int, str]:
    """Targets as the manager knows them, with their paths."""
    reply = client.call(client.cluster.address, CLUSTER.Status, cluster_pb2.StatusRequest())
    return {target.id: target.path for target in reply.routing.targets}


def add(client: Client, path: str = "", capacity: int = 0) -> storage_pb2.AddTargetReply:
    request = storage_pb2.AddTargetRequest(path=path, capacity=capacity)
    reply = client.storage(STORAGE.AddTarget, request)
    assert isinstance(reply, storage_pb2.AddTargetReply)
    return reply


def test_a_target_comes_and_goes_while_the_process_serves(cluster: Cluster) -> None:
    cluster.start_storage()
    client = Client(cluster)
    assert client.write(b"here", 0, 1) is Status.OK
    first = shown(client)
    added = add(client)
    assert added.path == str(cluster.folder / "storage" / "target-2")
    assert shown(client) == {**first, added.target: added.path}
    assert client.chains == {1: 1}  # it waits for an administrator
    elsewhere = add(client, str(cluster.folder / "disk" / "t"), 128 << 20)
    assert add(client, elsewhere.path).target == elsewhere.target  # asked again
    named = add(client, "target-1d0a")  # beside the first, and the same one again when the answer was lost
    assert named.path == str(cluster.folder / "storage" / "target-1d0a")
    assert add(client, "target-1d0a") == named
    client.storage(STORAGE.DropTarget, storage_pb2.DropTargetRequest(target=named.target))
    space = client.storage(STORAGE.Space, storage_pb2.SpaceRequest())
    assert dict(zip(space.target, space.capacity, strict=True)) == {
        1: 1 << 30,
        added.target: 1 << 30,
        elsewhere.target: 128 << 20,
    }
    made = client.call(
        cluster.address,
        CLUSTER.CreateChains,
        cluster_pb2.CreateChainsRequest(chains=[cluster_pb2.ChainMembers(targets=[added.target])]),
    )
    client.learn()
    [chain] = made.chains
    while client.write(b"there", 0, 1, chain=chain) is Status.STALE_ROUTING:
        pass  # until the server has heard of it
    with pytest.raises(StatusError) as refused:
        client.storage(STORAGE.DropTarget, storage_pb2.DropTargetRequest(target=added.target))
    assert refused.value.status is Status.BUSY_RESOURCE
    client.storage(STORAGE.DropTarget, storage_pb2.DropTargetRequest(target=elsewhere.target))
    assert not (cluster.folder / "disk" / "t").exists()
    assert shown(client) == {**first, added.target: added.path}
    with pytest.raises(StatusError) as gone:
        client.storage(STORAGE.DropTarget, storage_pb2.DropTargetRequest(target=elsewhere.target))
    assert gone.value.status is Status.NOT_FOUND
    assert client.read(0, chain=chain) == (Status.OK, b"there")
    assert client.read(0) == (Status.OK, b"here")
    client.close()


def test_what_was_added_and_dropped_stays_so_after_a_crash(cluster: Cluster) -> None:
    folders = [str(cluster.folder / name) for name in ("one", "two")]
    options = [option for folder in folders for option in ("--target", folder)]
    server = cluster.start_storage("--spare", *options)
    client = Client(cluster)
    before = shown(client)
    third = add(client, str(cluster.folder / "three"))
    two = next(number for number, path in before.items() if path == folders[1])
    client.storage(STORAGE.DropTarget, storage_pb2.DropTargetRequest(target=two))
    expected = {number: path for number, path in [*before.items(), (third.target, third.path)] if number != two}
    assert shown(client) == expected
    server.end(signal.SIGKILL)
    again = cluster.start_storage("--spare", *options)
    assert "error" not in again.report
    assert shown(client) == expected
    space = client.storage(STORAGE.Space, storage_pb2.SpaceRequest())
    assert set(space.target) == set(expected)
    back = add(client, folders[1])  # an empty one, under a number of its own
    assert back.target not in (two, *expected)
    for path in ("relative/path", "..", "../elsewhere"):
        with pytest.raises(StatusError) as refused:
            add(client, path)
        assert refused.value.status is Status.INVALID
    assert again.end() == 0
    client.close()


def test_what_the_data_directory_did_not_take_was_not_done(cluster: Cluster) -> None:
    """Its disk is full, say. A target that was added and not remembered would be missing after the next start; one that was not dropped
    and remembered with the next change would be, too."""
    server = cluster.start_storage()
    client = Client(cluster)
    kept = add(client, "kept")
    in_the_way = cluster.folder / "storage" / f"{FORMAT_FILE}.{server.report['pid']}.new"
    in_the_way.mkdir()
    for _ in range(2):
        with pytest.raises(StatusError):
            add(client, "late")
    ghost = next(number for number, path in shown(client).items() if path == str(cluster.folder / "storage" / "late"))
    chains = [cluster_pb2.ChainMembers(targets=[ghost])]
    with pytest.raises(StatusError) as refused:  # or else a chain would wait for what no process has
        client.call(cluster.address, CLUSTER.CreateChains, cluster_pb2.CreateChainsRequest(chains=chains))
    assert refused.value.status is Status.UNAVAILABLE
    with pytest.raises(StatusError):
        client.storage(STORAGE.DropTarget, storage_pb2.DropTargetRequest(target=kept.target))
    in_the_way.rmdir()
    late = add(client, "late")
    assert server.end() == 0
    cluster.start_storage()
    client.learn()
    space = client.storage(STORAGE.Space, storage_pb2.SpaceRequest())
    assert {kept.target, late.target} <= set(space.target)
    client.close()


def test_a_target_that_an_administrator_took_out_serves_nothing_and_comes_back(cluster: Cluster) -> None:
    cluster.start_storage()
    client = Client(cluster)
    assert client.write(b"here", 0, 1) is Status.OK

    def disable(disabled: bool) -> None:
        client.call(cluster.address, CLUSTER.SetTarget, cluster_pb2.SetTargetRequest(target=1, disabled=disabled))

    def read() -> Status:
        client.learn()
        return client.read(0)[0]

    disable(True)
    while (status := read()) is not Status.TARGET_OFFLINE:
        assert status in (Status.OK, Status.STALE_CHAIN_VERSION)
    assert client.write(b"late", 0, 2) in (Status.TARGET_OFFLINE, Status.STALE_CHAIN_VERSION)
    client.chains = {1: 1}
    while (
        status := client.read(0)[0]
    ) is not Status.STALE_CHAIN_VERSION:  # whoever is behind learns who serves instead
        assert status is Status.TARGET_OFFLINE
    disable(False)
    while (status := read()) is not Status.OK:
        assert status in (Status.TARGET_OFFLINE, Status.STALE_CHAIN_VERSION)
    assert client.read(0) == (Status.OK, b"here")
    client.close()


def break_open(folder: Path) -> None:
    """RocksDB refuses to open what is there."""
    (folder / "index" / "CURRENT").write_bytes(b"nonsense\n")


def break_rows(folder: Path) -> None:
    """It opens, and its rows cannot be read."""
    tables = list((folder / "index").glob("*.sst"))
    assert tables
    for table in tables:
        data = bytearray(table.read_bytes())
        data[:64] = bytes(64)
        table.write_bytes(data)


@pytest.mark.parametrize("damage", [break_open, break_rows])
def test_a_damaged_index_takes_its_target_out_and_the_process_lives(
    cluster: Cluster, damage: Callable[[Path], None]
) -> None:
    folders = [cluster.folder / name for name in ("one", "two")]
    options = [option for folder in folders for option in ("--target", str(folder))]
    server = cluster.start_storage(*options)
    client = Client(cluster)
    whole, damaged = (next(t for t, path in shown(client).items() if path == str(folder)) for folder in folders)
    chains = {target: chain for chain, target in zip(client.chains, client.targets, strict=True)}
    for chain in chains.values():
        assert client.write(b"here", 0, 1, chain=chain) is Status.OK
    assert server.end() == 0
    if damage is break_rows:
        open_target(str(folders[1]), cluster=server.report["cluster"])[0].close()  # its rows go from the log to tables
    damage(folders[1])
    again = cluster.start_storage(*options)
    assert "error" not in again.report

    def entry() -> cluster_pb2.Target:
        reply = client.call(cluster.address, CLUSTER.Status, cluster_pb2.StatusRequest())
        return next(t for t in reply.routing.targets if t.id == damaged)

    while not entry().damaged:
        pass
    assert entry().state == cluster_pb2.LOCAL_STATE_OFFLINE
    [line] = [line for line in again.lines() if line["event"].startswith("target left out")]
    assert line["path"] == str(folders[1]) and "index" in line["error"]
    client.learn()
    assert client.read(0, chain=chains[whole]) == (Status.OK, b"here")
    with pytest.raises(StatusError) as refused:
        client.storage(STORAGE.DropTarget, storage_pb2.DropTargetRequest(target=damaged))
    assert refused.value.status is Status.BUSY_RESOURCE  # its chain has nobody else
    assert again.end() == 0
    client.close()


def test_a_damaged_spare_target_can_be_dropped(cluster: Cluster) -> None:
    folders = [cluster.folder / name for name in ("one", "two")]
    options = ["--spare", *(option for folder in folders for option in ("--target", str(folder)))]
    assert cluster.start_storage(*options).end() == 0
    break_open(folders[1])
    server = cluster.start_storage(*options)
    client = Client(cluster)
    damaged = next(target for target, path in shown(client).items() if path == str(folders[1]))
    in_the_way = cluster.folder / "storage" / f"{FORMAT_FILE}.{server.report['pid']}.new"
    in_the_way.mkdir()
    with pytest.raises(StatusError):
        client.storage(STORAGE.DropTarget, storage_pb2.DropTargetRequest(target=damaged))
    in_the_way.rmdir()
    assert damaged in shown(client), "what the data directory did not take was not done"
    client.storage(STORAGE.DropTarget, storage_pb2.DropTargetRequest(target=damaged))
    assert list(shown(client).values()) == [str(folders[0])]
    assert folders[1].joinpath("format.json").exists()  # somebody may want to look at it
    assert server.end() == 0
    assert "error" not in cluster.start_storage(*options).report  # it was dropped, and is not looked at any more
    client.close()


def test_a_process_whose_only_target_is_damaged_says_so(cluster: Cluster) -> None:
    server = cluster.start_storage("--target", str(cluster.folder / "one"))
    assert server.end() == 0
    break_open(cluster.folder / "one")
    again = cluster.start_storage("--target", str(cluster.folder / "one"))
    assert "the index cannot be opened" in again.report["error"]
    assert again.process.wait(60) == 1


def kinds(client: Client) -> dict[str, tuple[int, int]]:
    """Targets by the last part of their paths: which chain table each is for, and its capacity."""
    reply = client.call(client.cluster.address, CLUSTER.Status, cluster_pb2.StatusRequest())
    return {Path(target.path).name: (target.table, target.capacity) for target in reply.routing.targets}


def test_targets_for_blocks_are_apart_from_those_for_files_and_stay_so(cluster: Cluster) -> None:
    """Said by the command line at first, by their formats ever after; one that was added is of the kind that was asked for."""
    options = ("--kv-target", str(cluster.folder / "kv-1"), "--kv-capacity", str(64 << 20))
    server = cluster.start_storage(*options)
    client = Client(cluster)
    routing = client.call(cluster.address, CLUSTER.Status, cluster_pb2.StatusRequest()).routing
    assert {table.id: len(table.chains) for table in routing.tables} == {TABLE_OF_FILES: 1, TABLE_OF_BLOCKS: 1}
    request = storage_pb2.AddTargetRequest(table=TABLE_OF_BLOCKS)
    added = client.storage(STORAGE.AddTarget, request)
    assert isinstance(added, storage_pb2.AddTargetReply)
    assert added.path == str(cluster.folder / "storage" / "kv-1")
    more = add(client)
    expected = kinds(client)
    assert expected == {
        "target-1": (TABLE_OF_FILES, 1 << 30),
        "target-2": (TABLE_OF_FILES, 1 << 30),
        "kv-1": (TABLE_OF_BLOCKS, 64 << 20),
    }
    assert len(shown(client)) == 4, "two are called kv-1, as large as each other"
    with pytest.raises(StatusError) as refused:
        client.call(
            cluster.address,
            CLUSTER.CreateChains,
            cluster_pb2.CreateChainsRequest(
                chains=[cluster_pb2.ChainMembers(targets=[more.target])], table=TABLE_OF_BLOCKS
            ),
        )
    assert refused.value.status is Status.INVALID
    server.end(signal.SIGKILL)
    again = cluster.start_storage(*options)
    assert "error" not in again.report and kinds(client) == expected
    again.end()
    client.close()
    wrong = cluster.start_storage("--target", str(cluster.folder / "kv-1"))
    assert "was made for KV blocks" in wrong.report["error"]


def test_a_target_from_before_there_were_kinds_is_for_files(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    open_target(str(folder), cluster="c", capacity=64 << 20)[0].close()
    file = folder / FORMAT_FILE
    fields = json.loads(file.read_text())
    assert fields["version"] == 1, "older ones know it"
    del fields["table"]
    file.write_text(json.dumps(fields))
    found = read_format(str(folder))
    assert found is not None and found.table == TABLE_OF_FILES
    open_target(str(folder), cluster="c", table=TABLE_OF_FILES)[0].close()
    blocks = tmp_path / "b"
    open_target(str(blocks), cluster="c", capacity=64 << 20, table=TABLE_OF_BLOCKS)[0].close()
    assert json.loads((blocks / FORMAT_FILE).read_text())["version"] == 2, "older ones must not serve it"
    for folder, table in ((folder, TABLE_OF_BLOCKS), (blocks, TABLE_OF_FILES)):
        with pytest.raises(StatusError) as refused:
            open_target(str(folder), cluster="c", table=table)
        assert refused.value.status is Status.INVALID
    engine, format_ = open_target(str(blocks), cluster="c")
    engine.close()
    assert format_.table == TABLE_OF_BLOCKS
