"""Replica machines over an index in memory: what their tests share.

A write appends its name to the content of its chunk, so that a content says which updates made it, in which order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

from emberfs.proto.errors import Status
from emberfs.proto.gen.common_pb2 import (
    TARGET_STATE_OFFLINE,
    TARGET_STATE_SERVING,
    TARGET_STATE_SYNCING,
    Chain,
    ChainMember,
)
from emberfs.storage.craq import Replica
from emberfs.storage.events import (
    ALWAYS,
    ChannelRow,
    Checkpoint,
    ChunkRow,
    Commit,
    CommitDone,
    Effect,
    Fate,
    Kind,
    Persist,
    PersistDone,
    Reply,
    Result,
    RoutingChanged,
    Update,
    Version,
    WriteRequest,
)
from emberfs.storage.lease import Lease

CLIENT = b"c" * 16
OTHER = b"d" * 16
NAME_BYTES = 4  # of an update in a content


@dataclass(frozen=True)
class Content:
    version: Version
    data: bytes | None  # None: removed
    truncate_version: int
    update: Update  # that made it

    @property
    def checksum(self) -> int:
        return crc32(self.data or b"")


class Rows:
    """An index in memory: what was persisted survives the machine."""

    def __init__(self) -> None:
        self.chunks: dict[bytes, Content] = {}
        self.channels: dict[tuple[bytes, int], ChannelRow] = {}
        self.unresolved: dict[bytes, Content] = {}
        self.floor = 0  # all test chunks are of one file
        self.removed = 0
        self.failed = False  # a write of it

    def usable(self) -> bool:
        return not self.failed

    def chunk(self, key: bytes) -> ChunkRow | None:
        found = self.chunks.get(key)
        if found is None or found.data is None:
            return None
        return ChunkRow(found.version, len(found.data), found.truncate_version, found.checksum)

    def channel(self, client: bytes, channel: int) -> ChannelRow | None:
        return self.channels.get((client, channel))

    def truncate_floor(self, key: bytes) -> int:
        return self.floor

    def version_floor(self) -> int:
        return self.removed

    def pending(self) -> Sequence[Update]:
        return [whole(content) for content in self.unresolved.values()]

    # --- what a shell does ---

    def stage(self, update: Update) -> Result:
        """Persist one update."""
        assert update.version is not None
        old = self.chunks.get(update.chunk)
        data, truncate_version = self._cloned(update) if update.kind is Kind.CLONE else _apply(update, old)
        made = Content(update.version, data, truncate_version, update)
        assert update.chunk not in self.unresolved, "two updates of one chunk at once"
        self.unresolved[update.chunk] = made
        if update.client:
            self.channels[update.client, update.channel] = ChannelRow(
                update.sequence, update.version.number, len(data or b"")
            )
        if update.kind not in (Kind.WRITE, Kind.CLONE) and update.truncate_version != ALWAYS:
            self.floor = max(self.floor, update.truncate_version)
        return Result(Status.OK, update.version.number, len(data or b""), made.checksum)

    def _cloned(self, update: Update) -> tuple[bytes | None, int]:
        """Rule 2: "what it takes there is committed, here and on every member behind"."""
        if update.source is None:
            return None, 0
        there = self.chunks.get(update.source.chunk)
        assert (there.version if there is not None else None) == update.source.version, "another source than the head's"
        assert update.source.chunk not in self.unresolved, "the source is being changed"
        return (there.data if there is not None else None), update.truncate_version

    def commit(self, update: Update) -> None:
        made = self.unresolved.pop(update.chunk, None)
        assert made is not None and made.version == update.version, "only what is pending is committed"
        old = self.chunks.pop(update.chunk, None)
        if made.data is None:
            self.removed = max(self.removed, made.version.number, old.version.number if old is not None else 0)
        else:
            self.chunks[update.chunk] = made

    def persist(self, update: Update, commit: bool) -> Result:
        result = self.stage(update)
        if commit:
            self.commit(update)
        return result

    def whole(self, update: Update) -> Update | None:
        """What a whole forward carries instead of an update: the content of that version, if it is (still) here."""
        for content in (self.unresolved.get(update.chunk), self.chunks.get(update.chunk)):
            if content is not None and content.version == update.version:
                return whole(content)._replace(client=update.client, channel=update.channel, sequence=update.sequence)
        return update if update.kind is Kind.REMOVE else None

    def names(self, chunk: bytes) -> list[tuple[bytes, int]]:
        """The updates that the content is made of, as (client, sequence)."""
        content = self.chunks.get(chunk)
        data = content.data if content is not None and content.data is not None else b""
        return [
            (data[at : at + 1] * 16, int.from_bytes(data[at + 1 : at + NAME_BYTES], "big"))
            for at in range(0, len(data), NAME_BYTES)
        ]


def _apply(update: Update, old: Content | None) -> tuple[bytes | None, int]:
    """The chunk's content and truncate version after the update."""
    before = old.data if old is not None else None
    truncate_version = max(update.truncate_version, old.truncate_version if old is not None else 0)
    if update.kind is Kind.REPLACE:
        return update.data, update.truncate_version
    if update.kind is Kind.REMOVE:
        return None, 0
    if update.kind is Kind.TRUNCATE:
        return (before[: update.length] if before is not None else None), truncate_version
    return (before or b"") + name(update), truncate_version


