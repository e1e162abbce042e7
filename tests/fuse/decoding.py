"""Any request to (header, name of its fields): what the tests compare with what the script did."""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Any

from emberfs.fuse import requests, structs
from emberfs.fuse.protocol import IN_HEADER_BYTES, Header, Init, Opcode, check


def fields(layout: Struct) -> Callable[[memoryview], tuple[Any, ...]]:
    return lambda body: requests.fixed(layout, body)


def with_data(layout: Struct, size_at: int) -> Callable[[memoryview], tuple[Any, ...]]:
    def decode(body: memoryview) -> tuple[Any, ...]:
        head = requests.fixed(layout, body)
        return *head, bytes(requests.payload(body, layout.size, head[size_at]))

    return decode


def nothing(body: memoryview) -> tuple[Any, ...]:
    return ()


def one_name(body: memoryview) -> tuple[Any, ...]:
    return (requests.name(body),)


DECODERS: dict[Opcode, Callable[[memoryview], tuple[Any, ...]]] = {
    Opcode.LOOKUP: one_name,
    Opcode.FORGET: fields(structs.FORGET_IN),
    Opcode.GETATTR: fields(structs.GETATTR_IN),
    Opcode.SETATTR: requests.Setattr.parse,
    Opcode.READLINK: nothing,
    Opcode.SYMLINK: requests.Symlink.parse,
    Opcode.MKNOD: requests.Mknod.parse,
    Opcode.MKDIR: requests.Mkdir.parse,
    Opcode.UNLINK: one_name,
    Opcode.RMDIR: one_name,
    Opcode.RENAME: requests.Rename.parse,
    Opcode.LINK: requests.Link.parse,
    Opcode.OPEN: fields(structs.OPEN_IN),
    Opcode.READ: fields(structs.READ_IN),
    Opcode.WRITE: with_data(structs.WRITE_IN, 2),
    Opcode.STATFS: nothing,
    Opcode.RELEASE: requests.Release.parse,
    Opcode.FSYNC: fields(structs.FSYNC_IN),
    Opcode.GETXATTR: requests.Getxattr.parse,
    Opcode.LISTXATTR: fields(structs.GETXATTR_IN),
    Opcode.REMOVEXATTR: one_name,
    Opcode.FLUSH: fields(structs.FLUSH_IN),
    Opcode.INIT: requests.InitIn.parse,
    Opcode.OPENDIR: fields(structs.OPEN_IN),
    Opcode.READDIR: fields(structs.READ_IN),
    Opcode.RELEASEDIR: requests.Release.parse,
    Opcode.FSYNCDIR: fields(structs.FSYNC_IN),
    Opcode.GETLK: requests.Lock.parse,
    Opcode.SETLK: requests.Lock.parse,
    Opcode.SETLKW: requests.Lock.parse,
    Opcode.ACCESS: fields(structs.ACCESS_IN),
    Opcode.CREATE: requests.Create.parse,
    Opcode.INTERRUPT: fields(structs.INTERRUPT_IN),
    Opcode.BMAP: fields(structs.BMAP_IN),
    Opcode.DESTROY: nothing,
    Opcode.IOCTL: requests.Ioctl.parse,
    Opcode.POLL: fields(structs.POLL_IN),
    Opcode.NOTIFY_REPLY: with_data(structs.NOTIFY_RETRIEVE_IN, 1),
    Opcode.BATCH_FORGET: lambda body: tuple(requests.forgets(body)),
    Opcode.FALLOCATE: requests.Fallocate.parse,
    Opcode.READDIRPLUS: fields(structs.READ_IN),
    Opcode.RENAME2: requests.Rename.parse2,
    Opcode.LSEEK: requests.Lseek.parse,
    Opcode.COPY_FILE_RANGE: requests.CopyFileRange.parse,
    Opcode.SETUPMAPPING: fields(structs.SETUPMAPPING_IN),
    Opcode.REMOVEMAPPING: fields(structs.REMOVEMAPPING_IN),
    Opcode.SYNCFS: fields(structs.SYNCFS_IN),
    Opcode.TMPFILE: requests.Create.parse,
    Opcode.STATX: requests.Statx.parse,
    Opcode.COPY_FILE_RANGE_64: requests.CopyFileRange.parse,
}


def decode(frame: bytes, agreed: int = Init.SETXATTR_EXT) -> tuple[Header, tuple[Any, ...], requests.Extensions]:
    """Header, fields and extensions. Raises ProtocolError; an operation that nobody knows has no fields."""
    header = Header(*check(frame, len(frame)))
    end = header.length - 8 * header.extension_words
    body = memoryview(frame)[IN_HEADER_BYTES:end]
    if header.opcode == Opcode.SETXATTR:
        parsed: tuple[Any, ...] = requests.Setxattr.parse(body, agreed)
    else:
        parsed = DECODERS[Opcode(header.opcode)](body) if header.opcode in set(Opcode) else ()
    return header, tuple(parsed), requests.Extensions.parse(memoryview(frame)[end:])
