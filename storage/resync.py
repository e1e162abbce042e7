"""Resync: how the last SERVING member makes the SYNCING one behind it its equal, as a pure state machine.

`step(now, event)` returns effects; whatever an effect asks for is answered by exactly one event. One machine lives under one chain version.

Rules:
1. The predecessor's state wins whole. A chunk that differs in anything (version, chain version, checksum, length, presence), or of
   which the other side has a pending version, is copied or removed. No difference is an error, so none can stop a sync for ever.
2. What is copied goes through the line of its chunk in the predecessor's replica (craq.py), where the live updates are, which go to a
   SYNCING member as whole chunks too. "Copy" means "make it equal to mine when your turn comes", so what a list said may be
   old when it is read: copying once too often is harmless, and what was equal when it was listed is kept equal by the live updates.
3. Both lists come in the order of the chunk ids, a page at a time. Never more than a page of each side is in memory.
4. After the last chunk: the records that make retries exactly-once and keep old writes out; then the other side takes a checkpoint and says
   that it has everything. The records come last, so they cover all that the chunks cover.
5. When anything fails, the comparison starts again after a pause, from the beginning, once all that is under way has been
   answered. What was copied before is found equal, so nothing needs to be remembered.
6. Where clients are at work, the copies take a part of what the clients move, and never less than a floor: a sync neither
   starves them nor starves itself.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..proto.errors import Status

PAGE_CHUNKS = 1024  # of one list
BATCH_BYTES = 4 << 20  # copied together, where the chunks are not larger
BATCH_CHUNKS = 64
WINDOW_BYTES = 16 << 20  # copies under way
QUEUE_CHUNKS_MAX = 1024  # found different and not yet copied: no further page until there are fewer
AGAIN_CHUNKS_MAX = 1024  # whose copy failed; more of them end the try

RATE_FLOOR_BYTES = 32 << 20  # a second, by all syncs of a process, however busy clients are
CLIENT_PART = 0.125  # of the bytes that clients move may be copied beside them
IDLE_S = 0.25  # without a client's operation: then there is no limit
SMOOTH_S = 0.5  # over which the clients' rate is averaged
BURST_S = 0.25  # of the rate that may be saved up
RETRY_S = 0.5  # before a new try, and before a copy that failed is tried again; doubles with every failure in a row
RETRY_S_MAX = 8.0

# The chain has another version by now, or this member or the next one is out: the try is over.
_OVER = frozenset(
    (Status.STALE_CHAIN_VERSION, Status.STALE_ROUTING, Status.TARGET_OFFLINE, Status.FENCED, Status.MAYBE_COMMITTED)
)


class Side(enum.IntEnum):
    OURS = 0
    THEIRS = 1


class Phase(enum.Enum):
    """Each follows the one before, or PAUSED, from where it begins anew."""

    PAUSED = "waits to begin"
    COPYING = "compares the lists and copies what differs"
    RECORDS = "brings the records of exactly-once"
    FINISHING = "waits for the other side's checkpoint"
    DONE = "the other side holds everything"


class Entry(NamedTuple):
    """What a list says of a chunk."""

    chunk: bytes
    number: int  # of the committed version; 0: only a pending one is there
    version_chain: int
    length: int  # bytes
    truncate_version: int
    checksum: int  # of the whole chunk
    pending: bool  # a version that is not committed is there
    block: bytes = b""  # what the chunk is in the KV cache; not compared: it belongs to the version


# --- events ---


@dataclass(frozen=True, slots=True)
class Begin:
    """Begin now. `total`: about how many chunks this side has."""

    total: int = 0


@dataclass(frozen=True, slots=True)
class Listed:
    """A page of a side's chunks, from `List.first` on."""

    side: Side
    entries: Sequence[Entry]
    more: bool


@dataclass(frozen=True, slots=True)
class Copied:
    """What became of each chunk of a Copy."""

    batch: int
    statuses: Sequence[int]


@dataclass(frozen=True, slots=True)
class RecordsPut:
    """A page of records has arrived on the other side; `after` is where the next one begins, None when that was the last."""

    after: bytes | None


@dataclass(frozen=True, slots=True)
class Finished:
    """The other side has taken its checkpoint and knows that it holds everything."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The answer to a List, PutRecords or Finish that could not be carried out."""

    why: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; what clients have moved since the start of the process, and how many syncs it runs."""

    client_bytes: int = 0
    client_operations: int = 0
    syncs: int = 1


Event = Begin | Listed | Copied | RecordsPut | Finished | Failed | Tick

# --- effects ---


@dataclass(frozen=True, slots=True)
class List:
    """List a side's chunks with ids from `first` on."""

    side: Side
    first: bytes
    count: int


@dataclass(frozen=True, slots=True)
class Copy:
    """Make the other side's chunks equal to ours, each in its turn."""

    batch: int
    chunks: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class PutRecords:
    """Bring a page of records to the other side."""

    after: bytes


