"""Frames that no kernel sends, to the session with all of its real handlers: each is answered once, and the next one is served.

A socket of whole messages stands for /dev/fuse: one read, one request; one write, one reply.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import socket
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from emberfs.client.core.client import Core
from emberfs.client.core.options import Options
from emberfs.fuse.device import Device
from emberfs.fuse.filesystem import FileSystem, handlers
from emberfs.fuse.notifier import Notifier
from emberfs.fuse.options import MountOptions
from emberfs.fuse.protocol import BODY_BYTES_MIN, IN_HEADER, IN_HEADER_BYTES, NO_REPLY, OUT_HEADER, Opcode
from emberfs.fuse.session import Session
from emberfs.fuse.structs import BATCH_FORGET_IN, FORGET_IN, FORGET_ONE, INIT_IN, INIT_OUT
from emberfs.proto.drivers.aio import AioEnvironment
from emberfs.proto.settings import parse_url

if TYPE_CHECKING:
    from emberfs.deploy.local import LocalCluster

SECONDS_MAX = 60.0
NOWHERE = 1 << 45  # inodes from here on do not exist
ENDLESS = {Opcode.DESTROY, Opcode.INIT, Opcode.INTERRUPT}


def frame(opcode: int, unique: int, body: bytes = b"", node: int = NOWHERE, length: int | None = None) -> bytes:
    size = IN_HEADER_BYTES + len(body) if length is None else length
    return IN_HEADER.pack(size, opcode, unique, node, 0, 0, os.getpid(), 0) + body


class Kernel:
    """What is at the other end of the socket."""

    def __init__(self, url: str) -> None:
        ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._theirs.setblocking(False)
        self.socket = ours
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        self._url = url

    async def __aenter__(self) -> Kernel:
        location = parse_url(self._url)
        env = AioEnvironment(cluster=location.cluster, secret_file=location.secret_file, acts_for_others=True)
        self.core = Core(env, location.addresses, Options(timeout=SECONDS_MAX), 0)
        await self.core.connect()
        self.device = Device(self._theirs.fileno(), (1 << 20) + 8192)
        self.fs = FileSystem(self.core, MountOptions(), Notifier(lambda sent: 0))
        self.session = Session(self.device, self.fs, handlers())
        self.running = asyncio.ensure_future(self.session.run())
        self.socket.setblocking(False)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.session.stop()
        await asyncio.wait_for(self.running, SECONDS_MAX)
        await self.core.close()
        self._theirs.close()
        self.socket.close()

    async def send(self, sent: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, sent)

    async def hear(self) -> tuple[int, int, bytes]:
        """unique, errno, body of the next reply."""
        loop = asyncio.get_running_loop()
        reply = await asyncio.wait_for(loop.sock_recv(self.socket, 2 << 20), SECONDS_MAX)
        length, failure, unique = OUT_HEADER.unpack_from(reply)
        assert length == len(reply)
        return unique, -failure, reply[OUT_HEADER.size :]

    async def ask(self, sent: bytes) -> tuple[int, bytes]:
        await self.send(sent)
        unique, failure, body = await self.hear()
        assert unique == struct.unpack_from("=Q", sent, 8)[0]
        return failure, body


@pytest.fixture
def url(cluster: LocalCluster) -> str:
    return cluster.url


def test_the_first_exchange(url: str) -> None:
    async def main() -> None:
        async with Kernel(url) as kernel:
            failure, body = await kernel.ask(frame(Opcode.INIT, 1, INIT_IN.pack(7, 20, 0, 0) + bytes(48)))
            assert failure == errno.EPROTO  # a kernel before 5.4
            failure, body = await kernel.ask(frame(Opcode.INIT, 3, INIT_IN.pack(8, 0, 0, 0) + bytes(48)))
            assert (failure, INIT_OUT.unpack_from(body)[0]) == (0, 7)  # let us speak 7
            assert kernel.fs.agreed is None
            failure, body = await kernel.ask(
                frame(Opcode.INIT, 5, INIT_IN.pack(7, 40, 1 << 20, 0xFFFFFFFF) + bytes(48))
            )
            assert failure == 0
            assert kernel.fs.agreed is not None
            assert kernel.fs.agreed.max_write == 1 << 20

    asyncio.run(main())


@pytest.mark.parametrize(
    ("sent", "failure"),
    [
        pytest.param(frame(4711, 9), errno.ENOSYS, id="an operation of a newer kernel"),
        pytest.param(frame(Opcode.POLL, 9, bytes(24)), errno.ENOSYS, id="an operation that we do not have"),
        pytest.param(frame(Opcode.READ, 9, bytes(3)), errno.EIO, id="too short for its operation"),
        pytest.param(frame(Opcode.GETATTR, 9, bytes(16), length=4096), errno.EIO, id="shorter than it says"),
        pytest.param(frame(Opcode.LOOKUP, 9, b"\0"), None, id="no name"),
        pytest.param(frame(Opcode.LOOKUP, 9, b"without an end"), None, id="a name without an end"),
        pytest.param(frame(Opcode.RENAME, 9, bytes(8) + b"one\0"), None, id="one name of two"),
        pytest.param(frame(Opcode.GETATTR, 9, bytes(16), node=1 << 63), errno.ESTALE, id="a node that is no inode"),
        pytest.param(frame(Opcode.READ, 9, bytes(40), node=0), None, id="no node"),
        pytest.param(frame(Opcode.GETATTR, 9, bytes(16), node=(1 << 64) - 1), errno.ESTALE, id="the last node"),
    ],
)
def test_a_frame_that_cannot_be_is_refused(url: str, sent: bytes, failure: int | None) -> None:
    async def main() -> None:
        async with Kernel(url) as kernel:
            found, _ = await kernel.ask(sent)
            assert found == failure if failure is not None else found
            assert (await kernel.ask(frame(Opcode.GETATTR, 11, bytes(16), node=1)))[0] == 0

    asyncio.run(main())


def test_frames_without_a_reply_have_none(url: str) -> None:
    async def main() -> None:
        async with Kernel(url) as kernel:
            await kernel.send(frame(Opcode.FORGET, 1, FORGET_IN.pack(1 << 63)))
            await kernel.send(frame(Opcode.FORGET, 1, FORGET_IN.pack(3), node=1 << 63))
            await kernel.send(frame(Opcode.BATCH_FORGET, 1, BATCH_FORGET_IN.pack(2) + FORGET_ONE.pack(5, 6) * 2))
            await kernel.send(frame(Opcode.BATCH_FORGET, 1, BATCH_FORGET_IN.pack(1 << 31)))  # and nothing behind it
            await kernel.send(frame(Opcode.INTERRUPT, 1, bytes(8)))
            await kernel.send(frame(Opcode.NOTIFY_REPLY, 1, bytes(40)))
            await kernel.send(b"not even a header")
            assert (await kernel.ask(frame(Opcode.GETATTR, 11, bytes(16), node=1)))[0] == 0

    asyncio.run(main())


@pytest.fixture(params=range(3))
def draw(request: pytest.FixtureRequest) -> Iterator[random.Random]:
    yield random.Random(request.param)


def test_random_bodies_are_all_answered_once(url: str, draw: random.Random) -> None:
    """Of every operation, on inodes that do not exist, so that nothing of the cluster is changed."""
    opcodes = sorted(set(Opcode) - ENDLESS - NO_REPLY)
    words = (0, 1, 2, 3, 0xFFFFFFFF, 1 << 31, 1 << 30, 4096)

    def body(opcode: int) -> bytes:
        least = BODY_BYTES_MIN[Opcode(opcode)]
        kind = draw.randrange(3)
        if kind == 0:
            return draw.randbytes(least + draw.randrange(64))
        if kind == 1:
            return b"".join(struct.pack("=I", draw.choice(words)) for _ in range(-(-least // 4) + draw.randrange(8)))
        return bytes(least) + draw.randbytes(draw.randrange(40)).replace(b"\0", b"n") + b"\0"

    async def main() -> None:
        async with Kernel(url) as kernel:
            asked = set()
            for turn in range(30):
                for unique in range(2 + 40 * turn, 2 + 40 * turn + 40, 2):
                    opcode = draw.choice(opcodes)
                    node = (
                        NOWHERE + draw.randrange(3) if draw.random() < 0.9 else draw.choice((0, (1 << 63) - 1, 1 << 63))
                    )
                    await kernel.send(frame(opcode, unique, body(opcode), node))
                    asked.add(unique)
                for _ in range(20):
                    unique, failure, _body = await kernel.hear()
                    asked.remove(unique)
                    assert 0 <= failure < 600
            assert not asked
            assert (await kernel.ask(frame(Opcode.GETATTR, 1, bytes(16), node=1)))[0] == 0

    asyncio.run(main())


def test_every_operation_of_the_protocol_is_served_or_left_out_on_purpose() -> None:
    left_out = {Opcode.BMAP, Opcode.POLL, Opcode.NOTIFY_REPLY, Opcode.SETUPMAPPING, Opcode.REMOVEMAPPING}
    left_out |= {Opcode.SYNCFS}  # the kernel sends it to virtiofs only
    own = {Opcode.INIT, Opcode.DESTROY, Opcode.INTERRUPT, Opcode.FORGET, Opcode.BATCH_FORGET}
    assert set(Opcode) - set(handlers()) - own == left_out
