"""Events: what watchers hear is what was committed, in that order, and nothing is missed silently."""

from __future__ import annotations

import os
from typing import Any

import pytest

from emberfs.meta import keys
from emberfs.meta.namespace.events import KEPT_SECONDS, WATCHED_SECONDS
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen import meta_pb2
from emberfs.proto.gen.common_pb2 import FILE_TYPE_DIRECTORY
from emberfs.proto.gen.meta_pb2 import EventKind, ReadEventsReply

from .world import ALICE, World, place


async def watch(
    world: World, cookie: bytes = b"", path: str = "/", wait_ms: int = 0, who: Any = None
) -> ReadEventsReply:
    request = meta_pb2.ReadEventsRequest(place=place(path), cookie=cookie, wait_ms=wait_ms)
    reply: ReadEventsReply = await world.ask("read_events", request, *([who] if who else []))
    return reply


def told(reply: ReadEventsReply) -> list[tuple[str, ...]]:
    return [
        tuple(
            part
            for part in (EventKind.Name(e.kind).removeprefix("EVENT_KIND_").lower(), e.path.decode(), e.target.decode())
            if part
        )
        for e in reply.events
    ]


async def test_everything_in_its_order(world: World) -> None:
    await world.touch("/before")
    begin = (await watch(world)).cookie
    directory = (await world.mkdir("/d")).inode
    opened = await world.open("/d/f", os.O_WRONLY | os.O_CREAT)
    await world.close(opened, 10)
    await world.link("/d/f", "/d/g")
    await world.rename("/d/g", "/h")
    await world.set("/h", mode=0o600)
    await world.truncate("/h", 3)
    await world.symlink("/s", "h")
    await world.unlink("/s")
    await world.rename("/h", "/before", 2)
    await world.remove_tree("/d")
    await world.mkdir("/d")  # another one: the paths of the first are not known any more
    reply = await watch(world, begin)
    gone = f"(removed directory {directory:x})"
    assert told(reply)[:-1] == [
        ("created", "/d"),
        ("created", f"{gone}/f"),
        ("written",),
        ("linked", f"{gone}/g"),
        ("renamed", f"{gone}/g", "/h"),
        ("changed",),
        ("written",),
        ("created", "/s"),
        ("removed", "/s"),
        ("renamed", "/h", "/before"),
        ("renamed", "/before", "/h"),
        ("removed", "/d"),
    ]
    assert told(await watch(world, reply.cookie)) == []
    await world.touch("/more")
    assert told(await watch(world, reply.cookie)) == [("created", "/more")]


async def test_only_below_a_directory(world: World) -> None:
    await world.mkdir("/a/b", parents=True)
    await world.mkdir("/c")
    begin = (await watch(world, path="/a")).cookie
    await world.touch("/c/x")
    await world.touch("/a/b/x")
    await world.rename("/c/x", "/a/x")
    await world.rename("/a/b/x", "/c/x")
    reply = await watch(world, begin, "/a")
    assert told(reply) == [("created", "/a/b/x"), ("renamed", "/c/x", "/a/x"), ("renamed", "/a/b/x", "/c/x")]
    with pytest.raises(NotADirectoryError):
        await watch(world, path="/c/x")


async def test_what_happens_deep_down(world: World) -> None:
    """Deeper than the interpreter's stack; paths that are too long for a request begin with a number."""
    await world.mkdir("/here")
    begin = [(await watch(world, path=path)).cookie for path in ("/", "/here")]
    number = (await world.mkdir("/there")).inode
    for _ in range(1200):
        entry = meta_pb2.NewEntry(place=place("deep", number), type=FILE_TYPE_DIRECTORY, mode=0o755)
        number = (await world.ask("create", meta_pb2.CreateRequest(entries=[entry]))).attributes[0].inode
    await world.touch("/here/f")
    assert told(await watch(world, begin[1], "/here")) == []
    reply = await watch(world, begin[0])
    last = (await watch(world, reply.cookie)).events[-2]
    assert last.path.startswith(b"(") and last.path.endswith(b"/deep") and len(last.path) < 4200
    reply = await watch(world, (await watch(world, begin[1], "/here")).cookie, "/here")
    assert told(reply) == [("created", "/here/f")]


