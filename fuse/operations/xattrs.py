"""Extended attributes, ACLs among them, and the few ioctls of files that mean something here.

Who may read or change which attribute, and what an ACL does to the mode, is the server's. The kernel keeps a copy of ACLs (it checks
permissions by them) and drops it with the attributes of the inode, so it asks again with each look at a file; where these attributes
said that there is nothing (`bare`), it is answered without a request.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from ..protocol import Init, Opcode
from ..requests import Getxattr, Ioctl, Setxattr
from ..structs import GETXATTR_IN, GETXATTR_OUT, IOCTL_OUT

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from ..filesystem import FileSystem
    from ..session import Handler, Request

# What programs and the kernel ask of every file, and hardly a file has: ACLs, capabilities, labels.
_SELDOM = (b"system.posix_acl_", b"security.")


def getxattr(fs: FileSystem, request: Request) -> bytes | Coroutine[Any, Any, bytes]:
    """One value, or its size. Raises NO_DATA, ERANGE where it does not fit."""
    asked = Getxattr.parse(request.body)
    if asked.name.startswith(_SELDOM) and fs.is_bare(fs.inode(request.node)):
        raise OSError(errno.ENODATA, "it has no extended attributes")
    return _getxattr(fs, request, asked)


async def _getxattr(fs: FileSystem, request: Request, asked: Getxattr) -> bytes:
    value = await fs.callers.view(request).getxattr(fs.place(request.node), asked.name, follow=False)
    return _fitting(value, asked.size)


def listxattr(fs: FileSystem, request: Request) -> bytes | Coroutine[Any, Any, bytes]:
    """All names, each with a NUL, or their size. Raises ERANGE where they do not fit."""
    (size,) = GETXATTR_IN.unpack_from(request.body)
    if fs.is_bare(fs.inode(request.node)):
        return _fitting(b"", size)
    return _listxattr(fs, request, size)


async def _listxattr(fs: FileSystem, request: Request, size: int) -> bytes:
    names = await fs.callers.view(request).listxattr(fs.place(request.node), follow=False)
    return _fitting(b"".join(name.encode("utf-8", "surrogateescape") + b"\0" for name in names), size)


def _fitting(value: bytes, size: int) -> bytes:
    if not size:
        return GETXATTR_OUT.pack(len(value))
    if len(value) > size:
        raise OSError(errno.ERANGE, f"{len(value)} bytes into {size}")
    return value


async def setxattr(fs: FileSystem, request: Request) -> bytes:
    """Set one. Raises EXISTS, NO_DATA (by the flags), VALUE_TOO_LONG, NO_SPACE… That the caller is not in the file's group, so that
    an ACL takes set-group-id away (setxattr_flags), the server finds by itself."""
    asked = Setxattr.parse(request.body, fs.agreed.flags if fs.agreed is not None else Init.SETXATTR_EXT)
    fs.bare.dress(fs.inode(request.node))
    view = fs.callers.view(request)
    stat = await view.setxattr(fs.place(request.node), asked.name, asked.value, asked.flags, follow=False)
    fs.advanced(stat.inode, stat.change)
    return b""


async def removexattr(fs: FileSystem, request: Request) -> bytes:
    """Remove one. Raises NO_DATA where there is none."""
    view = fs.callers.view(request)
    stat = await view.removexattr(fs.place(request.node), request.body[:-1], follow=False)
    fs.advanced(stat.inode, stat.change)
    return b""


# --- ioctls -----------------------------------------------------------------------------------------------------------------------

FS_IOC_GETFLAGS = 0x80086601  # chattr(1)'s flags; the kernel moves 4 bytes of them, whatever the number says
FS_IOC_SETFLAGS = 0x40086602
FS_IOC_GETFLAGS_32 = 0x80046601  # as 32-bit programs ask
FS_IOC_SETFLAGS_32 = 0x40046602
FS_IOC_FSGETXATTR = 0x801C581F  # struct fsxattr: flags, hints and project of XFS
FS_IOC_FSSETXATTR = 0x401C5820
FS_IOC_GETVERSION = 0x80087601  # the generation of an inode number; these are never used again
FS_IOC_GETVERSION_32 = 0x80047601
_NO_FLAGS = bytes(4)
_NO_FSXATTR = bytes(28)


def _none(zeros: bytes) -> Callable[[Ioctl], bytes]:
    def answer(asked: Ioctl) -> bytes:
        return zeros[: asked.out_size]

    return answer


def _set_none(zeros: bytes) -> Callable[[Ioctl], bytes]:
    def answer(asked: Ioctl) -> bytes:
        if any(asked.data[: len(zeros)]):
            raise OSError(errno.EOPNOTSUPP, "files have no such flags here")
        return b""

    return answer


_IOCTLS: dict[int, Callable[[Ioctl], bytes]] = {
    FS_IOC_GETFLAGS: _none(_NO_FLAGS),
    FS_IOC_GETFLAGS_32: _none(_NO_FLAGS),
    FS_IOC_GETVERSION: _none(_NO_FLAGS),
    FS_IOC_GETVERSION_32: _none(_NO_FLAGS),
    FS_IOC_FSGETXATTR: _none(_NO_FSXATTR),
    FS_IOC_SETFLAGS: _set_none(_NO_FLAGS),
    FS_IOC_SETFLAGS_32: _set_none(_NO_FLAGS),
    FS_IOC_FSSETXATTR: _set_none(_NO_FSXATTR),
}


def ioctl(fs: FileSystem, request: Request) -> bytes:
    """lsattr(1) and the like see files without flags; setting any raises EOPNOTSUPP. ENOTTY for what we do not know."""
    asked = Ioctl.parse(request.body)
    answer = _IOCTLS.get(asked.command)
    if answer is None:
        raise OSError(errno.ENOTTY, f"ioctl {asked.command:#x}")
    return IOCTL_OUT.pack(0, 0, 0, 0) + answer(asked)


OPERATIONS: dict[int, Handler] = {
    Opcode.GETXATTR: getxattr,
    Opcode.LISTXATTR: listxattr,
    Opcode.SETXATTR: setxattr,
    Opcode.REMOVEXATTR: removexattr,
    Opcode.IOCTL: ioctl,
}
