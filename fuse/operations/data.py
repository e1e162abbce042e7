"""Bytes: read, written, copied, punched out, looked for.

A read is answered out of the client's own memory, by one writev of the pieces that it came in: no byte passes through Python. A write
is copied once, from the device's buffer into the client's write-back, and answered; FLUSH and FSYNC tell what became of it.
"""

from __future__ import annotations

import errno
import os
from functools import partial
from typing import TYPE_CHECKING

from ..protocol import WRITE_CACHE, WRITE_KILL_SUIDGID, Opcode
from ..requests import CopyFileRange, Fallocate, Lseek
from ..structs import COPY_FILE_RANGE_OUT, LSEEK_OUT, READ_IN, WRITE_IN, WRITE_OUT
from .attributes import lose_set_ids
from .files import followed, handle_of

if TYPE_CHECKING:
    from ...client.core.file import Handle
    from ..filesystem import FileSystem
    from ..session import Handler, Request

SYNCHRONOUS = os.O_DSYNC | os.O_SYNC
COPY_BYTES_MAX = 256 << 20  # of one copy_file_range(2): its caller asks again, and can be interrupted in between


async def read(fs: FileSystem, request: Request) -> None:
    """Answer with what is there, fewer bytes than wanted at the end of the file only."""
    fh, offset, size, _, _, _ = READ_IN.unpack_from(request.body)
    handle: Handle = fs.handles.get(fh) or await handle_of(fs, request.node, fh)
    fs.statistics.bytes_read += await handle.pread_lent(offset, size, partial(fs.reply, request.unique))


async def write(fs: FileSystem, request: Request) -> bytes:
    """Take the bytes over. What comes from the kernel's pages (a shared mapping) goes where it says; other writes through a handle that
    appends go to the end, wherever that is."""
    fh, offset, size, about, _, flags = WRITE_IN.unpack_from(request.body)
    handle: Handle = fs.handles.get(fh) or await handle_of(fs, request.node, fh)
    if not about & WRITE_CACHE:
        handle.append = bool(flags & os.O_APPEND)  # not as it was opened: fcntl(F_SETFL) changes that
    if about & WRITE_KILL_SUIDGID and handle.file.id in fs.set_ids:
        await lose_set_ids(fs, request, handle.file.id)
    end = await handle.write_at(request.data, offset, exact=bool(about & WRITE_CACHE))
    fs.statistics.bytes_written += size
    if fs.journal is not None and handle.file.unsettled:
        fs.journal.written(fh, handle.file.id)
    if flags & SYNCHRONOUS:
        await handle.fsync(data_only=not flags & os.O_SYNC & ~os.O_DSYNC)
        followed(fs, handle.file)
    if end != offset + size:
        # The kernel took the end to be elsewhere: it has to look again. Nobody waits for that here, where pages may be held.
        fs.nodes.unknown(handle.file.id)
        fs.notifier.inode(request.node)
    return WRITE_OUT.pack(size)


async def lseek(fs: FileSystem, request: Request) -> bytes:
    """SEEK_DATA and SEEK_HOLE. Raises ENXIO behind the end."""
    asked = Lseek.parse(request.body)
    handle: Handle = fs.handles.get(asked.fh) or await handle_of(fs, request.node, asked.fh)
    if asked.whence == os.SEEK_DATA:
        return LSEEK_OUT.pack(await handle.data_from(asked.offset))
    if asked.whence == os.SEEK_HOLE:
        return LSEEK_OUT.pack(await handle.hole_from(asked.offset))
    raise OSError(errno.EINVAL, f"lseek from {asked.whence}: the kernel does these by itself")


async def fallocate(fs: FileSystem, request: Request) -> bytes:
    """Room, holes and zeros. Raises EOPNOTSUPP for modes that move data."""
    asked = Fallocate.parse(request.body)
    handle: Handle = fs.handles.get(asked.fh) or await handle_of(fs, request.node, asked.fh)
    await handle.allocate(asked.mode, asked.offset, asked.length)
    followed(fs, handle.file)
    return b""


async def copy_file_range(fs: FileSystem, request: Request) -> bytes:
    """Copy, or share, from one open file to another; how many bytes, perhaps fewer than asked for."""
    asked = CopyFileRange.parse(request.body)
    source: Handle = fs.handles.get(asked.fh_in) or await handle_of(fs, request.node, asked.fh_in)
    target: Handle = fs.handles.get(asked.fh_out) or await handle_of(fs, asked.node_out, asked.fh_out)
    target.append = False  # any more: the kernel has looked, and the next WRITE says anew
    length = min(asked.length, COPY_BYTES_MAX)
    count = await target.copy_from(source, asked.offset_in, asked.offset_out, length)
    followed(fs, target.file)
    layout = COPY_FILE_RANGE_OUT if request.opcode == Opcode.COPY_FILE_RANGE_64 else WRITE_OUT
    return layout.pack(count)


OPERATIONS: dict[int, Handler] = {
    Opcode.READ: read,
    Opcode.WRITE: write,
    Opcode.LSEEK: lseek,
    Opcode.FALLOCATE: fallocate,
    Opcode.COPY_FILE_RANGE: copy_file_range,
    Opcode.COPY_FILE_RANGE_64: copy_file_range,
}