@dataclass(frozen=True, slots=True)
class Finish:
    """Let the other side take its checkpoint and know that it holds everything."""


@dataclass(frozen=True, slots=True)
class Complain:
    """Tell people: this went wrong, and will be tried again."""

    why: str


Effect = List | Copy | PutRecords | Finish | Complain


class _Listing:
    """One side's list: the page in hand, and where the next one begins."""

    __slots__ = ("asked", "complete", "first", "page")

    def __init__(self) -> None:
        self.page: deque[Entry] = deque()
        self.first = b""
        self.complete = False  # the page in hand is the last
        self.asked = False  # a page is on its way


class Throttle:
    """How many bytes may be copied now. Time is in seconds, on any monotonic clock."""

    def __init__(self) -> None:
        self.rate = float(RATE_FLOOR_BYTES)  # bytes a second, while clients are at work
        self._clients_rate = 0.0
        self._allowance = 0.0  # bytes; below 0 after a batch that was larger
        self._busy_until = float("-inf")
        self._last: tuple[float, int, int] | None = None  # time, bytes, operations

    def tick(self, now: float, client_bytes: int, client_operations: int, syncs: int) -> None:
        last, self._last = self._last, (now, client_bytes, client_operations)
        if last is None or now <= last[0]:
            return
        elapsed = now - last[0]
        if client_operations != last[2]:
            self._busy_until = now + IDLE_S
        weight = min(1.0, elapsed / SMOOTH_S)
        self._clients_rate += ((client_bytes - last[1]) / elapsed - self._clients_rate) * weight
        self.rate = max(RATE_FLOOR_BYTES, CLIENT_PART * self._clients_rate) / max(syncs, 1)
        self._allowance = min(self._allowance + self.rate * elapsed, max(BATCH_BYTES, self.rate * BURST_S))

    def may_copy(self, now: float) -> bool:
        return now >= self._busy_until or self._allowance > 0

    def copied(self, now: float, size: int) -> None:
        if now < self._busy_until:
            self._allowance -= size


