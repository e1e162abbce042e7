"""The one status table: what can go wrong, whose fault it is, whether to try again, and which errno it is at the edges.

A status travels in `Failure` and in the status columns of batch replies. In Python it is a `StatusError`, which is an `OSError`
of the class that the standard library uses for its errno, so `except FileNotFoundError` works in every room and at every face.
"""

from __future__ import annotations

import enum
import errno as _errno
from typing import Any, NamedTuple


class Blame(enum.Enum):
    """Who has to act."""

    CALLER = "caller"  # the request is wrong or not allowed
    STATE = "state"  # the request is fine, the file system says no
    PEER = "peer"  # the server or the network; another try or another server may do
    DISK = "disk"  # a disk is full, failing or corrupt


class Row(NamedTuple):
    errno: int
    retryable: bool  # the retry policy may send it again
    maybe_committed: bool  # it may have happened: only an idempotent retry is safe
    blame: Blame
    sentence: str


class Status(enum.IntEnum):
    """Codes on the wire. Numbers are permanent; `TABLE` says what each means."""

    OK = 0
    # the caller
    INVALID = 1
    PERMISSION_DENIED = 2
    NOT_PERMITTED = 3
    BAD_HANDLE = 4
    TOO_LARGE = 5
    NAME_TOO_LONG = 6
    UNSUPPORTED = 7
    UNAUTHENTICATED = 8
    VALUE_TOO_LONG = 9
    # the state of the file system
    NOT_FOUND = 20
    EXISTS = 21
    NOT_DIRECTORY = 22
    IS_DIRECTORY = 23
    NOT_EMPTY = 24
    SYMLINK_LOOP = 25
    CROSS_DEVICE = 26
    NO_SPACE = 27
    QUOTA_EXCEEDED = 28
    FILE_TOO_BIG = 29
    TOO_MANY_LINKS = 30
    READ_ONLY = 31
    NO_DATA = 32
    STALE_HANDLE = 33
    BUSY_RESOURCE = 34
    NO_DEVICE = 35
    DEADLOCK = 36
    WOULD_BLOCK = 37
    RANGE = 38
    NO_LOCKS = 39
    # peers and the network
    UNAVAILABLE = 50
    DEADLINE = 51
    BUSY = 52
    CONFLICT = 53
    CANCELLED = 54
    PROTOCOL = 55
    WRONG_CLUSTER = 56
    STALE_CHAIN_VERSION = 57
    STALE_ROUTING = 58
    NOT_PRIMARY = 59
    NOT_COMMITTED = 60
    SESSION_ENDED = 61
    DUPLICATE = 62
    FENCED = 63
    REGION_DEAD = 64
    MAYBE_COMMITTED = 65
    STALE_TRUNCATE_VERSION = 66
    CAPABILITY_EXPIRED = 67
    NOT_INLINE = 68
    # chunks and disks
    CHUNK_NOT_FOUND = 80
    CHECKSUM = 81
    LOST_DATA = 82
    IO_ERROR = 83
    TARGET_OFFLINE = 84
    BAD_FORMAT = 85
    # ours
    INTERNAL = 99


