"""Exactly once by (client, request id): the reply is a record of the transaction that carried the request out.

A retry finds the record and gets the same reply; a second executor at the same moment conflicts with the first, because both read
and write the key. There is no other device against duplicates here. A failed operation writes nothing, so it leaves no record:
trying it again is a new attempt.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from ...proto.errors import Status, error
from .. import keys

VERSION = 1
RETENTION_NS = 3_600_000_000_000  # a client never retries longer than an hour

_HEAD = struct.Struct(">BHq")  # version, method number, time (ns since the epoch)


class Done(NamedTuple):
    """A request that was carried out before."""

    method: int
    time_ns: int
    reply: bytes


def pack(method: int, time_ns: int, reply: bytes) -> bytes:
    return _HEAD.pack(VERSION, method, time_ns) + reply


def unpack(data: bytes) -> Done:
    """The record's content. Raises BAD_FORMAT for one of a newer version."""
    version, method, time_ns = _HEAD.unpack_from(data)
    if version > VERSION:
        raise keys.refused("a record of a request", version)
    return Done(method, time_ns, data[_HEAD.size :])


def check_same(done: Done, method: int) -> None:
    """Raise INVALID when a client used one request id for two methods."""
    if done.method != method:
        raise error(
            Status.INVALID,
            f"the request id was used for method {done.method} before, and now for {method}: take a new one",
        )


def expired(data: bytes, now_ns: int) -> bool:
    """Whether a record is older than any client retries."""
    return unpack(data).time_ns + RETENTION_NS < now_ns
