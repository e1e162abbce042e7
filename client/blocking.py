"""The blocking client: `emberfs.connect()` gives a `Client`, `Client.open()` a `File`.

A thin face: every operation is the core's coroutine (client/core), run to its end in the caller's thread. Clients and files
may be used from many threads at once, and survive `os.fork()`: the child gets a new identity, and files that it inherited reopen
when they are used.

Paths are `str`, `bytes` or `os.PathLike`, absolute in the cluster. Every failure is a `StatusError`, which is an `OSError` of the
class that the standard library would use: `FileNotFoundError`, `PermissionError`, `TimeoutError` and so on.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Any

from ..proto.copying import bytes_of
from ..proto.drivers.blocking import BlockingEnvironment
from ..proto.env import drive
from ..proto.errors import StatusError
from ..proto.settings import parse_url
from . import process
from .blocking_file import File
from .core.attributes import Stat, StatFs
from .core.bulk import BulkRead as CoreBulkRead
from .core.bulk import read_many
from .core.client import Core
from .core.keeping import LOST, Event, Quota, TrashEntry
from .core.options import Options, parse_mode
from .core.paths import PathLike, text
from .core.ranges import read_ranges
from .core.shared import SharedMemory
from .core.whole import clone_file, copy_file, read_bytes, write_bytes


def connect(url: str = "ember:///", **options: Any) -> Client:
    """Connect to the cluster that `url` names: "ember://host:port/", or "ember:///" for the default one (see proto/settings.py).

    Options (see `Options`): `timeout` (seconds for one operation, 30), `readahead` and `write_back` (bytes a file may have in flight; 0
    switches it off), `memory` (bytes of buffers in all), `rack` (where this machine is, $EMBERFS_RACK). Raises NOT_FOUND when there is no
    such cluster, UNAVAILABLE when it does not answer, WRONG_CLUSTER, UNAUTHENTICATED.
    """
    chosen = Options.of({"name": process.name(), **options})
    location = parse_url(url)
    env = BlockingEnvironment(cluster=location.cluster, secret_file=location.secret_file, pool_bytes=chosen.memory)
    core = Core(env, location.addresses, chosen, process.umask())
    try:
        drive(core.connect())
    except BaseException:
        env.close()
        raise
    process.track(core)
    return Client(core)


class Client:
    """A connection to a cluster: its namespace and its files. Use it as a context manager, or call `close()`.

    The class is long because it is the list of what a file system can do; each method is one line.
    """

    def __init__(self, core: Core) -> None:
        self.core = core

    # --- looking ------------------------------------------------------------------------------------------------------------------

    def stat(self, path: PathLike, *, follow: bool = True) -> Stat:
        """The attributes of a path; of the symlink itself with `follow=False`. Raises FileNotFoundError and so on."""
        return drive(self.core.stat(path, follow=follow))

    def stat_many(self, paths: Iterable[PathLike], *, follow: bool = True) -> list[Stat | StatusError]:
        """Per path its attributes or the error, in order; one round trip for many paths."""
        return drive(self.core.stat_many(paths, follow=follow))

    def exists(self, path: PathLike) -> bool:
        """Whether the path leads to something (a dangling symlink does not)."""
        return drive(self.core.exists(path))

    def listdir(self, path: PathLike = "/") -> list[str]:
        """The names in a directory, in byte order."""
        return drive(self.core.listdir(path))

    def scandir(self, path: PathLike = "/") -> Iterator[tuple[str, Stat]]:
        """The entries of a directory with their attributes, in byte order of the names, page by page."""
        return _pages(self.core.scandir_page, path)

    def find(
        self, path: PathLike = "/", max_depth: int | None = None, *, denied: Callable[[str], object] | None = None
    ) -> Iterator[tuple[str, Stat]]:
        """Everything below a directory as (path relative to it, attributes), depth first, page by page. `max_depth` 1 is the
        directory's own entries. Directories that may not be read are listed but not entered; `denied` is told of their paths."""
        return _pages(partial(self.core.find_page, denied=denied), path, max_depth)

    def readlink(self, path: PathLike) -> str:
        """Where a symlink points. Raises INVALID for anything else."""
        return drive(self.core.readlink(path))

    def statfs(self) -> StatFs:
        """Space and inodes of the file system."""
        return drive(self.core.statfs())

    # --- changing the namespace -----------------------------------------------------------------------------------------------------

    def mkdir(self, path: PathLike, mode: int = 0o777, *, parents: bool = False, exist_ok: bool = False) -> Stat:
        """Make a directory (the process's umask applies), with `parents` those on the way too."""
        return drive(self.core.mkdir(path, mode, parents=parents, exist_ok=exist_ok))

    def rmdir(self, path: PathLike) -> None:
        """Remove an empty directory."""
        drive(self.core.rmdir(path))

    def unlink(self, path: PathLike, *, forever: bool = False) -> None:
        """Remove a name of anything but a directory. What it named is kept in the trash for a while, unless `forever`."""
        drive(self.core.unlink(path, forever=forever))

    def unlink_many(self, paths: Iterable[PathLike]) -> list[StatusError | None]:
        """Remove many names in few transactions: per path None, or why it is still there."""
        return drive(self.core.unlink_many(paths))

    def remove_tree(self, path: PathLike, *, forever: bool = False) -> None:
        """Remove a file, or a directory with all that is below it. Gone at once, into the trash unless `forever`; its space is freed in the
        background."""
        drive(self.core.remove_tree(path, forever=forever))

    def trash(self) -> list[TrashEntry]:
        """What was removed and can come back: the caller's, root's everybody's. Soonest to go first."""
        return drive(self.core.trash())

    def restore(self, entry: str, path: PathLike | None = None) -> Stat:
        """Give an entry of the trash (`TrashEntry.id`) its name again, or another one."""
        return drive(self.core.restore(entry, path))

    def purge(self, entries: Sequence[str]) -> list[StatusError | None]:
        """Let entries of the trash go for good: per entry None, or why it is still there."""
        return drive(self.core.purge(entries))

    def keep_removed(self, path: PathLike, seconds: int | None) -> None:
        """How long the trash keeps what is removed from this directory; 0: not at all, None: as long as the cluster says."""
        drive(self.core.keep_removed(path, seconds))

    def events(self, path: PathLike = "/", *, wait: float = 20.0) -> Iterator[Event | None]:
        """What happens in a directory and below it, from this call on and for ever; None after each `wait` seconds without one. Where
        the watcher was too slow, or the metadata came to another engine, one of kind "lost". Root and the servers' own user may watch."""
        return self._events_after(drive(self.core.events_page(path, b"", 0)).cookie, path, wait)

    def _events_after(self, cookie: bytes, path: PathLike, wait: float) -> Iterator[Event | None]:
        while True:
            page = drive(self.core.events_page(path, cookie, wait))
            cookie = page.cookie
            if page.lost:
                yield LOST
            elif not page.events:
                yield None
            yield from page.events

    def quotas(self) -> list[Quota]:
        """The quotas that the caller may see, with what is used of them."""
        return drive(self.core.quotas())

    def set_quota(self, **whose: Any) -> Quota:
        """Limit a directory (`path=`), a user (`user=`) or a group (`group=`) to `bytes_max=` and `inodes_max=`; 0: no limit. Root only."""
        return drive(self.core.set_quota(**whose))

    def remove_quota(self, **whose: Any) -> None:
        """Take the limits of `path=`, `user=` or `group=` away."""
        drive(self.core.remove_quota(**whose))

    def rename(self, source: PathLike, target: PathLike, *, replace: bool = True, exchange: bool = False) -> None:
        """Give `source` the name `target`, atomically. An existing target is replaced by POSIX's rules, refused with
        `replace=False`, or swapped with `exchange=True`."""
        drive(self.core.rename(source, target, replace=replace, exchange=exchange))

    def link(self, source: PathLike | File, target: PathLike, *, follow: bool = False) -> None:
        """Make `target` another name of the file `source`: a path (a symlink itself, or with `follow` what it points at), or a file
        that this client has open, also one without a name."""
        if isinstance(source, File):
            drive(self.core.link_open(source.handle, target))
        else:
            drive(self.core.link(source, target, follow=follow))

    def mknod(self, path: PathLike, mode: int = 0o600, device: int = 0) -> Stat:
        """Make a file, FIFO, socket or device, as `os.mknod` (the umask applies; devices are root's)."""
        return drive(self.core.mknod(path, mode, device))

    def symlink(self, target: PathLike, path: PathLike) -> None:
        """Make `path` a symlink that points to `target` (which is stored as it is given)."""
        drive(self.core.symlink(target, path))

    def chmod(self, path: PathLike, mode: int, *, follow: bool = True) -> None:
        """Set the permission bits."""
        drive(self.core.chmod(path, mode, follow=follow))

    def chown(self, path: PathLike, uid: int = -1, gid: int = -1, *, follow: bool = True) -> None:
        """Set owner and group; -1 leaves one as it is."""
        drive(self.core.chown(path, uid, gid, follow=follow))

    def utime(
        self, path: PathLike, *, atime_ns: int | None = None, mtime_ns: int | None = None, follow: bool = True
    ) -> None:
        """Set access and modification time, in nanoseconds since the epoch; both to the server's now when neither is given."""
        drive(self.core.utime(path, atime_ns=atime_ns, mtime_ns=mtime_ns, follow=follow))

    def set_layout(self, path: PathLike, *, chunk_size: int | None = None, stripe: int | None = None) -> None:
        """Choose what new files of a directory get: bytes of a chunk (a power of two, 64 KiB to 64 MiB), chains to spread over."""
        drive(self.core.set_layout(path, chunk_size=chunk_size, stripe=stripe))

    def getxattr(self, path: PathLike, name: str | bytes, *, follow: bool = True) -> bytes:
        """The value of an extended attribute, named with its namespace ("user.origin"). Raises NO_DATA."""
        return drive(self.core.getxattr(path, name, follow=follow))

    def listxattr(self, path: PathLike, *, follow: bool = True) -> list[str]:
        """The names of all extended attributes, ACLs among them."""
        return drive(self.core.listxattr(path, follow=follow))

    def setxattr(self, path: PathLike, name: str | bytes, value: bytes, flags: int = 0, *, follow: bool = True) -> None:
        """Set an extended attribute; flags as in `os.setxattr`: XATTR_CREATE, XATTR_REPLACE. ACLs are the attributes
        `system.posix_acl_access` and `system.posix_acl_default`, in the kernel's form."""
        drive(self.core.setxattr(path, name, value, flags, follow=follow))

    def removexattr(self, path: PathLike, name: str | bytes, *, follow: bool = True) -> None:
        """Remove an extended attribute. Raises NO_DATA."""
        drive(self.core.removexattr(path, name, follow=follow))

    def access(self, path: PathLike, mode: int, *, follow: bool = True) -> bool:
        """Whether this user may do all of `os.R_OK`, `os.W_OK`, `os.X_OK` in `mode` (0: whether it exists)."""
        return drive(self.core.access(path, mode, follow=follow))

    def truncate(self, path: PathLike, length: int) -> None:
        """Cut or extend a file to `length` bytes."""
        drive(self.core.truncate(path, length))

    def create_many(self, paths: Iterable[PathLike], mode: int = 0o666) -> list[Stat | StatusError]:
        """Make many empty files in few transactions: per path its attributes or the error."""
        return drive(self.core.create_many(paths, mode))

    def publish(self, files: Sequence[File], targets: Sequence[PathLike], *, exclusive: bool = False) -> None:
        """Give files that were opened with `unnamed=True` their names, all in one transaction, after their data was written out;
        then close them. Existing targets are replaced, or with `exclusive` make the whole call fail (the files stay open). A file that has
        lost data fails however often it is tried: `discard` it, and write another one."""
        drive(self.core.publish([file.handle for file in files], targets, exclusive=exclusive))

    # --- files ----------------------------------------------------------------------------------------------------------------------

    def open(
        self,
        path: PathLike,
        mode: str = "rb",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        *,
        chunk_size: int | None = None,
        stripe: int | None = None,
        permissions: int = 0o666,
        parents: bool = False,
        unnamed: bool = False,
    ) -> Any:
        """Open a file as the built-in `open` does, but binary unless `mode` contains "t" or an encoding is given.

        Binary modes give a `File`, text modes an `io.TextIOWrapper` around one. `buffering=0` switches readahead and write-back
        off for this file. For a new file: `chunk_size` in bytes and `stripe` in chains (default: the directory's), `permissions` before the
        umask, `parents` to make missing directories. `unnamed` makes a new file without a name in the directory `path`, for `publish`.
        """
        parsed = parse_mode(mode, as_text=encoding is not None)
        handle = drive(
            self.core.open(
                path,
                parsed,
                buffered=buffering != 0,
                chunk_size=chunk_size,
                stripe=stripe,
                permissions=permissions,
                parents=parents,
                unnamed=unnamed,
            )
        )
        file = File(handle, text(path), parsed.binary)
        if not parsed.text:
            return file
        return io.TextIOWrapper(file, encoding or "utf-8", errors, newline)

    def read_bytes(self, path: PathLike, start: int | None = None, end: int | None = None) -> bytes:
        """The content of a file, or of its range [start, end); negative positions count from the end."""
        return drive(read_bytes(self.core, path, start, end))

    def write_bytes(self, path: PathLike, data: Any, *, exclusive: bool = False) -> Stat:
        """Make the buffer `data` the content of a file, which is created or emptied; with `exclusive` it must not exist yet."""
        return drive(write_bytes(self.core, path, data, exclusive=exclusive))

    def read_ranges(self, ranges: Iterable[tuple[PathLike, int | None, int | None]]) -> list[bytes | StatusError]:
        """Per (path, start, end) the bytes or the error, in order: one plan over all files and chains, one request per server."""
        return drive(read_ranges(self.core, list(ranges)))

    def read_many(self, ranges: Sequence[tuple[File, int, int]], buffer: Any = None) -> list[memoryview]:
        """Per (open file, offset, length) a view of its bytes, in `buffer` (writable, for all of them one after the other) or a new one.
        Some are on their way while others are copied there; into `shared_memory` nothing is copied. Raises INVALID for a range that is
        not all there, REGION_DEAD for shared memory that is dead."""
        total = sum(length for _, _, length in ranges)
        view = bytes_of(bytearray(total) if buffer is None else buffer)
        return drive(read_many(self.core, [(file.handle, offset, length) for file, offset, length in ranges], view))

    def shared_memory(self, size: int) -> SharedMemory:
        """New memory of `size` bytes that servers on this host fill by themselves when something is read to a part of it with
        `read_many`. It takes memory as it is used; `close` it, or the client, and drop all views of it."""
        return self.core.shared.make(size)

    def bulk_read(
        self, files: Sequence[File], file: Sequence[int], offsets: Sequence[int], lengths: Sequence[int]
    ) -> BulkRead:
        """Ask for many ranges at once, of which the i-th is `lengths[i]` bytes from `offsets[i]` on of `files[file[i]]`: one request for
        each storage process. They come into this client's own memory, without a copy; see `BulkRead`. Raises BUSY where there is none
        left."""
        bulk = CoreBulkRead(self.core, [one.handle for one in files], file, offsets, lengths)
        return BulkRead(drive(bulk.start()))

    def copy_file(self, source: PathLike, target: PathLike) -> Stat:
        """Copy the content of a file to `target`, which is created or emptied."""
        return drive(copy_file(self.core, source, target))

    def clone(self, source: PathLike, target: PathLike, *, exclusive: bool = False) -> Stat:
        """Make `target` a file with the content of `source` without moving data: both share it until one of them is written. An existing
        target is replaced in one step, or refused with `exclusive`."""
        return drive(clone_file(self.core, source, target, exclusive=exclusive))

    # --- the whole --------------------------------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Write out and make durable all that this client has written or changed."""
        drive(self.core.sync())

    def status(self) -> Any:
        """The manager's view of the cluster: a `StatusReply` (nodes, targets, chains, clients)."""
        return drive(self.core.status())

    @property
    def cluster_id(self) -> str:
        return self.core.cluster_id

    @property
    def closed(self) -> bool:
        return self.core.closed

    def close(self) -> None:
        """Write out and close every file, and end the session. Raises the first error of a write that was still on its way."""
        process.forget(self.core)
        drive(self.core.close())

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<emberfs.Client of cluster {self.cluster_id}{', closed' if self.closed else ''}>"


class BulkRead:
    """Ranges on their way (`Client.bulk_read`): servers move the bytes meanwhile."""

    def __init__(self, bulk: CoreBulkRead) -> None:
        self._bulk = bulk

    def finish(self) -> memoryview:
        """Wait for the bytes, verified, one range after the other. They are the client's memory, and valid until `release`."""
        return drive(self._bulk.finish())

    def release(self) -> None:
        """Give the memory back, or give up what is under way. Doing it twice is no harm."""
        self._bulk.release()


def _pages(fetch: Any, *args: Any) -> Iterator[Any]:
    """The items of a paged listing; the first page is fetched at once, so that its errors come from the call."""
    page, cookie = drive(fetch(*args, b""))
    return _rest(page, cookie, fetch, args)


def _rest(page: list[Any], cookie: bytes | None, fetch: Any, args: tuple[Any, ...]) -> Iterator[Any]:
    yield from page
    while cookie is not None:
        page, cookie = drive(fetch(*args, cookie))
        yield from page


__all__ = ["Client", "File", "Stat", "StatFs", "StatusError", "connect"]
