"""Open, create, close, sync and truncate: flags, sessions, how a length is settled."""

from __future__ import annotations

import os
from typing import Any

import pytest

from emberfs.meta.namespace.access import ROOT, Credentials
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen import meta_pb2
from emberfs.proto.gen.common_pb2 import FILE_TYPE_FIFO, FILE_TYPE_REGULAR

from .world import ALICE, BOB, World, place

R, W, RW = os.O_RDONLY, os.O_WRONLY, os.O_RDWR
CREATE, EXCLUSIVE, TRUNCATE = os.O_CREAT, os.O_EXCL, os.O_TRUNC


@pytest.mark.parametrize(("access", "rights"), [(R, 1), (W, 2), (RW, 3)])
async def test_a_capability_grants_what_was_asked_for(world: World, access: int, rights: int) -> None:
    """Who may write a file but not read it gets no right to read its chunks."""
    await world.touch("/f", mode=0o622)
    opened = await world.open("/f", access, BOB if access == W else ROOT)
    assert opened.capability.startswith(b"%d:%d:" % (opened.attributes.inode, rights))
    created = await world.open("/g", CREATE | access)
    assert created.capability.startswith(b"%d:%d:" % (created.attributes.inode, rights))


async def test_a_right_that_was_granted_is_granted_again(world: World) -> None:
    """An open file stays usable as it was opened, as in POSIX: its mode may never have given that right to anybody."""
    await world.mkdir("/d", mode=0o777)
    made = await world.open("/d/f", CREATE | EXCLUSIVE | W, ALICE, mode=0o444)
    number = made.attributes.inode

    async def again(flags: int, capability: bytes, client: bytes | None = None, inode: int = number) -> Any:
        request = meta_pb2.OpenRequest(place=place("", inode), flags=flags, capability=capability)
        return await world.ask("open", request, ALICE, client)

    renewed = await again(W, made.capability)
    assert renewed.capability == made.capability
    assert renewed.session not in (0, made.session)
    other = (await world.touch("/d/other", mode=0o444)).inode
    for refused in (
        again(W, b""),
        again(RW, made.capability),
        again(W, made.capability, client=b"another---------"),
        again(W, made.capability, inode=other),
    ):
        with pytest.raises(StatusError) as caught:
            await refused
        assert caught.value.status is Status.PERMISSION_DENIED
    reading = await world.open("/d/f", R, ALICE)
    await world.set("/d/f", mode=0)
    assert (await again(R, reading.capability)).capability == reading.capability


async def test_who_may_only_read_does_not_cut(world: World) -> None:
    """O_RDONLY | O_TRUNC takes the right to write, which a capability for reading does not grant."""
    await furnish(world)
    number = (await world.stat("/f")).inode
    reading = await world.open("/f", R, ALICE)
    cut = meta_pb2.OpenRequest(place=place("", number), flags=R | os.O_TRUNC, capability=reading.capability)
    with pytest.raises(StatusError) as refused:
        await world.ask("open", cut, ALICE)
    assert refused.value.status is Status.PERMISSION_DENIED
    assert (await world.stat("/f")).length == 100
    writing = await world.open("/f", W)
    await world.set("/f", mode=0)
    cut = meta_pb2.OpenRequest(place=place("", number), flags=W | os.O_TRUNC, capability=writing.capability)
    assert (await world.ask("open", cut, ALICE)).attributes.length == 0


async def furnish(world: World) -> None:
    await world.mkdir("/d")
    opened = await world.open("/f", CREATE | W)
    world.chunks.write(opened.attributes.inode, 100)
    await world.close(opened, 100)
    await world.symlink("/to_f", "f")
    await world.symlink("/to_d", "d")
    await world.symlink("/to_nothing", "made")
    await world.make("/fifo", FILE_TYPE_FIFO)


