"""Metadata leases, the client's half: what is believed without asking is what the server would say."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from emberfs.client.core import leases as module
from emberfs.client.core.attributes import Stat, stat_of
from emberfs.client.core.client import Core
from emberfs.client.core.leases import MISSING, Leases
from emberfs.client.core.options import Mode, Options
from emberfs.client.core.paths import at
from emberfs.proto.drivers.aio import AioEnvironment
from emberfs.proto.errors import Status, StatusError, error
from emberfs.proto.gen import meta_pb2
from emberfs.proto.gen.common_pb2 import Attributes
from emberfs.proto.gen.meta_pb2 import Place
from emberfs.proto.rpc import META
from emberfs.proto.settings import parse_url

NAMES = (b"a", b"b", b"c")
TELLINGS_MAX = 20


def a_stat(inode: int, **fields: Any) -> Stat:
    return replace(stat_of(Attributes(inode=inode, type=1, mode=0o644, nlink=1)), **fields)


# --- alone ------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def leases() -> AsyncIterator[Leases[Stat]]:
    """Those of a client that is not connected, and believes that it is."""
    core = Core(AioEnvironment(), (), Options(), 0)
    made = core.hold_leases(replace)
    made._valid_until = core.env.now() + 1000
    yield made
    await core.env.close()  # type: ignore[misc]


async def test_a_reply_that_a_notice_has_overtaken_is_not_learned(leases: Leases[Stat]) -> None:
    began = leases.asked()
    leases.forget([5], [(1, b"f")])
    leases.learn(began, at(1, b"f"), a_stat(5))
    assert leases.attributes(5) is None
    assert leases.entry(1, b"f") is None
    leases.learn(began, at(1, b"g"), a_stat(6))  # of which nobody has said anything
    assert leases.entry(1, b"g") == 6
    leases.learn(leases.asked(), at(1, b"f"), None)
    assert leases.entry(1, b"f") == MISSING


async def test_notices_that_are_not_remembered_one_by_one_count_for_all(leases: Leases[Stat]) -> None:
    began = leases.asked()
    leases.forget(range(10, 12 + module.NOTICES_MAX))
    leases.learn(began, at(5), a_stat(5))
    assert leases.attributes(5) is None


async def test_of_many_notices_the_younger_ones_are_remembered_one_by_one(leases: Leases[Stat]) -> None:
    """Or changes that are under way while others reach the limit would end what is known of whole directories."""
    old = leases.asked()
    for inode in range(10, 10 + module.NOTICES_MAX):
        leases.forget([inode])
    began = leases.asked()
    leases.forget([9], [(1, b"f")])
    assert len(leases._told) < module.NOTICES_MAX
    for question, inode, learned in ((began, 5, True), (began, 9, False), (old, 6, False)):
        leases.learn(question, at(inode), a_stat(inode))
        assert (leases.attributes(inode) is not None) is learned


async def test_what_is_known_is_bounded(leases: Leases[Stat]) -> None:
    stat = a_stat(1)
    for inode in range(1, module.INODES_MAX + 1000):
        stat.inode = inode
        leases.learn(leases.asked(), Place(parent=1, path=b"%d" % inode), stat)
        assert len(leases) <= module.INODES_MAX + module.NAMES_MAX
    assert leases.attributes(1) is None
    assert leases.attributes(module.INODES_MAX + 999) is not None


async def test_a_change_of_our_own_is_learned_from_its_reply_or_forgotten(leases: Leases[Stat]) -> None:
    leases.learn(leases.asked(), at(1, b"f"), a_stat(5))
    leases.learn(leases.asked(), at(1), a_stat(1, type="directory"))
    began = leases.begin()
    request = meta_pb2.SetAttributesRequest(place=at(5), mode=0o600)
    reply = meta_pb2.SetAttributesReply(attributes=Attributes(inode=5, type=1, mode=0o600))
    leases.changed(began, META.SetAttributes, request, reply)
    found = leases.attributes(5)
    assert found is not None
    assert found.mode == 0o600
    leases.learn(began, at(5), a_stat(5, mode=0o644))  # a question from before has its answer late
    assert leases.attributes(5) == found
    remove = meta_pb2.RemoveRequest(places=[at(1, b"f")], kind=meta_pb2.REMOVE_KIND_UNLINK)
    leases.changed(leases.begin(), META.Remove, remove, meta_pb2.RemoveReply(statuses=[0], inodes=[5]))
    assert leases.entry(1, b"f") == MISSING  # who held a lease on the name holds it still
    assert leases.attributes(5) is None
    assert leases.attributes(1) is None


async def test_two_changes_of_our_own_whose_replies_change_places(leases: Leases[Stat]) -> None:
    leases.learn(leases.asked(), at(5), a_stat(5))
    begun = [leases.begin(), leases.begin()]
    request = meta_pb2.SetAttributesRequest(place=at(5))
    for began, mode in zip(begun, (0o600, 0o640), strict=True):  # the first reply is that of the second change
        reply = meta_pb2.SetAttributesReply(attributes=Attributes(inode=5, type=1, mode=mode))
        leases.changed(began, META.SetAttributes, request, reply)
    assert leases.attributes(5) is None


@pytest.mark.parametrize(
    ("failure", "forgotten"),
    [
        (error(Status.EXISTS), False),
        (error(Status.DEADLINE), True),
        (error(Status.MAYBE_COMMITTED), True),
        (asyncio.CancelledError(), True),
    ],
)
async def test_a_change_that_may_still_be_carried_out(
    leases: Leases[Stat], failure: BaseException, forgotten: bool
) -> None:
    leases.learn(leases.asked(), at(5), a_stat(5))
    leases.begin()
    leases.failed(failure, uncertain=False)
    assert (leases.attributes(5) is None) is forgotten
    assert (leases.remaining() <= 0) is forgotten


async def test_every_change_has_a_row_or_forgets_everything(leases: Leases[Stat]) -> None:
    leases.learn(leases.asked(), at(5), a_stat(5))
    leases.changed(leases.begin(), META.SetQuota, meta_pb2.SetQuotaRequest(), meta_pb2.SetQuotaReply())
    assert leases.attributes(5) is None


# --- with a server ----------------------------------------------------------------------------------------------------------------


def advanced(stat: Stat, when_ns: int, subdirectories: int) -> Stat:
    """A directory after a change in it."""
    later = max(when_ns, stat.change)
    return replace(stat, mtime_ns=later, ctime_ns=later, change=later, nlink=stat.nlink + subdirectories)


async def connected(url: str, *, believing: bool = True) -> Core:
    location = parse_url(url)
    env = AioEnvironment(cluster=location.cluster, acts_for_others=True)
    core = Core(env, location.addresses, Options(), 0)
    await core.connect()
    if believing:
        made = core.hold_leases(replace, advanced)
        made.asked()
        async with asyncio.timeout(60):
            while made.remaining() <= 0:
                await asyncio.sleep(0.001)
    return core


def leases_of(core: Core) -> Leases[Stat]:
    found = core.cluster.leases
    assert found is not None
    return found


async def heard(core: Core) -> None:
    """Until the client has heard of all that was changed before: notices come before later replies."""
    for _ in range(3):
        await core.cluster.meta(META.Stat, meta_pb2.StatRequest(places=[Place()]))
        await asyncio.sleep(0)


async def undisturbed(url: str, story: Callable[[Core, Core], Awaitable[None]]) -> None:
    """Told again with two new clients, while the first of them did not hear of the server in time: it learns nothing then."""
    for attempt in range(TELLINGS_MAX):
        one, two = await connected(url), await connected(url)
        lapses = lapses_of(leases_of(one))
        try:
            await story(one, two)
            return
        except AssertionError:
            if not lapses or attempt == TELLINGS_MAX - 1:
                raise
        finally:
            await one.close()
            await two.close()


def lapses_of(known: Leases[Stat]) -> list[str]:
    """Grows whenever no lease could be had, or all was forgotten."""
    lapses: list[str] = []
    asked, forget_all = known.asked, known.forget_all

    def noted() -> int:
        number = asked()
        if not number:
            lapses.append("not heard in time")
        return number

    def forgotten() -> None:
        lapses.append("forgotten")
        forget_all()

    known.asked, known.forget_all = noted, forgotten  # type: ignore[method-assign]
    return lapses


async def test_others_hear_at_once(cluster: Any) -> None:
    async def story(one: Core, two: Core) -> None:
        directory = await one.mkdir(f"/leases-{random.randrange(1 << 60):x}")
        file = await one.mknod(at(directory.inode, b"f"))
        known = leases_of(one)
        assert known.entry(directory.inode, b"f") == file.inode
        assert known.attributes(file.inode) == file
        told: list[Any] = []
        known.listen(lambda inodes, names: told.append((list(inodes), list(names))))
        await two.chmod(at(file.inode), 0o600)
        await heard(one)
        assert told == [([file.inode], [])]
        assert known.attributes(file.inode) is None
        assert known.entry(directory.inode, b"f") == file.inode

    await undisturbed(cluster.url, story)


async def test_of_a_directory_that_it_made_a_client_knows_all_names(cluster: Any) -> None:
    async def story(one: Core, two: Core) -> None:
        directory = (await one.mkdir(f"/whole-{random.randrange(1 << 60):x}")).inode
        known = leases_of(one)
        assert known.entry(directory, b"a") == MISSING
        assert known.entry(directory, b"..") is None
        assert known.entry(directory, b"n" * 256) is None  # that is another error
        file = await one.mknod(at(directory, b"a"))
        await one.rename(at(directory, b"a"), at(directory, b"b"))
        assert (known.entry(directory, b"a"), known.entry(directory, b"b")) == (MISSING, file.inode)
        await one.unlink(at(directory, b"b"))
        assert (known.entry(directory, b"a"), known.entry(directory, b"b")) == (MISSING, MISSING)
        await one.mknod(at(directory, b"c"))
        await two.mknod(at(directory, b"b"))
        await heard(one)
        assert known.entry(directory, b"b") is None
        assert known.entry(directory, b"never-asked") is None

    await undisturbed(cluster.url, story)


async def test_names_of_whole_directories_are_bounded(leases: Leases[Stat], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NAMES_MAX", 8)
    monkeypatch.setattr(module, "WHOLE_MAX", 3)
    for directory in range(10, 20):
        leases._learn_whole(leases.asked(), directory)
        for i in range(5):
            leases._lead((directory, b"%d" % i), 100 + i)
        assert len(leases) <= 8
        assert len(leases._whole) <= 3
        assert leases._whole_names == sum(map(len, leases._whole.values()))
    assert leases.entry(10, b"0") is None
    assert leases.entry(19, b"0") == 100


async def _step(core: Core, directory: int, chance: random.Random) -> None:
    name, other = (at(directory, chance.choice(NAMES)) for _ in range(2))
    kind = chance.randrange(11)
    if kind == 0:
        await core.mknod(name)
    elif kind == 1:
        await core.unlink(name)
    elif kind == 2:
        await core.rename(name, other, exchange=chance.random() < 0.2)
    elif kind == 3:
        await core.link(name, other)
    elif kind == 4:
        await core.chmod(name, chance.choice((0o600, 0o644)), follow=False)
    elif kind == 5:
        await core.mkdir(name)
    elif kind == 6:
        await core.rmdir(name)
    elif kind == 7:
        async with contextlib.AsyncExitStack() as stack:
            handle = await core.open(name, Mode(os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, "", False))
            stack.push_async_callback(handle.close)
            await handle.write(b"x" * chance.randrange(9000))
    elif kind == 8:
        await core.truncate(name, chance.randrange(5000))
    elif kind == 9:
        await core.stat(at(directory))
    else:
        await core.stat(name, follow=False)


async def _try(core: Core, directory: int, chance: random.Random) -> None:
    with contextlib.suppress(StatusError):
        await _step(core, directory, chance)


@pytest.mark.parametrize("seed", range(6))
async def test_two_clients_race_and_neither_believes_what_is_not_true(cluster: Any, seed: int) -> None:
    chance = random.Random(seed)
    clients = [await connected(cluster.url) for _ in range(2)]
    judge = await connected(cluster.url, believing=False)
    believed = 0
    try:
        maker = clients[0] if seed % 2 else judge  # who makes a directory knows all that is in it
        directory = (await maker.mkdir(f"/race-{seed}-{random.randrange(1 << 60):x}")).inode
        rounds = 0
        while rounds < 40 or (
            believed <= 50 and rounds < 1000
        ):  # nothing is believed while the server is not heard in time
            rounds += 1
            await asyncio.gather(*[_try(core, directory, chance) for core in clients for _ in range(3)])
            for core in clients:
                await heard(core)
                believed += await _compare(leases_of(core), judge, directory)
        assert believed > 50
    finally:
        for core in (*clients, judge):
            await core.close()


async def _compare(known: Leases[Stat], judge: Core, directory: int) -> int:
    """Everything that is known is as the server says; how much that is."""
    believed = 0
    if known.remaining() <= 0:
        return 0  # the machine is too busy to hear of the server in time
    for inode in (directory, *list(known._inodes)):
        stat = known.attributes(inode)
        if stat is not None:
            assert stat == await judge.stat(at(inode), follow=False)
            believed += 1
    for name in NAMES:
        inode_of_name = known.entry(directory, name)
        if inode_of_name is None:
            continue
        believed += 1
        try:
            assert inode_of_name == (await judge.stat(at(directory, name), follow=False)).inode
        except FileNotFoundError:
            assert inode_of_name == MISSING
    return believed


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_nothing_is_believed_for_longer_than_a_second_without_the_server(fresh_cluster: Any) -> None:
    core = await connected(fresh_cluster.url)
    try:
        known, names = leases_of(core), itertools.count()
        while True:  # until it has heard of the server in time, and so learned what it made
            file = await core.mknod(f"/{(number := next(names))}")
            if known.entry(1, b"%d" % number) == file.inode:
                break
        with stopped(fresh_cluster.servers["meta"].pid()):
            began = time.monotonic()
            assert known.entry(1, b"%d" % number) == file.inode
            while True:
                now = time.monotonic()  # before the look: the machine may stand still in between
                if known.remaining() <= 0:
                    break
                assert now - began < module.VALID_SECONDS + 0.1
                await asyncio.sleep(0.01)
            assert not known.asked()
        assert (await core.stat(f"/{number}")).inode == file.inode
    finally:
        await core.close()


async def test_a_server_that_was_restarted_has_granted_nothing(fresh_cluster: Any) -> None:
    core = await connected(fresh_cluster.url)
    try:
        await core.mknod("/f")
        known, names = leases_of(core), itertools.count()
        while not len(known):  # it had not heard of the server in time
            await core.mknod(f"/{next(names)}")
        fresh_cluster.kill("meta")
        fresh_cluster.start()
        assert (await core.stat("/f")).is_file
        async with asyncio.timeout(60):
            while known.remaining() <= 0:
                known.asked()
                await asyncio.sleep(0.01)
        assert not len(known)
    finally:
        await core.close()