TABLE: dict[Status, Row] = {
    Status.OK: Row(0, False, False, Blame.CALLER, "it worked"),
    Status.INVALID: Row(_errno.EINVAL, False, False, Blame.CALLER, "an argument is outside what the operation takes"),
    Status.PERMISSION_DENIED: Row(
        _errno.EACCES, False, False, Blame.CALLER, "the mode of a file or directory forbids it"
    ),
    Status.NOT_PERMITTED: Row(_errno.EPERM, False, False, Blame.CALLER, "only the owner or root may do this"),
    Status.BAD_HANDLE: Row(_errno.EBADF, False, False, Blame.CALLER, "the file is not open, or not for this"),
    Status.TOO_LARGE: Row(
        _errno.EMSGSIZE, False, False, Blame.CALLER, "the request is over a limit; send less at once"
    ),
    Status.NAME_TOO_LONG: Row(
        _errno.ENAMETOOLONG, False, False, Blame.CALLER, "a name is over 255 bytes or a path over 4095"
    ),
    Status.UNSUPPORTED: Row(_errno.EOPNOTSUPP, False, False, Blame.CALLER, "the server does not do this"),
    Status.VALUE_TOO_LONG: Row(
        _errno.E2BIG, False, False, Blame.CALLER, "the value of an extended attribute is over 65,536 bytes"
    ),
    Status.UNAUTHENTICATED: Row(_errno.EACCES, False, False, Blame.CALLER, "the peer did not prove the cluster secret"),
    Status.NOT_FOUND: Row(_errno.ENOENT, False, False, Blame.STATE, "no such file or directory"),
    Status.EXISTS: Row(_errno.EEXIST, False, False, Blame.STATE, "the name exists"),
    Status.NOT_DIRECTORY: Row(_errno.ENOTDIR, False, False, Blame.STATE, "a component of the path is not a directory"),
    Status.IS_DIRECTORY: Row(_errno.EISDIR, False, False, Blame.STATE, "it is a directory"),
    Status.NOT_EMPTY: Row(_errno.ENOTEMPTY, False, False, Blame.STATE, "the directory is not empty"),
    Status.SYMLINK_LOOP: Row(_errno.ELOOP, False, False, Blame.STATE, "more than 40 symlinks on the way"),
    Status.CROSS_DEVICE: Row(
        _errno.EXDEV, False, False, Blame.STATE, "source and target are on different file systems"
    ),
    Status.NO_SPACE: Row(_errno.ENOSPC, False, False, Blame.DISK, "no space left; remove files or add a target"),
    Status.QUOTA_EXCEEDED: Row(_errno.EDQUOT, False, False, Blame.STATE, "a quota is used up"),
    Status.FILE_TOO_BIG: Row(
        _errno.EFBIG, False, False, Blame.CALLER, "the file would be larger than its layout can hold"
    ),
    Status.TOO_MANY_LINKS: Row(_errno.EMLINK, False, False, Blame.STATE, "the inode has too many names"),
    Status.READ_ONLY: Row(_errno.EROFS, False, False, Blame.STATE, "the file system or target is read-only"),
    Status.NO_DATA: Row(_errno.ENODATA, False, False, Blame.STATE, "no such attribute"),
    Status.STALE_HANDLE: Row(_errno.ESTALE, False, False, Blame.STATE, "the inode is gone; open the path again"),
    Status.BUSY_RESOURCE: Row(_errno.EBUSY, False, False, Blame.STATE, "it is in use"),
    Status.NO_DEVICE: Row(_errno.ENXIO, False, False, Blame.STATE, "there is nothing behind it"),
    Status.DEADLOCK: Row(_errno.EDEADLK, False, False, Blame.STATE, "waiting for this lock would never end"),
    Status.WOULD_BLOCK: Row(_errno.EAGAIN, False, False, Blame.STATE, "somebody else holds the lock"),
    Status.NO_LOCKS: Row(_errno.ENOLCK, False, False, Blame.STATE, "the file has as many locks as it can have"),
    Status.RANGE: Row(_errno.ERANGE, False, False, Blame.CALLER, "the buffer is too small for the value"),
    Status.UNAVAILABLE: Row(
        _errno.EHOSTUNREACH, True, False, Blame.PEER, "the server cannot be reached; is it running?"
    ),
    Status.DEADLINE: Row(_errno.ETIMEDOUT, False, True, Blame.PEER, "no answer within the time allowed"),
    Status.BUSY: Row(_errno.EAGAIN, True, False, Blame.PEER, "the server is at a limit and took nothing"),
    Status.CONFLICT: Row(_errno.EAGAIN, True, False, Blame.PEER, "another transaction was faster"),
    Status.CANCELLED: Row(_errno.ECANCELED, False, True, Blame.CALLER, "the caller gave up"),
    Status.PROTOCOL: Row(
        _errno.EPROTO, False, True, Blame.PEER, "the peer does not speak the protocol, or a frame was damaged"
    ),
    Status.WRONG_CLUSTER: Row(_errno.EPROTO, False, False, Blame.CALLER, "the server belongs to another cluster"),
    Status.STALE_CHAIN_VERSION: Row(
        _errno.EAGAIN, True, False, Blame.PEER, "the chain has changed; the newer entry is attached"
    ),
    Status.STALE_ROUTING: Row(_errno.EAGAIN, True, False, Blame.PEER, "the routing has changed; ask the manager"),
    Status.NOT_PRIMARY: Row(_errno.EAGAIN, True, False, Blame.PEER, "another manager leads"),
    Status.NOT_COMMITTED: Row(_errno.EAGAIN, True, False, Blame.PEER, "a write is on its way; read from the tail"),
    Status.SESSION_ENDED: Row(_errno.EIO, False, False, Blame.PEER, "the client's lease ran out; open the file again"),
    Status.DUPLICATE: Row(
        _errno.EIO, False, True, Blame.CALLER, "an update with a lower sequence number than the last"
    ),
    Status.FENCED: Row(_errno.EAGAIN, True, True, Blame.PEER, "the server lost its lease and serves nothing"),
    Status.REGION_DEAD: Row(
        _errno.EFAULT, False, True, Blame.CALLER, "the memory region shrank, went away or is quarantined"
    ),
    Status.MAYBE_COMMITTED: Row(_errno.EIO, True, True, Blame.PEER, "the connection broke before the answer"),
    Status.STALE_TRUNCATE_VERSION: Row(_errno.ESTALE, True, False, Blame.STATE, "the file was truncated in between"),
    Status.CAPABILITY_EXPIRED: Row(
        _errno.ESTALE, False, False, Blame.STATE, "the grant is too old; open the inode again for a new one"
    ),
    Status.NOT_INLINE: Row(
        _errno.EAGAIN,
        False,
        False,
        Blame.STATE,
        "the file's bytes lie in chunks, or it would become too long to be inlined",
    ),
    Status.CHUNK_NOT_FOUND: Row(_errno.ENOENT, False, False, Blame.STATE, "the target holds no such chunk"),
    Status.CHECKSUM: Row(_errno.EIO, False, False, Blame.DISK, "the bytes do not match their checksum"),
    Status.LOST_DATA: Row(_errno.EIO, False, False, Blame.DISK, "a chunk below the file's length is missing"),
    Status.IO_ERROR: Row(_errno.EIO, False, True, Blame.DISK, "the disk answered with an error"),
    Status.TARGET_OFFLINE: Row(_errno.EIO, True, False, Blame.DISK, "the target is offline"),
    Status.BAD_FORMAT: Row(
        _errno.EIO, False, False, Blame.DISK, "what lies there was written by another version or is damaged"
    ),
    Status.INTERNAL: Row(_errno.EIO, False, True, Blame.PEER, "a bug; the server's log has the details"),
}


