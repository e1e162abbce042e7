"""The vocabulary of the kernel's FUSE protocol (`linux/fuse.h`, 7.31 to 7.45): operations, flags, headers. No I/O.

    request:  IN_HEADER (40 bytes) | body | extensions (`extension_words` × 8 bytes, often none)
    reply:    OUT_HEADER (16 bytes) | body, or OUT_HEADER alone with a negative errno
    notify:   OUT_HEADER with unique 0 and a `Notify` code where the errno stands | body

One read of /dev/fuse gives exactly one request and takes a buffer of at least `MIN_READ_BUFFER` bytes; one write gives exactly one
reply. All numbers are in the machine's byte order. `structs` has the layout of each body, `requests` the parsers of what is
not on the hot path, `replies` directory entries and the like, `negotiation` the first exchange.

The kernel is trusted less than our own code: `check` looks at every frame once, so that afterwards no `unpack_from` of an
operation's own structure can run over the end, whatever was read.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct
from typing import NamedTuple

MAJOR = 7
MINOR = 45  # the newest that we know
MINOR_MIN = 31  # Linux 5.4; older kernels have other layouts, which nobody can test any more
ROOT_NODE = 1
MIN_READ_BUFFER = 8192  # bytes; a smaller read of the device fails
RESEND = 1 << 63  # in `unique`: the kernel asks again after `Notify.RESEND`
INVALID_ID = 0xFFFFFFFF  # uid or gid that an id-mapped mount could not translate

Buffer = bytes | bytearray | memoryview


class ProtocolError(ValueError):
    """A frame that the protocol does not allow. `unique` is the request to refuse, 0 when not even that is known."""

    def __init__(self, message: str, unique: int = 0) -> None:
        super().__init__(message)
        self.unique = unique


class Opcode(IntEnum):
    """What the kernel asks for."""

    LOOKUP = 1
    FORGET = 2  # no reply
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36  # no reply of its own
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41  # what `Notify.RETRIEVE` asked for; no reply
    BATCH_FORGET = 42  # no reply
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


NO_REPLY = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT, Opcode.NOTIFY_REPLY})


class Notify(IntEnum):
    """What we tell the kernel without being asked."""

    POLL = 1
    INVAL_INODE = 2  # drop attributes, and pages of a range
    INVAL_ENTRY = 3  # drop a name
    STORE = 4  # put bytes into the page cache
    RETRIEVE = 5  # ask for bytes of the page cache
    DELETE = 6  # a name is gone: watchers hear of it
    RESEND = 7  # send again what was read but not answered
    INC_EPOCH = 8  # drop all names
    PRUNE = 9  # drop unused inodes


class Init(IntFlag):
    """Abilities, offered by the kernel and chosen by us. Bits 32 and up travel in `flags2` and need INIT_EXT."""

    ASYNC_READ = 1 << 0  # several reads of one file at once
    POSIX_LOCKS = 1 << 1  # fcntl locks are ours
    FILE_OPS = 1 << 2
    ATOMIC_O_TRUNC = 1 << 3  # O_TRUNC comes with OPEN instead of a SETATTR after it
    EXPORT_SUPPORT = 1 << 4  # we look up "." and "..": the mount can be exported by NFS
    BIG_WRITES = 1 << 5  # writes of more than a page
    DONT_MASK = 1 << 6  # we apply the umask
    SPLICE_WRITE = 1 << 7
    SPLICE_MOVE = 1 << 8
    SPLICE_READ = 1 << 9
    FLOCK_LOCKS = 1 << 10  # flock(2) is ours
    HAS_IOCTL_DIR = 1 << 11
    AUTO_INVAL_DATA = 1 << 12  # a changed size or mtime drops the cached pages
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14  # READDIRPLUS only where the entries are looked up
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16  # the kernel gathers writes, and believes its own size and mtime
    NO_OPEN_SUPPORT = 1 << 17  # ENOSYS to OPEN means: no OPEN and RELEASE any more
    PARALLEL_DIROPS = 1 << 18  # lookups and readdirs of one directory at once
    HANDLE_KILLPRIV = 1 << 19
    POSIX_ACL = 1 << 20
    ABORT_ERROR = 1 << 21  # after an abort the device reads ECONNABORTED, not ENODEV
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24  # ENOSYS to OPENDIR means: no OPENDIR and RELEASEDIR any more
    EXPLICIT_INVAL_DATA = 1 << 25  # cached pages are dropped only when we say so
    MAP_ALIGNMENT = 1 << 26
    SUBMOUNTS = 1 << 27
    HANDLE_KILLPRIV_V2 = 1 << 28  # we clear set-uid and set-gid where a flag of the request says so, and on chown
    SETXATTR_EXT = 1 << 29  # SETXATTR has 16 fixed bytes, not 8
    INIT_EXT = 1 << 30
    SECURITY_CTX = 1 << 32  # creations bring the security labels of the new file
    HAS_INODE_DAX = 1 << 33
    CREATE_SUPP_GROUP = 1 << 34  # creations bring the caller's group that owns the directory
    HAS_EXPIRE_ONLY = 1 << 35
    DIRECT_IO_ALLOW_MMAP = 1 << 36
    PASSTHROUGH = 1 << 37
    NO_EXPORT_SUPPORT = 1 << 38
    HAS_RESEND = 1 << 39
    ALLOW_IDMAP = 1 << 40
    OVER_IO_URING = 1 << 41
    REQUEST_TIMEOUT = 1 << 42  # the kernel aborts the connection when a request takes too long


class SetAttr(IntFlag):
    """Which fields of SETATTR count (`FATTR_*`)."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    FH = 1 << 6
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8
    LOCK_OWNER = 1 << 9
    CTIME = 1 << 10
    KILL_SUIDGID = 1 << 11


