"""The shell of a resync: asks both sides for their lists, lets the replica's machine copy what differs, brings the records.

One `Resyncer` belongs to each target. It looks at the chain's entry when that changes, and runs a sync while its target is the last
SERVING member and has a SYNCING one behind it. A new chain version, whatever it says, ends the sync and begins the next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple

from ..proto.env import Environment
from ..proto.errors import Status, StatusError, error, status_of
from ..proto.gen.storage_pb2 import FinishSyncRequest, ListChunksRequest, PutRecordsRequest
from ..proto.rpc import STORAGE
from ..proto.settings import time_scale
from . import resync
from .events import CopyChunks
from .exchange import entries_here, entries_of
from .peers import Peers
from .resync import (
    Begin,
    Complain,
    Copied,
    Copy,
    Effect,
    Failed,
    Finish,
    Finished,
    List,
    Listed,
    Phase,
    RecordsPut,
    Side,
)
from .target import Target

TICK_S = 0.05
RECORDS_PAGE = 512  # receipts and floors in one request
CALL_S = 10.0  # of one request to the other side; scaled
FINISH_S = 120.0  # of the last one, which waits for a checkpoint of much; scaled
LANES = 8  # batches of copies under way to one node at once, whatever the number of syncs

Load = Callable[[], tuple[int, int]]  # bytes and operations of clients since the start of the process


class Share:
    """What the syncs of one process have in common: its processor, memory and network, beside the clients of all its targets."""

    def __init__(self, env: Environment, load: Load) -> None:
        self.load = load
        self.syncs = 0  # that run
        self._env = env
        self._lanes: dict[int, deque[AbstractAsyncContextManager[None]]] = {}  # by node

    def lane(self, node: int) -> AbstractAsyncContextManager[None]:
        """To be held while a batch is copied to this node. One that cannot be reached holds up nobody else's copies."""
        lanes = self._lanes.setdefault(node, deque())
        if len(lanes) < LANES:
            lanes.append(self._env.lock())
        lanes.rotate()
        return lanes[0]


class Under(NamedTuple):
    """What a sync is for. It ends with that: what it found says nothing of another chain version, or another successor."""

    chain: int
    version: int
    successor: int  # target id


NOTHING = Under(0, 0, 0)


