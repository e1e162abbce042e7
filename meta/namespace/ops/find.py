"""Everything below a place: a walk of the tree in pages, on the server."""

from __future__ import annotations

from dataclasses import dataclass

from ....proto.errors import Status, error
from ....proto.gen import meta_pb2
from ... import keys
from .. import dentry as dentries
from .. import inode as inodes
from .. import path
from ..access import EXECUTE, READ, permits
from ..attempt import Attempt
from ..dentry import Dentry
from .readdir import fitting, load_many

ENTRIES_MAX = 8192  # of one page
ENTRIES_DEFAULT = 1024
PAGE = 256  # names per read of one directory
DIRECTORIES_MAX = 2048  # entered for one page: bounds the time that a page of empty directories takes
PATHS_BYTES_MAX = 4 << 20  # of one page, but for its last path


@dataclass(slots=True)
class _Level:
    """A directory on the way down; `after` is the last name handled."""

    directory: int
    path_bytes: int  # its part of the walk's path
    after: bytes
    rows: list[tuple[bytes, Dentry]]  # read and not yet handled, last first
    more: bool = True  # there may be names after `rows`


async def find(attempt: Attempt, request: meta_pb2.FindRequest) -> meta_pb2.FindReply:
    """A page of the tree, depth first in the order of names, directories before what is in them. The cookie is the last path told:
    the walk goes on behind it, whatever happened to the tree meanwhile. A directory that the caller may not read is told, and
    named in `denied`. Raises NOT_DIRECTORY, NOT_FOUND, PERMISSION_DENIED for the place itself."""
    top = await path.lookup(attempt, request.place, follow=True)
    if not top.is_directory:
        raise error(Status.NOT_DIRECTORY, f"inode {top.id:x} is not a directory")
    if not permits(top, attempt.caller, READ | EXECUTE, is_directory=True):
        raise error(Status.PERMISSION_DENIED, f"directory {top.id:x} may not be read by user {attempt.caller.uid}")
    walk = _Walk(attempt, request)
    await walk.resume(top.id)
    return await walk.page()


class _Walk:
    def __init__(self, attempt: Attempt, request: meta_pb2.FindRequest) -> None:
        self._attempt = attempt
        self._limit = min(request.entries_max or ENTRIES_DEFAULT, ENTRIES_MAX)
        self._depth_max = request.depth_max
        self._cookie = request.cookie
        self._levels: list[_Level] = []
        self._path = b""  # of the last level: it ends in '/' (empty for the place itself)
        self._entered = 0
        self._denied: list[bytes] = []

    async def resume(self, top: int) -> None:
        """The directories on the way to the cookie, each standing behind the name that leads on."""
        *way, last = self._cookie.split(b"/") if self._cookie else [b""]
        current = top
        for name in way:
            self._levels.append(_Level(current, len(self._path), name, []))
            record = await self._attempt.txn.get(keys.dentry_key(current, name), snapshot=True)
            entry = dentries.unpack(record) if record is not None else None
            if entry is None or not entry.is_directory or not await self._may_read(entry.inode):
                return  # gone, or a cookie that no page of this caller's ever ended in: its siblings come next
            current, self._path = entry.inode, self._cookie[: len(self._path) + len(name) + 1]
        self._levels.append(_Level(current, len(self._path), last, []))
        if last:
            await self._enter_last(current, last)

    async def _enter_last(self, directory: int, name: bytes) -> None:
        # The cookie itself was told. If it is a directory, what is in it comes next.
        record = await self._attempt.txn.get(keys.dentry_key(directory, name), snapshot=True)
        entry = dentries.unpack(record) if record is not None else None
        if entry is not None and entry.is_directory:
            await self._enter(entry.inode, self._path + name)
            self._denied.clear()  # it was named with the page that told it

    async def _enter(self, directory: int, name: bytes) -> None:
        if self._depth_max and len(self._levels) >= self._depth_max:
            return
        if not await self._may_read(directory):
            self._denied.append(name)
            return
        self._entered += 1
        self._path = name + b"/"
        self._levels.append(_Level(directory, len(self._path), b"", []))

    async def _may_read(self, directory: int) -> bool:
        inode = await self._attempt.inode(directory)
        return permits(inode, self._attempt.caller, READ | EXECUTE, is_directory=True)

    async def page(self) -> meta_pb2.FindReply:
        told: list[tuple[bytes, Dentry]] = []
        room = PATHS_BYTES_MAX
        while self._levels and len(told) < self._limit and self._entered < DIRECTORIES_MAX and room > 0:
            level = self._levels[-1]
            if not level.rows and not await self._read(level):
                self._levels.pop()
                self._path = self._path[: self._levels[-1].path_bytes] if self._levels else b""
                continue
            name, entry = level.rows.pop()
            level.after = name
            path = self._path + name
            room -= len(path)
            told.append((path, entry))
            if entry.is_directory:
                await self._enter(entry.inode, path)
        found = await load_many(self._attempt, [entry.inode for _, entry in told])
        count = fitting(found)
        paths = [path for path, _ in told[:count]]
        whole, kept = count == len(told), set(paths)
        return meta_pb2.FindReply(
            paths=paths,
            attributes=[inodes.attributes(inode) for inode in found[:count]],
            cookie=paths[-1] if paths else self._cookie,
            end=whole and not self._levels,
            denied=[path for path in self._denied if path in kept],
        )

    async def _read(self, level: _Level) -> bool:
        if not level.more:
            return False
        begin, end = keys.dentry_range(level.directory)
        if level.after:
            begin = keys.dentry_key(level.directory, level.after) + b"\0"
        page = await self._attempt.txn.scan(begin, end, PAGE, snapshot=True)
        level.more = len(page) == PAGE
        level.rows = [(key[keys.DENTRY_NAME_AT :], dentries.unpack(value)) for key, value in reversed(page)]
        return bool(level.rows)
