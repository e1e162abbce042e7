"""Clones and holes where storage fails, with storage in memory: numbered as writes are, repeated as they are."""

from __future__ import annotations

import random

import pytest

from emberfs.client.blocking import Client
from emberfs.proto.errors import Status, StatusError, error

from .world import World

CHUNK = 64 << 10


@pytest.fixture
def data(client: Client) -> bytes:
    content = random.Random(1).randbytes(20 * CHUNK + 9)
    with client.open("/a", "wb", chunk_size=CHUNK) as file:
        file.write(content)
    return content


def test_a_clone_whose_answer_is_lost_is_done_once(world: World, client: Client, data: bytes) -> None:
    world.storage.applied.clear()
    with client.open("/a") as source, client.open("/b", "wb", chunk_size=CHUNK) as target:
        world.storage.raises_after.append(error(Status.MAYBE_COMMITTED, "the connection broke"))
        assert target.copy_from(source, 0, 0, len(data)) == len(data)
    assert client.read_bytes("/b") == data
    assert len(world.storage.applied) == len(set(world.storage.applied)) == 21
    assert "write" not in world.storage.requests[world.storage.requests.index("clone") :]


@pytest.mark.parametrize(
    "status", [Status.BUSY, Status.STALE_TRUNCATE_VERSION, Status.CAPABILITY_EXPIRED, Status.FENCED]
)
def test_a_clone_that_is_refused_is_tried_again(world: World, client: Client, data: bytes, status: Status) -> None:
    with client.open("/a") as source, client.open("/b", "wb", chunk_size=CHUNK) as target:
        assert target.copy_from(source, 0, 0, CHUNK) == CHUNK  # the layouts agree
        world.storage.statuses.extend([Status.OK] * 6 + [status])
        assert target.copy_from(source, CHUNK, CHUNK, 1 << 30) == len(data) - CHUNK
    assert client.read_bytes("/b") == data


def test_a_server_from_before_clones_gets_copies(world: World, client: Client, data: bytes) -> None:
    world.storage.raises.append(error(Status.UNSUPPORTED))
    client.clone("/a", "/b")
    assert client.read_bytes("/b") == data
    assert "clone" not in world.storage.requests


def test_a_clone_that_fails_leaves_the_old_target(world: World, client: Client, data: bytes) -> None:
    client.write_bytes("/b", b"old")
    world.storage.statuses.extend([Status.OK] * 10 + [Status.NO_SPACE])
    with pytest.raises(StatusError) as caught:
        client.clone("/a", "/b")
    assert caught.value.status is Status.NO_SPACE
    assert client.read_bytes("/b") == b"old"
    assert sorted(client.listdir("/")) == ["a", "b"]


def test_a_chunk_that_is_lost_is_not_cloned_as_a_hole(world: World, client: Client, data: bytes) -> None:
    inode = client.stat("/a").inode
    del world.storage.chunks[inode, 3]
    with pytest.raises(StatusError) as caught:
        client.clone("/a", "/b")
    assert caught.value.status is Status.LOST_DATA
    assert client.listdir("/") == ["a"]


def test_copying_takes_the_layout_that_was_chosen(world: World, client: Client, data: bytes) -> None:
    """A target with another chunk size is copied to; one that differs only in its place among the chains shares."""
    for name, size, sent in (("/same", CHUNK, "clone"), ("/other", 4 * CHUNK, "write")):
        client.open(name, "wb", chunk_size=size).close()
        world.storage.requests.clear()
        client.copy_file("/a", name)
        assert {"clone", "write"} & set(world.storage.requests) == {sent}
        assert client.read_bytes(name) == data
    inode = client.stat("/other").inode
    assert sorted(index for owner, index in world.storage.chunks if owner == inode) == [0, 1, 2, 3, 4, 5]


def test_holes_are_numbered_updates(world: World, client: Client, data: bytes) -> None:
    with client.open("/a", "r+b") as file:
        world.storage.raises_after.append(error(Status.MAYBE_COMMITTED, "the connection broke"))
        file.punch(CHUNK + 5, 3 * CHUNK)
        expected = data[: CHUNK + 5] + bytes(3 * CHUNK) + data[4 * CHUNK + 5 :]
        assert file.pread(len(data), 0) == expected
    inode = client.stat("/a").inode
    assert (inode, 2) not in world.storage.chunks
    assert (inode, 3) not in world.storage.chunks
    assert client.read_bytes("/a") == expected


def test_a_clone_that_another_clients_truncate_overtook_comes_after_it(
    world: World, client: Client, data: bytes
) -> None:
    other = world.client()
    with client.open("/a") as source, client.open("/b", "wb", chunk_size=CHUNK) as target:
        target.copy_from(source, 0, 0, 2 * CHUNK)
        target.flush()
        other.truncate("/b", 5)
        assert target.copy_from(source, 2 * CHUNK, 2 * CHUNK, CHUNK) == CHUNK
    expected = data[:5] + bytes(2 * CHUNK - 5) + data[2 * CHUNK : 3 * CHUNK]
    assert client.read_bytes("/b") == expected
    assert other.read_bytes("/b") == expected
