"""Metadata leases, the server's half: nobody who holds one misses a change, whoever or whatever makes it."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from emberfs.meta.kv.engine import Engine
from emberfs.meta.kv.memory import MemoryEngine
from emberfs.meta.kv.rocksdb import RocksEngine
from emberfs.meta.namespace import leases
from emberfs.meta.namespace.check import check
from emberfs.meta.namespace.leases import Leases, session_of
from emberfs.meta.namespace.ops.attributes import set_attributes
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen import meta_pb2
from emberfs.proto.gen.meta_pb2 import Place, WatchLeasesReply, WatchLeasesRequest
from emberfs.proto.ids import ROOT_INODE
from emberfs.proto.rpc import META, Identity, PeerInfo

from .test_races import YieldingEngine
from .world import ManualClock, World, place

HOLDER, OTHER = b"holder-000000001", b"other--000000001"


@pytest.fixture(params=["memory", "rocksdb"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """Over the engines all of whose commits are made in this process."""
    clock = ManualClock()
    memory = request.param == "memory"
    engine: Engine = MemoryEngine(clock.now) if memory else RocksEngine(str(tmp_path / "kv"), clock.now)
    made = await World(engine, clock).start()
    yield made
    assert await check(made.engine) == []
    await engine.close()


class Holder:
    """A client over one connection, that holds leases."""

    def __init__(self, world: World, client: bytes = HOLDER) -> None:
        self.world = world
        self.context = world.context(client)
        self.context.peer = PeerInfo(client, Identity(0, 0, trusted=True), "local")

    async def begin(self, session: int = 1) -> Holder:
        reply = await self.watch(session)
        assert reply.granting
        assert reply.fresh
        return self

    async def watch(self, session: int = 1) -> WatchLeasesReply:
        return await self.world.service.watch_leases(WatchLeasesRequest(session=session), self.context)

    async def look(self, where: Place, *, lease: bool = True) -> meta_pb2.StatReply:
        return await self.world.service.stat(meta_pb2.StatRequest(places=[where], lease=lease), self.context)

    async def ask(self, method: str, request: Any) -> Any:
        if "request_id" in request.DESCRIPTOR.fields_by_name:
            request.request_id = self.world.request_id()
        return await getattr(self.world.service, method)(request, self.context)

    async def news(self) -> WatchLeasesReply:
        """What the server has to tell now, without waiting for more."""
        session = session_of(self.context.peer)
        assert session is not None
        return await self.watch(session.number) if session.has_news() else WatchLeasesReply(granting=True)

    async def told(self) -> tuple[set[int], set[tuple[int, bytes]]]:
        ended = (await self.news()).changed
        return set(ended.inodes), set(zip(ended.directories, ended.names, strict=True))


def under(directory: int, name: str = "") -> Place:
    return Place(parent=directory, path=name.encode())


# --- who is told what -------------------------------------------------------------------------------------------------------------


async def test_a_change_by_another_client_is_told_once(world: World) -> None:
    file = await world.touch("/f")
    holder = await Holder(world).begin()
    assert (await holder.look(place("/f"))).leased
    await world.set("/f", mode=0o600)
    assert await holder.told() == ({file.inode}, set())
    await world.set("/f", mode=0o640)
    assert await holder.told() == (set(), set())  # it holds no lease any more
    await world.unlink("/f")
    assert await holder.told() == (set(), {(ROOT_INODE, b"f")})  # but where the name leads, it had believed until now


async def test_that_there_is_no_such_name_is_believed_until_there_is(world: World) -> None:
    holder = await Holder(world).begin()
    reply = await holder.look(place("/f"))
    assert reply.statuses == [Status.NOT_FOUND]
    assert reply.leased
    await world.touch("/g")
    assert await holder.told() == (set(), set())  # nobody hears of names that he has not asked for
    await world.touch("/f")
    assert await holder.told() == (set(), {(ROOT_INODE, b"f")})


async def test_who_made_a_directory_hears_of_the_first_name_that_somebody_else_changes(world: World) -> None:
    holder = await Holder(world).begin()
    entry = meta_pb2.NewEntry(place=place("/d"), type=2, mode=0o755)
    made = await holder.ask("create", meta_pb2.CreateRequest(entries=[entry], lease=True))
    assert made.whole
    number = made.attributes[0].inode
    mine = meta_pb2.NewEntry(place=under(number, "mine"), type=1, mode=0o644)
    assert not (await holder.ask("create", meta_pb2.CreateRequest(entries=[mine], lease=True))).whole
    await world.touch("/d/theirs")
    inodes, names = await holder.told()
    assert names == {(number, b"theirs")}
    assert inodes == {number}  # its times
    await world.touch("/d/more")
    assert await holder.told() == (set(), set())
    await world.unlink("/d/mine")
    assert (number, b"mine") in (await holder.told())[1]  # under the lease on that name


async def test_changes_of_ones_own_are_not_told(world: World) -> None:
    holder, other = await Holder(world).begin(), await Holder(world, OTHER).begin()
    made = await holder.ask(
        "create", meta_pb2.CreateRequest(entries=[meta_pb2.NewEntry(place=place("/f"), type=1, mode=0o644)], lease=True)
    )
    assert made.leased
    await other.look(place("/f"))
    await holder.ask("set_attributes", meta_pb2.SetAttributesRequest(place=place("/f"), mode=0o600))
    assert not session_of(holder.context.peer).has_news()  # type: ignore[union-attr]
    assert await other.told() == ({made.attributes[0].inode}, set())
    await world.set("/f", mode=0o644)
    assert await holder.told() == ({made.attributes[0].inode}, set())  # it holds what its own change has left


async def test_moving_a_small_file_into_chunks_and_trimming_these_is_part_of_the_change_that_asks_for_it(
    world: World,
) -> None:
    """A mount that hears of a change drops pages, and must not while its own programs write them."""
    world.namespace.inline_max = lambda: 100
    holder, other = await Holder(world).begin(), await Holder(world, OTHER).begin()
    opened = await holder.ask("open", meta_pb2.OpenRequest(place=place("/f"), flags=os.O_CREAT | os.O_RDWR, mode=0o644))
    number, session = opened.attributes.inode, opened.session
    small = meta_pb2.InlineWrites(offsets=[0], pieces=[b"small"])
    await holder.ask("sync_file", meta_pb2.SyncFileRequest(inode=number, session=session, written=True, inlined=small))
    for each in (holder, other):
        assert (await each.look(under(number))).leased
    grown = await holder.ask("grow", meta_pb2.GrowRequest(inode=number, session=session))
    assert not grown.attributes.inlined
    assert await holder.told() == (set(), set())
    assert await other.told() == ({number}, set())
    world.chunks.write(number, 200, grown.attributes.truncate_version)
    await holder.ask("truncate", meta_pb2.TruncateRequest(place=under(number), length=3, session=session))
    assert world.chunks.trims
    assert await holder.told() == (set(), set())
    await holder.ask("close", meta_pb2.CloseRequest(inode=number, session=session))
    await world.set("/f", mode=0o600)
    assert await holder.told() == ({number}, set())  # it holds its lease still


async def test_a_change_by_another_connection_of_the_same_client_is_told(world: World) -> None:
    file = await world.touch("/f")
    holder, late = await Holder(world).begin(), Holder(world)
    await holder.look(under(file.inode))
    await late.ask("set_attributes", meta_pb2.SetAttributesRequest(place=place("/f"), mode=0o600))
    assert await holder.told() == ({file.inode}, set())


async def test_a_change_from_before_the_session_is_somebody_elses(world: World) -> None:
    """The client gave it up, and has forgotten all that it knew; now it is carried out after all."""
    file = await world.touch("/f")
    holder = await Holder(world).begin()
    task = world.service._task(holder.context, meta_pb2.SetAttributesRequest())
    await holder.begin(session=2)
    await holder.look(under(file.inode))
    request = meta_pb2.SetAttributesRequest(place=place("/f"), mode=0o600, request_id=world.request_id())
    await world.namespace.change(META.SetAttributes, set_attributes, task, request)
    assert await holder.told() == ({file.inode}, set())


async def test_a_listing_is_leased_name_by_name(world: World) -> None:
    directory = await world.mkdir("/d")
    files = [await world.touch(f"/d/{i}") for i in range(5)]
    holder = await Holder(world).begin()
    reply = await holder.ask(
        "read_directory",
        meta_pb2.ReadDirectoryRequest(place=under(directory.inode), attributes=True, lease=True),
    )
    assert reply.leased
    await world.rename("/d/3", "/d/x")
    inodes, names = await holder.told()
    assert names == {(directory.inode, b"3")}
    assert inodes == {files[3].inode}


async def test_no_lease_without_a_session(world: World) -> None:
    await world.touch("/f")
    stranger = Holder(world)
    assert not (await stranger.look(place("/f"))).leased
    holder = await stranger.begin()
    assert not (await holder.look(place("/f"), lease=False)).leased


async def test_a_commit_in_between_forbids_the_grant(world: World) -> None:
    file = await world.touch("/f")
    holder = await Holder(world).begin()
    table = world.namespace.leases
    mark = table.commits
    await world.set("/f", mode=0o600)
    session = session_of(holder.context.peer)
    assert session is not None
    assert not table.keep(session, mark, place("/f"), file.inode)
    assert table.keep(session, table.commits, place("/f"), file.inode)


# --- waiting ----------------------------------------------------------------------------------------------------------------------


async def test_the_request_that_waits_is_answered_by_the_change(world: World) -> None:
    file = await world.touch("/f")
    holder = await Holder(world).begin()
    await holder.look(place("/f"))
    waiting = asyncio.ensure_future(holder.watch())
    await asyncio.sleep(0)
    assert not waiting.done()
    await world.set("/f", mode=0o600)
    assert list((await waiting).changed.inodes) == [file.inode]


async def test_a_beat_answers_without_news_and_who_is_silent_is_forgotten(world: World) -> None:
    await world.touch("/f")
    holder = await Holder(world).begin()
    table = world.namespace.leases
    await holder.look(place("/f"))
    waiting = asyncio.ensure_future(holder.watch())
    await asyncio.sleep(0)
    await table.beat()
    assert (await waiting) == WatchLeasesReply(granting=True)
    world.clock.time += leases.SILENT_SECONDS + 1
    await table.beat()
    assert table.count == 0
    assert not table.watching  # commits cost nothing again
    assert world.engine.watchers == []  # type: ignore[attr-defined]
    assert (await holder.watch()).fresh


async def test_an_engine_that_others_write_to_grants_nothing() -> None:
    clock = ManualClock()
    world = await World(clock=clock).start()
    shared: Engine = YieldingEngine(world.engine, 1)
    other = await World(shared, clock).start()
    assert not (await Holder(other).watch()).granting


# --- limits -----------------------------------------------------------------------------------------------------------------------


async def test_the_oldest_leases_of_a_session_go_first(world: World) -> None:
    holder = await Holder(world).begin()
    session = session_of(holder.context.peer)
    assert session is not None
    table: Leases = world.namespace.leases
    for inode in range(1000, 1000 + leases.LEASES_MAX):
        assert table.keep(session, table.commits, Place(), inode)
    assert table.count == leases.LEASES_MAX
    assert table.keep(session, table.commits, Place(), 1)
    reply = await holder.news()
    gone = leases.LEASES_MAX // leases.DROPPED_PART
    assert list(reply.dropped.inodes) == list(range(1000, 1000 + gone))
    assert not reply.HasField("changed")
    assert table.count == leases.LEASES_MAX - gone + 1


async def test_a_tree_is_detached_while_a_session_is_forgotten(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """All leases end with that, also those that are being let go, slice by slice."""
    monkeypatch.setattr(leases, "SLICE", 2)
    await world.mkdir("/d")
    for i in range(8):
        await world.touch(f"/{i}")
    holder, table = await Holder(world).begin(), world.namespace.leases
    for i in range(8):
        await holder.look(place(f"/{i}"))
    other = await Holder(world, OTHER).begin()
    session = session_of(holder.context.peer)
    assert session is not None and len(session.held) == 16
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 1:
            await world.remove_tree("/d")

    table._end(session)
    monkeypatch.setattr(world.clock, "sleep", sleep)
    await table.beat()
    assert table.count == 0 and not session.held
    await other.look(place("/1"))
    assert table.count == 2


async def test_who_does_not_listen_is_told_to_forget_everything(world: World) -> None:
    holder = await Holder(world).begin()
    session = session_of(holder.context.peer)
    assert session is not None
    for i in range(leases.NEWS_MAX + 1):
        session.tell(b"INOD" + i.to_bytes(8, "big"))
    reply = await holder.news()
    assert reply.everything
    assert not reply.changed.inodes


# --- no operation is forgotten ----------------------------------------------------------------------------------------------------

NAMES = ("a", "b", "c")
Step = Callable[[World, random.Random], Awaitable[object]]


def _path(chance: random.Random) -> str:
    return "/" + "/".join(chance.choice(NAMES) for _ in range(chance.choice((1, 1, 2, 2, 3))))


async def _write(world: World, chance: random.Random) -> None:
    opened = await world.open(_path(chance), os.O_RDWR | os.O_CREAT | chance.choice((0, os.O_TRUNC)), client=OTHER)
    if chance.random() < 0.7:
        await world.close(opened, chance.randint(0, 9000), client=OTHER)


async def _xattr(world: World, chance: random.Random) -> None:
    await world.ask(
        "set_xattr", meta_pb2.SetXattrRequest(place=place(_path(chance)), name=b"user.x", value=b"1", follow=False)
    )


async def _no_xattr(world: World, chance: random.Random) -> None:
    await world.ask("remove_xattr", meta_pb2.RemoveXattrRequest(place=place(_path(chance)), name=b"user.x"))


async def _read_times(world: World, chance: random.Random) -> None:
    file = await world.stat(_path(chance))
    await world.ask("read_times", meta_pb2.ReadTimesRequest(inodes=[file.inode]))


async def _restore(world: World, chance: random.Random) -> None:
    for entry in (await world.ask("list_trash", meta_pb2.ListTrashRequest())).entries[:1]:
        await world.ask("restore_trash", meta_pb2.RestoreTrashRequest(expires=entry.expires, inode=entry.inode))


async def _purge(world: World, chance: random.Random) -> None:
    for entry in (await world.ask("list_trash", meta_pb2.ListTrashRequest())).entries[:1]:
        await world.ask("purge_trash", meta_pb2.PurgeTrashRequest(expires=[entry.expires], inodes=[entry.inode]))


async def _quota(world: World, chance: random.Random) -> None:
    await world.ask(
        "set_quota",
        meta_pb2.SetQuotaRequest(
            kind=meta_pb2.QUOTA_KIND_DIRECTORY,
            place=place(_path(chance)),
            bytes_max=1 << 40,
            remove=chance.random() < 0.5,
        ),
    )
    await world.namespace.recounter.step()


async def _lose_client(world: World, chance: random.Random) -> None:
    world.namespace.client_ended(OTHER)
    await world.namespace.clients.step()
    world.namespace.clients._gone.clear()  # the next steps are by another one, of the same name


async def _publish(world: World, chance: random.Random) -> None:
    opened = await world.open("/", os.O_RDWR, unnamed=True, client=OTHER)
    request = meta_pb2.PublishRequest(inodes=[opened.attributes.inode], targets=[place(_path(chance))])
    await world.ask("publish", request, client=OTHER)
    await world.close(opened, 5, client=OTHER)


STEPS: dict[str, Step] = {
    "mkdir": lambda w, c: w.mkdir(_path(c), parents=c.random() < 0.3),
    "touch": lambda w, c: w.touch(_path(c)),
    "symlink": lambda w, c: w.symlink(_path(c), "/a"),
    "link": lambda w, c: w.link(_path(c), _path(c)),
    "unlink": lambda w, c: w.unlink(_path(c)),
    "rmdir": lambda w, c: w.rmdir(_path(c)),
    "remove_tree": lambda w, c: w.remove_tree(_path(c)),
    "rename": lambda w, c: w.rename(_path(c), _path(c)),
    "exchange": lambda w, c: w.rename(_path(c), _path(c), 2),
    "chmod": lambda w, c: w.set(_path(c), mode=c.choice((0o700, 0o755, 0o644))),
    "chown": lambda w, c: w.set(_path(c), uid=c.randint(0, 3)),
    "utimes": lambda w, c: w.set(_path(c), mtime_ns=c.randint(1, 10**9)),
    "truncate": lambda w, c: w.truncate(_path(c), c.randint(0, 5000)),
    "keep what is removed": lambda w, c: w.set("/", trash=c.choice((1, 100))),
    "write": _write,
    "set_xattr": _xattr,
    "remove_xattr": _no_xattr,
    "read_times": _read_times,
    "restore": _restore,
    "purge": _purge,
    "quota": _quota,
    "collect": lambda w, c: w.collect(),
    "a client is gone": _lose_client,
    "publish": _publish,
}

Answers = dict[tuple[int, str], bytes]


async def believed(holder: Holder, directories: set[int]) -> Answers:
    """Ask for every inode and every name, under leases."""
    answers: Answers = {}
    known = {ROOT_INODE} | directories
    for directory in sorted(known):
        for name in NAMES:
            answers[directory, name] = await _answer(holder, under(directory, name), known)
    for inode in sorted(known):
        answers[inode, ""] = await _answer(holder, under(inode), known)
    directories |= known
    return answers


async def _answer(holder: Holder, where: Place, known: set[int]) -> bytes:
    reply = await holder.look(where)
    found = reply.attributes[0]
    if reply.statuses[0]:
        return b""  # there is no such name, or nothing that could have it
    assert reply.leased
    known.add(found.inode)
    return found.SerializeToString() if not where.path else b"%d" % found.inode


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_changes_is_told(world: World, seed: int) -> None:
    chance = random.Random(seed)
    for name in ("/a", "/a/b", "/b"):
        await world.mkdir(name)
    for name in ("/c", "/a/c", "/a/b/c"):
        await world.touch(name)
    holder = await Holder(world).begin()
    inodes: set[int] = set()
    done: set[str] = set()
    for _ in range(60):
        before = await believed(holder, inodes)
        before = await believed(holder, inodes)  # with what was found just now
        await holder.news()
        before = await believed(holder, inodes)
        name, step = chance.choice(list(STEPS.items()))
        try:
            await step(world, chance)
            done.add(name)
        except StatusError:
            pass
        news = await holder.news()
        told_inodes = set(news.changed.inodes)
        told_names = {(d, n.decode()) for d, n in zip(news.changed.directories, news.changed.names, strict=True)}
        after = await believed(holder, inodes)
        for (inode, entry), answer in before.items():
            if answer != after[inode, entry] and not news.everything:
                assert (inode, entry) in told_names if entry else inode in told_inodes, (name, inode, entry)
    assert len(done) > 5
