"""`ember://` for fsspec: pandas, pyarrow, duckdb, dask, zarr, torch and everything else that opens URLs.

The class is asynchronous as fsspec understands it, and yet its blocking methods never hop to fsspec's loop thread: both faces run
the coroutines of `operations.py`, the asyncio one on the caller's loop, the blocking one driven in the caller's thread. Instances
may be inherited by forked workers and pickled into spawned ones. No listing is cached, so none is stale.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from fsspec.asyn import AsyncFileSystem, get_loop
from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.utils import isfilelike, stringify_path, tokenize

from ..proto.env import drive
from ..proto.errors import Status, error
from . import operations as ops
from .core.whole import read_bytes
from .filesystem_files import EmberAsyncFile, EmberFile, EmberTransaction

if TYPE_CHECKING:
    from .aio import Client as AioClient
    from .blocking import Client
    from .core.client import Core

_Result = TypeVar("_Result")


class EmberFileSystem(AsyncFileSystem):  # type: ignore[misc]
    """A cluster as an fsspec file system.

    `host` is "name:port" of a metadata server, or the percent-encoded data directory of a one-node cluster, as in URLs; without it the
    default cluster is meant. Secrets come from files, never from options. `auto_mkdir` makes missing parent directories of whatever is
    written, as object stores seem to. Errors are the `OSError`s of the standard library.

    The class is long because fsspec's interface is: every operation has an asyncio and a blocking method, each one line.
    """

    protocol = "ember"
    root_marker = "/"
    blocksize = ops.COPY_BYTES
    # The base class's blocking methods build on each other: none needs its asynchronous twin and a loop thread.
    mirror_sync_methods = False
    transaction_type = EmberTransaction
    _pid: int

    def __init__(self, host: str = "", auto_mkdir: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.host = host
        self.auto_mkdir = auto_mkdir
        self._aio: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AioClient] = weakref.WeakKeyDictionary()

    # --- connections ------------------------------------------------------------------------------------------------

    @property
    def client(self) -> Client:
        """The blocking client behind this instance, connected on first use."""
        found: Client | None = self.__dict__.get("_blocking")
        if found is None:
            from .blocking import connect

            # Without a lock: connecting may take long, and a child that is forked meanwhile would wait for it for ever.
            connected = connect(f"ember://{self.host}/")
            found = self.__dict__.setdefault("_blocking", connected)
            if found is not connected:
                connected.close()  # another thread was faster
        return found

    async def _core(self) -> Core:
        """The asyncio core of the running loop, connected on first use."""
        from .aio import connect

        loop = asyncio.get_running_loop()
        if loop not in self._aio:
            connected = await connect(f"ember://{self.host}/")
            if self._aio.setdefault(loop, connected) is not connected:
                await connected.close()
        return self._aio[loop].core

    def _drive(self, work: Callable[..., Coroutine[Any, Any, _Result]], *args: Any, **kwargs: Any) -> _Result:
        return drive(work(self.client.core, *args, **kwargs))

    @property
    def loop(self) -> Any:
        """fsspec's loop; a forked child gets one of its own instead of the base class's refusal."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._loop = None if self.asynchronous else get_loop()
        return self._loop

    @property
    def fsid(self) -> str:
        """The same for every client of a cluster."""
        return f"ember-{self.client.cluster_id}"

    # --- names ------------------------------------------------------------------------------------------------------

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(p) for p in path]
        path = stringify_path(path)
        if path.startswith("ember://"):
            path = path[len("ember://") :].partition("/")[2]
        return "/" + path.strip("/")

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, str]:
        authority = urlsplit(path).netloc if path.startswith("ember://") else ""
        return {"host": authority} if authority else {}

    def unstrip_protocol(self, name: str) -> str:
        return f"ember://{self.host}{self._strip_protocol(name)}"

    # --- looking ----------------------------------------------------------------------------------------------------

    async def _info(self, path: str, **_: Any) -> ops.Entry:
        return await ops.info(await self._core(), self._strip_protocol(path))

    def info(self, path: str, **_: Any) -> ops.Entry:
        return self._drive(ops.info, self._strip_protocol(path))

    async def _exists(self, path: str, **_: Any) -> bool:
        return await ops.exists(await self._core(), self._strip_protocol(path))

    def exists(self, path: str, **_: Any) -> bool:
        return self._drive(ops.exists, self._strip_protocol(path))

    def lexists(self, path: str, **_: Any) -> bool:
        return self._drive(ops.exists, self._strip_protocol(path), follow=False)

    async def _isfile(self, path: str) -> bool:
        return await ops.type_is(await self._core(), self._strip_protocol(path), "file")

    def isfile(self, path: str) -> bool:
        return self._drive(ops.type_is, self._strip_protocol(path), "file")

    async def _isdir(self, path: str) -> bool:
        return await ops.type_is(await self._core(), self._strip_protocol(path), "directory")

    def isdir(self, path: str) -> bool:
        return self._drive(ops.type_is, self._strip_protocol(path), "directory")

    async def _ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        found = await ops.ls(await self._core(), self._strip_protocol(path))
        return found if detail else [e["name"] for e in found]

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        found = self._drive(ops.ls, self._strip_protocol(path))
        return found if detail else [e["name"] for e in found]

    async def _find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **_: Any
    ) -> Any:
        found = await ops.find(await self._core(), self._strip_protocol(path), maxdepth, withdirs)
        return found if detail else list(found)

    def find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **_: Any
    ) -> Any:
        found = self._drive(ops.find, self._strip_protocol(path), maxdepth, withdirs)
        return found if detail else list(found)

    # As os.walk: a symlink to a directory is listed, but only entered where the walk begins. Two that lead upwards would be entered
    # 2**40 times. `below` reaches all calls that the base class makes of itself.

    async def _walk(self, path: str, *args: Any, below: bool = False, **kwargs: Any) -> Any:
        if not (below and await ops.type_is(await self._core(), self._strip_protocol(path), "symlink", follow=False)):
            async for found in super()._walk(path, *args, below=True, **kwargs):
                yield found

    def walk(self, path: str, *args: Any, below: bool = False, **kwargs: Any) -> Any:
        if not (below and self._drive(ops.type_is, self._strip_protocol(path), "symlink", follow=False)):
            yield from super().walk(path, *args, below=True, **kwargs)

    async def _du(
        self, path: str, total: bool = True, maxdepth: int | None = None, withdirs: bool = False, **_: Any
    ) -> Any:
        return ops.sizes(await self._find(path, maxdepth, withdirs, detail=True), total)

    def du(self, path: str, total: bool = True, maxdepth: int | None = None, withdirs: bool = False, **_: Any) -> Any:
        return ops.sizes(self.find(path, maxdepth, withdirs, detail=True), total)

    def created(self, path: str) -> datetime:
        return datetime.fromtimestamp(self.info(path)["created"], tz=UTC)

    def modified(self, path: str) -> datetime:
        return datetime.fromtimestamp(self.info(path)["mtime"], tz=UTC)

    def ukey(self, path: str) -> str:
        """Equal as long as the content is: made of inode, change counter, mtime and size, not of the access time."""
        e = self.info(path)
        return str(tokenize(self.fsid, e["ino"], e["change"], e["mtime_ns"], e["size"]))

    def checksum(self, path: str) -> int:
        return int(self.ukey(path), 16)

    def statvfs(self, path: str = "/") -> Any:
        """Space of the cluster: total, free, used (bytes) and inodes."""
        return self.client.statfs()

    # --- the tree ---------------------------------------------------------------------------------------------------

    async def _mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        await ops.mkdir(await self._core(), self._strip_protocol(path), create_parents)

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        self._drive(ops.mkdir, self._strip_protocol(path), create_parents)

    async def _makedirs(self, path: str, exist_ok: bool = False) -> None:
        await ops.makedirs(await self._core(), self._strip_protocol(path), exist_ok)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        self._drive(ops.makedirs, self._strip_protocol(path), exist_ok)

    async def _rmdir(self, path: str) -> None:
        await (await self._core()).rmdir(self._strip_protocol(path))

    def rmdir(self, path: str) -> None:
        self.client.rmdir(self._strip_protocol(path))

    async def _rm_file(self, path: str, **_: Any) -> None:
        await ops.rm_file(await self._core(), self._strip_protocol(path))

    def rm_file(self, path: str) -> None:
        self._drive(ops.rm_file, self._strip_protocol(path))

    async def _rm(
        self, path: Any, recursive: bool = False, batch_size: int | None = None, maxdepth: int | None = None, **_: Any
    ) -> None:
        if maxdepth is not None:  # no longer whole trees: the leaves one by one
            await super()._rm(path, recursive=recursive, batch_size=1, maxdepth=maxdepth)
            return
        await ops.rm(await self._core(), await self._expand_path(path), recursive)

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        if maxdepth is not None:
            super().rm(path, recursive=recursive, maxdepth=maxdepth)
            return
        self._drive(ops.rm, self.expand_path(path), recursive)

    async def _cp_file(self, path1: str, path2: str, **_: Any) -> None:
        await ops.cp_file(await self._core(), self._strip_protocol(path1), self._strip_protocol(path2), self.auto_mkdir)

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        self._drive(ops.cp_file, self._strip_protocol(path1), self._strip_protocol(path2), self.auto_mkdir)

    async def _mv_file(self, path1: str, path2: str) -> None:
        await ops.mv(await self._core(), self._strip_protocol(path1), self._strip_protocol(path2), self.auto_mkdir)

    async def _mv(self, path1: str, path2: str, **_: Any) -> None:
        await self._mv_file(path1, path2)

    def mv(self, path1: Any, path2: Any, recursive: bool = False, maxdepth: int | None = None, **kwargs: Any) -> None:
        """Rename a file or a whole directory, atomically. Lists and globs move each match."""
        if isinstance(path1, str | os.PathLike) and isinstance(path2, str | os.PathLike) and "*" not in str(path1):
            self._drive(ops.mv, self._strip_protocol(path1), self._strip_protocol(path2), self.auto_mkdir)
            return
        super().mv(path1, path2, recursive=recursive, maxdepth=maxdepth, **kwargs)

    def link(self, src: str, dst: str, **_: Any) -> None:
        self.client.link(self._strip_protocol(src), self._strip_protocol(dst))

    def symlink(self, src: str, dst: str, **_: Any) -> None:
        self.client.symlink(self._strip_protocol(src), self._strip_protocol(dst))

    def islink(self, path: str) -> bool:
        return self.lexists(path) and bool(self.info(path)["islink"])

    def readlink(self, path: str) -> str:
        return self.client.readlink(self._strip_protocol(path))

    def chmod(self, path: str, mode: int) -> None:
        self.client.chmod(self._strip_protocol(path), mode)

    def chown(self, path: str, uid: int = -1, gid: int = -1) -> None:
        self.client.chown(self._strip_protocol(path), uid, gid)

    async def _touch(self, path: str, truncate: bool = True, **_: Any) -> None:
        await ops.touch(await self._core(), self._strip_protocol(path), truncate, self.auto_mkdir)

    def touch(self, path: str, truncate: bool = True, **_: Any) -> None:
        self._drive(ops.touch, self._strip_protocol(path), truncate, self.auto_mkdir)

    # --- contents ---------------------------------------------------------------------------------------------------

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        return await read_bytes(await self._core(), self._strip_protocol(path), start, end)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        return self.client.read_bytes(self._strip_protocol(path), start, end)

    async def _cat_ranges(
        self, paths: Any, starts: Any, ends: Any, max_gap: int | None = None, on_error: str = "return", **_: Any
    ) -> list[Any]:
        return await ops.cat_ranges(await self._core(), self._strip_protocol(paths), starts, ends, on_error)

    def cat_ranges(
        self, paths: Any, starts: Any, ends: Any, max_gap: int | None = None, on_error: str = "return", **_: Any
    ) -> list[Any]:
        """All ranges in one request per storage server. `max_gap` changes nothing: near ranges need no merging here."""
        return self._drive(ops.cat_ranges, self._strip_protocol(paths), starts, ends, on_error)

    async def _pipe_file(self, path: str, value: Any, mode: str = "overwrite", **_: Any) -> None:
        core = await self._core()
        await ops.pipe_file(core, self._strip_protocol(path), value, mode == "create", self.auto_mkdir)

    def pipe_file(self, path: str, value: Any, mode: str = "overwrite", **_: Any) -> None:
        self._drive(ops.pipe_file, self._strip_protocol(path), value, mode == "create", self.auto_mkdir)

    async def _get_file(self, rpath: str, lpath: str, callback: Any = DEFAULT_CALLBACK, **_: Any) -> None:
        await ops.get_file(await self._core(), self._strip_protocol(rpath), lpath, callback)

    def get_file(
        self, rpath: str, lpath: Any = None, callback: Any = DEFAULT_CALLBACK, outfile: Any = None, **_: Any
    ) -> None:
        into = outfile if outfile is not None else lpath
        if isfilelike(into):
            self._drive(ops.get_into, self._strip_protocol(rpath), into, callback)
        else:
            self._drive(ops.get_file, self._strip_protocol(rpath), into, callback)

    async def _put_file(
        self, lpath: str, rpath: str, mode: str = "overwrite", callback: Any = DEFAULT_CALLBACK, **_: Any
    ) -> None:
        await ops.put_file(await self._core(), lpath, self._strip_protocol(rpath), mode, callback, self.auto_mkdir)

    def put_file(
        self, lpath: str, rpath: str, callback: Any = DEFAULT_CALLBACK, mode: str = "overwrite", **_: Any
    ) -> None:
        self._drive(ops.put_file, lpath, self._strip_protocol(rpath), mode, callback, self.auto_mkdir)

    # --- open files -------------------------------------------------------------------------------------------------

    def _open(self, path: str, mode: str = "rb", block_size: Any = None, autocommit: bool = True, **kwargs: Any) -> Any:
        """Modes rb, wb, ab, xb (fails at open), r+b, w+b; `autocommit=False` writes a file that has no name until `commit`."""
        path = self._strip_protocol(path)
        if self.auto_mkdir and mode[0] in "wax":
            kwargs["parents"] = True
        return EmberFile(self, path, mode, block_size, autocommit, **kwargs)

    async def open_async(self, path: str, mode: str = "rb", **kwargs: Any) -> EmberAsyncFile:
        if "b" not in mode or kwargs.get("compression"):
            raise error(Status.INVALID, "open_async opens binary files, without compression")
        parents = self.auto_mkdir and mode[0] in "wax"
        return await EmberAsyncFile.opened(self, await self._core(), self._strip_protocol(path), mode, parents)
