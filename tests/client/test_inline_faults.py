"""Small files where something goes wrong: storage refuses, the server does not take them, others change them meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from emberfs.meta import keys
from emberfs.proto.env import Call
from emberfs.proto.errors import Status, StatusError, error
from emberfs.proto.rpc import META

from .world import World

LIMIT = 4096


@pytest.fixture
def world(world: World) -> World:
    world.namespace.inline_max = lambda: LIMIT
    return world


def sessions(world: World) -> int:
    """How many sessions of writers there are."""

    async def count() -> int:
        return len(await world.namespace.engine.begin().scan(*keys.prefix_range(keys.SESSION), 100))

    return world.run(count())


def test_a_reader_of_chunks_that_became_a_small_file(world: World) -> None:
    """The file was cut to nothing, and written anew beside its inode: that is no lost data."""
    one, two = world.client(), world.client()
    one.write_bytes("/f", b"x" * 10_000)
    with one.open("/f", "rb") as file:
        two.truncate("/f", 0)
        two.write_bytes("/f", b"small")
        assert file.pread(10_000, 0) == b"small"
        assert file.preadv_batch([(1, 3)]) == [b"mal"]
    with one.open("/f", "rb") as file:
        assert file.read() == b"small"
    assert world.storage.reports == []


def test_ranges_of_a_file_that_grows_meanwhile(world: World) -> None:
    """Between the question for its attributes and the one for its bytes."""
    one, two = world.client(), world.client()
    one.write_bytes("/f", b"0123456789")
    call, opens = one.core.env.call, 0

    async def called(request: Call) -> Any:
        nonlocal opens
        if request.method is META.Open:
            opens += 1
        if request.method is META.Open and opens == 2:
            with two.open("/f", "r+b") as file:
                file.pwrite(b"x" * LIMIT, 10)
        return await call(request)

    with one.open("/f", "r+b") as writer:
        writer.write(b"a")
        one.core.env.call = called  # type: ignore[method-assign]
        assert one.read_ranges([("/f", 0, 10)]) == [b"a123456789"]
        assert opens == 2
        one.core.env.call = call  # type: ignore[method-assign]


@pytest.mark.parametrize("limit", [0, LIMIT])
def test_what_is_discarded_leaves_no_length(world: World, limit: int) -> None:
    world.namespace.inline_max = lambda: limit
    client = world.client()
    client.write_bytes("/old", b"there")
    for name in ("/new", "/old"):
        file = client.open(name, "ab" if name == "/old" else "wb", buffering=-1)
        file.write(b"y" * 100)
        file.discard()
    assert client.read_bytes("/new") == b""
    assert client.read_bytes("/old") == b"there"
    assert sessions(world) == 0


def test_small_bytes_that_reach_neither_server_nor_storage(world: World) -> None:
    """The server does not take them, as somebody else has the file open, and storage has no space: the writer hears of it once, and its
    session is over."""
    one, two = world.client(), world.client()
    file, other = one.open("/f", "wb"), two.open("/f", "r+b")
    file.write(b"small")
    world.storage.statuses.append(Status.NO_SPACE)
    with pytest.raises(StatusError) as lost:
        file.flush()
    assert lost.value.status is Status.NO_SPACE
    file.flush()
    file.write(b"again")
    world.storage.statuses.append(Status.NO_SPACE)
    with pytest.raises(StatusError) as lost:
        file.fsync()
    assert lost.value.status is Status.NO_SPACE
    file.pwrite(b"third", 0)
    world.storage.statuses.append(Status.NO_SPACE)
    with pytest.raises(StatusError) as lost:
        file.close()
    assert lost.value.status is Status.NO_SPACE
    assert sessions(world) == 1
    other.close()
    assert one.read_bytes("/f") == b""


def test_a_file_that_cannot_grow_loses_what_is_written_and_nothing_else(world: World) -> None:
    client = world.client()
    client.write_bytes("/f", b"there")
    file = client.open("/f", "r+b")
    file.write(b"x" * (LIMIT + 1))
    world.storage.raises.extend(error(Status.IO_ERROR, "the disk is broken") for _ in range(50))
    with pytest.raises(StatusError):
        file.close()
    world.storage.raises.clear()
    assert sessions(world) == 0
    assert client.read_bytes("/f") == b"there"