class Resync:
    """One sync of one successor under one chain version. `done` of `total` chunks are compared."""

    def __init__(self) -> None:
        self.phase = Phase.PAUSED
        self.done = 0
        self.total = 0
        self.copied = 0  # chunks, over all tries
        self.failures = 0  # in a row
        self._throttle = Throttle()
        self._lists = (_Listing(), _Listing())
        self._queue: deque[tuple[bytes, int]] = deque()  # chunks to copy, with their bytes
        self._again: dict[bytes, int] = {}  # chunks whose copy failed, with their bytes
        self._again_at = 0.0
        self._copying: dict[int, list[tuple[bytes, int]]] = {}
        self._copying_bytes = 0
        self._asked = 0  # effects other than Copy that were not answered yet
        self._begin_at: float | None = None
        self._next = 0
        self._handlers: dict[type, Callable[[float, Any], list[Effect]]] = {
            Begin: self._begin,
            Listed: self._listed,
            Copied: self._copies_done,
            RecordsPut: self._records_put,
            Finished: self._finished,
            Failed: self._failed,
            Tick: self._tick,
        }

    def step(self, now: float, event: Event) -> list[Effect]:
        """Take one event at time `now` (seconds, any monotonic clock)."""
        return self._handlers[type(event)](now, event)

    # --- beginning, and beginning again ---

    def _begin(self, now: float, event: Begin) -> list[Effect]:
        self.total = event.total
        return self._start(now)

    def _start(self, now: float) -> list[Effect]:
        self.phase = Phase.COPYING
        self._begin_at = None
        self.done = 0
        self._lists = (_Listing(), _Listing())
        self._queue.clear()
        self._again.clear()
        return self._go_on(now)

    def _failed(self, now: float, event: Failed) -> list[Effect]:
        self._asked -= 1
        return self._give_up(now, event.why)

    def _give_up(self, now: float, why: str) -> list[Effect]:
        """This try is over; the next one begins after a pause, and not before everything of this one was answered."""
        if self.phase is Phase.PAUSED:
            return []
        self.phase = Phase.PAUSED
        self._begin_at = now + self._pause()
        self.failures += 1
        return [Complain(why)]

    def _pause(self) -> float:
        return float(min(RETRY_S * 2 ** min(self.failures, 8), RETRY_S_MAX))

    def _tick(self, now: float, event: Tick) -> list[Effect]:
        self._throttle.tick(now, event.client_bytes, event.client_operations, event.syncs)
        if self.phase is Phase.COPYING:
            return self._go_on(now)
        due = self._begin_at is not None and now >= self._begin_at
        if self.phase is Phase.PAUSED and due and not self._asked and not self._copying:
            return self._start(now)
        return []

    # --- comparing ---

    def _listed(self, now: float, event: Listed) -> list[Effect]:
        self._asked -= 1
        if self.phase is not Phase.COPYING:
            return []
        listing = self._lists[event.side]
        listing.asked = False
        listing.page.extend(event.entries)
        listing.complete = not event.more
        if event.entries:
            listing.first = event.entries[-1].chunk + b"\0"
        return self._go_on(now)

    def _go_on(self, now: float) -> list[Effect]:
        self._merge()
        self._take_again(now)
        effects = self._copies(now)
        effects += self._pages()
        if not effects and self._is_equal():
            self.failures = 0
            return self._put_records(b"")
        return effects

    def _merge(self) -> None:
        """Walk both pages as far as both are known, and note what differs."""
        ours, theirs = self._lists
        while len(self._queue) < QUEUE_CHUNKS_MAX:
            if not (ours.page or ours.complete) or not (theirs.page or theirs.complete):
                return
            if not ours.page and not theirs.page:
                return
            mine, other = _next_pair(ours.page, theirs.page)
            self.done += mine is not None
            if differ(mine, other):
                entry = mine or other
                assert entry is not None
                self._queue.append((entry.chunk, mine.length if mine is not None else 0))

    def _pages(self) -> list[Effect]:
        effects: list[Effect] = []
        for side in Side:
            listing = self._lists[side]
            if listing.page or listing.complete or listing.asked or len(self._queue) >= QUEUE_CHUNKS_MAX:
                continue
            listing.asked = True
            self._asked += 1
            effects.append(List(side, listing.first, PAGE_CHUNKS))
        return effects

    def _is_equal(self) -> bool:
        """Whether everything was compared and copied."""
        compared = all(listing.complete and not listing.page for listing in self._lists)
        return compared and not (self._queue or self._again or self._copying)

    # --- copying ---

    def _copies(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        while self._queue and self._throttle.may_copy(now):
            if self._copying and self._copying_bytes + self._queue[0][1] > WINDOW_BYTES:
                break
            effects.append(self._batch(now))
        return effects

    def _batch(self, now: float) -> Copy:
        queue, taken, size = self._queue, [self._queue.popleft()], 0
        size = taken[0][1]
        while queue and len(taken) < BATCH_CHUNKS and size + queue[0][1] <= BATCH_BYTES:
            taken.append(queue.popleft())
            size += taken[-1][1]
        self._next += 1
        self._copying[self._next] = taken
        self._copying_bytes += size
        self._throttle.copied(now, size)
        return Copy(self._next, [chunk for chunk, _ in taken])

    def _copies_done(self, now: float, event: Copied) -> list[Effect]:
        taken = self._copying.pop(event.batch)
        self._copying_bytes -= sum(size for _, size in taken)
        if self.phase is not Phase.COPYING:
            return []
        complaints: list[Effect] = []
        for (chunk, size), status in zip(taken, event.statuses, strict=True):
            if status == Status.OK:
                self.copied += 1
                continue
            if status in _OVER or len(self._again) >= AGAIN_CHUNKS_MAX:
                return self._give_up(now, f"chunk {chunk.hex()} was not copied: {Status(status).name}")
            if not self._again:
                self._again_at = now + self._pause()
                self.failures += 1
            self._again[chunk] = size
            complaints.append(Complain(f"chunk {chunk.hex()} was not copied: {Status(status).name}"))
        return complaints[:1] + self._go_on(now)

    def _take_again(self, now: float) -> None:
        """Chunks whose copy failed (no room for now, an update too many in line) get another turn after a pause."""
        if self._again and now >= self._again_at:
            self._queue.extend(self._again.items())
            self._again.clear()

    # --- the end ---

    def _put_records(self, after: bytes) -> list[Effect]:
        self.phase = Phase.RECORDS
        self._asked += 1
        return [PutRecords(after)]

    def _records_put(self, now: float, event: RecordsPut) -> list[Effect]:
        self._asked -= 1
        if self.phase is not Phase.RECORDS:
            return []
        if event.after is not None:
            return self._put_records(event.after)
        self.phase = Phase.FINISHING
        self._asked += 1
        return [Finish()]

    def _finished(self, now: float, event: Finished) -> list[Effect]:
        self._asked -= 1
        self.phase = Phase.DONE
        return []


def _next_pair(ours: deque[Entry], theirs: deque[Entry]) -> tuple[Entry | None, Entry | None]:
    """Take the chunk that comes first from whichever sides have it."""
    if not theirs or (ours and ours[0].chunk < theirs[0].chunk):
        return ours.popleft(), None
    if not ours or theirs[0].chunk < ours[0].chunk:
        return None, theirs.popleft()
    return ours.popleft(), theirs.popleft()


def differ(ours: Entry | None, theirs: Entry | None) -> bool:
    """Whether the other side has to be made equal. What is pending here is no difference: it is on its way to the other side."""
    if theirs is not None and theirs.pending:
        return True
    mine = ours[:6] if ours is not None and ours.number else None
    return mine != (theirs[:6] if theirs is not None else None)
