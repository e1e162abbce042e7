"""A member of a chain is full and the others are not: no write fails that another member can take."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from crc32c import crc32c

from emberfs.proto.errors import Status
from emberfs.proto.gen.cluster_pb2 import LOCAL_STATE_OFFLINE, LOCAL_STATE_UPTODATE
from emberfs.proto.ids import channel_of
from emberfs.proto.rpc import STORAGE
from emberfs.storage.engine.engine import ChunkEngine
from emberfs.storage.engine.simulated import SimulatedDisk, SimulatedIndex
from emberfs.storage.engine.space import DISK_RESERVE_PART
from emberfs.storage.fullness import AWAY_SECONDS_MAX, AWAY_SECONDS_MIN, LOOK_SECONDS, ROOMY_PART, Fullness

from .members import OFFLINE, SECONDS, SERVING, SYNCING, Member, Members
from .world import World, memory

CAPACITY = 64 << 20


@pytest_asyncio.fixture
async def chain(tmp_path: Path) -> AsyncIterator[Members]:
    members = await Members(tmp_path, 2, patience=0.5).start()
    members.announce(SERVING, SERVING)
    yield members
    await members.stop()


def fill(member: Member) -> None:
    space = member.engine.space
    space.capacity = space.used_bytes - space.retired_bytes


async def try_once(members: Members, index: int, data: bytes) -> Status:
    """A write whose refusals are answers."""
    members.sequence += 1
    request = World.write_request([(5, index, 0, data, members.sequence, None)], 1, members.version)
    assert request.checksum[0] == crc32c(data) and request.channel[0] == channel_of(5, index)
    reply = await members.call(members.head, STORAGE.Write, request, source=[memory(data)])
    return Status(reply.status[0])


async def test_where_all_are_full_the_head_refuses_new_chunks_and_keeps_its_place(chain: Members) -> None:
    assert await chain.write(0, b"a" * 5000) is Status.OK
    fill(chain.head)
    assert chain.head.target.entry().full
    chain.announce(SERVING, SERVING, full=[1, 2])
    assert await try_once(chain, 1, b"b" * 5000) is Status.NO_SPACE
    assert chain.head.target.entry().state == LOCAL_STATE_UPTODATE


@pytest.mark.parametrize("index", [0, 1], ids=["there", "new"])
async def test_a_full_head_leaves_to_the_others_what_they_have_room_for(chain: Members, index: int) -> None:
    assert await chain.write(0, b"a" * 5000) is Status.OK
    fill(chain.head)
    assert await try_once(chain, index, b"b" * 5000) is Status.TARGET_OFFLINE  # to be tried again
    assert chain.head.target.entry().state == LOCAL_STATE_OFFLINE
    chain.announce(SERVING, OFFLINE, order=(2, 1), full=[1])
    assert await chain.write(index, b"b" * 5000) is Status.OK
    fill(chain.head)
    assert await try_once(chain, index, b"c" * 5000) is Status.NO_SPACE  # nobody is left who could
    assert await chain.read(2, index) == (Status.OK, b"b" * 5000)


async def test_the_last_one_that_serves_waits_for_the_one_that_it_copies_to(chain: Members) -> None:
    assert await chain.write(0, b"a" * 5000) is Status.OK
    chain.announce(SERVING, OFFLINE)
    fill(chain.head)
    assert await try_once(chain, 1, b"b" * 5000) is Status.NO_SPACE
    chain.announce(SERVING, SYNCING)
    assert await try_once(chain, 1, b"b" * 5000) is Status.BUSY
    assert await chain.read(1, 0) == (Status.OK, b"a" * 5000)
    await chain.synced(2)
    chain.announce(SERVING, SERVING)
    assert await try_once(chain, 1, b"b" * 5000) is Status.TARGET_OFFLINE
    chain.announce(SERVING, OFFLINE, order=(2, 1))
    assert await chain.write(1, b"b" * 5000) is Status.OK


async def test_a_full_tail_holds_up_nobody(chain: Members) -> None:
    tail = chain.members[1]
    assert await chain.write(0, b"a" * 5000) is Status.OK
    fill(tail)
    write = asyncio.ensure_future(chain.write(1, b"b" * 5000))
    async with asyncio.timeout(SECONDS):
        while tail.target.entry().state != LOCAL_STATE_OFFLINE:
            await asyncio.sleep(0.01)
    chain.announce(SERVING, OFFLINE)
    assert await write is Status.OK


@pytest.fixture
def disk() -> SimulatedDisk:
    return SimulatedDisk(size_max=CAPACITY)


@pytest.fixture
def fullness(disk: SimulatedDisk) -> Fullness:
    """Of an empty target on a disk of its size, of which others leave 1/64 (and the reserve)."""
    engine = ChunkEngine(disk, SimulatedIndex(), capacity=CAPACITY, boot="b")
    disk.size_max = CAPACITY // DISK_RESERVE_PART + CAPACITY // 64
    made = Fullness(engine)
    assert made.is_full and not made.is_aside
    assert made.step_aside(0.0) and not made.step_aside(1.0)  # said once
    return made


def test_it_comes_back_when_there_is_room_but_not_at_once(fullness: Fullness, disk: SimulatedDisk) -> None:
    room = CAPACITY // DISK_RESERVE_PART + CAPACITY // ROOMY_PART
    disk.size_max = room
    assert not fullness.come_back(AWAY_SECONDS_MIN - 1)
    disk.size_max = room - 4096  # no longer full, and yet not worth a sync
    assert not fullness.is_full and not fullness.come_back(AWAY_SECONDS_MIN)
    disk.size_max = room
    assert not fullness.come_back(AWAY_SECONDS_MIN)  # it does not look at every tick
    assert fullness.come_back(AWAY_SECONDS_MIN + LOOK_SECONDS) and not fullness.is_aside
    assert not fullness.come_back(AWAY_SECONDS_MIN + 2 * LOOK_SECONDS)  # it is back


def test_without_room_it_comes_back_late(fullness: Fullness) -> None:
    now = AWAY_SECONDS_MIN
    while not fullness.come_back(now):
        now += LOOK_SECONDS
    assert now == AWAY_SECONDS_MAX
    assert fullness.step_aside(now)
