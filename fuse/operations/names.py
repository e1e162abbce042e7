"""Names: what leads where, and everything that makes, moves or removes one.

The kernel keeps its own caches right for what it asked for itself: after UNLINK, RENAME, LINK… it drops the attributes of the
directories, counts down the links of what lost a name, and forgets the name. So a reply says only what the kernel cannot know: the
attributes of what was made or linked. Every reply with an entry counts as one lookup (`entries.entry`).

With default_permissions the kernel has checked who may do this, by attributes that are up to a second old; the server checks again,
as the caller.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from ..entries import entry, missing
from ..protocol import ROOT_NODE, Opcode, RenameFlag
from ..requests import Link, Mkdir, Mknod, Rename, Symlink

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from ...proto.gen.meta_pb2 import Place
    from ..filesystem import FileSystem
    from ..session import Handler, Request

# LOOKUPs of these: for NFS (and open_by_handle_at), whose clients come back with a node that the kernel has forgotten.
ITSELF = b"."
ABOVE = b".."


def lookup(fs: FileSystem, request: Request) -> bytes | Coroutine[Any, Any, bytes]:
    """Where a name leads. Raises NOT_FOUND, unless the kernel may remember that there is no such name."""
    name = request.body[:-1]
    if fs.believed is not None and (known := fs.believed.entry(fs.inode(request.node), name)) is not None:
        return known
    return _lookup(fs, request, name)


async def _lookup(fs: FileSystem, request: Request, name: bytes) -> bytes:
    # No way leads out of what is mounted: "above" its root is the root.
    itself = name == ITSELF or (name == ABOVE and request.node == ROOT_NODE)
    place = fs.place(request.node) if itself else fs.place(request.node, name)
    if not itself and fs.ahead is not None:
        directory = fs.inode(request.node)
        if entries := fs.ahead.wants(directory, name):
            await fs.ahead.learn(directory, name, entries)
    try:
        stat = await fs.callers.view(request).stat(place, follow=False)
    except FileNotFoundError:
        return missing(fs)
    return entry(fs, await fs.current(stat))


# --- making -----------------------------------------------------------------------------------------------------------------------


async def mkdir(fs: FileSystem, request: Request) -> bytes:
    """A directory."""
    asked = Mkdir.parse(request.body)
    view = fs.callers.view(request, asked.umask)
    return entry(fs, await view.mkdir(fs.place(request.node, asked.name), asked.mode))


async def mknod(fs: FileSystem, request: Request) -> bytes:
    """A special file, or an empty regular one. The kernel's 32-bit device numbers are those of stat(2)."""
    asked = Mknod.parse(request.body)
    view = fs.callers.view(request, asked.umask)
    return entry(fs, await view.mknod(fs.place(request.node, asked.name), asked.mode, asked.rdev))


async def symlink(fs: FileSystem, request: Request) -> bytes:
    """A symlink. Its target is bytes that nobody looks at."""
    asked = Symlink.parse(request.body)
    return entry(fs, await fs.callers.view(request).symlink(asked.target, fs.place(request.node, asked.name)))


async def link(fs: FileSystem, request: Request) -> bytes:
    """Another name for a file, or the first one for a file that was made without (O_TMPFILE)."""
    asked = Link.parse(request.body)
    view = fs.callers.view(request)
    stat = await view.link(fs.place(asked.node), fs.place(request.node, asked.new_name))
    fs.advanced(stat.inode, stat.change)
    return entry(fs, stat)


async def readlink(fs: FileSystem, request: Request) -> bytes:
    """The target of a symlink, as it was given."""
    stat = await fs.core.stat(fs.place(request.node), follow=False)
    if not stat.is_symlink:
        raise OSError(errno.EINVAL, "it is not a symlink")
    return stat.target.encode("utf-8", "surrogateescape")


# --- moving and removing ----------------------------------------------------------------------------------------------------------


async def unlink(fs: FileSystem, request: Request) -> bytes:
    """Remove a name of anything but a directory. What is open stays until it is closed: the server waits for whoever reads it."""
    left = await fs.callers.view(request).remove_name(fs.place(request.node, request.body[:-1]))
    if left is not None:
        fs.advanced(left.inode, left.change)  # under another name its cached pages stay
    return b""


async def rmdir(fs: FileSystem, request: Request) -> bytes:
    """Remove an empty directory. Somebody may be in it: then the kernel will ask for its attributes again, and the server knows
    none any more."""
    gone = await fs.callers.view(request).rmdir(fs.place(request.node, request.body[:-1]))
    fs.removed_directory(gone)
    return b""


async def rename(fs: FileSystem, request: Request) -> bytes:
    """rename(2)."""
    asked = Rename.parse(request.body)
    return await _rename(fs, request, fs.place(asked.new_parent, asked.new_name), asked)


async def rename2(fs: FileSystem, request: Request) -> bytes:
    """renameat2(2). Raises EINVAL for RENAME_WHITEOUT: there are no whiteouts."""
    asked = Rename.parse2(request.body)
    if asked.flags & ~(RenameFlag.NOREPLACE | RenameFlag.EXCHANGE):
        raise OSError(errno.EINVAL, f"rename flags {asked.flags}")
    return await _rename(fs, request, fs.place(asked.new_parent, asked.new_name), asked)


async def _rename(fs: FileSystem, request: Request, target: Place, asked: Rename) -> bytes:
    moved, replaced = await fs.callers.view(request).rename_over(
        fs.place(request.node, asked.name),
        target,
        replace=not asked.flags & RenameFlag.NOREPLACE,
        exchange=bool(asked.flags & RenameFlag.EXCHANGE),
    )
    fs.advanced(moved.inode, moved.change)  # its content is what it was: cached pages stay
    if replaced is not None:
        fs.removed_directory(replaced)
    return b""


OPERATIONS: dict[int, Handler] = {
    Opcode.LOOKUP: lookup,
    Opcode.MKDIR: mkdir,
    Opcode.MKNOD: mknod,
    Opcode.SYMLINK: symlink,
    Opcode.LINK: link,
    Opcode.READLINK: readlink,
    Opcode.UNLINK: unlink,
    Opcode.RMDIR: rmdir,
    Opcode.RENAME: rename,
    Opcode.RENAME2: rename2,
}
