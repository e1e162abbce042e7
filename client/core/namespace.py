"""The operations on names: one coroutine each, one request each (or one per page or batch)."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypedDict, Unpack

from ...proto.errors import Status, StatusError, error, status_of
from ...proto.gen import common_pb2
from ...proto.gen.common_pb2 import Attributes, Caller
from ...proto.gen.meta_pb2 import (
    REMOVE_KIND_RMDIR,
    REMOVE_KIND_TREE,
    REMOVE_KIND_UNLINK,
    AccessRequest,
    CreateRequest,
    FindRequest,
    GetXattrRequest,
    LinkRequest,
    ListXattrsRequest,
    NewEntry,
    Place,
    ReadDirectoryReply,
    ReadDirectoryRequest,
    RemoveReply,
    RemoveRequest,
    RemoveXattrRequest,
    RenameRequest,
    SetAttributesRequest,
    SetXattrRequest,
    StatFsRequest,
    StatRequest,
    SyncNamespaceRequest,
)
from ...proto.rpc import META
from .attributes import Stat, StatFs, stat_of, statfs_of
from .cluster import Cluster
from .inode import Inode
from .keeping import Keeping
from .paths import PathLike, at, encode, place, text

DEPTH_MAX = (1 << 32) - 1  # levels of a walk that can be told
TIME_NS_END = 1 << 63  # of a file's times, and as far back before 1970
BATCH_MAX = 1000  # names of one request: a transaction of the smallest engine holds them
PAGE_ENTRIES = 4096  # of a listing
FIRST_PAGE_ENTRIES = 1024  # of a listing that begins: who asks sees something soon

FILE_TYPES = {  # what mknod makes
    stat.S_IFREG: common_pb2.FILE_TYPE_REGULAR,
    stat.S_IFIFO: common_pb2.FILE_TYPE_FIFO,
    stat.S_IFSOCK: common_pb2.FILE_TYPE_SOCKET,
    stat.S_IFCHR: common_pb2.FILE_TYPE_CHARACTER,
    stat.S_IFBLK: common_pb2.FILE_TYPE_BLOCK,
}

_NO_ACCESS = frozenset(
    (Status.PERMISSION_DENIED, Status.NOT_FOUND, Status.NOT_DIRECTORY, Status.SYMLINK_LOOP, Status.NAME_TOO_LONG)
)

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2


class Changes(TypedDict, total=False):
    """Attributes to be set; times are nanoseconds since the epoch, or the server's present."""

    mode: int
    uid: int
    gid: int
    atime_ns: int
    mtime_ns: int
    atime_now: bool
    mtime_now: bool


