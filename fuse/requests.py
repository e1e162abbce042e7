"""Request bodies to named fields, for the operations that are not on the hot path.

`X.parse(body)` takes what lies between the header and the extensions, `memoryview(buffer)[IN_HEADER_BYTES : length - 8 * words]`, of a
request that `check` has seen, and copies names and values out: the buffer may then be read into again. Every parser raises
ProtocolError, and nothing else, whatever the bytes. Fields are in the order and units of `structs`; names are bytes without their
NUL, as the caller spelled them. READ, WRITE, GETATTR, LOOKUP and the other frequent ones are one `unpack_from` or one slice (`name`,
`payload`) in the operation itself.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple, Self

from . import structs
from .protocol import EXTENSION_GROUPS, Buffer, Init, ProtocolError

GROUPS_MAX = 65536  # NGROUPS_MAX of the kernel
LABELS_MAX = 31  # security labels of one file


def fixed(layout: Struct, body: Buffer) -> tuple[int, ...]:
    """The fields at the start of a body. Raises ProtocolError when it is shorter."""
    if len(body) < layout.size:
        raise ProtocolError(f"a body of {len(body)} bytes: its fixed part has {layout.size}")
    return layout.unpack_from(body)


def name(body: Buffer, start: int = 0) -> bytes:
    """The one name that fills a body from `start`, its last byte being NUL. Raises ProtocolError for anything else."""
    text = bytes(body[start:])
    if text.find(0) != len(text) - 1 or not text:
        raise ProtocolError("a name that does not end with its only NUL at the end of the request")
    return text[:-1]


def names(body: Buffer, start: int = 0) -> tuple[bytes, bytes]:
    """The two names that fill a body from `start`. Raises ProtocolError for anything else."""
    parts = bytes(body[start:]).split(b"\0")
    if len(parts) != 3 or parts[2]:
        raise ProtocolError("two names expected, each with its NUL")
    return parts[0], parts[1]


def name_and_rest(body: Buffer, start: int) -> tuple[bytes, bytes]:
    """A name, and what follows its NUL. Raises ProtocolError without a NUL."""
    text, nul, rest = bytes(body[start:]).partition(b"\0")
    if not nul:
        raise ProtocolError("a name without its NUL")
    return text, rest


def payload(body: Buffer, start: int, size: int) -> memoryview:
    """The `size` bytes from `start`, not copied. Raises ProtocolError when there are fewer."""
    data = memoryview(body)[start : start + size]
    if len(data) != size:
        raise ProtocolError(f"{size} bytes of data announced, {len(data)} came")
    return data


class Setattr(NamedTuple):
    """SETATTR. Only the fields that `valid` (SetAttr) names count."""

    valid: int
    fh: int
    size: int
    lock_owner: int
    atime: int
    mtime: int
    ctime: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    mode: int
    uid: int
    gid: int

    @classmethod
    def parse(cls, body: Buffer) -> Self:
        return cls._make(fixed(structs.SETATTR_IN, body))


class Mknod(NamedTuple):
    """MKNOD. The umask is already applied to mode unless Init.DONT_MASK was agreed."""

    mode: int
    rdev: int
    umask: int
    name: bytes

    @classmethod
    def parse(cls, body: Buffer) -> Self:
        return cls._make((*fixed(structs.MKNOD_IN, body), name(body, structs.MKNOD_IN.size)))


class Mkdir(NamedTuple):
    """MKDIR."""

    mode: int
    umask: int
    name: bytes

    @classmethod
    def parse(cls, body: Buffer) -> Self:
        return cls._make((*fixed(structs.MKDIR_IN, body), name(body, structs.MKDIR_IN.size)))


class Symlink(NamedTuple):
    """SYMLINK: the new name comes first."""

    name: bytes
    target: bytes

    @classmethod
    def parse(cls, body: Buffer) -> Self:
        return cls(*names(body))


class Rename(NamedTuple):
    """RENAME and RENAME2; the header's node is the old parent."""

    new_parent: int
    flags: int
    name: bytes
    new_name: bytes

    @classmethod
    def parse(cls, body: Buffer) -> Self:
        """Of RENAME, which has no flags."""
        return cls._make((*fixed(structs.RENAME_IN, body), 0, *names(body, structs.RENAME_IN.size)))

    @classmethod
    def parse2(cls, body: Buffer) -> Self:
        """Of RENAME2."""
        return cls._make((*fixed(structs.RENAME2_IN, body), *names(body, structs.RENAME2_IN.size)))


