"""Replica machines over an index in memory: what their tests share."""

from __future__ import annotations

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

CLIENT = b"c" * 16
OTHER = b"d" * 16


class Rows:
    """An index in memory: what was persisted survives the machine."""

    def __init__(self) -> None:
        self.chunks: dict[bytes, ChunkRow] = {}
        self.channels: dict[tuple[bytes, int], ChannelRow] = {}
        self.pending: dict[bytes, Update] = {}
        self.floor = 0  # all test chunks are of one file
        self.removed = 0
        self.history: dict[bytes, list[tuple[bytes, int]]] = {}  # chunk -> the updates that made it, in order

    def chunk(self, key: bytes) -> ChunkRow | None:
        return self.chunks.get(key)

    def channel(self, client: bytes, channel: int) -> ChannelRow | None:
        return self.channels.get((client, channel))

    def truncate_floor(self, key: bytes) -> int:
        return self.floor

    def version_floor(self) -> int:
        return self.removed

    def persist(self, update: Update, commit: bool) -> Result:
        assert update.version is not None
        self.pending[update.chunk] = update
        if update.client:
            self.channels[update.client, update.channel] = ChannelRow(
                update.sequence, update.version.number, update.length
            )
        if commit:
            self.commit(update)
        return Result(Status.OK, update.version.number, update.length)

    def commit(self, update: Update) -> None:
        assert update.version is not None
        if self.pending.get(update.chunk) == update:
            del self.pending[update.chunk]
        if update.kind is not Kind.WRITE and update.truncate_version != ALWAYS:
            self.floor = max(self.floor, update.truncate_version)
        if update.kind is Kind.REMOVE:
            self.chunks.pop(update.chunk, None)
            self.removed = max(self.removed, update.version.number)
            return
        self.chunks[update.chunk] = ChunkRow(update.version, update.length, update.truncate_version)
        self.history.setdefault(update.chunk, []).append((update.client, update.sequence))


def chain(*states: int, version: int = 1) -> Chain:
    """Targets 1, 2, 3, … in these states."""
    return Chain(id=1, version=version, members=[ChainMember(target=i + 1, state=s) for i, s in enumerate(states)])


SERVING, SYNCING, OFFLINE = TARGET_STATE_SERVING, TARGET_STATE_SYNCING, TARGET_STATE_OFFLINE


def replica(*states: int, target: int = 1, rows: Rows | None = None) -> tuple[Replica, Rows]:
    rows = rows or Rows()
    machine = Replica(target, rows)
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
    return Update(Kind.WRITE, chunk, 0, 10, 0, client, channel, sequence, truncate, 1 << 20, None, version)


def request(*updates: Update, ticket: object = "t", version: int = 1, forwarded: bool = False) -> WriteRequest:
    return WriteRequest(ticket, version, updates, forwarded)


def perform(machine: Replica, rows: Rows, effects: list[Effect]) -> list[Reply]:
    """Carry out the effects of a chain of one to the end; the replies."""
    replies = []
    while effects:
        effect = effects.pop(0)
        if isinstance(effect, Persist):
            effects += machine.step(
                0, PersistDone(effect.batch, [rows.persist(u, effect.commit) for u in effect.updates])
            )
        elif isinstance(effect, Commit):
            for update in effect.updates:
                rows.commit(update)
            effects += machine.step(0, CommitDone(effect.batch))
        elif isinstance(effect, Checkpoint):
            effects += machine.step(0, PersistDone(effect.batch, [Result(Status.OK)]))
        elif isinstance(effect, Reply):
            replies.append(effect)
    return replies


def submit(machine: Replica, rows: Rows, *updates: Update, version: int = 1) -> list[Status]:
    (reply,) = perform(machine, rows, machine.step(0, request(*updates, version=version)))
    return [Status(r.status) for r in reply.results]
