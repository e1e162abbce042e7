"""A member of a chain is full and the others are not: what is there can still be changed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
from crc32c import crc32c

from emberfs.proto.errors import Status
from emberfs.proto.gen.cluster_pb2 import LOCAL_STATE_OFFLINE, LOCAL_STATE_UPTODATE
from emberfs.proto.ids import channel_of
from emberfs.proto.rpc import STORAGE

from .members import OFFLINE, SERVING, Member, Members
from .world import World, memory


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


async def test_a_full_head_refuses_new_chunks_and_keeps_its_place(chain: Members) -> None:
    assert await chain.write(0, b"a" * 5000) is Status.OK
    fill(chain.head)
    assert chain.head.target.entry().full
    assert await try_once(chain, 1, b"b" * 5000) is Status.NO_SPACE
    assert chain.head.target.entry().state == LOCAL_STATE_UPTODATE


async def test_a_full_head_lets_the_others_change_what_is_there(chain: Members) -> None:
    assert await chain.write(0, b"a" * 5000) is Status.OK
    fill(chain.head)
    assert await try_once(chain, 0, b"b" * 5000) is Status.TARGET_OFFLINE  # to be tried again
    assert chain.head.target.entry().state == LOCAL_STATE_OFFLINE
    chain.announce(SERVING, OFFLINE, order=(2, 1))
    assert await chain.write(0, b"b" * 5000) is Status.OK
    fill(chain.head)
    assert await try_once(chain, 0, b"c" * 5000) is Status.NO_SPACE  # nobody is left who could
    assert await chain.read(2, 0) == (Status.OK, b"b" * 5000)
