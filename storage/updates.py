"""The machine's words in the engine's: rows that it looks up, updates that become jobs, receipts."""

from __future__ import annotations

from collections.abc import Sequence

from ..proto.errors import Status, error
from ..proto.ids import ChunkId
from ..proto.layout import UNIT_SMALL
from .engine import job as chunks
from .engine.checksum import crc32c
from .engine.engine import ChunkEngine
from .engine.job import Job, Shape
from .engine.records import Receipt
from .engine.row import State
from .engine.slots import SLOT_BYTES_MAX
from .events import ALWAYS, ChannelRow, ChunkRow, Kind, Update, Version

CHUNK_BYTES_SMALL = 1 << 20  # chunks up to this have the small checksum unit


class EngineRows:
    """The machine's look-ups, answered by the engine."""

    def __init__(self, engine: ChunkEngine) -> None:
        self._engine = engine

    def usable(self) -> bool:
        return not self._engine.failed

    def chunk(self, key: bytes) -> ChunkRow | None:
        info = self._engine.info(key)
        if info is None or not info.version:
            return None
        return ChunkRow(Version(info.chain_version, info.version), info.length, info.truncate_version, info.checksum)

    def channel(self, client: bytes, channel: int) -> ChannelRow | None:
        receipt = self._engine.receipt(client, channel)
        return ChannelRow(receipt.sequence, receipt.version, receipt.length) if receipt is not None else None

    def truncate_floor(self, key: bytes) -> int:
        return self._engine.truncate_floor(key)

    def version_floor(self) -> int:
        return self._engine.version_floor

    def pending(self) -> Sequence[Update]:
        return [_unresolved(*found) for found in self._engine.unresolved()]


def _unresolved(chunk: bytes, state: State, receipt: Receipt | None) -> Update:
    client, channel, sequence, *_ = receipt or Receipt(b"", 0, 0, 0, 0)
    return Update(
        Kind.REMOVE if state.removed else Kind.REPLACE,
        chunk,
        0,
        state.length,
        state.whole,
        client,
        channel,
        sequence,
        state.truncate_version,
        chunk_size_of(state),
        None,
        Version(state.chain_version, state.version),
        block=state.block,
    )


def chunk_size_of(state: State) -> int:
    """A chunk size that has the state's checksum unit, and room for the content."""
    return CHUNK_BYTES_SMALL if state.unit == UNIT_SMALL else SLOT_BYTES_MAX


def chunk_name(chunk: bytes) -> str:
    """A chunk for people: inode and index."""
    return str(ChunkId.unpack(chunk))


def engine_update(update: Update, *, decided: bool = False) -> chunks.Update:
    """The machine's update in the engine's words. `decided`: by another member, the head."""
    assert update.version is not None
    kind, offset, truncate_version = chunks.Kind(update.kind), update.offset, update.truncate_version
    if update.kind is Kind.REMOVE:
        # A truncate's remove cuts to nothing, which also makes the file's older writes stay out.
        kind, offset = (chunks.Kind.REMOVE, 0) if truncate_version == ALWAYS else (chunks.Kind.TRUNCATE, 0)
        truncate_version = 0 if truncate_version == ALWAYS else truncate_version
    elif update.kind in (Kind.TRUNCATE, Kind.CLONE):
        offset = update.length
    return chunks.Update(
        kind,
        update.chunk,
        offset,
        update.data if update.kind in (Kind.WRITE, Kind.REPLACE) else b"",
        update.checksum,
        update.chunk_size or CHUNK_BYTES_SMALL,
        truncate_version,
        update.version.chain_version,
        update.version.number,
        update.units,
        decided,
        update.source.chunk if update.source is not None and kind is chunks.Kind.CLONE else b"",
        cold=decided and kind is chunks.Kind.REPLACE,  # copied to a member that does not serve yet
        block=update.block,
    )


def receipt(update: Update, job: Job) -> Receipt:
    """What makes a retry of this update exactly-once."""
    return Receipt(update.client, update.channel, update.sequence, job.version, job.length)


def is_quick(job: Job) -> bool:
    """Whether running it never waits for a disk to read: no old bytes have to be merged."""
    old, update = job.old, job.update
    if job.source is not None:
        return not job.cuts_source
    if job.before is not None:
        return False
    if old is None or job.shape is Shape.APPEND:
        return True
    if job.shape is Shape.NONE:
        return job.state.removed
    end = update.offset + len(update.payload)
    aligned = update.offset % old.unit == 0 and (end % old.unit == 0 or end >= old.length)
    return job.shape is Shape.PATCH and aligned


def run_jobs(jobs: Sequence[Job]) -> list[Exception | None]:
    """Check the payloads (private copies, which nobody can change any more) and write them. Blocking."""
    failures: list[Exception | None] = []
    for job in jobs:
        try:
            update = job.update
            whole = job.kind in (chunks.Kind.WRITE, chunks.Kind.REPLACE) and not update.units
            if whole and crc32c(update.payload) != update.checksum:
                raise error(
                    Status.CHECKSUM,
                    f"chunk {chunk_name(job.chunk)}: the bytes that arrived do not match their checksum",
                )
            job.run()
            failures.append(None)
        except Exception as failed:
            failures.append(failed)
    return failures
