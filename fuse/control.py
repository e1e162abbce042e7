"""What is in a mount without being in the cluster: nodes that are no inodes, found by name and listed nowhere.

    .ember/stats         what the mount has done so far, as a table                       anybody reads it
    .ember/accesslog     every operation, while it is read (`accesslog`)                  who mounted reads it
    3fs-virt/rm-rf/      a symlink made in it removes the tree that it points to, and is gone itself when symlink(2) returns

The last is for programs written for 3FS, as smallpond: one request removes a tree of any size, with the rights of whoever asks. The link's
target is a path below the mount point, absolute or relative to the link.

Their numbers are from `session.VIRTUAL_NODE_MIN` on. Nothing here may answer ENOSYS: the kernel would take that for the whole mount.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat as modes
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ..client.core.paths import at
from . import requests
from .accesslog import AccessLog
from .device import Body
from .protocol import NO_REPLY, ROOT_NODE, Opcode, OpenReply
from .replies import NO_ENTRY, dirent_bytes, direntplus_bytes, pack_dirent, pack_direntplus
from .structs import (
    ATTR_OUT,
    ENTRY_OUT,
    GETXATTR_IN,
    GETXATTR_OUT,
    OPEN_OUT,
    READ_IN,
    RELEASE_IN,
    STATFS_OUT,
    STATX_OUT,
)
from .summary import text_of

if TYPE_CHECKING:
    from .filesystem import FileSystem
    from .session import Request, Session

FIRST = 1 << 63
EMBER, STATS, ACCESSLOG, VIRT, REMOVE = range(FIRST, FIRST + 5)
LINKS = FIRST + (1 << 32)  # the first of the links that were made in `rm-rf`: one each, never seen again
PATH_BYTES_MAX = 4096
STATX_BASIC_STATS = 0x7FF  # from `linux/stat.h`


@dataclass(frozen=True)
class Node:
    """A directory or file of this module."""

    parent: int
    name: bytes
    mode: int
    others: bool = True  # False: only who mounted may use it


NODES = {
    EMBER: Node(ROOT_NODE, b".ember", modes.S_IFDIR | 0o555),
    STATS: Node(EMBER, b"stats", modes.S_IFREG | 0o444),
    ACCESSLOG: Node(EMBER, b"accesslog", modes.S_IFREG | 0o400),
    VIRT: Node(ROOT_NODE, b"3fs-virt", modes.S_IFDIR | 0o555),
    REMOVE: Node(VIRT, b"rm-rf", modes.S_IFDIR | 0o1777),
}
_BY_NAME = {(node.parent, node.name): number for number, node in NODES.items()}
_LINK = Node(REMOVE, b"", modes.S_IFLNK | 0o777)

Answer = Body | Coroutine[Any, Any, Body]


class Control:
    """Serves these nodes of one mount. `path` is the mount point, by which links name what is to be removed."""

    names = frozenset(node.name for node in NODES.values() if node.parent == ROOT_NODE)

    def __init__(self, fs: FileSystem, session: Session, path: str, generation: int = 1) -> None:
        self._fs = fs
        self._generation = generation
        self._path = os.fsencode(path)
        self._made = time.time()
        self._log = AccessLog(lambda watcher: setattr(session, "watcher", watcher))
        self._texts: dict[int, bytes] = {}  # what `stats` said when it was opened, by fh
        self._next = FIRST + (generation << 40)  # handles: no file of the cluster has one of such a number
        self._links = LINKS
        self._table: dict[int, Callable[[FileSystem, Request], Answer]] = {
            Opcode.LOOKUP: self._lookup,
            Opcode.GETATTR: self._getattr,
            Opcode.STATX: self._statx,
            Opcode.OPEN: self._open,
            Opcode.OPENDIR: self._open,
            Opcode.READ: self._read,
            Opcode.READDIR: self._readdir,
            Opcode.READDIRPLUS: self._readdirplus,
            Opcode.RELEASE: self._release,
            Opcode.SYMLINK: self._symlink,
            Opcode.STATFS: self._statfs,
            Opcode.LISTXATTR: self._listxattr,
            **dict.fromkeys((Opcode.RELEASEDIR, Opcode.FLUSH, Opcode.FSYNC, Opcode.FSYNCDIR, Opcode.ACCESS), _fine),
            **dict.fromkeys((Opcode.GETXATTR, Opcode.REMOVEXATTR), _no_attribute),
        }

    def handle(self, fs: FileSystem, request: Request) -> Answer:
        """A request about one of these nodes, or the LOOKUP of one in the root. Raises OSError."""
        if request.opcode in NO_REPLY:
            return None
        return self._table.get(request.opcode, _refused)(fs, request)

    # --- attributes and names -----------------------------------------------------------------------------------------------------

    def _attributes(self, number: int) -> tuple[int, ...]:
        node = NODES.get(number, _LINK)
        seconds = int(self._made)
        links = 2 if modes.S_ISDIR(node.mode) else 1
        times = (seconds, seconds, seconds, 0, 0, 0)
        return (number, 0, 0, *times, node.mode, links, self._fs.options.owner, 0, 0, 4096, 0)

    def _entry(self, number: int) -> bytes:
        # The names never change, but whether there is a mount of this version does: the kernel asks again.
        return ENTRY_OUT.pack(number, 0, 0, 1, 0, 0, *self._attributes(number))

    def _lookup(self, fs: FileSystem, request: Request) -> Body:
        number = _BY_NAME.get((request.node, requests.name(request.body)))
        if number is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return self._entry(number)

    def _getattr(self, fs: FileSystem, request: Request) -> Body:
        return ATTR_OUT.pack(1, 0, *self._attributes(request.node))

    def _statx(self, fs: FileSystem, request: Request) -> Body:
        node = NODES.get(request.node, _LINK)
        links = 2 if modes.S_ISDIR(node.mode) else 1
        seconds = int(self._made)
        owned = (links, fs.options.owner, 0, node.mode, request.node, 0, 0, 0)
        return STATX_OUT.pack(1, 0, 0, STATX_BASIC_STATS, 4096, 0, *owned, *(seconds, 0) * 4, 0, 0, 0, 0)

    # --- directories --------------------------------------------------------------------------------------------------------------

    def _listing(self, request: Request) -> list[tuple[int, int, bytes]]:
        """(node, type, name) of all entries."""
        number = request.node
        node = NODES.get(number, _LINK)
        here = [(number, modes.S_IFDIR >> 12, b"."), (node.parent, modes.S_IFDIR >> 12, b"..")]
        return here + [
            (child, NODES[child].mode >> 12, name) for (above, name), child in _BY_NAME.items() if above == number
        ]

    def _readdir(self, fs: FileSystem, request: Request) -> Body:
        _, offset, size, *_ = READ_IN.unpack_from(request.body)
        found = b""
        for place, (number, kind, name) in enumerate(self._listing(request)[offset:], offset + 1):
            if len(found) + dirent_bytes(name) > size:
                break
            found += pack_dirent(number, place, kind, name)
        return found

    def _readdirplus(self, fs: FileSystem, request: Request) -> Body:
        _, offset, size, *_ = READ_IN.unpack_from(request.body)
        found = b""
        for place, (number, kind, name) in enumerate(self._listing(request)[offset:], offset + 1):
            if len(found) + direntplus_bytes(name) > size:
                break
            found += pack_direntplus(NO_ENTRY, number, place, kind, name)
        return found

    # --- files --------------------------------------------------------------------------------------------------------------------

    def _open(self, fs: FileSystem, request: Request) -> Body:
        fh = self._next
        self._next += 1
        if request.opcode == Opcode.OPENDIR:
            return OPEN_OUT.pack(fh, 0, 0)
        if request.node == ACCESSLOG:
            self._log.reader(fh)
        elif request.node == STATS:
            self._texts[fh] = text_of(fs, self._generation)
        else:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        return OPEN_OUT.pack(fh, OpenReply.DIRECT_IO, 0)  # the kernel does not know how long it is

    def _read(self, fs: FileSystem, request: Request) -> Answer:
        fh, offset, size, *_ = READ_IN.unpack_from(request.body)
        if request.node == ACCESSLOG:
            return self._log.reader(fh).read(size)
        if fh not in self._texts:
            self._texts[fh] = text_of(fs, self._generation)
        return self._texts[fh][offset : offset + size]

    def _release(self, fs: FileSystem, request: Request) -> Body:
        fh = RELEASE_IN.unpack_from(request.body)[0]
        if request.node == ACCESSLOG:
            self._log.close(fh)
        self._texts.pop(fh, None)
        return b""

    def _statfs(self, fs: FileSystem, request: Request) -> Body:
        return STATFS_OUT.pack(0, 0, 0, len(NODES), 0, 4096, 255, 4096)

    def _listxattr(self, fs: FileSystem, request: Request) -> Body:
        return b"" if GETXATTR_IN.unpack_from(request.body)[0] else GETXATTR_OUT.pack(0)

    # --- rm -rf -------------------------------------------------------------------------------------------------------------------

    async def _symlink(self, fs: FileSystem, request: Request) -> Body:
        if request.node != REMOVE:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        _, target = requests.names(request.body)
        path = self.meant(target)
        view = fs.callers.view(request)
        *directories, name = path.split(b"/")
        parent = fs.root
        for directory in directories:
            found = await view.stat(at(parent, directory), follow=False)
            if found.is_symlink:
                # The servers would follow it from the cluster's root, perhaps out of what is mounted, and whoever may
                # replace a directory by a symlink would choose what somebody else removes.
                raise OSError(errno.ELOOP, f"{os.fsdecode(directory)} is a symlink: name the tree by its real path")
            if not found.is_dir:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            parent = found.inode
        await view.remove_tree(at(parent, name))
        await fs.notifier.entry(fs.node(parent), name)
        self._links += 1
        return self._entry(self._links)

    def meant(self, target: bytes) -> bytes:
        """What a link in `rm-rf` points to, relative to the mount's root. Raises EXDEV for what is not below the mount point, EPERM for
        the mount itself and for what is no part of the cluster, EINVAL for ".." behind a name: what that means depends on symlinks."""
        steps = [step for step in target.split(b"/") if step not in (b"", b".")]
        if any(step == b".." and before != b".." for before, step in pairwise(steps)):
            raise OSError(errno.EINVAL, f"{os.fsdecode(target)}: name the tree by its real path, without '..'")
        if target.startswith(b"/"):
            whole = posixpath.normpath(target)
            if whole != self._path and not whole.startswith(self._path.rstrip(b"/") + b"/"):
                raise OSError(errno.EXDEV, f"{os.fsdecode(target)} is not below {os.fsdecode(self._path)}")
            path = whole[len(self._path) :]
        else:
            path = posixpath.normpath(posixpath.join(b"/3fs-virt/rm-rf", target))
        path = path.strip(b"/")
        if not path or path.split(b"/")[0] in self.names:
            raise PermissionError(errno.EPERM, "this is not to be removed")
        if len(path) > PATH_BYTES_MAX:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        return path


def _fine(fs: FileSystem, request: Request) -> Body:
    return b""


def _no_attribute(fs: FileSystem, request: Request) -> Body:
    raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))


def _refused(fs: FileSystem, request: Request) -> Body:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
