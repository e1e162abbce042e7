"""What a reply gave to the kernel, taken back: for replies that nobody took, because their caller was let go, or the mount ended.

And what the kernel believes of a file's bytes after a change of them that it takes for failed: it keeps its pages then, though some of the
change may have been made (holes, copies), or all of it may yet be, when its caller was killed; and what a WRITE brought and could not
be sent, it has, and the file has not. To the versions of the file nothing is wrong: the change was our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .protocol import Opcode
from .requests import CopyFileRange
from .structs import COPY_FILE_RANGE_IN, DIRENT, ENTRY_OUT, OPEN_OUT

if TYPE_CHECKING:
    from .filesystem import FileSystem
    from .session import Request

_ENTRY = frozenset(
    (Opcode.LOOKUP, Opcode.MKNOD, Opcode.MKDIR, Opcode.SYMLINK, Opcode.LINK, Opcode.CREATE, Opcode.TMPFILE)
)
_OPEN = {Opcode.OPEN: 0, Opcode.OPENDIR: 0, Opcode.CREATE: ENTRY_OUT.size, Opcode.TMPFILE: ENTRY_OUT.size}  # where

_COPY = frozenset((Opcode.COPY_FILE_RANGE, Opcode.COPY_FILE_RANGE_64))
_IN_PART = _COPY | {
    Opcode.FALLOCATE,
    Opcode.FLUSH,
    Opcode.FSYNC,
}  # a failure may leave other bytes than there were before
_OF_BYTES = _IN_PART | {Opcode.WRITE, Opcode.SETATTR, Opcode.OPEN}  # cutting among them


def undo(fs: FileSystem, opcode: int, body: bytes | Sequence[bytes | memoryview]) -> None:
    """Lookups that a reply counted are not counted, and what it opened is closed. What it changed stays: that has happened."""
    if opcode not in _ENTRY and opcode not in _OPEN and opcode != Opcode.READDIRPLUS:
        return
    reply = body if isinstance(body, bytes) else b"".join(body)
    if opcode in _ENTRY and len(reply) >= ENTRY_OUT.size:
        _forget(fs, reply, 0)
    if opcode in _OPEN and len(reply) >= _OPEN[Opcode(opcode)] + OPEN_OUT.size:
        fs.drop(OPEN_OUT.unpack_from(reply, _OPEN[Opcode(opcode)])[0])
    if opcode == Opcode.READDIRPLUS:
        at = 0
        while at + ENTRY_OUT.size + DIRENT.size <= len(reply):
            _forget(fs, reply, at)
            length = DIRENT.unpack_from(reply, at + ENTRY_OUT.size)[2]
            at += ENTRY_OUT.size + (DIRENT.size + length + 7 & ~7)


def distrust(fs: FileSystem, request: Request) -> None:
    """The kernel asks again for the bytes of a file, if this request, which failed or whose caller was let go, may have changed them."""
    if request.opcode not in (_OF_BYTES if request.abandoned else _IN_PART):
        return
    node = request.node
    if request.opcode in _COPY:
        if len(request.body) < COPY_FILE_RANGE_IN.size:
            return  # no kernel's
        node = CopyFileRange.parse(request.body).node_out
    fs.nodes.unknown(fs.inode(node))
    fs.notifier.inode(node)  # nobody waits for that here: the request may hold a page


def _forget(fs: FileSystem, reply: bytes, at: int) -> None:
    node = ENTRY_OUT.unpack_from(reply, at)[0]
    if node:
        fs.nodes.forget(fs.inode(node), 1)
