"""Touches: what keeps blocks, or lets them go, without moving a byte: hits, pins, times to live, leases, reading ahead.

A pin and a time to live are said by the block's row, so that they hold after a restart and on every member of the chain: a new version of
the same bytes, under the generation that the block has.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...proto.blocks import chunk_of
from ...proto.env import Environment
from ...proto.errors import Status, error
from ...proto.gen.cluster_pb2 import KvNamespace
from ...proto.gen.kvcache_pb2 import TouchRequest
from ...proto.layout import UNIT_SMALL
from ..engine.slots import SLOT_BYTES_MAX
from ..events import Kind, Update
from .leases import LEASE_MS_MAX
from .puts import CHUNK_BYTES_SMALL
from .record import Record, moment, pack_record
from .requests import Runs, keys_of
from .store import Store

_ACTIONS = TouchRequest.Action


class Touches:
    """Of all targets of the process."""

    def __init__(self, env: Environment) -> None:
        self._env = env

    def lease(self, stores: Sequence[Store], request: TouchRequest) -> list[int]:
        """Renew or release a lease, which may hold blocks of several targets: one status, NOT_FOUND where it is over."""
        now = self._env.now()
        until = now + min(request.lease_ms, LEASE_MS_MAX) / 1000
        found = False
        for store in stores:
            store.leases.expire(now)
            if request.action == _ACTIONS.RENEW:
                found |= store.leases.renew(request.lease, until)
            else:
                found |= store.leases.release(request.lease)
        return [] if found else [int(Status.NOT_FOUND)]

    async def touch(self, request: TouchRequest, namespace: KvNamespace, runs: Runs) -> list[int]:
        """One status for each key. Raises INVALID for an action that nobody knows."""
        keys = keys_of(request.keys)
        statuses = [0] * len(keys)
        now = self._env.wall_ns() / 1e9
        for run, store in runs:
            if not isinstance(store, Store):
                statuses[run.begin : run.end] = [int(store)] * (run.end - run.begin)
                continue
            directory = store.directory
            found = directory.find(directory.shelf(namespace.id), keys[run.begin : run.end], now)
            slots: dict[int, int] = {}  # slot -> position in the request
            for i, slot in enumerate(found, run.begin):
                if slot < 0:
                    statuses[i] = int(Status.NOT_FOUND)
                else:
                    slots.setdefault(slot, i)
            for i, status in zip(slots.values(), await self._act(store, request, list(slots), now), strict=True):
                statuses[i] = status
        return statuses

    async def _act(self, store: Store, request: TouchRequest, slots: Sequence[int], now: float) -> Sequence[int]:
        if request.action == _ACTIONS.TOUCH:
            store.touched(slots)
        elif request.action == _ACTIONS.PREFETCH:
            store.prefetch(slots)
        elif request.action == _ACTIONS.TTL:
            return await self._describe(store, slots, expiry=moment(now, request.seconds))
        elif request.action in (_ACTIONS.PIN, _ACTIONS.UNPIN):
            seconds = request.seconds if request.action == _ACTIONS.PIN else 0
            return await self._pin(store, slots, moment(now, seconds))
        else:
            raise error(Status.INVALID, f"touch: there is no action {request.action}")
        return [0] * len(slots)

    async def _pin(self, store: Store, slots: Sequence[int], pin: int) -> Sequence[int]:
        """All of these, or none: QUOTA_EXCEEDED."""
        directory = store.directory
        new = [slot for slot in slots if not directory.has_pin(slot)] if pin else []
        if not new:
            return await self._describe(store, slots, pin=pin)
        namespace, size = directory.namespace[new[0]], sum([store.slot_bytes(slot) for slot in new])
        status = store.evictor.may_pin(namespace, size)
        if status is not Status.OK:
            return [int(status)] * len(slots)
        directory.count_pins(namespace, size)
        try:
            return await self._describe(store, slots, pin=pin)
        finally:
            directory.count_pins(namespace, -size)

    @staticmethod
    async def _describe(
        store: Store, slots: Sequence[int], *, expiry: int | None = None, pin: int | None = None
    ) -> list[int]:
        """Let the rows of these blocks say something else of them. One change after the other: each says again what it does not change."""
        directory = store.directory
        blocks = [directory.record(slot) for slot in slots]
        statuses = [int(Status.NOT_FOUND)] * len(slots)
        async with store.describing:
            chain = store.target.replica.chain
            if chain is None:
                return [int(Status.TARGET_OFFLINE)] * len(slots)
            places, updates = [], []
            for i, (slot, block) in enumerate(zip(slots, blocks, strict=True)):
                record = directory.record(slot)
                if not directory.is_here(slot) or _name(record) != _name(block):
                    continue  # it went while others were waited for
                record = record._replace(
                    expiry=record.expiry if expiry is None else expiry, pin=record.pin if pin is None else pin
                )
                length = directory.length[slot]
                places.append(i)
                updates.append(
                    Update(
                        Kind.TRUNCATE,
                        chunk_of(record.namespace, record.key),
                        0,
                        length,
                        0,
                        b"",
                        0,
                        0,
                        0,
                        CHUNK_BYTES_SMALL if length <= UNIT_SMALL else SLOT_BYTES_MAX,
                        block=pack_record(*record),
                    )
                )
            results = await store.target.start_update(chain.version, updates)
        for i, result in zip(places, results, strict=True):
            if result.status:
                statuses[i] = int(Status.WOULD_BLOCK) if result.status == Status.BUSY else result.status
            elif blocks[i].key in directory.shelf(blocks[i].namespace).slots:  # not removed before its turn came
                statuses[i] = int(Status.OK)
        return statuses


def _name(record: Record) -> tuple[int, bytes, int]:
    """Of a block, as long as its bytes are the same."""
    return record.namespace, record.key, record.generation