class Link(NamedTuple):
    """LINK; the header's node is the directory of the new name."""

    node: int
    new_name: bytes

    @classmethod
    def parse(cls, body: Buffer) -> Self:
        return cls._make((*fixed(structs.LINK_IN, body), name(body, structs.LINK_IN.size)))


class Create(NamedTuple):
    """CREATE, and TMPFILE, whose name means nothing."""

    flags: int
    mode: int
    umask: int
    open_flags: int
    name: bytes

    @classmethod
    def parse(cls, body: Buffer) -> Self:
        return cls._make((*fixed(structs.CREATE_IN, body), name(body, structs.CREATE_IN.size)))


class Release(NamedTuple):
    """RELEASE and RELEASEDIR."""

    fh: int
    flags: int
    release_flags: int
    lock_owner: int

    @classmethod
    def parse(cls, body: Buffer) -> Self:
        return cls._make(fixed(structs.RELEASE_IN, body))


class Setxattr(NamedTuple):
    """SETXATTR."""

    flags: int
    setxattr_flags: int
    name: bytes
    value: bytes

    @classmethod
    def parse(cls, body: Buffer, agreed: int) -> Self:
        """`agreed`: the Init flags of the connection; without SETXATTR_EXT the fixed part is the old, shorter one."""
        if agreed & Init.SETXATTR_EXT:
            layout = structs.SETXATTR_IN
            size, flags, setxattr_flags = fixed(layout, body)
        else:
            layout = structs.SETXATTR_IN_SHORT
            size, flags = fixed(layout, body)
            setxattr_flags = 0
        attribute, value = name_and_rest(body, layout.size)
        if len(value) != size:
            raise ProtocolError(f"a value of {size} bytes announced, {len(value)} came")
        return cls(flags, setxattr_flags, attribute, value)


class Getxattr(NamedTuple):
    """GETXATTR. A size of 0 asks for the value's size."""

    size: int
    name: bytes

    @classmethod
    def parse(cls, body: Buffer) -> Self:
        return cls._make((*fixed(structs.GETXATTR_IN, body), name(body, structs.GETXATTR_IN.size)))


class Lock(NamedTuple):
    """GETLK, SETLK, SETLKW. `end` is the last byte; `lk_flags` has LK_FLOCK for flock(2)."""

    fh: int
    owner: int
    start: int
    end: int
    type: int
    pid: int
    lk_flags: int

    @classmethod
    def parse(cls, body: Buffer) -> Self:
        return cls._make(fixed(structs.LK_IN, body))


class Ioctl(NamedTuple):
    """IOCTL. `arg` is the caller's pointer or number; `data` what the kernel fetched from there for us."""

    fh: int
    flags: int
    command: int
    arg: int
    out_size: int
    data: bytes

    @classmethod
    def parse(cls, body: Buffer) -> Self:
        fh, flags, command, arg, in_size, out_size = fixed(structs.IOCTL_IN, body)
        return cls(fh, flags, command, arg, out_size, bytes(payload(body, structs.IOCTL_IN.size, in_size)))


class Fallocate(NamedTuple):
    """FALLOCATE."""

    fh: int
    offset: int
    length: int
    mode: int

    @classmethod
    def parse(cls, body: Buffer) -> Self:
        return cls._make(fixed(structs.FALLOCATE_IN, body))


class Lseek(NamedTuple):
    """LSEEK: SEEK_DATA or SEEK_HOLE, the kernel does the others by itself."""

    fh: int
    offset: int
    whence: int

    @classmethod
    def parse(cls, body: Buffer) -> Self:
        return cls._make(fixed(structs.LSEEK_IN, body))


