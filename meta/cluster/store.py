"""What the manager keeps in the KV engine, and the only place that reads and writes it.

Keys are the letters CLUS and one of:

CLUS s → JSON: cluster id, capability key (hex) and epoch, routing version, floor, next ids
    Written with every change, in the same transaction, so its version is never older than any record's.
CLUS n node:u32 → Node                      CLUS t target:u32 → Target (capacity and use as of the last registration)
CLUS c chain:u32 → Chain                    CLUS b table:u32 version:u32 → ChainTable; a version never changes
CLUS e client:16 → (empty)                  its lease is over; goes when no capability of its can be good any more
CLUS k namespace:u32 → KvNamespace          CLUS q tenant → TenantQuota   of the KV cache (namespaces.py)
    These values begin with: format u8, routing version of the last change u64, capability epoch u32 (of ended clients). An empty
    message is a tombstone.
CLUS l client:16 → epoch u32, 0 u8, uid u32, name   a client with a lease, and whose it is; goes with the change that ends the client.
    The capability epoch in which the lease began tells the client whether it is still the same lease. (Older records: epoch, name.)

CLUS v version:u64 → JSON: the keys that this change of the routing wrote (hex)   the newest LOG_MAX: so a metadata server that follows
    another one reads what changed, and not everything. Absent where they are too many for a value.
CLUS u → JSON: capacity, used, free_part_min   how full storage is, for metadata servers that no storage server reports to; a few
    seconds old, and absent with an embedded engine.
CLUS p → format u8, term u64, holder u64, addresses (JSON)   which of several managers leads, and CLUS r → counter u64, which it raises
    while it does (election.py). Neither is there with an embedded engine.

Invariants: a chain's members are targets with records; a target's node has a record; every chain of a table exists.
Everything is durable (survives power loss) before the manager acts on it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from ...proto.capability import KEY_BYTES
from ...proto.errors import Status, error
from ..kv import retry
from ..kv.engine import VALUE_BYTES_MAX, Engine, Transaction
from .routing import MESSAGES, Draft, Key, Kind, News, Row, State

PREFIX = b"CLUS"
STATE = PREFIX + b"s"
LEASE = PREFIX + b"l"
LOG = PREFIX + b"v"
SPACE = PREFIX + b"u"
FORMAT = 1
LOG_MAX = 1000
CLUSTER_ID_BYTES = 8
PAGE = 1000  # records read at once

Guard = Callable[[Transaction], Awaitable[None]]

_HEAD = struct.Struct(">BQI")
_LEASE_EPOCH = struct.Struct(">I")
_LEASE = struct.Struct(">IBI")
_VERSION = struct.Struct(">Q")


def _key(key: Key) -> bytes:
    return PREFIX + key[0].value.encode() + key[1]


def _lease(value: bytes) -> tuple[int, int | None]:
    if len(value) < _LEASE.size or value[_LEASE_EPOCH.size]:  # a name begins with no zero
        return _LEASE_EPOCH.unpack_from(value)[0], None
    epoch, _, uid = _LEASE.unpack_from(value)
    return epoch, uid


def _encode_row(row: Row) -> bytes:
    return _HEAD.pack(FORMAT, row.version, row.epoch) + (row.message.SerializeToString() if row.message else b"")


def _decode_row(key: Key, value: bytes) -> Row:
    format_version, version, epoch = _HEAD.unpack_from(value)
    _check_format(_key(key), format_version)
    body = value[_HEAD.size :]
    message = MESSAGES[key[0]].FromString(body) if body and key[0] in MESSAGES else None
    return Row(version, message, epoch)


def _check_format(key: bytes, found: int) -> None:
    if found != FORMAT:
        message = f"cluster record {key!r} has format {found}, and this emberfs knows {FORMAT}; upgrade emberfs on this server"
        raise error(Status.BAD_FORMAT, message)


def _encode_state(state: State) -> bytes:
    record = {
        "format": FORMAT,
        "cluster": state.cluster,
        "capability_key": state.capability_key.hex(),
        "capability_epoch": state.capability_epoch,
        "version": state.version,
        "floor": state.floor,
        "next_ids": dict(state.next_ids),
    }
    return json.dumps(record).encode()


def _decode_state(value: bytes) -> State:
    record = json.loads(value)
    _check_format(STATE, record["format"])
    return State(
        cluster=record["cluster"],
        capability_key=bytes.fromhex(record["capability_key"]),
        capability_epoch=record["capability_epoch"],
        version=record["version"],
        floor=record["floor"],
        next_ids=record["next_ids"],
    )


async def _unguarded(_: Transaction) -> None:
    """The engine lets nobody else in."""


class Space(NamedTuple):
    """How full storage is, all targets together, in bytes."""

    capacity: int
    used: int
    free_part_min: float = 1.0  # of the fullest target, from 0 to 1


class Store:
    """`guard` is part of every transaction that writes: it raises where another manager may have taken over."""

    def __init__(self, engine: Engine, clock: retry.Clock = retry.REAL_CLOCK, guard: Guard = _unguarded) -> None:
        self._engine = engine
        self._clock = clock
        self._guard = guard

    async def load(self) -> tuple[State, dict[Key, Row]] | None:
        """Everything, or None in a new engine. Raises BAD_FORMAT for records of a newer emberfs."""
        txn = self._engine.begin()
        value = await txn.get(STATE, snapshot=True)
        if value is None:
            return None
        rows: dict[Key, Row] = {}
        for kind in Kind:
            for name, row in await self._scan(PREFIX + kind.value.encode(), txn):
                rows[kind, name] = _decode_row((kind, name), row)
        return _decode_state(value), rows

    async def news(self, since: int) -> News | None:
        """What changed after a version of the routing; None when too much did, and `load` is to be asked. The state tells whether
        anything did at all. Raises NOT_FOUND in a new engine."""
        txn = self._engine.begin()
        value = await txn.get(STATE, snapshot=True)
        if value is None:
            raise error(Status.NOT_FOUND, "no cluster has been made in this engine")
        state = _decode_state(value)
        log = await txn.scan(
            LOG + _VERSION.pack(since + 1), LOG + _VERSION.pack(state.version + 1), LOG_MAX, snapshot=True
        )
        if len(log) != state.version - since:
            return None
        keys = list({bytes.fromhex(name) for _, names in log for name in json.loads(names)})
        values = await txn.get_many(keys, snapshot=True)
        found = {(Kind(chr(key[4])), key[5:]): value for key, value in zip(keys, values, strict=True)}
        rows = {key: _decode_row(key, value) for key, value in found.items() if value is not None}
        in_order = dict(sorted(rows.items(), key=lambda item: item[1].version))  # as a book keeps them
        return News(state, in_order, found.keys() - rows.keys())

    async def leases(self) -> dict[bytes, tuple[int, int | None]]:
        """Clients with a lease on record, with the epochs in which these began, and the owners' user ids as far as they are known."""
        return {client: _lease(value) for client, value in await self._scan(LEASE)}

    async def _scan(self, prefix: bytes, txn: Transaction | None = None) -> list[tuple[bytes, bytes]]:
        # Only the primary writes these keys: for it, pages from different snapshots fit together. Others use one transaction.
        begin, end, found = prefix, prefix[:-1] + bytes([prefix[-1] + 1]), []
        while page := await (txn or self._engine.begin()).scan(begin, end, PAGE, snapshot=True):
            found += [(key[len(prefix) :], value) for key, value in page]
            begin = page[-1][0] + b"\0"
        return found

    async def make(self, entropy: Callable[[int], bytes]) -> State:
        """A new cluster, with an id and a capability key. Raises EXISTS if there is one."""
        state = State(cluster=entropy(CLUSTER_ID_BYTES).hex(), capability_key=entropy(KEY_BYTES))
        await self.create(state)
        return state

    async def create(self, state: State) -> None:
        """The first record of a cluster. Raises EXISTS if there is one."""

        async def work(txn: Transaction) -> None:
            await self._guard(txn)
            if await txn.get(STATE) is not None:
                raise error(Status.EXISTS, "another process made this cluster at the same moment; start again")
            txn.put(STATE, _encode_state(state))

        await retry.run(self._engine, work, self._clock, durable=True)

    async def save(self, draft: Draft) -> None:
        """Make a change durable."""

        async def work(txn: Transaction) -> None:
            await self._guard(txn)
            txn.put(STATE, _encode_state(draft.state))
            for key, row in draft.rows.items():
                txn.put(_key(key), _encode_row(row))
            for key in draft.dropped:
                txn.delete(_key(key))
            for client in draft.ended_leases:
                txn.delete(LEASE + client)
            version = draft.state.version
            changed = json.dumps([_key(key).hex() for key in (*draft.rows, *draft.dropped)]).encode()
            if len(changed) <= VALUE_BYTES_MAX:  # else it is missing, and whoever follows reads everything
                txn.put(LOG + _VERSION.pack(version), changed)
            if version > LOG_MAX:
                txn.delete(LOG + _VERSION.pack(version - LOG_MAX))

        await retry.run(self._engine, work, self._clock, durable=True)

    async def put_space(self, space: Space) -> None:
        """Tell the metadata servers that follow how full storage is."""

        async def work(txn: Transaction) -> None:
            await self._guard(txn)
            txn.put(SPACE, json.dumps(space).encode())

        await retry.run(self._engine, work, self._clock)

    async def space(self) -> Space | None:
        value = await self._engine.begin().get(SPACE, snapshot=True)
        return Space(*json.loads(value)) if value is not None else None

    async def put_lease(self, client: bytes, epoch: int, name: str, uid: int) -> None:
        """Remember a client, so that a restarted manager knows whose lease it has to end."""

        async def work(txn: Transaction) -> None:
            await self._guard(txn)
            txn.put(LEASE + client, _LEASE.pack(epoch, 0, uid) + name.encode())

        await retry.run(self._engine, work, self._clock, durable=True)
