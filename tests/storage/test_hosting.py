"""Targets that are added to a running storage process and dropped from it, over restarts."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen import cluster_pb2, storage_pb2
from emberfs.proto.rpc import CLUSTER, STORAGE

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