async def test_what_failed_is_not_told(world: World) -> None:
    begin = (await watch(world)).cookie
    with pytest.raises(OSError):
        await world.touch("/missing/f")
    request = meta_pb2.RemoveRequest(places=[place("/none")], kind=meta_pb2.REMOVE_KIND_UNLINK, request_id=77)
    await world.ask("remove", request)
    await world.touch("/f")
    again = meta_pb2.CreateRequest(request_id=78)
    await world.ask("create", again)
    assert told(await watch(world, begin)) == [("created", "/f")]


async def test_nobody_watches(world: World) -> None:
    begin = (await watch(world)).cookie
    world.clock.wall += (WATCHED_SECONDS + 1) * 10**9
    await world.touch("/unseen")
    reply = await watch(world, begin)
    assert reply.lost and not reply.events  # it must look at everything anew, and goes on from here
    await world.touch("/seen")
    assert told(await watch(world, reply.cookie)) == [("created", "/seen")]
    world.clock.wall += (WATCHED_SECONDS + 1) * 10**9
    await world.collect()
    assert await world.engine.begin().scan(*keys.prefix_range(keys.EVENT), 10) == []


async def test_the_log_is_cut(world: World) -> None:
    begin = (await watch(world)).cookie
    await world.touch("/old")
    for _ in range(KEPT_SECONDS // WATCHED_SECONDS * 3):
        world.clock.wall += WATCHED_SECONDS // 2 * 10**9
        await watch(world)
    await world.touch("/new")
    await world.collect()
    reply = await watch(world, begin)
    assert reply.lost
    assert len(await world.engine.begin().scan(*keys.prefix_range(keys.EVENT), 10)) == 1


async def test_a_watcher_waits(world: World) -> None:
    begin = (await watch(world)).cookie
    sleep = world.clock.sleep
    slept: list[float] = []

    async def working(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            await world.touch("/f")
        await sleep(seconds)

    world.clock.sleep = working  # type: ignore[method-assign]
    assert told(await watch(world, begin, wait_ms=5000)) == [("created", "/f")]
    assert len(slept) >= 3
    assert told(await watch(world, (await watch(world)).cookie, wait_ms=500)) == []


async def test_who_may_watch(world: World) -> None:
    from emberfs.proto.rpc import Identity

    request = meta_pb2.ReadEventsRequest(place=place("/"))
    with pytest.raises(StatusError) as refused:
        await world.service.read_events(request, world.context(identity=Identity(ALICE.uid, ALICE.gid)))
    assert refused.value.status is Status.NOT_PERMITTED


async def test_a_batch_of_renames(world: World) -> None:
    for name in "abc":
        await world.touch(f"/{name}")
    sources, targets = [place(f"/{n}") for n in "axbc"], [place(f"/{n}") for n in ("1", "2", "3", "1")]
    request = meta_pb2.RenameRequest(sources=sources, targets=targets, flags=1)
    reply = await world.ask("rename", request)
    assert list(reply.statuses) == [0, int(Status.NOT_FOUND), 0, int(Status.EXISTS)]
    assert await world.listdir("/") == ["1", "3", "c"]


@pytest.mark.parametrize("position", [b"", b"A", b"EVN", b"\xff" * 40])
async def test_any_cookie_is_answered(world: World, position: bytes) -> None:
    await world.touch("/f")
    log = (await watch(world)).cookie[:4]
    await world.unlink("/f")
    reply = await watch(world, log + position)
    assert reply.lost and not reply.events


async def test_what_clients_that_are_gone_have_written_is_told(world: World) -> None:
    opened = await world.open("/f", os.O_WRONLY | os.O_CREAT)
    begin = (await watch(world)).cookie
    world.chunks.write(opened.attributes.inode, 100)
    world.namespace.client_ended(world.client)
    await world.namespace.clients.step()
    assert (await world.stat("/f")).length == 100
    reply = await watch(world, begin)
    assert told(reply) == [("written",)] and reply.events[0].inode == opened.attributes.inode


async def test_what_is_allocated_is_told(world: World) -> None:
    opened = await world.open("/f", os.O_WRONLY | os.O_CREAT)
    begin = (await watch(world)).cookie
    request = meta_pb2.AllocateRequest(inode=opened.attributes.inode, session=opened.session, length=100)
    await world.ask("allocate", request)
    assert told(await watch(world, begin)) == [("written",)]
