"""The asyncio client: the names of `client.blocking` as coroutines, over the same core.

    client = await emberfs.client.aio.connect("ember:///")
    async with await client.open("/data/file", "wb") as file:
        await file.write(b"...")

Many operations may be under way at once, on one connection per server. A client belongs to the loop on which it was connected, and does
not survive `os.fork()`: a child connects anew. What each method does and raises is said in `client.blocking`.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from types import TracebackType
from typing import Any

from ..proto.copying import bytes_of
from ..proto.drivers.aio import AioEnvironment
from ..proto.errors import StatusError
from ..proto.gen.cluster_pb2 import StatusReply
from ..proto.settings import parse_url
from . import process
from .core.allocate import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE
from .core.attributes import Stat, StatFs
from .core.bulk import BulkRead as CoreBulkRead
from .core.bulk import read_many
from .core.client import Core
from .core.file import Handle
from .core.keeping import LOST, Event, Quota, TrashEntry
from .core.locks import THIS_PROCESS, LockInfo
from .core.options import Options, parse_mode
from .core.paths import PathLike, text
from .core.ranges import read_ranges
from .core.shared import SharedMemory
from .core.whole import clone_file, copy_file, read_bytes, write_bytes


async def connect(url: str = "ember:///", **options: Any) -> Client:
    """Connect to the cluster that `url` names; options and errors as in `blocking.connect`."""
    chosen = Options.of({"name": process.name(), **options})
    location = parse_url(url)
    env = AioEnvironment(cluster=location.cluster, secret_file=location.secret_file, pool_bytes=chosen.memory)
    core = Core(env, location.addresses, chosen, process.umask())
    try:
        await core.connect()
    except BaseException:
        await env.close()
        raise
    return Client(core)


class Client:
    """A connection to a cluster. Long because it is the list of what a file system can do; each method is one line."""

    def __init__(self, core: Core) -> None:
        self.core = core

    # --- looking ------------------------------------------------------------------------------------------------------------------

    async def stat(self, path: PathLike, *, follow: bool = True) -> Stat:
        return await self.core.stat(path, follow=follow)

    async def stat_many(self, paths: Iterable[PathLike], *, follow: bool = True) -> list[Stat | StatusError]:
        return await self.core.stat_many(paths, follow=follow)

    async def exists(self, path: PathLike) -> bool:
        return await self.core.exists(path)

    async def listdir(self, path: PathLike = "/") -> list[str]:
        return await self.core.listdir(path)

    async def scandir(self, path: PathLike = "/") -> AsyncIterator[tuple[str, Stat]]:
        cookie: bytes | None = b""
        while cookie is not None:
            page, cookie = await self.core.scandir_page(path, cookie)
            for entry in page:
                yield entry

    async def find(
        self, path: PathLike = "/", max_depth: int | None = None, *, denied: Callable[[str], object] | None = None
    ) -> AsyncIterator[tuple[str, Stat]]:
        cookie: bytes | None = b""
        while cookie is not None:
            page, cookie = await self.core.find_page(path, max_depth, cookie, denied)
            for entry in page:
                yield entry

    async def readlink(self, path: PathLike) -> str:
        return await self.core.readlink(path)

    async def statfs(self) -> StatFs:
        return await self.core.statfs()

    # --- changing the namespace -----------------------------------------------------------------------------------------------------

    async def mkdir(self, path: PathLike, mode: int = 0o777, *, parents: bool = False, exist_ok: bool = False) -> Stat:
        return await self.core.mkdir(path, mode, parents=parents, exist_ok=exist_ok)

    async def rmdir(self, path: PathLike) -> None:
        await self.core.rmdir(path)

    async def unlink(self, path: PathLike, *, forever: bool = False) -> None:
        await self.core.unlink(path, forever=forever)

    async def unlink_many(self, paths: Iterable[PathLike]) -> list[StatusError | None]:
        return await self.core.unlink_many(paths)

    async def remove_tree(self, path: PathLike, *, forever: bool = False) -> None:
        await self.core.remove_tree(path, forever=forever)

    async def trash(self) -> list[TrashEntry]:
        return await self.core.trash()

    async def restore(self, entry: str, path: PathLike | None = None) -> Stat:
        return await self.core.restore(entry, path)

    async def purge(self, entries: Sequence[str]) -> list[StatusError | None]:
        return await self.core.purge(entries)

    async def keep_removed(self, path: PathLike, seconds: int | None) -> None:
        await self.core.keep_removed(path, seconds)

    async def events(self, path: PathLike = "/", *, wait: float = 20.0) -> AsyncIterator[Event | None]:
        """As in `client.blocking`, but only from the first event that is awaited on."""
        cookie = (await self.core.events_page(path, b"", 0)).cookie
        while True:
            page = await self.core.events_page(path, cookie, wait)
            cookie = page.cookie
            if page.lost:
                yield LOST
            elif not page.events:
                yield None
            for event in page.events:
                yield event

    async def quotas(self) -> list[Quota]:
        return await self.core.quotas()

    async def set_quota(self, **whose: Any) -> Quota:
        return await self.core.set_quota(**whose)

    async def remove_quota(self, **whose: Any) -> None:
        await self.core.remove_quota(**whose)

    async def rename(self, source: PathLike, target: PathLike, *, replace: bool = True, exchange: bool = False) -> None:
        await self.core.rename(source, target, replace=replace, exchange=exchange)

    async def link(self, source: PathLike | File, target: PathLike, *, follow: bool = False) -> None:
        if isinstance(source, File):
            await self.core.link_open(source.handle, target)
        else:
            await self.core.link(source, target, follow=follow)

    async def mknod(self, path: PathLike, mode: int = 0o600, device: int = 0) -> Stat:
        return await self.core.mknod(path, mode, device)

    async def symlink(self, target: PathLike, path: PathLike) -> None:
        await self.core.symlink(target, path)

    async def chmod(self, path: PathLike, mode: int, *, follow: bool = True) -> None:
        await self.core.chmod(path, mode, follow=follow)

    async def chown(self, path: PathLike, uid: int = -1, gid: int = -1, *, follow: bool = True) -> None:
        await self.core.chown(path, uid, gid, follow=follow)

    async def utime(
        self, path: PathLike, *, atime_ns: int | None = None, mtime_ns: int | None = None, follow: bool = True
    ) -> None:
        await self.core.utime(path, atime_ns=atime_ns, mtime_ns=mtime_ns, follow=follow)

    async def set_layout(self, path: PathLike, *, chunk_size: int | None = None, stripe: int | None = None) -> None:
        await self.core.set_layout(path, chunk_size=chunk_size, stripe=stripe)

    async def getxattr(self, path: PathLike, name: str | bytes, *, follow: bool = True) -> bytes:
        return await self.core.getxattr(path, name, follow=follow)

    async def listxattr(self, path: PathLike, *, follow: bool = True) -> list[str]:
        return await self.core.listxattr(path, follow=follow)

    async def setxattr(
        self, path: PathLike, name: str | bytes, value: bytes, flags: int = 0, *, follow: bool = True
    ) -> None:
        await self.core.setxattr(path, name, value, flags, follow=follow)

    async def removexattr(self, path: PathLike, name: str | bytes, *, follow: bool = True) -> None:
        await self.core.removexattr(path, name, follow=follow)

    async def access(self, path: PathLike, mode: int, *, follow: bool = True) -> bool:
        return await self.core.access(path, mode, follow=follow)

    async def truncate(self, path: PathLike, length: int) -> None:
        await self.core.truncate(path, length)

    async def create_many(self, paths: Iterable[PathLike], mode: int = 0o666) -> list[Stat | StatusError]:
        return await self.core.create_many(paths, mode)

    async def publish(self, files: Sequence[File], targets: Sequence[PathLike], *, exclusive: bool = False) -> None:
        await self.core.publish([file.handle for file in files], targets, exclusive=exclusive)

    # --- files ----------------------------------------------------------------------------------------------------------------------

    async def open(
        self,
        path: PathLike,
        mode: str = "rb",
        buffering: int = -1,
        *,
        chunk_size: int | None = None,
        stripe: int | None = None,
        permissions: int = 0o666,
        parents: bool = False,
        unnamed: bool = False,
    ) -> File:
        """As `blocking.Client.open`, in binary modes only. Raises ValueError for others."""
        parsed = parse_mode(mode)
        if parsed.text:
            raise ValueError(f"invalid mode: {mode!r}: an asyncio file is binary")
        handle = await self.core.open(
            path,
            parsed,
            buffered=buffering != 0,
            chunk_size=chunk_size,
            stripe=stripe,
            permissions=permissions,
            parents=parents,
            unnamed=unnamed,
        )
        return File(handle, text(path), parsed.binary)

    async def read_bytes(self, path: PathLike, start: int | None = None, end: int | None = None) -> bytes:
        return await read_bytes(self.core, path, start, end)

    async def write_bytes(self, path: PathLike, data: Any, *, exclusive: bool = False) -> Stat:
        return await write_bytes(self.core, path, data, exclusive=exclusive)

    async def read_ranges(self, ranges: Iterable[tuple[PathLike, int | None, int | None]]) -> list[bytes | StatusError]:
        return await read_ranges(self.core, list(ranges))

    async def read_many(self, ranges: Sequence[tuple[File, int, int]], buffer: Any = None) -> list[memoryview]:
        total = sum(length for _, _, length in ranges)
        view = bytes_of(bytearray(total) if buffer is None else buffer)
        return await read_many(self.core, [(file.handle, offset, length) for file, offset, length in ranges], view)

    async def shared_memory(self, size: int) -> SharedMemory:
        return self.core.shared.make(size)

    async def bulk_read(
        self, files: Sequence[File], file: Sequence[int], offsets: Sequence[int], lengths: Sequence[int]
    ) -> BulkRead:
        return BulkRead(await CoreBulkRead(self.core, [one.handle for one in files], file, offsets, lengths).start())

    async def copy_file(self, source: PathLike, target: PathLike) -> Stat:
        return await copy_file(self.core, source, target)

    async def clone(self, source: PathLike, target: PathLike, *, exclusive: bool = False) -> Stat:
        return await clone_file(self.core, source, target, exclusive=exclusive)

    # --- the whole --------------------------------------------------------------------------------------------------------------------

    async def sync(self) -> None:
        await self.core.sync()

    async def status(self) -> StatusReply:
        return await self.core.status()

    @property
    def cluster_id(self) -> str:
        return self.core.cluster_id

    @property
    def closed(self) -> bool:
        return self.core.closed

    async def close(self) -> None:
        await self.core.close()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<emberfs.aio.Client of cluster {self.cluster_id}{', closed' if self.closed else ''}>"


class BulkRead:
    """As `blocking.BulkRead`."""

    def __init__(self, bulk: CoreBulkRead) -> None:
        self._bulk = bulk

    async def finish(self) -> memoryview:
        return await self._bulk.finish()

    def release(self) -> None:
        self._bulk.release()


class File:
    """An open file, binary, with buffering of its own. Positions move when an operation is done: do not overlap those that use
    the position; `pread`, `pwrite` and `preadv_batch` may overlap freely."""

    def __init__(self, handle: Handle, name: str, mode: str) -> None:
        self.handle = handle
        self.name = name
        self.mode = mode

    @property
    def size(self) -> int:
        return self.handle.size

    @property
    def closed(self) -> bool:
        return self.handle.closed

    async def stat(self) -> Stat:
        return await self.handle.stat()

    async def read(self, size: int = -1) -> bytes:
        return await self.handle.read(size)

    async def readall(self) -> bytes:
        return await self.handle.read(-1)

    async def readinto(self, buffer: Any) -> int:
        return await self.handle.readinto(buffer)

    async def write(self, data: Any) -> int:
        return await self.handle.write(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.handle.seek(offset, whence)

    def tell(self) -> int:
        return self.handle.tell()

    async def pread(self, length: int, offset: int) -> bytes:
        return await self.handle.pread(length, offset)

    async def pread_into(self, buffer: Any, offset: int) -> int:
        return await self.handle.pread_into(buffer, offset)

    async def preadv_batch(self, ranges: Sequence[tuple[int, int]], buffer: Any = None) -> list[memoryview]:
        return await self.handle.preadv_batch(ranges, buffer)

    async def pwrite(self, data: Any, offset: int) -> int:
        return await self.handle.pwrite(data, offset)

    async def truncate(self, size: int | None = None) -> int:
        return await self.handle.truncate(size)

    async def allocate(self, offset: int, length: int, *, keep_size: bool = False) -> None:
        await self.handle.allocate(KEEP_SIZE if keep_size else 0, offset, length)

    async def punch(self, offset: int, length: int) -> None:
        await self.handle.allocate(PUNCH_HOLE | KEEP_SIZE, offset, length)

    async def zero_range(self, offset: int, length: int, *, keep_size: bool = False) -> None:
        await self.handle.allocate(ZERO_RANGE | (KEEP_SIZE if keep_size else 0), offset, length)

    async def copy_from(self, source: File, start: int, offset: int, length: int) -> int:
        return await self.handle.copy_from(source.handle, start, offset, length)

    async def data_from(self, offset: int) -> int:
        """Where data begins at or behind `offset`, as SEEK_DATA; the position stays. Raises NO_DEVICE (ENXIO)."""
        return await self.handle.data_from(offset)

    async def hole_from(self, offset: int) -> int:
        """Where a hole begins at or behind `offset`, as SEEK_HOLE; the position stays. Raises NO_DEVICE (ENXIO)."""
        return await self.handle.hole_from(offset)

    async def flock(self, how: str, *, blocking: bool = True) -> None:
        await self.handle.flock(how, blocking=blocking)

    async def lock(
        self,
        start: int = 0,
        length: int = 0,
        *,
        exclusive: bool = True,
        blocking: bool = True,
        owner: int = THIS_PROCESS,
        pid: int | None = None,
    ) -> None:
        number = os.getpid() if pid is None else pid
        await self.handle.lock_range(start, length, exclusive=exclusive, blocking=blocking, owner=owner, pid=number)

    async def unlock(self, start: int = 0, length: int = 0, *, owner: int = THIS_PROCESS) -> None:
        await self.handle.unlock_range(start, length, owner=owner)

    async def test_lock(
        self, start: int = 0, length: int = 0, *, exclusive: bool = True, owner: int = THIS_PROCESS
    ) -> LockInfo | None:
        return await self.handle.test_lock(start, length, exclusive=exclusive, owner=owner)

    async def flush(self) -> None:
        await self.handle.flush()

    async def fsync(self) -> None:
        await self.handle.fsync()

    async def close(self) -> None:
        await self.handle.close()

    async def discard(self) -> None:
        await self.handle.discard()

    def __del__(self) -> None:
        handle = getattr(self, "handle", None)
        if handle is not None and not handle.closed:
            handle.core.orphans.append(handle)  # the keeper closes it

    async def __aenter__(self) -> File:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<emberfs.aio.File {self.name!r} mode={self.mode!r}{', closed' if self.closed else ''}>"


__all__ = ["Client", "File", "Stat", "StatFs", "StatusError", "connect"]
