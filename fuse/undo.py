"""What a reply gave to the kernel, taken back: for replies that nobody took, because their caller was let go, or the mount ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .protocol import Opcode
from .structs import DIRENT, ENTRY_OUT, OPEN_OUT

if TYPE_CHECKING:
    from .filesystem import FileSystem

_ENTRY = frozenset(
    (Opcode.LOOKUP, Opcode.MKNOD, Opcode.MKDIR, Opcode.SYMLINK, Opcode.LINK, Opcode.CREATE, Opcode.TMPFILE)
)
_OPEN = {Opcode.OPEN: 0, Opcode.OPENDIR: 0, Opcode.CREATE: ENTRY_OUT.size, Opcode.TMPFILE: ENTRY_OUT.size}  # where


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


def _forget(fs: FileSystem, reply: bytes, at: int) -> None:
    node = ENTRY_OUT.unpack_from(reply, at)[0]
    if node:
        fs.nodes.forget(fs.inode(node), 1)
