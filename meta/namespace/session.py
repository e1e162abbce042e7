"""Writers: one SESS record per open for writing. Its existence says that the chunks may reach beyond the inode's length."""

from __future__ import annotations

import struct
from typing import NamedTuple

from ...proto.errors import Status, error
from .. import keys
from ..kv.engine import Transaction

VERSION = 1

_RECORD = struct.Struct(">BI16sq")  # version, uid of the opener, client, opened (ns since the epoch)


class Session(NamedTuple):
    uid: int
    client: bytes
    opened_ns: int


def pack(session: Session) -> bytes:
    return _RECORD.pack(VERSION, *session)


def unpack(data: bytes) -> Session:
    """The session of a record. Raises BAD_FORMAT for one of a newer version."""
    version, uid, client, opened_ns = _RECORD.unpack(data)
    if version > VERSION:
        raise keys.refused("a session", version)
    return Session(uid, client, opened_ns)


async def require(txn: Transaction, inode: int, number: int, client: bytes) -> Session:
    """The client's own session. Raises as `own` does."""
    return own(await txn.get(keys.session_key(inode, number)), inode, client)


def own(data: bytes | None, inode: int, client: bytes) -> Session:
    """The session of a record, if it is the client's. Raises SESSION_ENDED when it is gone: the client's lease ran out and the length
    was settled without it, or it was closed; BAD_HANDLE for another client's."""
    if data is None:
        raise error(
            Status.SESSION_ENDED,
            f"the session on inode {inode:x} is over: the client's lease ran out, or it was closed; open the file again",
        )
    found = unpack(data)
    if found.client != client:
        raise error(
            Status.BAD_HANDLE, f"the session on inode {inode:x} belongs to another client; open the file yourself"
        )
    return found


async def any_writer(txn: Transaction, inode: int) -> bool:
    """Whether somebody has the inode open for writing."""
    return bool(await txn.scan(*keys.session_range(inode), 1))


async def any_holder(txn: Transaction, inode: int) -> bool:
    """Whether somebody has the inode open, for writing or (as reported by its lease renewals) for reading."""
    return await any_writer(txn, inode) or bool(await txn.scan(*keys.hold_range(inode), 1))
