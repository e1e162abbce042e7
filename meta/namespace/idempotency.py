"""Exactly once by (client, request id): the reply is a record of the transaction that carried the request out.

A retry finds the record and gets the same reply; a second executor at the same moment conflicts with the first, because both read
and write the key. There is no other device against duplicates here. A failed operation writes nothing, so it leaves no record:
trying it again is a new attempt.

The reply to a batch may be longer than a value of the smallest engine: it is cut into pieces, under the request's key and keys that
follow it. A piece of full length has a successor.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from ...proto.errors import Status, error
from .. import keys
from ..kv.engine import VALUE_BYTES_MAX, Transaction

VERSION = 1
PIECES_MAX = 1000  # of one reply; more than a transaction holds
RETENTION_NS = 3_600_000_000_000  # a client never retries longer than an hour

_HEAD = struct.Struct(">BHq")  # version, method number, time (ns since the epoch)


PIECE_BYTES = VALUE_BYTES_MAX - _HEAD.size


class Done(NamedTuple):
    """A request that was carried out before."""

    method: int
    time_ns: int
    reply: bytes


def write(txn: Transaction, key: bytes, done: Done) -> None:
    """Record a reply under its request's key."""
    head = _HEAD.pack(VERSION, done.method, done.time_ns)
    txn.put(key, head + done.reply[:PIECE_BYTES])
    for piece in range(1, len(done.reply) // PIECE_BYTES + 1):
        part = done.reply[piece * PIECE_BYTES : (piece + 1) * PIECE_BYTES]
        txn.put(keys.idempotency_piece_key(key, piece), head + part)


async def complete(txn: Transaction, key: bytes, data: bytes) -> Done:
    """The record whose first piece was read. Raises BAD_FORMAT for one of a newer version."""
    first = unpack(data)
    if len(first.reply) < PIECE_BYTES:
        return first
    pieces = await txn.scan(*keys.idempotency_pieces(key), PIECES_MAX)
    return first._replace(reply=b"".join(unpack(value).reply for _, value in pieces))


def unpack(data: bytes) -> Done:
    """What one piece holds. Raises BAD_FORMAT for one of a newer version."""
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
