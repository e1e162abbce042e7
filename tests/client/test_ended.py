"""Files that were only made: their close says nothing to the server, and the end of their session comes with what is said next."""

from __future__ import annotations

import pytest

from emberfs.client.blocking import Client
from emberfs.client.core.ended import UNTOLD_MAX
from emberfs.meta import keys
from emberfs.meta.namespace.check import check
from emberfs.proto.env import drive
from emberfs.proto.gen.meta_pb2 import CloseRequest, EndedSessions
from emberfs.proto.rpc import META

from .test_inline import Counted
from .world import World


@pytest.fixture
def quiet(world: World) -> Client:
    """A client whose keeper never comes in between."""
    return world.quiet()


def sessions(world: World) -> int:
    """How many the server knows."""

    async def count() -> int:
        txn = world.namespace.engine.begin()
        return len(await txn.scan(*keys.prefix_range(keys.SESSION), 10_000, snapshot=True))

    return world.run(count())


def make(client: Client, path: str) -> None:
    client.open(path, "xb").close()


def test_a_file_is_made_with_one_request_and_its_session_ends_with_the_next(world: World, quiet: Client) -> None:
    counted = Counted(quiet)
    for number in range(10):
        make(quiet, f"/f{number}")
        assert sessions(world) == 1
    assert counted.take() == ["Open"] * 10
    with quiet.open("/f3", "wb") as file:
        assert sessions(world) == 1  # the one of this handle
        file.write(b"x")
    assert sessions(world) == 0
    assert world.run(check(world.namespace.engine)) == []


def test_what_was_written_is_told_by_the_close_itself(world: World, quiet: Client) -> None:
    make(quiet, "/made")
    with quiet.open("/f", "wb") as file:
        file.write(b"x")
        file.flush()
        counted = Counted(quiet)
        file.write(b"y")
    assert "Close" in counted.take()
    assert sessions(world) == 0
    assert world.client().read_bytes("/f") == b"xy"


def test_what_is_flushed_has_nothing_left_to_say(world: World, quiet: Client) -> None:
    with quiet.open("/f", "wb") as file:
        file.write(b"x" * 10)
        file.flush()
        counted = Counted(quiet)
    assert counted.take() == []
    assert world.client().stat("/f").size == 10


def test_the_client_that_closes_says_all(world: World) -> None:
    client = world.client()
    for number in range(5):
        make(client, f"/f{number}")
    drive(client.core.tell_ended())
    assert sessions(world) == 0
    make(client, "/last")
    client.close()
    assert sessions(world) == 0


def test_the_keeper_says_what_nobody_else_does(world: World, quiet: Client) -> None:
    make(quiet, "/f")
    assert quiet.core.keeper._anything_old()
    drive(quiet.core.keeper._write_out())
    assert sessions(world) == 0 and not quiet.core.keeper._anything_old()


def test_a_request_that_fails_ends_no_session_and_the_next_one_does(world: World, quiet: Client) -> None:
    make(quiet, "/f")
    with pytest.raises(FileExistsError):
        make(quiet, "/f")
    assert sessions(world) == 1 and len(quiet.core.ended) == 1
    make(quiet, "/g")
    assert sessions(world) == 1 and len(quiet.core.ended) == 1


def test_only_so_many_wait(world: World, quiet: Client) -> None:
    files = [quiet.open(f"/f{number}", "xb") for number in range(UNTOLD_MAX + 2)]
    counted = Counted(quiet)
    for file in files:
        file.close()
    assert counted.take() == ["Close"]  # of the one that was too many, with all before it
    assert sessions(world) == 1 == len(quiet.core.ended)


def test_a_file_that_was_removed_meanwhile_is_freed(world: World, quiet: Client) -> None:
    make(quiet, "/f")
    quiet.unlink("/f")
    drive(quiet.core.tell_ended())
    assert sessions(world) == 0
    assert world.run(check(world.namespace.engine)) == []


def test_nobody_ends_the_session_of_another_client(world: World, quiet: Client) -> None:
    other = world.client()
    with other.open("/f", "xb") as file:
        ended = EndedSessions(inodes=[file.stat().inode, 99], sessions=[file.handle.session, 7])
        drive(quiet.core.cluster.change(META.Close, CloseRequest(ended=ended)))
        assert sessions(world) == 1
        file.write(b"still mine")
    assert quiet.read_bytes("/f") == b"still mine"


def test_who_asks_what_the_file_was_left_with_is_told_by_the_close(world: World, quiet: Client) -> None:
    # Asked after it, the file may be gone: somebody has removed it, and its session holds it no more.
    counted = Counted(quiet)
    assert quiet.write_bytes("/f", b"").size == 0
    assert counted.take() == ["Open", "Close"]
    assert sessions(world) == 0
    file = quiet.open("/f", "wb", buffering=0)
    world.client().unlink("/f")
    assert drive(file.handle.close_with_stat()).type == "file"
