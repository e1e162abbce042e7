"""Batched reads: plans from the engine, bytes straight into the client's memory, checksums in the reply.

What the page cache holds is moved on the loop at once. To ask it for what it does not hold makes the kernel read that from the disk, and a
fast disk is done before a thread has been woken: for a moment the loop asks again with each turn, as long as that finds something. The rest
goes to a thread as one batch. A batch of some MiB goes there from the beginning: one thread moves 4 to 9 GiB/s, and whoever reads so much
asks for more meanwhile. Before each piece the request is asked whether somebody still waits for it, and the slots stay pinned until the
last piece has moved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..proto.errors import Status, StatusError
from ..proto.gen.storage_pb2 import ReadReply
from ..proto.rpc import Context, Sink
from ..proto.transport.readiness import LOOK_SECONDS_MAX
from .engine.disk import Disk
from .engine.reads import ReadPlan
from .engine.records import ChunkInfo
from .target import Target

LENT_BYTES_MIN = 64 << 10  # what is shorter is copied faster than the page cache is asked about it
INLINE_READ_BYTES_MAX = 8 << 20  # of one batch on the loop: a millisecond, in which nobody else is served
ASIDE_READ_BYTES_MIN = 4 << 20  # of one batch: from here on a thread moves it, beside others
ASIDE_PIECE_BYTES_MIN = 512 << 10  # of an operation, on average: for smaller ones threads wait more than they copy
LOOKED_BYTES_MAX = 256 << 10  # of what is asked for again: more takes a disk longer, and the loop
LOOKS_MAX = 100  # turns of the loop
MISSED_MAX = 16  # units of a batch that are not in memory: one that has more is taken to be cold from there on
FILL_STEP = 64  # units that a thread waits for, before it asks whether somebody still wants them

_OK = Status.OK
_NOTHING = ReadPlan(Status.INTERNAL)

Piece = tuple[int, ReadPlan, Sequence[memoryview]]  # which operation, its plan, where its bytes go


class Batch:
    """The operations of one request that one target serves."""

    def __init__(
        self, target: Target, places: Sequence[int], positions: Sequence[int], sink: Sink, context: Context
    ) -> None:
        self.target = target
        self.places = places  # of the operations in the request
        self.failures: dict[int, StatusError] = {}  # by operation
        self._positions = positions  # of every operation of the request, in the sink
        self._sink = sink
        self._context = context
        self.lends = sink.lends
        self.has_lent = False

    def move(self, plans: Sequence[ReadPlan], whole: memoryview | None) -> list[Piece]:
        """Move what is in memory; returns what is not. `whole` is the sink where it is one piece."""
        disk = self.target.engine.disk
        context, positions, lends = self._context, self._positions, self.lends
        missed: list[Piece] = []
        budget = INLINE_READ_BYTES_MAX
        for place, plan in zip(self.places, plans, strict=True):
            length = plan.length
            if not length:
                continue
            position = positions[place]
            buffers: Sequence[memoryview]
            if whole is not None:
                buffers = (whole[position : position + length],)
            else:
                buffers = self._sink.buffers(position, length)
            if context.cancelled:
                break
            budget -= length
            if lends and length >= LENT_BYTES_MIN and budget >= 0 and self._lend(plan, position):
                continue
            try:
                if budget < 0 or not plan.read_into(disk, buffers, False):
                    missed.append((place, plan, buffers))
            except StatusError as failed:
                self.failures[place] = failed
        return missed

    def _lend(self, plan: ReadPlan, position: int) -> bool:
        """Let the bytes go from the page cache to the client's socket, if that is where they are. Nobody here has to look at them: the
        client has the checksums."""
        if len(plan.segments) != 1 or plan.edges:
            return False
        ((handle, offset, length),) = plan.segments
        if not self.target.engine.disk.is_cached(handle, offset, length):
            return False
        self._sink.lend(position, handle, offset, length)
        self.has_lent = True
        return True

    def returned(self, release: Callable[[], None]) -> None:
        """Call `release` when none of the bytes are needed any more: now, or when what was lent has been sent."""
        if self.has_lent:
            self._sink.when_returned(release)
        else:
            release()

    async def look_again(self, missed: Sequence[Piece]) -> Sequence[Piece]:
        """For a moment, and as long as something comes, whether it is there now: what still is not."""
        luck, env = self.target.luck, self.target.env
        if luck is None or sum([plan.length for _, plan, _ in missed]) > LOOKED_BYTES_MAX or not luck.may_look():
            return missed
        end = env.now() + LOOK_SECONDS_MAX
        for _ in range(LOOKS_MAX):
            await env.sleep(0)
            left = [piece for piece in missed if not self._has_come(piece)]
            now, came, missed = env.now(), len(left) < len(missed), left
            if not missed or (not came and now > end):
                break
            if came:
                end = now + LOOK_SECONDS_MAX
        luck.looked(not missed)
        return missed

    def _has_come(self, piece: Piece) -> bool:
        place, plan, buffers = piece
        if self._context.cancelled:
            return True
        try:
            return plan.read_into(self.target.engine.disk, buffers, False)
        except StatusError as failed:
            self.failures[place] = failed
            return True

    def move_all(self, plans: Sequence[ReadPlan], whole: memoryview) -> int:
        """What is in memory, then the rest, where blocking is allowed; how many operations that rest was."""
        missed = self.move(plans, whole)
        self.move_missed(missed)
        return len(missed)

    def move_missed(self, missed: Sequence[Piece]) -> None:
        """The rest, where blocking is allowed."""
        disk = self.target.engine.disk
        for place, plan, buffers in missed:
            if self._context.cancelled:
                return
            try:
                plan.read_into(disk, buffers, True)
            except StatusError as failed:
                self.failures[place] = failed


async def read_units(
    target: Target, chunks: Sequence[bytes], offsets: Sequence[int], length: int, whole: memoryview, context: Context
) -> ReadReply | None:
    """The commonest small reads: every one is a whole unit of `length` bytes of one target's chunks. Those in memory are moved here and
    now; no object is made for an operation. None where that is not so, or does not end well, and `read_target` sees to it."""
    if len(whole) > INLINE_READ_BYTES_MAX:
        return None
    found = target.engine.units(chunks, offsets, length)
    if found is None:
        return None
    # Nothing is pinned, for nothing else runs between the look and the last byte.
    count, filled = len(chunks), target.engine.disk.fill(found.places, whole, length)
    if filled < count and not await _fill_rest(target, found.places, whole, filled, length, context):
        return None
    target.counters.reads += count
    target.counters.bytes_read += len(whole)
    lengths = [length] * count
    return ReadReply(
        status=[0] * count,
        returned=lengths,
        checksums=[1] * count,
        checksum=found.checksums,
        unit=lengths,
        commit_version=found.versions,
    )


async def _fill_rest(
    target: Target, places: Sequence[tuple[int, int]], whole: memoryview, filled: int, length: int, context: Context
) -> bool:
    """The units from `filled` on, the first of which is not in memory. Where many are not, the disk is told of all the rest at once; a
    thread waits for one after the other. False when not all came, or for a few that are better asked for again (`look_again`)."""
    disk, space, count = target.engine.disk, target.engine.space, len(places)
    if (count - filled) * length <= LOOKED_BYTES_MAX or not disk.buffered:
        return False
    missed: list[int] = []
    while filled < count and len(missed) < MISSED_MAX:
        missed.append(filled)  # the kernel reads it: it was asked for
        filled += 1
        filled += disk.fill(places[filled:], whole[filled * length :], length)
    runs = [(place, place + 1) for place in missed]
    runs += [(begin, min(begin + FILL_STEP, count)) for begin in range(filled, count, FILL_STEP)]
    ticket = space.enter()
    try:
        for handle, offset in places[filled:]:
            disk.advise(handle, offset, length, True)
        came: bool = await target.blocking(_fill_waiting, disk, places, whole, runs, length, context)
    except OSError:
        return False
    finally:
        space.leave(ticket)
    target.counters.reads_missed += len(missed) + count - filled
    return came


def _fill_waiting(
    disk: Disk,
    places: Sequence[tuple[int, int]],
    whole: memoryview,
    runs: Sequence[tuple[int, int]],
    length: int,
    context: Context,
) -> bool:
    """Wait for these runs of units; False when one cannot be read, or nobody wants them any more."""
    for begin, end in runs:
        if context.cancelled:
            return False
        if disk.fill(places[begin:end], whole[begin * length : end * length], length, wait=True) < end - begin:
            return False
    return True


async def read_target(
    batch: Batch,
    plans_out: list[ReadPlan],
    reads: Sequence[tuple[bytes, int, int]],
    whole: memoryview | None,
    versions: dict[bytes, int],
) -> None:
    """Plan and move one target's operations; their plans go to `plans_out`. Chunks in `versions` are read in exactly that one, others
    as they are committed. Raises TARGET_OFFLINE."""
    target = batch.target
    planned = target.engine.plan(reads, versions=versions or None)
    try:
        plans = planned.plans
        total = sum([plan.length for plan in plans])
        aside = total >= max(ASIDE_READ_BYTES_MIN, len(plans) * ASIDE_PIECE_BYTES_MIN)
        if aside and whole is not None and not batch.lends:
            target.counters.reads_missed += await target.blocking(batch.move_all, plans, whole)
        elif missed := batch.move(plans, whole):
            target.counters.reads_missed += len(missed)
            if left := await batch.look_again(missed):
                await target.blocking(batch.move_missed, left)
    finally:
        batch.returned(planned.release)
    if len(batch.places) == len(plans_out):
        plans_out[:] = plans
    else:
        for place, plan in zip(batch.places, plans, strict=True):
            plans_out[place] = plan
    counters = target.counters
    counters.reads += len(plans)
    counters.bytes_read += total
    for place, failed in batch.failures.items():
        note_failure(target, plans_out[place], failed)


def settle(info: ChunkInfo | None, number: int) -> int | Status:
    """Which version of a chunk to read that has one pending here, when `number` is the tail's (0: it has none, below: it did not say).
    0: the committed one."""
    committed = info.version if info is not None else 0
    if number < 0:
        return Status.NOT_COMMITTED
    if number == 0:
        # Not there yet, or not any more; anything else is news that has to arrive here first.
        gone = not committed or (info is not None and info.pending_removes)
        return Status.CHUNK_NOT_FOUND if gone else Status.NOT_COMMITTED
    if committed >= number:
        return 0  # what is committed here was committed at the tail before it answered or while it did
    pending = info.pending if info is not None and not info.pending_removes else 0
    return number if pending == number else Status.NOT_COMMITTED


def note_failure(target: Target, plan: ReadPlan, failed: StatusError) -> None:
    """A read that failed: loud, with the chunk and the target."""
    if failed.status is Status.CHECKSUM:
        target.found_damaged(plan.chunk, str(failed.strerror))
    elif failed.status is Status.IO_ERROR:
        target.counters.io_errors += 1
        target.found_damaged(plan.chunk, str(failed.strerror))


def reply_of(plans: Sequence[ReadPlan], failures: dict[int, Status]) -> ReadReply:
    """The columns of the answer. A failed operation has its status and nothing else."""
    if failures:
        plans = [_NOTHING if i in failures else plan for i, plan in enumerate(plans)]
    checksums = [plan.checksums for plan in plans]
    flat: list[int] = []
    for each in checksums:
        flat += each
    reply = ReadReply(
        # A member of an enumeration costs a message ten times what a number does.
        status=[0 if plan.status is _OK else plan.status.value for plan in plans],
        returned=[plan.length for plan in plans],
        checksums=[len(each) for each in checksums],
        checksum=flat,
        unit=[plan.unit for plan in plans],
        commit_version=[plan.version for plan in plans],
    )
    for i, status in failures.items():
        reply.status[i] = status
    return reply