class StatusError(OSError):
    """An operation that failed. `status` is the row of the table, `strerror` says what happened, to what, and what to do.

    `detail` carries what a status is documented to bring along: the newer `Chain` for STALE_CHAIN_VERSION, the addresses of the manager
    that leads for NOT_PRIMARY (as far as known).
    """

    status: Status
    detail: Any

    def __reduce__(self) -> tuple[Any, ...]:
        return (error, (self.status, self.strerror, self.filename))

    @property
    def retryable(self) -> bool:
        return TABLE[self.status].retryable

    @property
    def maybe_committed(self) -> bool:
        return TABLE[self.status].maybe_committed


# One subclass per class that OSError would have chosen: StatusError + FileNotFoundError and so on.
_CLASSES: dict[type[OSError], type[StatusError]] = {OSError: StatusError}
for _row in TABLE.values():
    _base = type(OSError(_row.errno, ""))
    if _base not in _CLASSES:
        _CLASSES[_base] = type(
            f"Status{_base.__name__}", (StatusError, _base), {"__doc__": f"A StatusError that is a {_base.__name__}."}
        )


def error(status: Status, message: str = "", filename: str | None = None, detail: Any = None) -> StatusError:
    """The exception for a status. `message` names the culprit and the way out; the table's sentence stands in for an empty one."""
    row = TABLE[status]
    kind = _CLASSES[type(OSError(row.errno, ""))]
    text = message or row.sentence
    made = kind(row.errno, text, filename) if filename is not None else kind(row.errno, text)
    made.status = status
    made.detail = detail
    return made


def status_of(code: int) -> Status:
    """The status for a code from the wire; one that we do not know yet is INTERNAL."""
    try:
        return Status(code)
    except ValueError:
        return Status.INTERNAL
