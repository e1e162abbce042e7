"""What fsspec asks of a file system, in terms of the client core: written once, run blocking and under asyncio.

Every function is a coroutine over a `Core`. The asyncio methods of `EmberFileSystem` await it on their loop; the blocking ones
drive the same coroutine over a core with the blocking environment, in the caller's thread.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ..proto.errors import Status, StatusError, error
from .core.attributes import Stat
from .core.client import Core
from .core.file import Handle
from .core.options import parse_mode
from .core.ranges import read_ranges
from .core.whole import copy_file, write_bytes

COPY_BYTES = 8 << 20  # moved at once between a local file and the cluster
_TYPE_BITS = {"file": 0o100000, "directory": 0o040000, "symlink": 0o120000}
_TYPE_BITS |= {"fifo": 0o010000, "socket": 0o140000}
_TYPE_BITS |= {"character device": 0o020000, "block device": 0o060000}

Entry = dict[str, Any]


def entry(path: str, stat: Stat, behind: Stat | None = None) -> Entry:
    """The fsspec entry of an inode. `behind` is what a symlink leads to (None: it dangles); its type and size count then."""
    link = stat.type == "symlink"
    seen = behind if link and behind is not None else stat
    made: Entry = {
        "name": path,
        "size": 0 if seen.type == "directory" else seen.size,
        "type": seen.type if seen.type in ("file", "directory") else "link" if link else "other",
        "mode": seen.mode | _TYPE_BITS.get(seen.type, 0),
        "uid": seen.uid,
        "gid": seen.gid,
        "ino": stat.inode,
        "nlink": seen.nlink,
        "created": stat.birth_ns / 1e9,
        "mtime": seen.mtime_ns / 1e9,
        "ctime": seen.ctime_ns / 1e9,
        "islink": link,
        "change": seen.change,
        "mtime_ns": seen.mtime_ns,
    }
    if link:
        made["destination"] = stat.target
    return made


async def entries(core: Core, found: Sequence[tuple[str, Stat]]) -> list[Entry]:
    """Entries for (path, stat without following) pairs; all symlinks among them are followed in one request."""
    links = [path for path, stat in found if stat.type == "symlink"]
    behind = dict(zip(links, await core.stat_many(links), strict=True)) if links else {}
    return [
        entry(path, stat, None if isinstance(seen := behind.get(path), StatusError) else seen) for path, stat in found
    ]


async def info(core: Core, path: str) -> Entry:
    """One entry. Raises FileNotFoundError, PermissionError, …; a dangling symlink is an entry of type "link"."""
    return (await entries(core, [(path, await core.stat(path, follow=False))]))[0]


async def exists(core: Core, path: str, follow: bool = True) -> bool:
    """Whether the path leads somewhere. Trouble with the network or with permissions is an error, not an absence."""
    try:
        await core.stat(path, follow=follow)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


async def type_is(core: Core, path: str, kind: str, follow: bool = True) -> bool:
    try:
        return bool((await core.stat(path, follow=follow)).type == kind)
    except (FileNotFoundError, NotADirectoryError):
        return False


async def ls(core: Core, path: str) -> list[Entry]:
    """The entries of a directory, or the one entry of anything else."""
    made: list[Entry] = []
    cookie: bytes | None = b""
    try:
        while cookie is not None:
            page, cookie = await core.scandir_page(path, cookie)
            made += await entries(core, [(posixpath.join(path, name), stat) for name, stat in page])
    except NotADirectoryError:
        return [await info(core, path)]
    return made


async def find(core: Core, path: str, maxdepth: int | None, withdirs: bool) -> dict[str, Entry]:
    """All below a path, listed by the server; a symlink is reported as what it leads to and not descended into."""
    if maxdepth is not None and maxdepth < 1:
        raise ValueError("maxdepth must be at least 1")
    try:
        top = await info(core, path)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    if top["type"] != "directory":
        return {path: top}
    below: dict[str, Entry] = {}
    cookie: bytes | None = b""
    while cookie is not None:
        page, cookie = await core.find_page(path, maxdepth, cookie)
        made = await entries(core, [(posixpath.join(path, relative), stat) for relative, stat in page])
        below.update((e["name"], e) for e in made if withdirs or e["type"] != "directory")
    if withdirs:
        below[path] = top
    return dict(sorted(below.items()))


async def mkdir(core: Core, path: str, parents: bool) -> None:
    await core.mkdir(path, parents=parents)


async def makedirs(core: Core, path: str, exist_ok: bool) -> None:
    await core.mkdir(path, parents=True, exist_ok=exist_ok)


async def with_parents(core: Core, path: str, auto_mkdir: bool, attempt: Callable[[], Any]) -> Any:
    """Run an attempt to create `path`; with `auto_mkdir`, make missing parent directories and try once more."""
    try:
        return await attempt()
    except FileNotFoundError:
        if not auto_mkdir:
            raise
        await core.mkdir(posixpath.dirname(path), parents=True, exist_ok=True)
        return await attempt()


async def pipe_file(core: Core, path: str, value: Any, exclusive: bool, auto_mkdir: bool) -> None:
    """Write a whole file; `exclusive` fails with FileExistsError, decided by the server at once."""
    await with_parents(core, path, auto_mkdir, lambda: write_bytes(core, path, value, exclusive=exclusive))


async def cat_ranges(core: Core, paths: list[str], starts: Any, ends: Any, on_error: str) -> list[bytes | StatusError]:
    """All ranges as one batched plan over all files and chains. `starts` and `ends` are numbers, None, or lists of them."""
    if not isinstance(paths, list):
        raise TypeError("cat_ranges takes a list of paths")
    first = list(starts) if isinstance(starts, Iterable) else [starts] * len(paths)
    last = list(ends) if isinstance(ends, Iterable) else [ends] * len(paths)
    if len(first) != len(paths) or len(last) != len(paths):
        raise ValueError("paths, starts and ends differ in length")
    out = await read_ranges(core, list(zip(paths, first, last, strict=True)))
    if on_error != "return":
        for result in out:
            if isinstance(result, StatusError):
                raise result
    return out


async def rm_file(core: Core, path: str) -> None:
    """Remove a file or an empty directory (fsspec's bulk removal comes from the leaves up)."""
    try:
        await core.unlink(path)
    except IsADirectoryError:
        await core.rmdir(path)


async def rm(core: Core, paths: Sequence[str], recursive: bool) -> None:
    """Remove each path; whole trees are one request each, freed by the server in the background. What lies in a tree that is named as well
    (as by "**") goes with that."""
    gone: set[str] = set()
    for path in sorted(paths):  # what lies in a tree comes after it
        if path == "/":
            raise error(Status.NOT_PERMITTED, "the root directory cannot be removed")
        if recursive:
            if not gone.intersection(_above(path)):
                await core.remove_tree(path)
                gone.add(path)
        else:
            await core.unlink(path)


def _above(path: str) -> Iterator[str]:
    """The directories on the way to a path."""
    while path := path.rpartition("/")[0]:
        yield path


async def cp_file(core: Core, source: str, target: str, auto_mkdir: bool) -> None:
    """Copy one file; a directory is made anew, as fsspec's recursive copy expects."""
    try:
        await with_parents(core, target, auto_mkdir, lambda: copy_file(core, source, target))
    except IsADirectoryError:
        if not await type_is(core, source, "directory"):
            raise  # it is the target that is one
        await core.mkdir(target, parents=True, exist_ok=True)


async def mv(core: Core, source: str, target: str, auto_mkdir: bool) -> None:
    """Rename a file or directory, atomically; onto an existing directory it moves into it, as `mv` does."""
    if source == target:
        return
    if await type_is(core, target, "directory"):
        target = posixpath.join(target, posixpath.basename(source))
    await with_parents(core, target, auto_mkdir, lambda: core.rename(source, target))


async def touch(core: Core, path: str, truncate: bool, auto_mkdir: bool) -> None:
    if truncate:
        await pipe_file(core, path, b"", exclusive=False, auto_mkdir=auto_mkdir)
        return
    try:
        await core.utime(path)
    except FileNotFoundError:
        # Without O_EXCL: somebody else may be faster, or the name a symlink that dangles.
        await (await core.open(path, parse_mode("ab"), parents=auto_mkdir)).close()


async def get_file(core: Core, path: str, local: str, callback: Any) -> None:
    """Copy a file to a local path, whose directories are made; a directory becomes an empty one."""
    try:
        source = await core.open(path, parse_mode("rb"))
    except IsADirectoryError:
        os.makedirs(local, exist_ok=True)
        return
    try:
        os.makedirs(os.path.dirname(local) or ".", exist_ok=True)
        with open(local, "wb", buffering=0) as outfile:
            await _pour(source, outfile, callback)
    finally:
        await source.close()


async def get_into(core: Core, path: str, outfile: Any, callback: Any) -> None:
    """Copy a file into anything that has `write`."""
    source = await core.open(path, parse_mode("rb"))
    try:
        await _pour(source, outfile, callback)
    finally:
        await source.close()


async def _pour(source: Handle, outfile: Any, callback: Any) -> None:
    callback.set_size(source.size)
    buffer = memoryview(bytearray(min(COPY_BYTES, max(source.size, 1))))
    while count := await source.readinto(buffer):
        written = 0
        while written < count:  # an unbuffered local file may take less
            written += outfile.write(buffer[written:count]) or count - written
        callback.relative_update(count)


async def put_file(core: Core, local: str, path: str, mode: str, callback: Any, auto_mkdir: bool) -> None:
    """Copy a local file into the cluster (`mode` "create": the name must be new); a directory becomes an empty one."""
    if os.path.isdir(local):
        await core.mkdir(path, parents=True, exist_ok=True)
        return
    with open(local, "rb", buffering=0) as infile:
        size = os.fstat(infile.fileno()).st_size
        callback.set_size(size)
        how = parse_mode("xb" if mode == "create" else "wb")
        target = await core.open(path, how, parents=auto_mkdir)
        try:
            buffer = memoryview(bytearray(min(COPY_BYTES, max(size, 1))))
            while count := infile.readinto(buffer):
                await target.write(buffer[:count])
                callback.relative_update(count)
        except BaseException:
            await target.discard()
            raise
        await target.close()


def sizes(found: dict[str, Entry], total: bool) -> Any:
    """Bytes by path, or their sum."""
    by_path = {path: e["size"] for path, e in found.items()}
    return sum(by_path.values()) if total else by_path
