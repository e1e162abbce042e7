"""Looking at whole chunks where they lie: for the scrubber, for a repair, for a client's report of damage."""

from __future__ import annotations

from ..proto.errors import Status, StatusError
from ..proto.layout import UNIT_SMALL
from .engine import job as chunks
from .engine.disk import page_memory
from .engine.engine import ChunkEngine
from .engine.reads import ReadPlan, verify
from .engine.slots import SLOT_BYTES_MAX
from .target import Target
from .updates import chunk_name

FOLD_BYTES_MAX = 4 << 20  # of a chunk that is folded: it is written on the loop, in a millisecond


async def inspect(target: Target, chunk: bytes, *, fold: bool = False) -> int:
    """Read a whole chunk and compare it with its checksums; a damaged one is noted. Returns how many bytes were read. `fold`: put
    the patches of a sound one into one slot, unless somebody is writing to it."""
    with target.engine.plan([(chunk, 0, SLOT_BYTES_MAX)]) as (plan,):
        if plan.status is not Status.OK or not plan.length:
            return 0
        try:
            data = await target.blocking(_read_verified, target.engine, plan)
        except StatusError as failed:
            if failed.status not in (Status.CHECKSUM, Status.IO_ERROR, Status.BAD_FORMAT):
                raise
            target.found_damaged(chunk, str(failed.strerror))
            return plan.length
    target.damaged.pop(chunk, None)
    if fold and len(data) <= FOLD_BYTES_MAX:
        _fold(target, chunk, plan.version, data)
    return len(data)


def _fold(target: Target, chunk: bytes, version: int, data: memoryview) -> None:
    """Write the content anew under its own version. On the loop, so that no update comes between."""
    if target.refusal(writing=True) or target.replica.busy(chunk):
        return
    info = target.engine.info(chunk)
    if info is None or info.version != version or info.pending or not info.patches:
        return
    if target.engine.is_shared(chunk):
        return  # a clone: one slot of its own would take more space, not less
    size = 1 << 20 if info.unit == UNIT_SMALL else SLOT_BYTES_MAX
    same = (info.truncate_version, info.chain_version, info.version)
    update = chunks.Update(chunks.Kind.REPLACE, chunk, 0, data, info.checksum, size, *same, block=info.block)
    try:
        target.engine.apply([update])
    except StatusError as failed:  # no room for it now: it can wait
        target.log.info("not folded", target=target.id, chunk=chunk_name(chunk), error=failed.strerror)


def _read_verified(engine: ChunkEngine, plan: ReadPlan) -> memoryview:
    data = page_memory(plan.length)
    plan.read_once(engine.disk, (data,))
    verify(plan, 0, data)
    return data
