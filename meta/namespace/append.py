"""Append tokens: one client at a time may append to an inode, and only it knows where the file ends.

The APND record names the client. It comes with the settled length. The client keeps it, and what it appends in its buffers, until somebody
else wants to append: then it writes out, and gives the token back in the transaction that settles the length (`ops/append.py`). A client
that is gone gives its token back when its chunks have told the length. Who waits, and how the holder hears of it: `appending.py`.
"""

from __future__ import annotations

import struct
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from .. import keys
from .attempt import Attempt, Detour, Task

if TYPE_CHECKING:
    from .namespace import Namespace

VERSION = 1

_RECORD = struct.Struct(">B16sQ?")  # version, client, session, wanted


class Token(NamedTuple):
    client: bytes
    session: int
    wanted: bool  # somebody waits for it, perhaps at another server

    def pack(self) -> bytes:
        return _RECORD.pack(VERSION, *self)


def unpack(data: bytes) -> Token:
    """The token of a record. Raises BAD_FORMAT for one of a newer version."""
    version, *fields = _RECORD.unpack(data)
    if version > VERSION:
        raise keys.refused("an append token", version)
    return Token(*fields)


class Held(Exception):
    """Another client has the token."""

    def __init__(self, token: Token) -> None:
        super().__init__()
        self.token = token


class Recall(Detour):
    """A file is to be cut while another client appends to it: what that has in its buffers goes first, where it was meant for."""

    def __init__(self, inode: int, token: Token) -> None:
        super().__init__(inode)
        self.inode = inode
        self.token = token

    async def take(self, namespace: Namespace, task: Task) -> None:
        if not await namespace.appending.recalled(self.inode, self.token):
            task.unheard.add(self.inode)  # it is stopped, or gone: a cut does not wait for that


async def require_quiet(attempt: Attempt, inode: int) -> None:
    """Raise the detour while another client has the inode's token."""
    found = await attempt.txn.get(keys.append_key(inode))
    if found is None or inode in attempt.task.unheard:
        return
    token = unpack(found)
    if token.client != attempt.client:
        raise Recall(inode, token)


async def release(attempt: Attempt, inode: int) -> None:
    """Give the caller's token back, if it has it."""
    key = keys.append_key(inode)
    found = await attempt.txn.get(key)
    if found is not None and unpack(found).client == attempt.client:
        attempt.txn.delete(key)
        attempt.after.append(partial(attempt.namespace.appending.freed, inode, attempt.client))