class OpenReply(IntFlag):
    """Flags of the reply to OPEN, OPENDIR, CREATE (`FOPEN_*`)."""

    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1  # cached pages (or entries) from before this open stay
    NONSEEKABLE = 1 << 2
    CACHE_DIR = 1 << 3  # READDIR's entries may be cached
    STREAM = 1 << 4
    NOFLUSH = 1 << 5  # close(2) sends no FLUSH
    PARALLEL_DIRECT_WRITES = 1 << 6
    PASSTHROUGH = 1 << 7


# Flags of single requests. Where there is one bit only, a constant says more than an enum.
OPEN_KILL_SUIDGID = 1 << 0  # OPEN, CREATE: open_flags
GETATTR_FH = 1 << 0  # GETATTR, STATX: fh is valid
READ_LOCK_OWNER = 1 << 1  # READ: lock_owner is valid
WRITE_CACHE = 1 << 0  # WRITE: from the page cache; fh is a guess, uid and pid are not the writer's
WRITE_LOCK_OWNER = 1 << 1  # WRITE: lock_owner is valid
WRITE_KILL_SUIDGID = 1 << 2  # WRITE: clear set-uid and set-gid
RELEASE_FLUSH = 1 << 0  # RELEASE: flush as well
RELEASE_FLOCK_UNLOCK = 1 << 1  # RELEASE: drop the flock(2) lock of lock_owner
FSYNC_DATASYNC = 1 << 0  # FSYNC, FSYNCDIR: fdatasync(2)
LK_FLOCK = 1 << 0  # SETLK, SETLKW: flock(2), not fcntl(2)
SETXATTR_ACL_KILL_SGID = 1 << 0  # SETXATTR of an ACL: clear set-gid
POLL_SCHEDULE_NOTIFY = 1 << 0
INVAL_EXPIRE_ONLY = 1 << 0  # Notify.INVAL_ENTRY: look it up again at the next use, do not drop what stands on it
ATTR_SUBMOUNT = 1 << 0
ATTR_DAX = 1 << 1
EXTENSION_GROUPS = 32  # type of the extension with supplementary groups; smaller numbers count security labels


class IoctlFlag(IntFlag):
    """Flags of IOCTL."""

    COMPAT = 1 << 0
    UNRESTRICTED = 1 << 1
    RETRY = 1 << 2
    BITS_32 = 1 << 3
    DIRECTORY = 1 << 4
    COMPAT_X32 = 1 << 5


class FallocateMode(IntFlag):
    """Modes of fallocate(2), from `linux/falloc.h`."""

    KEEP_SIZE = 0x01
    PUNCH_HOLE = 0x02
    COLLAPSE_RANGE = 0x08
    ZERO_RANGE = 0x10
    INSERT_RANGE = 0x20
    UNSHARE_RANGE = 0x40


class RenameFlag(IntFlag):
    """Flags of renameat2(2), from `linux/fs.h`."""

    NOREPLACE = 1 << 0
    EXCHANGE = 1 << 1
    WHITEOUT = 1 << 2


# ioctls of /dev/fuse itself.
DEV_IOC_CLONE = 0x8004E500  # a second descriptor of the same connection; takes the first one's number as a u32
DEV_IOC_BACKING_OPEN = 0x4010E501
DEV_IOC_BACKING_CLOSE = 0x4004E502
DEV_IOC_SYNC_INIT = 0xE503  # before mount(2): it returns when INIT was answered, and fails when that was refused

