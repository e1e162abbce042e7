"""What a member of a chain tells another one besides updates: its list of chunks, its records, that a sync is complete.

These are the answers; who asks is in resyncer.py and repair.py. Every request names the chain version and is refused under another one,
so what is still on its way when a chain changes does nothing any more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..proto.errors import Status, error
from ..proto.gen.storage_pb2 import (
    FinishSyncReply,
    FinishSyncRequest,
    ListChunksReply,
    ListChunksRequest,
    PutRecordsReply,
    PutRecordsRequest,
)
from ..proto.ids import CHUNK_ID_BYTES
from ..proto.rpc import Context
from .columns import need_trust
from .engine.engine import ChunkEngine
from .engine.records import Receipt
from .resync import PAGE_CHUNKS, Entry
from .target import Target

FILE_BYTES = 10  # of a chunk id: tenant and inode
CLIENT_BYTES = 16
RECORDS_MAX = 4096  # of one request
END = b"\xff" * (CHUNK_ID_BYTES + 1)  # behind every chunk id

_OK = Status.OK


class Exchange:
    """Handlers of ListChunks, PutRecords and FinishSync. `member(chain)` is our target in that chain, `newer(chain)` the chain's entry for
    whoever comes with an old version."""

    def __init__(self, member: Callable[[int], Target | None], newer: Callable[[int], Sequence[Any]]) -> None:
        self._member = member
        self._newer = newer

    async def list_chunks(self, request: ListChunksRequest, context: Context) -> ListChunksReply:
        need_trust(context)
        target = self._member(request.chain)
        status = self._status(target, request.chain_version)
        if target is None or status is not _OK:
            return ListChunksReply(status=status, chains=self._entry(status, request.chain))
        if not request.first:
            await forget_records(target, request.chain_version)
        count = min(request.chunks_max or PAGE_CHUNKS, PAGE_CHUNKS)
        reply: ListChunksReply = await target.blocking(_page, target.engine, request.first, request.last or END, count)
        status = self._status(target, request.chain_version)
        if status is not _OK:
            return ListChunksReply(status=status, chains=self._entry(status, request.chain))
        return reply

    async def put_records(self, request: PutRecordsRequest, context: Context) -> PutRecordsReply:
        need_trust(context)
        target = self._member(request.chain)
        status = self._status(target, request.chain_version, syncing=True)
        if target is None or status is not _OK:
            return PutRecordsReply(status=status, chains=self._entry(status, request.chain))
        ended = target.replica.ended
        receipts = [receipt for receipt in receipts_of(request) if receipt.client not in ended]
        files = _cut(request.files, FILE_BYTES, len(request.truncate_version))
        target.engine.put_records(receipts, zip(files, request.truncate_version, strict=True), request.version_floor)
        return PutRecordsReply(status=_OK)

    async def finish_sync(self, request: FinishSyncRequest, context: Context) -> FinishSyncReply:
        """Everything has arrived: make it durable, and be UPTODATE under this chain version."""
        need_trust(context)
        target = self._member(request.chain)
        status = self._status(target, request.chain_version, syncing=True)
        if target is not None and status is _OK:
            await target.checkpoint()
            status = self._status(target, request.chain_version, syncing=True)
            if status is _OK:
                target.synced = request.chain_version
                target.state_changed()
        return FinishSyncReply(status=status, chains=self._entry(status, request.chain))

    @staticmethod
    def _status(target: Target | None, chain_version: int, *, syncing: bool = False) -> Status:
        """OK for a member that serves or is synced (only the latter, with `syncing`) under this chain version."""
        if target is None:
            return Status.STALE_ROUTING
        if refusal := target.refusal(writing=syncing):
            return refusal
        replica = target.replica
        if replica.chain is None or replica.chain.version != chain_version:
            return Status.STALE_CHAIN_VERSION
        if replica.serving:
            return Status.STALE_ROUTING if syncing else _OK
        return _OK if replica.predecessor else Status.TARGET_OFFLINE

    def _entry(self, status: Status, chain: int) -> Sequence[Any]:
        return self._newer(chain) if status is Status.STALE_CHAIN_VERSION else ()


async def forget_records(target: Target, chain_version: int) -> None:
    """Drop the receipts and floors from before a sync, once per sync, before anything of the sync is taken. What we kept of updates that
    were then discarded would answer their retries with success.

    The live updates wait for it, too: one that was recognised by a receipt that goes afterwards would leave no receipt here, as its
    sender brings none of what it has no answer to yet, and its retry would be executed again where this member leads the chain."""
    engine, after = target.engine, b""
    while _are_old(target, chain_version):
        # Once from the first to the last: where clients are at work there is always another one.
        page = await target.blocking(engine.records, after)
        if not _are_old(target, chain_version):
            return  # somebody who asked again was faster: what is here now has come with the sync
        engine.forget_records(page)
        if page.after is None:
            target.records_of = chain_version
        after = page.after


def _are_old(target: Target, chain_version: int) -> bool:
    chain = target.replica.chain
    now = chain.version if chain is not None else 0
    return not target.replica.serving and now == chain_version != target.records_of


def _page(engine: ChunkEngine, first: bytes, last: bytes, count: int) -> ListChunksReply:
    """In any thread."""
    infos = engine.chunks(first, last, count + 1)
    more = len(infos) > count
    del infos[count:]
    return ListChunksReply(
        status=_OK,
        chunks=b"".join([info.chunk for info in infos]),
        number=[info.version for info in infos],
        version_chain=[info.chain_version for info in infos],
        length=[info.length for info in infos],
        truncate_version=[info.truncate_version for info in infos],
        checksum=[info.checksum for info in infos],
        pending=[bool(info.pending) for info in infos],
        block=[info.block for info in infos] if any(info.block for info in infos) else (),
        more=more,
    )


def entries_of(reply: ListChunksReply) -> list[Entry]:
    """A page as it arrived. Raises INVALID when its columns do not fit."""
    columns = (reply.number, reply.version_chain, reply.length, reply.truncate_version, reply.checksum, reply.pending)
    chunks = _cut(reply.chunks, CHUNK_ID_BYTES, len(reply.number))
    if any(len(column) != len(chunks) for column in columns):
        raise error(Status.INVALID, "columns of different lengths in a list of chunks")
    if len(reply.block) not in (0, len(chunks)):
        raise error(Status.INVALID, "columns of different lengths in a list of chunks")
    blocks = reply.block or [b""] * len(chunks)
    return [Entry(*row) for row in zip(chunks, *columns, blocks, strict=True)]


def entries_here(engine: ChunkEngine, first: bytes, count: int) -> tuple[list[Entry], bool]:
    """A page of our own list, and whether there is more behind it; in any thread."""
    infos = engine.chunks(first, END, count + 1)
    return [
        Entry(i.chunk, i.version, i.chain_version, i.length, i.truncate_version, i.checksum, bool(i.pending))
        for i in infos[:count]
    ], len(infos) > count


def receipts_of(request: PutRecordsRequest) -> list[Receipt]:
    """Raises INVALID when the columns do not fit."""
    columns = (request.channel, request.sequence, request.number, request.length)
    clients = _cut(request.clients, CLIENT_BYTES, len(request.channel))
    if any(len(column) != len(clients) for column in columns) or len(clients) > RECORDS_MAX:
        raise error(Status.INVALID, "columns of different lengths, or too long ones, in records")
    return [Receipt(*row) for row in zip(clients, *columns, strict=True)]


def _cut(packed: bytes, size: int, count: int) -> list[bytes]:
    if len(packed) != size * count:
        raise error(Status.INVALID, f"{len(packed)} bytes where {count} ids of {size} were announced")
    return [packed[at : at + size] for at in range(0, len(packed), size)]
