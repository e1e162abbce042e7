"""Whose a client's work is: leases that end, sessions of a new identity, files that go on."""

from __future__ import annotations

import pytest

from emberfs.proto.env import drive
from emberfs.proto.errors import Status, StatusError

from .world import World


def silent_for_too_long(world: World, client) -> bytes:
    """What a stopped process finds when it wakes: its lease is over, and its successor's work may be there."""
    lost = client.core.env.client
    client.core.lease.end()
    return lost


def test_dirty_data_is_lost_and_said_once_everything_else_goes_on(world: World) -> None:
    client = world.quiet()
    client.write_bytes("/clean", b"clean")
    dirty, reader, writer = client.open("/dirty", "w+b"), client.open("/clean"), client.open("/other", "wb")
    dirty.write(b"settled")
    dirty.flush()
    dirty.write(b"lost")
    old = silent_for_too_long(world, client)
    writes = world.storage.requests.count("write")
    with pytest.raises(StatusError) as ended:
        dirty.write(b"more")
    assert ended.value.status is Status.SESSION_ENDED and ended.value.errno == 5
    assert reader.read() == b"clean"
    writer.write(b"as a new client")
    writer.close()
    assert client.core.env.client != old
    assert world.storage.requests.count("write") == writes + 1, "nothing dirty was sent"
    dirty.seek(7)
    dirty.write(b"!")
    dirty.close()
    assert client.read_bytes("/dirty") == b"settled!"


def test_every_handle_hears_at_its_close_that_data_was_lost(world: World) -> None:
    """Whoever of them is told first: the others wrote as well."""
    client = world.quiet()
    first, second, reader = client.open("/f", "wb"), client.open("/f", "r+b"), client.open("/f")
    first.write(b"lost")
    second.pwrite(b"as well", 100)
    drive(client.core.lose_lease(client.core.lease))
    reader.close()  # it has lost nothing
    for file in (first, second):
        with pytest.raises(StatusError) as ended:
            file.close()
        assert ended.value.status is Status.SESSION_ENDED


def test_whoever_discards_a_file_is_not_told_what_it_lacks(world: World) -> None:
    client = world.quiet()
    named, unnamed, told = client.open("/f", "wb"), client.open("/", "wb", unnamed=True), client.open("/f", "r+b")
    for file in (named, unnamed):
        file.write(b"lost")
    drive(client.core.lose_lease(client.core.lease))
    for file in (named, unnamed):
        file.discard()
    with pytest.raises(StatusError, match="silent"):
        told.close()


def test_a_session_that_the_server_ended_is_noticed(world: World) -> None:
    client = world.quiet()
    file = client.open("/f", "wb")
    file.write(b"x")
    drive(client.core.keeper.renew())
    client_id = client.core.env.client
    world.run(world.manager.end_client(client_id))
    drive(client.core.keeper.renew())
    assert client.core.env.client != client_id
    with pytest.raises(StatusError) as ended:
        file.close()
    assert ended.value.status is Status.SESSION_ENDED
    assert file.closed


def test_a_reader_reports_what_it_holds(world: World) -> None:
    client, other = world.quiet(), world.client()
    client.write_bytes("/f", b"still here")
    file = client.open("/f")
    drive(client.core.keeper.renew())
    drive(client.core.keeper.renew())  # open for longer than one interval
    other.unlink("/f")
    assert file.read() == b"still here"


def test_old_write_back_is_sent_by_the_keeper(world: World) -> None:
    client, other = world.quiet(), world.client()
    with client.open("/f", "wb") as file:
        file.write(b"typed long ago")
        assert other.read_bytes("/f") == b""
        now = client.core.env.now()
        drive(client.core.keeper._flush_old(now))
        assert other.read_bytes("/f") == b"typed long ago"
        drive(client.core.keeper._flush_old(now))
        file.write(b"!")
    assert other.read_bytes("/f") == b"typed long ago!"


def test_a_file_from_before_a_lost_lease_still_says_how_it_was_left(world: World) -> None:
    client = world.quiet()
    file = client.open("/f", "wb")
    file.write(b"x" * 100)
    file.flush()
    drive(client.core.lose_lease(client.core.lease))
    handle = next(handle for handle in client.core.handles if handle.name == "/f")
    assert drive(handle.close_with_stat()).size == 100