def name(update: Update) -> bytes:
    return update.client[:1] + update.sequence.to_bytes(NAME_BYTES - 1, "big")


def whole(content: Content) -> Update:
    update = content.update
    numbered = (update.client, update.channel, update.sequence)
    if content.data is None:
        return Update(Kind.REMOVE, update.chunk, 0, 0, 0, *numbered, update.truncate_version, 0, None, content.version)
    return Update(
        Kind.REPLACE,
        update.chunk,
        0,
        len(content.data),
        content.checksum,
        *numbered,
        content.truncate_version,
        0,
        content.data,
        content.version,
    )


def chain(*states: int, version: int = 1) -> Chain:
    """Targets 1, 2, 3, … in these states."""
    return Chain(id=1, version=version, members=[ChainMember(target=i + 1, state=s) for i, s in enumerate(states)])


SERVING, SYNCING, OFFLINE = TARGET_STATE_SERVING, TARGET_STATE_SYNCING, TARGET_STATE_OFFLINE


def held(until: float = float("inf")) -> Lease:
    lease = Lease()
    lease.until = until
    return lease


def replica(
    *states: int, target: int = 1, rows: Rows | None = None, lease: Lease | None = None
) -> tuple[Replica, Rows]:
    rows = rows or Rows()
    machine = Replica(target, rows, lease or held())
    machine.step(0, RoutingChanged(chain(*states or (SERVING,))))
    return machine, rows


def write(
    sequence: int,
    chunk: bytes = b"a",
    *,
    client: bytes = CLIENT,
    channel: int = 1,
    truncate: int = 0,
    version: Version | None = None,
) -> Update:
    return Update(Kind.WRITE, chunk, 0, NAME_BYTES, 0, client, channel, sequence, truncate, 1 << 20, None, version)


_forwards = iter(range(1, 1 << 40))


def request(
    *updates: Update, ticket: object = "t", version: int = 1, sender: int = 0, session: int = 0, number: int = 0
) -> WriteRequest:
    return WriteRequest(ticket, version, updates, sender, session, number or (next(_forwards) if sender else 0))


def perform(machine: Replica, rows: Rows, effects: list[Effect]) -> list[Reply]:
    """Carry out the effects of a machine without a successor to the end; the replies."""
    replies = []
    while effects:
        effect = effects.pop(0)
        if isinstance(effect, Persist):
            effects += machine.step(0, persisted(machine, rows, effect))
        elif isinstance(effect, Commit):
            for update in effect.updates:
                rows.commit(update)
            effects += machine.step(0, CommitDone(effect.batch))
        elif isinstance(effect, Checkpoint):
            effects += machine.step(0, PersistDone(effect.batch, [Result(Status.OK)]))
        elif isinstance(effect, Reply):
            replies.append(effect)
    return replies


def persisted(machine: Replica, rows: Rows, effect: Persist) -> PersistDone:
    """Write what a Persist wants written, as the machine says at that moment."""
    fate = machine.fate(effect.batch)
    if fate is Fate.DROP:
        return PersistDone(effect.batch, [Result(Status.STALE_ROUTING)] * len(effect.updates))
    results = [rows.persist(update, fate is Fate.COMMIT) for update in effect.updates]
    return PersistDone(effect.batch, results, fate is Fate.COMMIT)


def submit(machine: Replica, rows: Rows, *updates: Update, version: int = 1) -> list[Status]:
    (reply,) = perform(machine, rows, machine.step(0, request(*updates, version=version)))
    return [Status(r.status) for r in reply.results]
