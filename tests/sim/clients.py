"""Clients of chunks without files: they read, write, cut and remove a few chunks, and note what they asked and what they were told.

Everything that the real clients do to be safe they do too: channels and sequences, one update in flight per channel, the same number on a
retry, another replica after a refusal, the tail after NOT_COMMITTED, checksums of what arrived.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import Message

from emberfs.client.core.verify import crc32c, matches
from emberfs.proto.env import Call
from emberfs.proto.errors import TABLE, Status, StatusError, error, status_of
from emberfs.proto.gen import storage_pb2 as pb
from emberfs.proto.gen.cluster_pb2 import GetRoutingRequest
from emberfs.proto.ids import channel_of
from emberfs.proto.region import Region, Slice
from emberfs.proto.routing import Replica, RoutingTable
from emberfs.proto.rpc import CLUSTER, STORAGE, Method

from .environment import Simulation
from .history import CELLS_MAX, Event, Histories, Kind, Operation, What, cells_of, content_of
from .knobs import Knobs
from .loop import Host

CHUNK_BYTES = 64 << 10  # of every file: the least that there is
PATIENCE_SECONDS = 40.0  # of one operation
PAUSE_SECONDS_MAX = 0.3  # between two tries
REFRESH_SECONDS = 2.0
NEAREST = 0.65  # share of the other reads that prefer one replica: who learns of changes late

# The table of statuses says "not retryable" of these, and yet another replica, or the same one later, may do better.
_AGAIN = {Status.DEADLINE, Status.CHECKSUM, Status.IO_ERROR, Status.NO_SPACE, Status.READ_ONLY, Status.LOST_DATA}
# With these answers an update has not happened and will not.
_NEVER = {Status.STALE_TRUNCATE_VERSION}


@dataclass(eq=False)
class File:
    """What the metadata servers would know: on which chain it lies and how often it was truncated."""

    inode: int
    chain: int
    truncate_version: int = 0
    dead: bool = False  # nobody begins an update of it any more


@dataclass(frozen=True, slots=True)
class Chunk:
    file: File
    index: int

    @property
    def name(self) -> str:
        return f"{self.file.inode:x}.{self.index}"


@dataclass
class Seen:
    """What versions of chunks looked like to whoever saw them: one name, one content. Until power is lost with what was not synced: then
    the numbers of what is gone are given again."""

    ignored: set[str] = field(default_factory=set)  # chunks
    contents: dict[tuple[str, int], tuple[int, ...]] = field(default_factory=dict)
    who: dict[tuple[str, int], str] = field(default_factory=dict)

    def check(self, chunk: str, version: int, cells: tuple[int, ...], who: str) -> None:
        if chunk in self.ignored:
            return
        known = self.contents.setdefault((chunk, version), cells)
        first = self.who.setdefault((chunk, version), who)
        assert known == cells, f"version {version} of {chunk} is {known} for {first} and {cells} for {who}"


class ChunkClient:
    """One client process. It does one operation after the other."""

    def __init__(
        self, simulation: Simulation, host: Host, managers: list[str], histories: Histories, seen: Seen, knobs: Knobs
    ) -> None:
        self.env = simulation.environment(host)
        self.name = host.name
        self.table = RoutingTable()
        self.last = ""  # what the last operation came to, for people
        self._simulation = simulation
        self._managers = managers
        self._histories = histories
        self._seen = seen
        self._cell_bytes = knobs.cell_bytes
        self._attempt = knobs.attempt_seconds
        self._probe = knobs.probe
        self._sequences: dict[int, int] = {}
        self._unanswered: dict[str, list[Operation]] = {}  # chunk -> updates that may still happen
        self._avoid = 0  # target that failed us last
        self._nearest = int(self.env.random() * 100)  # which replica it prefers, as one on its own machine

    # Updates.

    async def write(self, chunk: Chunk, first: int, last: int) -> bool:
        operation = self._begin(chunk, Kind.WRITE, first, last, chunk.file.truncate_version)
        content = content_of(operation.number, last - first, self._cell_bytes)
        channel, sequence = self._take_channel(chunk)

        def build(chain_version: int) -> Message:
            return pb.WriteRequest(
                chain=[chunk.file.chain],
                chain_version=[chain_version],
                inode=[chunk.file.inode],
                index=[chunk.index],
                offset=[first * self._cell_bytes],
                length=[len(content)],
                checksum=[crc32c(content)],
                channel=[channel],
                sequence=[sequence],
                truncate_version=[operation.truncate_version],
                chunk_size=[CHUNK_BYTES],
            )

        return await self._update(chunk, operation, STORAGE.Write, build, content)

    async def truncate(self, chunk: Chunk, cells: int) -> bool:
        """Cut or extend, as a truncate of the file does; to no cells, it removes the chunk."""
        chunk.file.truncate_version += 1
        operation = self._begin(chunk, Kind.TRUNCATE, 0, cells, chunk.file.truncate_version)
        channel, sequence = self._take_channel(chunk)

        def build(chain_version: int) -> Message:
            return pb.TruncateChunkRequest(
                chain=[chunk.file.chain],
                chain_version=[chain_version],
                inode=[chunk.file.inode],
                index=[chunk.index],
                length=[cells * self._cell_bytes],
                truncate_version=[operation.truncate_version],
                channel=[channel],
                sequence=[sequence],
                chunk_size=[CHUNK_BYTES],
            )

        return await self._update(chunk, operation, STORAGE.Truncate, build)

    async def remove(self, chunk: Chunk) -> bool:
        """The file is dead: nobody begins an update of it any more. Until it is done; every try is an operation for itself."""
        until = self.env.now() + PATIENCE_SECONDS
        self._histories.of(chunk.name).dead = True

        def build(chain_version: int) -> Message:
            return pb.RemoveChunksRequest(
                chain=[chunk.file.chain],
                chain_version=[chain_version],
                inode=[chunk.file.inode],
                first=[chunk.index],
                last=[chunk.index + 1],
            )

        while self.env.now() < until:
            operation = self._begin(chunk, Kind.REMOVE, 0, CELLS_MAX)
            reply = await self._try(chunk, STORAGE.Remove, build, b"")
            if not isinstance(reply, StatusError) and not reply.more[0]:
                self._note(chunk, What.END, operation, "ok")
                return True
            if isinstance(reply, StatusError):
                if not TABLE[reply.status].maybe_committed:
                    self._note(chunk, What.NEVER, operation, reply.status.name)
                await self._recover(reply)
            await self._pause()
        return False

    async def _update(
        self, chunk: Chunk, operation: Operation, method: Method, build: Any, content: bytes = b""
    ) -> bool:
        """Until it is done, refused for good, or patience ends."""
        until = self.env.now() + PATIENCE_SECONDS
        while self.env.now() < until:
            reply = await self._try(chunk, method, build, content)
            if not isinstance(reply, StatusError):
                self._note(chunk, What.END, operation, "ok")
                return True
            if reply.status in _NEVER:
                self._note(chunk, What.NEVER, operation, reply.status.name)
                return True
            assert reply.retryable or reply.status in _AGAIN, f"{operation}: {reply}"
            await self._recover(reply)
            await self._pause()
        self._simulation.loop.trace(f"no answer: {operation}")
        self._unanswered.setdefault(chunk.name, []).append(operation)
        return False

    def _begin(self, chunk: Chunk, kind: Kind, first: int, last: int, truncate_version: int = 0) -> Operation:
        number = self._histories.next_number()
        operation = Operation(number, self.name, kind, first, last, truncate_version)
        if kind in (Kind.WRITE, Kind.TRUNCATE):
            operation.excludes = tuple(self._unanswered.pop(chunk.name, ()))
        self._note(chunk, What.CALL, operation)
        return operation

    def _take_channel(self, chunk: Chunk) -> tuple[int, int]:
        channel = channel_of(chunk.file.inode, chunk.index)
        self._sequences[channel] = self._sequences.get(channel, 0) + 1
        return channel, self._sequences[channel]

    async def _try(self, chunk: Chunk, method: Method, build: Any, content: bytes) -> Any:
        """The reply of one try at the head, or the StatusError that it came to."""
        try:
            route = self.table.route(chunk.file.chain)
            head = self.table.head(chunk.file.chain)
            source = [_slice(content)] if content else []
            call = Call(self._address(head), method, build(route.version), self._attempt, source=source)
            reply = await self.env.call(call)
        except StatusError as failure:
            return failure
        self._learn(reply)
        return reply if not reply.status[0] else error(status_of(reply.status[0]), f"{method.name}: {reply}")

    # Reads.

    async def read(self, chunk: Chunk, first: int = 0, last: int = CELLS_MAX) -> bool:
        operation = self._begin(chunk, Kind.READ, first, last)
        until = self.env.now() + PATIENCE_SECONDS
        from_tail = False
        while self.env.now() < until:
            found = await self._read(chunk, operation, from_tail)
            if not isinstance(found, StatusError):
                operation.found = found
                self._note(chunk, What.END, operation, "ok")
                return True
            assert found.retryable or found.status in _AGAIN, f"{operation}: {found}"
            from_tail = found.status is Status.NOT_COMMITTED
            if not from_tail:
                await self._recover(found)
            await self._pause()
        self._simulation.loop.trace(f"no answer: {operation}")
        return False

    async def read_from(self, chunk: Chunk, target: int) -> tuple[int, ...] | StatusError | None:
        """One try at one replica; noted if it succeeds."""
        operation = self._begin(chunk, Kind.READ, 0, CELLS_MAX)
        found = await self._read(chunk, operation, False, target)
        if not isinstance(found, StatusError):
            operation.found = found
            self._note(chunk, What.END, operation, "ok")
        return found

    async def _read(
        self, chunk: Chunk, operation: Operation, from_tail: bool, target: int = 0
    ) -> tuple[int, ...] | StatusError | None:
        buffer = bytearray((operation.last - operation.first) * self._cell_bytes)
        offset = operation.first * self._cell_bytes
        request = pb.ReadRequest(inode=[chunk.file.inode], index=[chunk.index], offset=[offset], length=[len(buffer)])
        try:
            replica = self._replica(chunk.file.chain, from_tail, target)
            self._avoid = replica.target
            request.chain.append(chunk.file.chain)
            request.chain_version.append(self.table.route(chunk.file.chain).version)
            target_slice = _slice(buffer)
            call = Call(self._address(replica), STORAGE.Read, request, self._attempt, target=[target_slice])
            reply = await self.env.call(call)
        except StatusError as failure:
            return failure
        self._avoid = 0
        self._learn(reply)
        status = status_of(reply.status[0])
        if status is Status.CHUNK_NOT_FOUND:
            return None
        if status:
            self._avoid = replica.target
            return error(status, f"Read from target {replica.target}")
        content = memoryview(buffer)[: reply.returned[0]]
        if not matches(content, reply.checksum, reply.unit[0], offset):
            self._avoid = replica.target
            await self._report(chunk, replica)
            return error(Status.CHECKSUM, f"target {replica.target} sent bytes that do not match their checksums")
        cells = cells_of(content, self._cell_bytes)
        if operation.first == 0 and operation.last == CELLS_MAX:
            self._seen.check(chunk.name, reply.commit_version[0], cells, f"{self.name} from target {replica.target}")
        return cells

    def _replica(self, chain: int, from_tail: bool, target: int) -> Replica:
        serving = self.table.route(chain).serving
        if target:  # it has to refuse where it does not serve
            members = self.table.chain(chain).members
            serving = tuple(Replica(member.target, member.node) for member in members if member.target == target)
        if not serving:
            raise error(Status.UNAVAILABLE, f"nobody serves chain {chain}")
        if from_tail:
            return serving[-1]
        if self.env.random() < self._probe:
            everybody = [Replica(member.target, member.node) for member in self.table.chain(chain).members]
            return everybody[int(self.env.random() * len(everybody))]
        others = [replica for replica in serving if replica.target != self._avoid] or serving
        if self.env.random() < NEAREST:
            return others[self._nearest % len(others)]
        return others[int(self.env.random() * len(others))]

    async def _report(self, chunk: Chunk, replica: Replica) -> None:
        request = pb.ReportCorruptionRequest(
            chain=[chunk.file.chain], target=[replica.target], inode=[chunk.file.inode], index=[chunk.index]
        )
        with suppress(StatusError):  # the next reader says it again
            await self.env.call(Call(self._address(replica), STORAGE.ReportCorruption, request, self._attempt))

    # Syncs.

    async def sync(self, chunks: list[Chunk], chain: int) -> bool:
        """Everything acknowledged on a chain survives power loss when this returns True; noted for `chunks`."""
        number = self._histories.next_number()
        concerned = [self._histories.of(chunk.name) for chunk in chunks if chunk.file.chain == chain]
        for history in concerned:
            history.events.append(Event(What.SYNC_CALL, self._simulation.loop.time, sync=number))
        until = self.env.now() + PATIENCE_SECONDS
        while self.env.now() < until:
            try:
                request = pb.SyncRequest(chain=[chain], chain_version=[self.table.route(chain).version])
                reply = await self.env.call(
                    Call(self._address(self.table.head(chain)), STORAGE.Sync, request, self._attempt)
                )
                self._learn(reply)
                if not reply.status[0]:
                    for history in concerned:
                        history.events.append(Event(What.SYNC_END, self._simulation.loop.time, sync=number))
                    return True
                failure = error(status_of(reply.status[0]), "Sync")
            except StatusError as broken:
                failure = broken
            await self._recover(failure)
            await self._pause()
        return False

    # Routing.

    async def refresh(self) -> None:
        address = self._managers[int(self.env.random() * len(self._managers))]
        try:
            routing = await self.env.call(
                Call(address, CLUSTER.GetRouting, GetRoutingRequest(since=self.table.version), REFRESH_SECONDS)
            )
            self.table.apply(routing)
        except StatusError as failure:
            if failure.status is Status.STALE_ROUTING:
                self.table.version = 0

    async def _recover(self, failure: StatusError) -> None:
        if failure.status not in (Status.BUSY, Status.NOT_COMMITTED):
            await self.refresh()

    async def _pause(self) -> None:
        await self.env.sleep(0.01 + self.env.random() * PAUSE_SECONDS_MAX)

    def _learn(self, reply: Any) -> None:
        for chain in reply.chains:
            self.table.learn_chain(chain)

    def _address(self, replica: Replica) -> str:
        node = self.table.nodes.get(replica.node)
        if node is None:
            raise error(Status.STALE_ROUTING, f"node {replica.node} is not known")
        return str(node.addresses[0])

    def _note(self, chunk: Chunk, what: What, operation: Operation, outcome: str = "") -> None:
        if outcome:
            operation.outcome = outcome
            self.last = str(operation.found) if operation.kind is Kind.READ else f"{outcome} as {operation.number}"
            self._simulation.loop.trace(f"{chunk.name}: {operation}")
        self._histories.of(chunk.name).events.append(Event(what, self._simulation.loop.time, operation))


def _slice(buffer: bytes | bytearray) -> Slice:
    return Slice(Region(memoryview(buffer).cast("B")), 0, len(buffer))