@pytest.mark.parametrize(
    ("path", "flags", "outcome"),
    [
        ("/f", R, "open"),
        ("/f", W, "open"),
        ("/f", RW | os.O_APPEND, "open"),
        ("/f", 3, Status.INVALID),
        ("/f", CREATE | W, "open"),
        ("/f", CREATE | EXCLUSIVE | W, Status.EXISTS),
        ("/f", os.O_DIRECTORY | R, Status.NOT_DIRECTORY),
        ("/f/", R, Status.NOT_DIRECTORY),
        ("/f/", CREATE | W, Status.IS_DIRECTORY),
        ("/new", R, Status.NOT_FOUND),
        ("/new", CREATE | R, "created"),
        ("/new", CREATE | EXCLUSIVE | RW, "created"),
        ("/new/", CREATE | W, Status.IS_DIRECTORY),
        ("/new", CREATE | os.O_DIRECTORY | R, Status.INVALID),
        ("/nowhere/new", CREATE | W, Status.NOT_FOUND),
        ("/f/new", CREATE | W, Status.NOT_DIRECTORY),
        ("/d", R, "open"),
        ("/d", R | os.O_DIRECTORY, "open"),
        ("/d", W, Status.IS_DIRECTORY),
        ("/d", R | TRUNCATE, Status.IS_DIRECTORY),
        ("/d", R | CREATE, Status.IS_DIRECTORY),
        ("/d", R | CREATE | EXCLUSIVE, Status.EXISTS),
        ("/", R, "open"),
        ("/.", CREATE | W, Status.IS_DIRECTORY),
        ("/to_f", R, "open"),
        ("/to_f", R | os.O_NOFOLLOW, Status.SYMLINK_LOOP),
        ("/to_f", R | os.O_NOFOLLOW | os.O_DIRECTORY, Status.NOT_DIRECTORY),
        ("/to_f", CREATE | EXCLUSIVE | W, Status.EXISTS),
        ("/to_d", R | os.O_DIRECTORY, "open"),
        ("/to_nothing", R, Status.NOT_FOUND),
        ("/to_nothing", CREATE | W, "created"),
        ("/to_nothing", CREATE | EXCLUSIVE | W, Status.EXISTS),
        ("/to_nothing", CREATE | os.O_NOFOLLOW | W, Status.SYMLINK_LOOP),
        ("/fifo", R, Status.NO_DEVICE),
        ("/" + "n" * 256, CREATE | W, Status.NAME_TOO_LONG),
    ],
)
async def test_flags(world: World, path: str, flags: int, outcome: str | Status) -> None:
    await furnish(world)
    if isinstance(outcome, Status):
        with pytest.raises(StatusError) as caught:
            await world.open(path, flags)
        assert caught.value.status is outcome
        return
    opened = await world.open(path, flags)
    assert opened.created == (outcome == "created")
    assert bool(opened.session) == (flags & 3 != R)
    regular = opened.attributes.type == 1
    assert bool(opened.capability) == regular
    await world.close(opened)


@pytest.mark.parametrize(
    ("mode", "flags", "who", "fine"),
    [
        (0o400, R, ALICE, True),
        (0o400, W, ALICE, False),
        (0o200, W, ALICE, True),
        (0o200, R, ALICE, False),
        (0o600, RW, ALICE, True),
        (0o077, R, ALICE, False),  # the owner's class decides, though everybody else may
        (0o040, R, Credentials(7, 7, (ALICE.gid,)), True),
        (0o604, R, Credentials(7, ALICE.gid), False),
        (0o604, R, BOB, True),
        (0o600, R, BOB, False),
        (0o644, R | TRUNCATE, BOB, False),
        (0o000, RW, Credentials(0, 0), True),
    ],
)
async def test_permissions(world: World, mode: int, flags: int, who: Credentials, fine: bool) -> None:
    await world.touch("/f", mode=mode)
    await world.set("/f", uid=ALICE.uid, gid=ALICE.gid)
    if fine:
        await world.close(await world.open("/f", flags, who))
    else:
        with pytest.raises(PermissionError) as caught:
            await world.open("/f", flags, who)
        assert caught.value.errno == 13


async def test_creator_may_use_what_it_made_whatever_the_mode(world: World) -> None:
    await world.set("/", mode=0o777)
    opened = await world.open("/f", CREATE | RW, ALICE, mode=0)
    assert opened.session
    assert (opened.attributes.uid, opened.attributes.gid, opened.attributes.mode) == (*ALICE[:2], 0)
    with pytest.raises(PermissionError):
        await world.open("/f", R, ALICE)


async def test_create_needs_a_writable_directory(world: World) -> None:
    await world.mkdir("/d", mode=0o755)
    for path in ("/d/f", "/f"):
        with pytest.raises(PermissionError):
            await world.open(path, CREATE | W, ALICE)


async def test_parents(world: World) -> None:
    opened = await world.open("/a/b/c/f", CREATE | W, mode=0o640, parents=True)
    assert opened.created
    assert (await world.stat("/a/b")).mode == 0o750  # whoever may read the file may get there
    await world.open("/a/b/c/g", CREATE | W, parents=True)
    with pytest.raises(NotADirectoryError):
        await world.open("/a/b/c/f/g", CREATE | W, parents=True)
    assert (await world.stat("/a/b/c")).nlink == 2


