"""A few files in memory behind a real mount, whose operations a test can hold up: for what a session does with any handlers."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Coroutine
from typing import Any

from emberfs.client.core.attributes import Stat
from emberfs.fuse.device import Body
from emberfs.fuse.entries import attr, entry
from emberfs.fuse.filesystem import FileSystem
from emberfs.fuse.protocol import Opcode, OpenReply
from emberfs.fuse.session import Answer, Handler, Request
from emberfs.fuse.structs import OPEN_OUT, READ_IN, WRITE_OUT

NAMES = (b"one", b"two", b"three")
INODES = {name: 100 + place for place, name in enumerate(NAMES)}
BYTES = 4 << 20  # of each file


def stat_of(inode: int) -> Stat:
    kind = "directory" if inode == 1 else "file"
    return Stat(inode, kind, 0o777, 0, 0, 1, BYTES, 0, 0, 0, 0, 1, 4096, 0, "")


class Closed:
    """An open file, which wants to be closed once."""

    def __init__(self) -> None:
        self.closed = 0

    async def close(self) -> None:
        self.closed += 1


class Little:
    """Its handlers answer at once, except those of the opcodes in `held`, which wait for `release`."""

    def __init__(self) -> None:
        self.held: set[int] = set()
        self.waiting: list[Request] = []
        self.opened: list[Closed] = []
        self.open_flags = OpenReply(0)
        self.written: dict[int, int] = {}  # offset -> sum of the bytes
        self._gate: asyncio.Event | None = None

    def handlers(self) -> dict[int, Handler]:
        plain: dict[int, Handler] = {
            Opcode.LOOKUP: self.lookup,
            Opcode.GETATTR: lambda fs, request: attr(fs, stat_of(request.node)),
            Opcode.SETATTR: lambda fs, request: attr(fs, stat_of(request.node)),
            Opcode.OPEN: self.open,
            Opcode.READ: self.read,
            Opcode.WRITE: self.write,
            Opcode.RELEASE: lambda fs, request: b"",
            Opcode.FLUSH: lambda fs, request: b"",
            Opcode.FSYNC: lambda fs, request: b"",
            Opcode.SETLKW: lambda fs, request: b"",
            Opcode.SETLK: lambda fs, request: b"",
        }
        return {opcode: self._holding(opcode, handler) for opcode, handler in plain.items()}

    def _holding(self, opcode: int, handler: Handler) -> Handler:
        def answer(fs: FileSystem, request: Request) -> Answer:
            return self._later(fs, request, handler) if opcode in self.held else handler(fs, request)

        return answer

    async def _later(self, fs: FileSystem, request: Request, handler: Handler) -> Body:
        self._gate = self._gate or asyncio.Event()
        self.waiting.append(request)
        try:
            await self._gate.wait()
        finally:
            self.waiting.remove(request)
        answer = handler(fs, request)
        assert not isinstance(answer, Coroutine)
        return answer

    def release(self) -> None:
        """Let go on what waits; on the loop's thread."""
        self.held.clear()
        if self._gate is not None:
            self._gate.set()
            self._gate = None

    def lookup(self, fs: FileSystem, request: Request) -> bytes:
        inode = INODES.get(request.body[:-1])
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, "no such name")
        return entry(fs, stat_of(inode))

    def open(self, fs: FileSystem, request: Request) -> bytes:
        self.opened.append(Closed())
        return OPEN_OUT.pack(fs.new_handle(self.opened[-1]), self.open_flags, 0)

    def read(self, fs: FileSystem, request: Request) -> list[Any]:
        _, _, size, *_ = READ_IN.unpack_from(request.body)
        half = bytes([request.node & 0xFF]) * (size // 2)
        return [half, memoryview(half)]

    def write(self, fs: FileSystem, request: Request) -> bytes:
        assert request.data is not None
        _, offset, size, *_ = READ_IN.unpack_from(request.body)
        assert len(request.data) == size
        self.written[offset] = sum(request.data[:: size // 64 or 1])
        return WRITE_OUT.pack(size)