class CopyFileRange(NamedTuple):
    """COPY_FILE_RANGE and COPY_FILE_RANGE_64; the header's node is the source."""

    fh_in: int
    offset_in: int
    node_out: int
    fh_out: int
    offset_out: int
    length: int
    flags: int

    @classmethod
    def parse(cls, body: Buffer) -> Self:
        return cls._make(fixed(structs.COPY_FILE_RANGE_IN, body))


class Statx(NamedTuple):
    """STATX. `fh` counts when getattr_flags have GETATTR_FH."""

    getattr_flags: int
    fh: int
    flags: int
    mask: int

    @classmethod
    def parse(cls, body: Buffer) -> Self:
        return cls._make(fixed(structs.STATX_IN, body))


class InitIn(NamedTuple):
    """INIT: what the kernel speaks and offers. `flags` has both halves."""

    major: int
    minor: int
    max_readahead: int
    flags: int

    @classmethod
    def parse(cls, body: Buffer) -> Self:
        """Of another major version only `major` and `minor` mean anything; the rest is 0 where it is missing."""
        if len(body) < structs.INIT_IN.size:
            body = bytes(body) + bytes(structs.INIT_IN.size - len(body))
        major, minor, max_readahead, flags = structs.INIT_IN.unpack_from(body)
        if flags & Init.INIT_EXT and len(body) >= structs.INIT_IN.size + structs.INIT_IN_FLAGS2.size:
            flags |= structs.INIT_IN_FLAGS2.unpack_from(body, structs.INIT_IN.size)[0] << 32
        return cls(major, minor, max_readahead, flags)


def forgets(body: Buffer) -> list[tuple[int, int]]:
    """(node, lookups to take back) of each item of BATCH_FORGET. Raises ProtocolError."""
    (count,) = fixed(structs.BATCH_FORGET_IN, body)
    items = payload(body, structs.BATCH_FORGET_IN.size, count * structs.FORGET_ONE.size)
    return list(structs.FORGET_ONE.iter_unpack(items))


class Extensions(NamedTuple):
    """What creations bring when it was agreed: security labels (Init.SECURITY_CTX) and groups (Init.CREATE_SUPP_GROUP)."""

    labels: tuple[tuple[bytes, bytes], ...] = ()  # (extended attribute, value)
    groups: tuple[int, ...] = ()

    @classmethod
    def parse(cls, tail: Buffer) -> Self:
        """Of the last `8 * extension_words` bytes of a request. Types that we do not know are passed over."""
        labels: list[tuple[bytes, bytes]] = []
        groups: tuple[int, ...] = ()
        at = 0
        while at < len(tail):
            size, kind = fixed(structs.EXTENSION, tail[at:])
            if size < structs.EXTENSION.size:
                raise ProtocolError(f"an extension of {size} bytes: its head has {structs.EXTENSION.size}")
            content = payload(tail, at + structs.EXTENSION.size, size - structs.EXTENSION.size)
            if kind <= LABELS_MAX:
                labels += _labels(content, kind)
            elif kind == EXTENSION_GROUPS:
                groups = _groups(content)
            at += (size + 7) & ~7
        return cls(tuple(labels), groups)


def _labels(content: memoryview, count: int) -> list[tuple[bytes, bytes]]:
    labels = []
    for _ in range(count):
        (size,) = fixed(structs.SECURITY_LABEL, content)
        attribute, rest = name_and_rest(content, structs.SECURITY_LABEL.size)
        labels.append((attribute, bytes(payload(rest, 0, size))))
        content = content[structs.SECURITY_LABEL.size + len(attribute) + 1 + size :]
    return labels


def _groups(content: memoryview) -> tuple[int, ...]:
    (count,) = fixed(structs.GROUPS_HEAD, content)
    if count > GROUPS_MAX:
        raise ProtocolError(f"{count} groups: at most {GROUPS_MAX}")
    return Struct(f"={count}I").unpack(payload(content, structs.GROUPS_HEAD.size, 4 * count))