async def test_layout_comes_from_request_then_directory_then_cluster(world: World) -> None:
    await world.mkdir("/d", chunk_size=1 << 16, stripe=2)
    plain = (await world.touch("/plain")).layout
    inherited = (await world.touch("/d/f")).layout
    chosen = (await world.open("/d/g", CREATE | W, chunk_size=1 << 22, stripe=1)).attributes.layout
    assert (plain.chunk_size, plain.stripe) == (1 << 20, 3)  # three chains are all there are
    assert (inherited.chunk_size, inherited.stripe) == (1 << 16, 2)
    assert (chosen.chunk_size, chosen.stripe) == (1 << 22, 1)
    assert [(await world.touch(f"/{i}")).layout.base for i in range(4)] == [0, 1, 2, 0]
    assert (await world.mkdir("/d/sub")).layout.chunk_size == 1 << 16
    for bad in (3 << 16, 1 << 15, 1 << 27):
        with pytest.raises(StatusError, match="power of two"):
            await world.open("/bad", CREATE | W, chunk_size=bad)


async def test_length_is_the_highest_end_reported(world: World) -> None:
    first = await world.open("/f", CREATE | W)
    second = await world.open("/f", W)
    synced = await world.ask(
        "sync_file",
        meta_pb2.SyncFileRequest(
            inode=first.attributes.inode, session=first.session, written=True, length=10, durable=True
        ),
    )
    assert synced.attributes.length == 10
    assert (await world.close(second, 30)).length == 30
    closed = await world.close(first, 20, sparse=True)
    assert (closed.length, closed.sparse) == (30, True)
    assert closed.change > synced.attributes.change > first.attributes.change
    assert closed.mtime_ns > first.attributes.mtime_ns


async def test_times_of_a_file_are_those_of_its_last_write(world: World) -> None:
    opened = await world.open("/f", CREATE | W)
    world.clock.wall += 10**9
    written_ns = opened.attributes.ctime_ns + 5
    closed = await world.close(opened, 1, mtime_ns=written_ns)
    assert (closed.mtime_ns, closed.ctime_ns) == (written_ns, written_ns)
    for said_ns, latest_ns in ((written_ns + 10**15, written_ns + 2 * 10**9), (7, written_ns + 2 * 10**9)):
        before_ns = closed.ctime_ns
        closed = await world.close(await world.open("/f", W), 1, mtime_ns=said_ns)
        assert closed.mtime_ns <= latest_ns  # no time lies in the future, whatever the writer's clock says
        assert closed.ctime_ns >= before_ns  # and this one never goes back
    assert closed.mtime_ns == 7


async def test_a_session_ends_once_and_belongs_to_its_client(world: World) -> None:
    opened = await world.open("/f", CREATE | W)
    with pytest.raises(StatusError) as caught:
        await world.close(opened, 1, client=b"another client--")
    assert caught.value.status is Status.BAD_HANDLE
    await world.close(opened, 1)
    with pytest.raises(StatusError) as caught:
        await world.close(opened, 2)
    assert caught.value.status is Status.SESSION_ENDED
    opened.session = 0
    with pytest.raises(StatusError) as caught:
        await world.close(opened, 2)
    assert caught.value.status is Status.BAD_HANDLE
    await world.close(opened)  # a reader's close


async def test_stale_hint_cannot_regrow_a_truncated_file(world: World) -> None:
    opened = await world.open("/f", CREATE | W)
    number = opened.attributes.inode
    world.chunks.write(number, 1000)
    cut = await world.truncate("/f", 300)
    assert (cut.length, cut.truncate_version) == (300, 1)
    assert world.chunks.trims == [(number, 300, 1)]
    closed = await world.close(opened, 1000, truncate_version=0)
    assert closed.length == 300
    reopened = await world.open("/f", W)
    with pytest.raises(StatusError) as caught:
        await world.close(reopened, 5, truncate_version=2)
    assert caught.value.status is Status.PROTOCOL


async def test_writes_after_a_truncate_count(world: World) -> None:
    opened = await world.open("/f", CREATE | W)
    number = opened.attributes.inode
    world.chunks.write(number, 1000)
    cut = await world.truncate("/f", 300)
    world.chunks.write(number, 400, cut.truncate_version)
    assert (await world.close(opened, 400, truncate_version=cut.truncate_version)).length == 400


async def test_truncate_up_leaves_a_hole(world: World) -> None:
    await world.make("/f", FILE_TYPE_REGULAR)
    grown = await world.truncate("/f", 5000)
    assert (grown.length, grown.sparse, grown.truncate_version, world.chunks.trims) == (5000, True, 0, [])
    with pytest.raises(StatusError) as caught:
        await world.truncate("/f", 1 << 63)
    assert caught.value.status is Status.FILE_TOO_BIG


async def test_truncate_beyond_an_open_writer_trims_what_lies_behind(world: World) -> None:
    opened = await world.open("/f", CREATE | W)
    world.chunks.write(opened.attributes.inode, 1000)  # settled nowhere yet
    await world.truncate("/f", 600)
    assert world.chunks.ends[opened.attributes.inode] == 600