IN_HEADER = Struct("=IIQQIIIHxx")
IN_HEADER_BYTES = IN_HEADER.size
OUT_HEADER = Struct("=IiQ")  # length of the whole reply, 0 or -errno (or a Notify code), unique (0: a notification)
OUT_HEADER_BYTES = OUT_HEADER.size


class Header(NamedTuple):
    """What every request begins with; `IN_HEADER` gives the same fields in this order as a plain tuple."""

    length: int  # bytes of the whole request
    opcode: int
    unique: int  # names the request in its reply and in INTERRUPT
    node: int  # the inode that it is about; 0 where there is none
    uid: int  # of the calling process
    gid: int
    pid: int  # 0 where no process waits (writeback, readahead)
    extension_words: int  # length of the extensions at the end, in 8 bytes


# The least that each request holds behind its header: its fixed part and one NUL for each name.
BODY_BYTES_MIN: dict[Opcode, int] = {
    Opcode.LOOKUP: 1,
    Opcode.FORGET: 8,
    Opcode.GETATTR: 16,
    Opcode.SETATTR: 88,
    Opcode.READLINK: 0,
    Opcode.SYMLINK: 2,
    Opcode.MKNOD: 17,
    Opcode.MKDIR: 9,
    Opcode.UNLINK: 1,
    Opcode.RMDIR: 1,
    Opcode.RENAME: 10,
    Opcode.LINK: 9,
    Opcode.OPEN: 8,
    Opcode.READ: 40,
    Opcode.WRITE: 40,
    Opcode.STATFS: 0,
    Opcode.RELEASE: 24,
    Opcode.FSYNC: 16,
    Opcode.SETXATTR: 9,
    Opcode.GETXATTR: 9,
    Opcode.LISTXATTR: 8,
    Opcode.REMOVEXATTR: 1,
    Opcode.FLUSH: 24,
    Opcode.INIT: 8,
    Opcode.OPENDIR: 8,
    Opcode.READDIR: 40,
    Opcode.RELEASEDIR: 24,
    Opcode.FSYNCDIR: 16,
    Opcode.GETLK: 48,
    Opcode.SETLK: 48,
    Opcode.SETLKW: 48,
    Opcode.ACCESS: 8,
    Opcode.CREATE: 17,
    Opcode.INTERRUPT: 8,
    Opcode.BMAP: 16,
    Opcode.DESTROY: 0,
    Opcode.IOCTL: 32,
    Opcode.POLL: 24,
    Opcode.NOTIFY_REPLY: 40,
    Opcode.BATCH_FORGET: 8,
    Opcode.FALLOCATE: 32,
    Opcode.READDIRPLUS: 40,
    Opcode.RENAME2: 18,
    Opcode.LSEEK: 24,
    Opcode.COPY_FILE_RANGE: 56,
    Opcode.SETUPMAPPING: 40,
    Opcode.REMOVEMAPPING: 4,
    Opcode.SYNCFS: 8,
    Opcode.TMPFILE: 17,
    Opcode.STATX: 24,
    Opcode.COPY_FILE_RANGE_64: 56,
}
_LENGTH_MIN = [IN_HEADER_BYTES] * (max(Opcode) + 1)
for _opcode, _bytes in BODY_BYTES_MIN.items():
    _LENGTH_MIN[_opcode] += _bytes
_OPCODES = len(_LENGTH_MIN)


def check(buffer: Buffer, received: int) -> tuple[int, int, int, int, int, int, int, int]:
    """The header (fields as in `Header`) of the request in the first `received` bytes of the buffer.

    An operation that we do not know passes: it is answered with ENOSYS. Raises ProtocolError when the request is shorter than its
    operation's fixed part, or its length is not what was read.
    """
    if received < IN_HEADER_BYTES:
        raise ProtocolError(f"a request of {received} bytes: the header alone has {IN_HEADER_BYTES}")
    header: tuple[int, int, int, int, int, int, int, int] = IN_HEADER.unpack_from(buffer)
    length, opcode, unique, _, _, _, _, words = header
    if length != received:
        raise ProtocolError(f"a request that says {length} bytes, but {received} were read", unique)
    least = _LENGTH_MIN[opcode] if opcode < _OPCODES else IN_HEADER_BYTES
    if length - 8 * words < least:
        raise ProtocolError(
            f"operation {opcode} in {length} bytes with {8 * words} of extensions: it needs {least}", unique
        )
    return header
