"""Writers: one SESS record per open for writing. Its existence says that the chunks may reach beyond the inode's length."""

from __future__ import annotations

import struct
from typing import NamedTuple

from ...proto.errors import Status, error
from ...proto.gen.meta_pb2 import EndedSessions
from .. import keys
from ..kv.engine import Transaction
from . import extended
from .access import without_set_ids
from .inode import Inode

VERSION = 2
ENDED_MAX = 1024  # sessions that one request ends beside what it is about

_RECORD = struct.Struct(">BI16sqB")  # version, uid of the opener, client, opened (ns since the epoch), member
_RECORD_1 = struct.Struct(">BI16sq")  # the same without the last


class Session(NamedTuple):
    uid: int
    client: bytes
    opened_ns: int
    member: bool = True  # the opener was in the file's group


def pack(session: Session) -> bytes:
    return _RECORD.pack(VERSION, *session)


def unpack(data: bytes) -> Session:
    """The session of a record. Raises BAD_FORMAT for one of a newer version."""
    if data[0] > VERSION:
        raise keys.refused("a session", data[0])
    if data[0] == 1:
        return Session(*_RECORD_1.unpack(data)[1:])
    _, uid, client, opened_ns, member = _RECORD.unpack(data)
    return Session(uid, client, opened_ns, bool(member))


def lose_privileges(txn: Transaction, inode: Inode, writer: Session) -> None:
    """Somebody may have written to the file: unless he is root it loses its set-id bits, and its capabilities in any case. The
    inode's record is the caller's to write."""
    extended.lose_capability(txn, inode)
    if writer.uid:
        inode.mode = without_set_ids(inode.mode, member=writer.member)


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


async def end_unwritten(txn: Transaction, client: bytes, ended: EndedSessions) -> None:
    """The client has closed these, and wrote nothing under them that is not settled. What is gone, or another client's, is left alone.
    Raises INVALID, TOO_LARGE."""
    # Lists: to go through a message's own columns costs three times as much.
    numbers, sessions = ended.inodes[:], ended.sessions[:]
    if len(numbers) != len(sessions):
        raise error(Status.INVALID, f"{len(numbers)} inodes and {len(sessions)} sessions that end: as many")
    if len(sessions) > ENDED_MAX:
        raise error(Status.TOO_LARGE, f"{len(sessions)} sessions that end with one request: at most {ENDED_MAX}")
    asked = list(map(keys.session_key, numbers, sessions))
    for key, data in zip(asked, await txn.get_many(asked), strict=True):
        if data is not None and unpack(data).client == client:
            txn.delete(key)


async def any_writer(txn: Transaction, inode: int) -> bool:
    """Whether somebody has the inode open for writing."""
    return bool(await txn.scan(*keys.session_range(inode), 1))


async def any_holder(txn: Transaction, inode: int) -> bool:
    """Whether somebody has the inode open, for writing or (as reported by its lease renewals) for reading."""
    return await any_writer(txn, inode) or bool(await txn.scan(*keys.hold_range(inode), 1))
