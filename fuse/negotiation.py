"""The first exchange: what the kernel offers, what we want, what both then do. A pure function of the INIT request.

    kernel INIT 7.45, flags      ->  `negotiate` -> Agreement: what holds from now on, and the reply that says so
    kernel of a newer major 8.x  ->  an Agreement with `again`: the reply names our version, the kernel sends INIT once more
    kernel before 7.31           ->  ProtocolError; the device refuses with EPROTO and the mount fails

Only what both sides know is switched on. Where two abilities exclude each other the kernel silently prefers one; `settle`
decides it here instead, so that `Agreement.flags` is what the kernel really does.
"""

from __future__ import annotations

from dataclasses import dataclass
from mmap import PAGESIZE

from . import structs
from .protocol import MAJOR, MIN_READ_BUFFER, MINOR, MINOR_MIN, Init, ProtocolError
from .requests import InitIn

PAGES_MAX_OLD = 32  # pages of one request for kernels without Init.MAX_PAGES
SECURITY_CTX_MINOR_MIN = 38  # before, labels came without a length in the header
TIME_GRANULARITY_NS = 1
REQUEST_HEAD_BYTES_MAX = MIN_READ_BUFFER  # header, fixed part and names of a request in front of its data, generously
XATTR_BYTES_MAX = 64 << 10  # the largest value of SETXATTR, whatever max_write is

WANTED = (
    Init.ASYNC_READ
    | Init.POSIX_LOCKS
    | Init.ATOMIC_O_TRUNC
    | Init.EXPORT_SUPPORT
    | Init.BIG_WRITES
    | Init.FLOCK_LOCKS
    | Init.HAS_IOCTL_DIR
    | Init.DO_READDIRPLUS
    | Init.READDIRPLUS_AUTO
    | Init.ASYNC_DIO
    | Init.PARALLEL_DIROPS
    | Init.ABORT_ERROR
    | Init.MAX_PAGES
    | Init.CACHE_SYMLINKS
    | Init.EXPLICIT_INVAL_DATA
    | Init.HANDLE_KILLPRIV_V2
    | Init.SETXATTR_EXT
    | Init.INIT_EXT
    | Init.CREATE_SUPP_GROUP
    | Init.HAS_EXPIRE_ONLY
    | Init.DIRECT_IO_ALLOW_MMAP
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the mount would like. Sizes in bytes; the kernel and `max_pages_limit` may lower them."""

    flags: Init = WANTED
    max_write: int = 1 << 20  # of one WRITE, and with it of one READ
    max_readahead: int = (
        4 << 20
    )  # the kernel takes the smaller of this and its own; raised at the mount's bdi afterwards
    max_background: int = 64  # asynchronous requests (readahead, writeback) in flight
    congestion_threshold: int = 48  # of those, from where readahead is skipped
    max_stack_depth: int = 0  # of a backing file system; 1 or 2 with Init.PASSTHROUGH
    request_timeout_s: int = 0  # the kernel aborts the connection when a request takes longer; 0: never


@dataclass(frozen=True, slots=True)
class Agreement:
    """What holds on this connection."""

    minor: int
    flags: Init
    max_write: int
    max_pages: int
    reply: bytes  # the body of the reply to INIT; the device puts the header in front
    again: bool = False  # the kernel asks once more, in our major version

    @property
    def buffer_bytes(self) -> int:
        """What a read of the device must have room for: the largest request."""
        return max(self.max_write, XATTR_BYTES_MAX) + REQUEST_HEAD_BYTES_MAX


def settle(offered: Init, wanted: Init, minor: int) -> Init:
    """The abilities that both have, without those that another one excludes or that lack what they need."""
    flags = offered & wanted
    if not flags & Init.INIT_EXT:
        flags &= Init(0xFFFFFFFF)  # there is no room for the upper half
    if not flags & Init.DO_READDIRPLUS:
        flags &= ~Init.READDIRPLUS_AUTO
    if flags & Init.EXPLICIT_INVAL_DATA:
        flags &= ~Init.AUTO_INVAL_DATA
    if flags & Init.HANDLE_KILLPRIV_V2:
        flags &= ~Init.HANDLE_KILLPRIV
    if flags & Init.WRITEBACK_CACHE:
        flags &= ~Init.PASSTHROUGH
    if minor < SECURITY_CTX_MINOR_MIN:
        flags &= ~Init.SECURITY_CTX
    return flags


def negotiate(
    kernel: InitIn, wanted: Wanted, *, max_pages_limit: int = PAGES_MAX_OLD, page_bytes: int = PAGESIZE
) -> Agreement:
    """What to answer to this INIT. `max_pages_limit` is the sysctl fs.fuse.max_pages_limit (256 where there is none).

    Raises ProtocolError for a kernel that is too old.
    """
    if kernel.major > MAJOR:
        return Agreement(MINOR, Init(0), 0, 0, _reply(MINOR, Init(0), wanted, 0, 0), again=True)
    if kernel.major < MAJOR or kernel.minor < MINOR_MIN:
        raise ProtocolError(
            f"the kernel speaks FUSE {kernel.major}.{kernel.minor}: at least {MAJOR}.{MINOR_MIN} (Linux 5.4) is needed"
        )
    minor = min(kernel.minor, MINOR)
    flags = settle(Init(kernel.flags), wanted.flags, minor)
    pages = max_pages_limit if flags & Init.MAX_PAGES else PAGES_MAX_OLD
    pages = max(1, min(pages, -(-wanted.max_write // page_bytes), 0xFFFF))
    max_write = min(wanted.max_write, pages * page_bytes)
    return Agreement(minor, flags, max_write, pages, _reply(minor, flags, wanted, max_write, pages))


def _reply(minor: int, flags: Init, wanted: Wanted, max_write: int, pages: int) -> bytes:
    return structs.INIT_OUT.pack(
        MAJOR,
        minor,
        wanted.max_readahead,
        flags & 0xFFFFFFFF,
        wanted.max_background,
        wanted.congestion_threshold,
        max_write,
        TIME_GRANULARITY_NS,
        pages if flags & Init.MAX_PAGES else 0,
        0,  # map_alignment: no DAX window
        flags >> 32,
        wanted.max_stack_depth if flags & Init.PASSTHROUGH else 0,
        wanted.request_timeout_s if flags & Init.REQUEST_TIMEOUT else 0,
    )