async def test_open_truncate(world: World) -> None:
    await furnish(world)
    opened = await world.open("/f", W | TRUNCATE)
    assert (opened.attributes.length, opened.attributes.truncate_version) == (0, 1)
    assert world.chunks.ends[opened.attributes.inode] == 0
    await world.close(opened, 7, truncate_version=1)
    assert (await world.stat("/f")).length == 7
    await world.touch("/empty")
    trims = len(world.chunks.trims)
    await world.open("/empty", W | TRUNCATE)
    assert len(world.chunks.trims) == trims  # nothing there, nobody writing: storage is not asked


async def test_growing_waits_for_an_unfinished_trim(world: World) -> None:
    await furnish(world)
    opened = await world.open("/f", W)
    world.chunks.down = True
    with pytest.raises(StatusError) as caught:
        await world.truncate("/f", 10)
    assert caught.value.status is Status.UNAVAILABLE
    assert (await world.stat("/f")).length == 10  # the cut itself is done
    for length in (20, 5):
        with pytest.raises(StatusError):
            await world.truncate("/f", length)
    with pytest.raises(StatusError):
        await world.close(opened, 200, truncate_version=1)
    world.chunks.down = False
    assert (await world.close(opened, 200, truncate_version=1)).length == 200
    assert world.chunks.ends[opened.attributes.inode] == 10


async def test_the_same_truncate_again_finishes_the_trim(world: World) -> None:
    await furnish(world)
    request = meta_pb2.TruncateRequest(place=place("/f"), length=10, request_id=world.request_id())
    world.chunks.down = True
    with pytest.raises(StatusError):
        await world.ask("truncate", request)
    world.chunks.down = False
    reply = await world.ask("truncate", request)
    assert reply.attributes.length == 10
    assert len(world.chunks.trims) == 1


async def test_the_background_finishes_trims(world: World) -> None:
    await furnish(world)
    world.chunks.down = True
    with pytest.raises(StatusError):
        await world.truncate("/f", 10)
    world.chunks.down = False
    await world.namespace.clients.step()
    assert len(world.chunks.trims) == 1


async def test_writing_and_truncating_clear_set_id_bits(world: World) -> None:
    await world.set("/", mode=0o777)
    for i, length in enumerate((None, 1)):
        await world.touch(f"/{i}", ALICE)
        await world.set(f"/{i}", ALICE, mode=0o6755)
        if length is None:
            assert (await world.truncate(f"/{i}", 0, ALICE)).mode == 0o755
        else:
            assert (await world.close(await world.open(f"/{i}", W, ALICE), length)).mode == 0o755


async def test_crashed_writer_is_settled_from_the_chunks(world: World) -> None:
    opened = await world.open("/f", CREATE | W)
    other = await world.open("/f", W, client=b"another client--")
    world.chunks.write(opened.attributes.inode, 12345)
    assert await world.namespace.session_clients() == [b"another client--", world.client]
    world.namespace.client_ended(world.client)
    await world.namespace.clients.step()
    settled = await world.stat("/f")
    assert (settled.length, settled.sparse) == (12345, True)
    assert await world.namespace.session_clients() == [b"another client--"]
    with pytest.raises(StatusError) as caught:
        await world.close(opened, 99999)
    assert caught.value.status is Status.SESSION_ENDED
    assert (await world.close(other, 1, client=b"another client--")).length == 12345


async def test_settlement_waits_for_storage(world: World) -> None:
    opened = await world.open("/f", CREATE | W)
    world.chunks.write(opened.attributes.inode, 10)
    world.chunks.down = True
    world.namespace.client_ended(world.client)
    with pytest.raises(StatusError):
        await world.namespace.clients.step()
    assert await world.namespace.session_clients() == [world.client]
    world.chunks.down = False
    await world.namespace.clients.step()
    assert (await world.stat("/f")).length == 10


async def test_what_cannot_be_settled_does_not_hold_up_the_rest(world: World) -> None:
    """A chain that is down concerns the files on it; other clients are cleaned up after, and old records go."""
    stuck, other = b"client-stuck----", b"client-other----"
    first = await world.open("/1", CREATE | W, client=stuck)
    second = await world.open("/2", CREATE | W, client=other)
    world.chunks.write(second.attributes.inode, 77)
    world.chunks.lost.add(first.attributes.inode)
    for client in (stuck, other):
        world.namespace.client_ended(client)
    with pytest.raises(StatusError):
        await world.namespace.clients.step()
    assert (await world.stat("/2")).length == 77
    assert await world.namespace.session_clients() == [stuck]
    world.chunks.lost.clear()
    await world.namespace.clients.step()
    assert await world.namespace.session_clients() == []