class Resyncer:
    """Of one target."""

    def __init__(self, target: Target, peers: Peers, env: Environment, log: Any, share: Share) -> None:
        self._target = target
        self._peers = peers
        self._env = env
        self._log = log
        self._share = share
        self._machine: resync.Resync | None = None
        self._under = NOTHING
        self._node = 0  # that has the successor
        target.chain_watchers.append(self.routing_changed)

    def routing_changed(self) -> None:
        """After the target's machine has heard of it."""
        replica = self._target.replica
        chain = replica.chain
        under = NOTHING
        if chain is not None and replica.tail and replica.successor:
            under = Under(chain.id, chain.version, replica.successor)
            self._node = next(m.node for m in chain.members if m.target == replica.successor)
        if under == self._under:
            return
        self._under = under
        self._machine = self._target.syncing = resync.Resync() if under.chain else None
        if self._machine is not None:
            self._spawn(self._sync(self._machine))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._env.spawn(lambda: work, f"sync of chain {self._under.chain}")

    async def _sync(self, machine: resync.Resync) -> None:
        chain, version, successor = self._under
        began, target = self._env.now(), self._target
        self._log.info("sync begins", target=target.id, chain=chain, chain_version=version, successor=successor)
        self._share.syncs += 1
        try:
            self._tell(machine, Begin(target.engine.space_info().chunks))
            while machine is self._machine and not target.engine.failed and machine.phase is not Phase.DONE:
                await self._env.sleep(TICK_S)
                self._tell(machine, resync.Tick(*self._share.load(), self._share.syncs))
        finally:
            self._share.syncs -= 1
        self._log.info(
            "sync is complete" if machine.phase is Phase.DONE else "sync ends: the chain has changed",
            target=target.id,
            chain=chain,
            compared=machine.done,
            copied=machine.copied,
            seconds=round(self._env.now() - began, 3),
        )
        if machine is self._machine:
            self._machine = target.syncing = None

    def _tell(self, machine: resync.Resync, event: resync.Event) -> None:
        if machine is not self._machine and not isinstance(event, Finished):
            return  # an answer to a sync that is over; that it is complete may come after the chain has heard of it
        for effect in machine.step(self._env.now(), event):
            if isinstance(effect, Complain):
                self._log.warning("sync: will try again", target=self._target.id, error=effect.why)
            else:
                self._spawn(self._perform(machine, self._under, effect))

    async def _perform(self, machine: resync.Resync, under: Under, effect: Effect) -> None:
        """`under`: what the machine's sync is for, whatever the chain says by the time at which this begins."""
        event: resync.Event
        try:
            event = await self._ask(under, effect)
        except Exception as failed:
            why = failed.strerror if isinstance(failed, StatusError) else repr(failed)
            if not isinstance(failed, StatusError):
                message = "a sync failed for a reason that nobody thought of"
                self._log.error(message, target=self._target.id, exc_info=failed)
            if isinstance(effect, Copy):
                event = Copied(effect.batch, [Status.INTERNAL] * len(effect.chunks))
            else:
                event = Failed(f"{type(effect).__name__}: {why}")
        self._tell(machine, event)

    async def _ask(self, under: Under, effect: Effect) -> resync.Event:
        if isinstance(effect, Copy):
            return Copied(effect.batch, await self._copy(under, effect))
        if isinstance(effect, List):
            return await (self._list_ours(effect) if effect.side is Side.OURS else self._list_theirs(under, effect))
        if isinstance(effect, Finish):
            request = FinishSyncRequest(chain=under.chain, chain_version=under.version)
            await self._call(under, STORAGE.FinishSync, request, FINISH_S)
            return Finished()
        assert isinstance(effect, resync.PutRecords)
        return RecordsPut(await self._put_records(under, effect.after))

    async def _copy(self, under: Under, effect: Copy) -> list[int]:
        async with self._share.lane(self._node):
            ticket = self._env.promise()
            self._target.submit(CopyChunks(ticket, under.version, effect.chunks))
            results = await ticket
        for chunk, result in zip(effect.chunks, results, strict=True):
            if result.status in (Status.CHECKSUM, Status.IO_ERROR):
                self._target.found_damaged(chunk, f"cannot be copied: {Status(result.status).name}")
        return [result.status for result in results]

    async def _list_ours(self, effect: List) -> Listed:
        entries, more = await self._target.blocking(entries_here, self._target.engine, effect.first, effect.count)
        return Listed(Side.OURS, entries, more)

    async def _list_theirs(self, under: Under, effect: List) -> Listed:
        request = ListChunksRequest(
            chain=under.chain, chain_version=under.version, first=effect.first, chunks_max=effect.count
        )
        reply = await self._call(under, STORAGE.ListChunks, request, CALL_S)
        return Listed(Side.THEIRS, entries_of(reply), reply.more)

    async def _put_records(self, under: Under, after: bytes) -> bytes | None:
        """Bring one page; where the next one begins."""
        engine = self._target.engine
        page = await self._target.blocking(engine.records, after, RECORDS_PAGE)
        # What is pending here has not reached the other side yet: its receipt would answer a retry with success there.
        waiting = {(r.client, r.channel): r.sequence for _, _, r in engine.unresolved() if r is not None}
        receipts = [
            r._replace(sequence=min(r.sequence, waiting.get((r.client, r.channel), r.sequence + 1) - 1))
            for r in page.receipts
        ]
        request = PutRecordsRequest(
            chain=under.chain,
            chain_version=under.version,
            clients=b"".join([receipt.client for receipt in receipts]),
            channel=[receipt.channel for receipt in receipts],
            sequence=[receipt.sequence for receipt in receipts],
            number=[receipt.version for receipt in receipts],
            length=[receipt.length for receipt in receipts],
            files=b"".join([file for file, _ in page.floors]),
            truncate_version=[floor for _, floor in page.floors],
            version_floor=engine.version_floor,
        )
        await self._call(under, STORAGE.PutRecords, request, CALL_S)
        after_next: bytes | None = page.after
        return after_next

    async def _call(self, under: Under, method: Any, request: Any, seconds: float) -> Any:
        reply = await self._peers.call(under.successor, method, request, seconds * time_scale())
        if reply.status != Status.OK:
            status = status_of(reply.status)
            raise error(status, f"{method.name}: {status.name}")
        return reply