class Namespace(Keeping):
    """Names and attributes; `Core` adds the files. Long because it is the list of POSIX's operations on names."""

    cluster: Cluster
    umask: int
    caller: Caller | None = None  # for whom; None: for whom the connection is

    # --- looking ------------------------------------------------------------------------------------------------------------------

    async def stat(self, path: PathLike, *, follow: bool = True) -> Stat:
        where, leases = place(path), self.cluster.leases
        request = StatRequest(places=(where,), follow=follow)
        began = leases.asked() if leases is not None and not follow else 0
        if began:
            request.lease = True
        reply = await self._ask(META.Stat, request)
        if reply.statuses[0]:
            if reply.leased and leases is not None:
                leases.learn(began, where, None)
            raise failed(reply.statuses[0], path)
        found = stat_of(reply.attributes[0])
        if reply.leased and leases is not None:
            leases.learn(began, where, found)
        return self.seen(found)

    async def stat_many(self, paths: Iterable[PathLike], *, follow: bool = True) -> list[Stat | StatusError]:
        replies = await self._batches(META.Stat, paths, lambda places: StatRequest(places=places, follow=follow))
        return [self.seen(stat_of(a)) if isinstance(a, Attributes) else a for a in replies]

    def seen(self, stat: Stat) -> Stat:
        """Attributes as this client sees them: with the length of what it wrote and has not published yet."""
        return stat

    async def exists(self, path: PathLike) -> bool:
        try:
            await self.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    async def listdir(self, path: PathLike = "/") -> list[str]:
        names: list[str] = []
        cookie: bytes | None = b""
        while cookie is not None:
            page, cookie = await self.names_page(path, cookie)
            names += page
        return names

    async def names_page(self, path: PathLike, cookie: bytes) -> tuple[list[str], bytes | None]:
        """A page of a directory's names, and the cookie of the next one (None: that was all)."""
        entries_max = PAGE_ENTRIES if cookie else FIRST_PAGE_ENTRIES
        request = ReadDirectoryRequest(place=place(path), cookie=cookie, entries_max=entries_max)
        reply = await self._named(META.ReadDirectory, request, path)
        return [name.decode("utf-8", "surrogateescape") for name in reply.names], None if reply.end else reply.cookie

    async def read_directory(
        self, path: PathLike, cookie: bytes, entries_max: int, *, attributes: bool = False, lease: bool = False
    ) -> ReadDirectoryReply:
        """A page of a directory's entries as the server gives it, in columns. `lease`: of all of them, for who learns them
        (`Leases.asked`)."""
        request = ReadDirectoryRequest(
            place=place(path), cookie=cookie, entries_max=entries_max, attributes=attributes, lease=lease
        )
        return await self._named(META.ReadDirectory, request, path)  # type: ignore[no-any-return]

    async def scandir_page(self, path: PathLike, cookie: bytes) -> tuple[list[tuple[str, Stat]], bytes | None]:
        """A page of a directory's entries, and the cookie of the next one (None: that was all)."""
        entries_max = PAGE_ENTRIES if cookie else FIRST_PAGE_ENTRIES
        request = ReadDirectoryRequest(place=place(path), cookie=cookie, entries_max=entries_max, attributes=True)
        reply = await self._named(META.ReadDirectory, request, path)
        return self._page(reply.names, reply)

    async def find_page(
        self, path: PathLike, max_depth: int | None, cookie: bytes, denied: Callable[[str], object] | None = None
    ) -> tuple[list[tuple[str, Stat]], bytes | None]:
        """A page of what lies below a directory, and the cookie of the next one. `denied` is told of directories that may not be read."""
        if max_depth is not None and max_depth < 1:
            raise error(Status.INVALID, f"max_depth {max_depth}: must be at least 1")
        depth_max = min(max_depth or 0, DEPTH_MAX)
        request = FindRequest(place=place(path), depth_max=depth_max, cookie=cookie, entries_max=PAGE_ENTRIES)
        reply = await self._named(META.Find, request, path)
        if denied is not None:
            for name in reply.denied:
                denied(name.decode("utf-8", "surrogateescape"))
        return self._page(reply.paths, reply)

    def _page(self, names: Sequence[bytes], reply: Any) -> tuple[list[tuple[str, Stat]], bytes | None]:
        entries = [
            (name.decode("utf-8", "surrogateescape"), self.seen(stat_of(a)))
            for name, a in zip(names, reply.attributes, strict=True)
        ]
        return entries, None if reply.end else reply.cookie

    async def readlink(self, path: PathLike) -> str:
        found = await self.stat(path, follow=False)
        if not found.is_symlink:
            raise error(Status.INVALID, "it is not a symlink", text(path))
        return found.target

    async def statfs(self) -> StatFs:
        return statfs_of(await self._ask(META.StatFs, StatFsRequest()))

    async def sync_names(self) -> None:
        """Every change of the namespace that was acknowledged is durable when this returns."""
        await self.cluster.meta(META.SyncNamespace, SyncNamespaceRequest())

    # --- changing -----------------------------------------------------------------------------------------------------------------

    async def mkdir(self, path: PathLike, mode: int = 0o777, *, parents: bool = False, exist_ok: bool = False) -> Stat:
        entry = NewEntry(place=place(path), type=common_pb2.FILE_TYPE_DIRECTORY, mode=mode & 0o7777)
        return await self._create(path, entry, parents=parents, exist_ok=exist_ok)

    async def symlink(self, target: PathLike, path: PathLike) -> Stat:
        entry = NewEntry(place=place(path), type=common_pb2.FILE_TYPE_SYMLINK, mode=0o777, target=encode(target))
        return await self._create(path, entry)

    async def mknod(self, path: PathLike, mode: int = 0o600, device: int = 0) -> Stat:
        kind = FILE_TYPES.get(stat.S_IFMT(mode) or stat.S_IFREG)
        if kind is None:
            raise error(Status.INVALID, f"mode {mode:o}: mknod makes files, FIFOs, sockets and devices", text(path))
        entry = NewEntry(place=place(path), type=kind, mode=mode & 0o7777, rdev=device)
        return await self._create(path, entry)

    async def _create(self, path: PathLike, entry: NewEntry, *, parents: bool = False, exist_ok: bool = False) -> Stat:
        leases = self.cluster.leases
        lease = leases is not None and leases.asked() > 0
        request = CreateRequest(entries=(entry,), parents=parents, exist_ok=exist_ok, umask=self.umask, lease=lease)
        reply = await self._changed(META.Create, request, path)
        if reply.statuses[0]:
            raise failed(reply.statuses[0], path)
        return stat_of(reply.attributes[0])

    async def create_many(self, paths: Iterable[PathLike], mode: int = 0o666) -> list[Stat | StatusError]:
        bits = mode & 0o7777

        def build(places: Sequence[Place]) -> CreateRequest:
            entries = [NewEntry(place=where, type=common_pb2.FILE_TYPE_REGULAR, mode=bits) for where in places]
            return CreateRequest(entries=entries, umask=self.umask)

        replies = await self._batches(META.Create, paths, build)
        return [stat_of(a) if isinstance(a, Attributes) else a for a in replies]

    async def rmdir(self, path: PathLike) -> Stat:
        """Remove an empty directory; how it was left, for those who have it open still."""
        return stat_of((await self._remove(path, REMOVE_KIND_RMDIR)).attributes[0])

    async def unlink(self, path: PathLike, *, forever: bool = False) -> None:
        await self.remove_name(path, forever=forever)

    async def remove_name(self, path: PathLike, *, forever: bool = False) -> Stat | None:
        """`unlink`; the attributes of what has other names."""
        left = (await self._remove(path, REMOVE_KIND_UNLINK, forever=forever)).attributes
        return self.seen(stat_of(left[0])) if left else None

    async def remove_tree(self, path: PathLike, *, forever: bool = False) -> None:
        await self._remove(path, REMOVE_KIND_TREE, forever=forever)

    async def _remove(self, path: PathLike, kind: int, *, forever: bool = False) -> RemoveReply:
        request = RemoveRequest(places=(place(path),), kind=kind, forever=forever)  # type: ignore[arg-type]
        reply: RemoveReply = await self._changed(META.Remove, request, path)
        if reply.statuses[0]:
            raise failed(reply.statuses[0], path)
        return reply

    async def unlink_many(self, paths: Iterable[PathLike]) -> list[StatusError | None]:
        replies = await self._batches(
            META.Remove, paths, lambda places: RemoveRequest(places=places, kind=REMOVE_KIND_UNLINK)
        )
        return [found if isinstance(found, StatusError) else None for found in replies]

    async def rename(self, source: PathLike, target: PathLike, *, replace: bool = True, exchange: bool = False) -> Stat:
        """Move a name; the attributes of what has moved."""
        moved, _ = await self.rename_over(source, target, replace=replace, exchange=exchange)
        return moved

    async def rename_over(
        self, source: PathLike, target: PathLike, *, replace: bool = True, exchange: bool = False
    ) -> tuple[Stat, Stat | None]:
        """`rename`; and the empty directory that was replaced, as it was left, for those who have it open still."""
        if exchange and not replace:
            raise error(Status.INVALID, "rename: exchange needs an existing target, replace=False refuses one")
        flags = RENAME_EXCHANGE if exchange else 0 if replace else RENAME_NOREPLACE
        request = RenameRequest(source=place(source), target=place(target), flags=flags)
        try:
            reply = await self._change(META.Rename, request)
        except StatusError as failure:
            raise with_path(failure, f"{text(source)} -> {text(target)}") from None
        return self.seen(stat_of(reply.attributes)), stat_of(reply.replaced) if reply.replaced.inode else None

    async def link(self, source: PathLike, target: PathLike, *, follow: bool = False) -> Stat:
        """Another name for what is no directory; its attributes."""
        request = LinkRequest(source=place(source), target=place(target), follow=follow)
        reply = await self._changed(META.Link, request, f"{text(source)} -> {text(target)}")
        return self.seen(stat_of(reply.attributes))

    async def chmod(self, path: PathLike, mode: int, *, follow: bool = True) -> None:
        await self._set(path, SetAttributesRequest(follow=follow, mode=mode & 0o7777))

    async def chown(self, path: PathLike, uid: int = -1, gid: int = -1, *, follow: bool = True) -> None:
        request = SetAttributesRequest(follow=follow)
        for name, number in (("uid", uid), ("gid", gid)):
            if not -1 <= number < 1 << 32:
                raise error(Status.INVALID, f"{name} {number} is outside 0 … 2**32 - 1", text(path))
            if number >= 0:
                setattr(request, name, number)
        await self._set(path, request)

    async def utime(
        self, path: PathLike, *, atime_ns: int | None = None, mtime_ns: int | None = None, follow: bool = True
    ) -> None:
        for name, ns in (("atime_ns", atime_ns), ("mtime_ns", mtime_ns)):
            if ns is not None and not -TIME_NS_END <= ns < TIME_NS_END:  # local file systems may have others
                raise error(
                    Status.INVALID, f"{name} {ns} is outside -2**63 … 2**63 - 1, the years 1677 to 2262", text(path)
                )
        now = atime_ns is None and mtime_ns is None
        request = SetAttributesRequest(
            follow=follow, atime_ns=atime_ns, mtime_ns=mtime_ns, atime_now=now, mtime_now=now
        )
        await self._set(path, request)

    async def set_layout(self, path: PathLike, *, chunk_size: int | None = None, stripe: int | None = None) -> None:
        await self._set(path, SetAttributesRequest(follow=True, chunk_size=chunk_size, stripe=stripe))

    async def set_attributes(self, path: PathLike, **changes: Unpack[Changes]) -> Stat:
        """Several at once, all or nothing; of a symlink itself. None at all is chown(2) with -1 and -1, which takes set-id bits away. The
        attributes as they are then."""
        return await self._set(path, SetAttributesRequest(**changes))

    async def set_attributes_of(self, file: Inode, **changes: Unpack[Changes]) -> Stat:
        """`set_attributes` of a file that is being written here: what was written is settled in the same request. Under its lock, and
        only while it `may_settle_along`. Raises NOT_INLINE (nothing was done), besides."""
        where = at(file.id)
        request = SetAttributesRequest(place=where, settle=file.settlement(), **changes)
        attributes = (await self._changed(META.SetAttributes, request, where)).attributes
        file.settled_along(request.settle, attributes)
        return self.seen(stat_of(attributes))

    async def _set(self, path: PathLike, request: SetAttributesRequest) -> Stat:
        request.place.CopyFrom(place(path))
        return self.seen(stat_of((await self._changed(META.SetAttributes, request, path)).attributes))

    # --- extended attributes and permissions ----------------------------------------------------------------------------------------

    async def getxattr(self, path: PathLike, name: str | bytes, *, follow: bool = True) -> bytes:
        request = GetXattrRequest(place=place(path), follow=follow, name=encode(name))
        return bytes((await self._named(META.GetXattr, request, path)).value)

    async def listxattr(self, path: PathLike, *, follow: bool = True) -> list[str]:
        reply = await self._named(META.ListXattrs, ListXattrsRequest(place=place(path), follow=follow), path)
        return [name.decode("utf-8", "surrogateescape") for name in reply.names]

    async def setxattr(
        self, path: PathLike, name: str | bytes, value: bytes, flags: int = 0, *, follow: bool = True
    ) -> Stat:
        """Set one (flags: XATTR_CREATE 1, XATTR_REPLACE 2); the inode's attributes."""
        request = SetXattrRequest(place=place(path), follow=follow, name=encode(name), value=bytes(value), flags=flags)
        return self.seen(stat_of((await self._changed(META.SetXattr, request, path)).attributes))

    async def removexattr(self, path: PathLike, name: str | bytes, *, follow: bool = True) -> Stat:
        """Remove one; the inode's attributes."""
        request = RemoveXattrRequest(place=place(path), follow=follow, name=encode(name))
        return self.seen(stat_of((await self._changed(META.RemoveXattr, request, path)).attributes))

    async def check_access(self, path: PathLike, mask: int, *, follow: bool = True) -> None:
        """Raise what forbids all of R_OK 4, W_OK 2, X_OK 1 in the mask."""
        await self._named(META.Access, AccessRequest(place=place(path), follow=follow, mask=mask), path)

    async def access(self, path: PathLike, mask: int, *, follow: bool = True) -> bool:
        try:
            await self.check_access(path, mask, follow=follow)
        except StatusError as failure:
            if failure.status in _NO_ACCESS:
                return False
            raise
        return True

    # --- requests -----------------------------------------------------------------------------------------------------------------

    async def _ask(self, method: Any, request: Any) -> Any:
        if self.caller is not None:
            request.caller.CopyFrom(self.caller)
        return await self.cluster.meta(method, request)

    async def _change(self, method: Any, request: Any) -> Any:
        if self.caller is not None:
            request.caller.CopyFrom(self.caller)
        return await self.cluster.change(method, request)

    async def _named(self, method: Any, request: Any, path: PathLike) -> Any:
        """Ask; an error carries the path."""
        try:
            return await self._ask(method, request)
        except StatusError as failure:
            raise with_path(failure, path) from None

    async def _changed(self, method: Any, request: Any, path: PathLike) -> Any:
        """Change; an error carries the path."""
        try:
            return await self._change(method, request)
        except StatusError as failure:
            raise with_path(failure, path) from None

    async def _batches(
        self, method: Any, paths: Iterable[PathLike], build: Callable[[Sequence[Place]], Any]
    ) -> list[Any]:
        """Send batches one after the other; per path its attributes (True where the reply has none) or its error."""
        given = list(paths)
        results: list[Any] = [place_or_error(path) for path in given]
        sent = [row for row, where in enumerate(results) if isinstance(where, Place)]
        for rows in batches(sent):
            request = build([results[row] for row in rows])
            reply = await (self._ask if method is META.Stat else self._change)(method, request)
            found = reply.attributes if method is not META.Remove else None
            for i, (row, status) in enumerate(zip(rows, reply.statuses, strict=True)):
                results[row] = failed(status, given[row]) if status else True if found is None else found[i]
        return results


def place_or_error(path: PathLike) -> Place | StatusError:
    """Where a path is; of many, one that can be none must not keep the others from their answers."""
    try:
        return place(path)
    except StatusError as failure:
        return failure


def batches(items: Sequence[Any]) -> list[Sequence[Any]]:
    """Cut a list into batches of at most BATCH_MAX."""
    return [items[i : i + BATCH_MAX] for i in range(0, len(items), BATCH_MAX)]


def failed(code: int, path: PathLike) -> StatusError:
    """The error of one entry of a batch."""
    return error(status_of(code), "", text(path))


def with_path(failure: StatusError, path: PathLike) -> StatusError:
    """The same failure, naming the path as the built-in functions do."""
    return error(failure.status, failure.strerror or "", text(path), failure.detail)
