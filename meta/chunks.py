"""The metadata server's own access to chunks: cut, remove, measure and sync files on whatever storage servers the routing names.

Every operation here may safely be done again, so there is one loop for all of them: send what is pending to the heads of its chains,
learn newer chains from refusals, and try again what may work later, until it is done or the time is up. A head that is silent is not
waited for when the manager has made another one, and a chain without a head gets one within the manager's time: then it goes on.

Truncates are numbered like any client's updates (channel, sequence): one in flight per channel, and a retry repeats its number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, Protocol

from crc32c import crc32c
from google.protobuf.message import Message

from ..proto.env import Call, Pool
from ..proto.errors import Status, StatusError, error, status_of
from ..proto.gen.storage_pb2 import (
    QueryLastRequest,
    RemoveChunksRequest,
    SyncRequest,
    TruncateChunkRequest,
    WriteRequest,
)
from ..proto.heads import LOOK_SECONDS, answer_of_head
from ..proto.ids import CHUNK_INDEX_MAX, SYSTEM_TENANT, boot_id, channel_of
from ..proto.layout import stripe_chains
from ..proto.region import Slice
from ..proto.routing import RoutingTable
from ..proto.rpc import STORAGE, Method
from ..proto.settings import time_scale
from .namespace.seams import DeadFile, Layout, Space

CALL_SECONDS = 10.0  # one request; scaled
TOTAL_SECONDS = 30.0  # one operation with all its retries; scaled
CONFIRM_SECONDS = 0.1  # between looks whether a routing version has arrived everywhere; scaled
PAUSE_SECONDS_MIN = 0.01  # between tries, doubling, with jitter
PAUSE_SECONDS_MAX = 0.2
CONNECT_SECONDS = (
    0.5  # for a new connection to the head of several: it may be stopped, and another one lead soon; scaled
)
OPERATIONS_MAX = 512  # in one request
CHUNKS_PER_REMOVE_MAX = 1024  # removed by one operation of a request, so that a large file does not block the target
PIECE_CHUNK_BYTES = 1 << 20  # size class of chunks that are no file's
FILES_PER_REMOVE_MAX = 256  # handled at once by `remove`

# Tried again although the table says no: everything here is idempotent.
_AGAIN = {Status.DEADLINE, Status.CANCELLED}
# Not tried again although the table says yes: a later cut has been there, the chunk will not change its mind.
_FINAL = {Status.STALE_TRUNCATE_VERSION}


class Network(Protocol):
    """The part of `proto.env.Environment` that is used here."""

    @property
    def pool(self) -> Pool: ...

    def start(self, call: Call) -> Any: ...

    async def collect(self, ticket: Any) -> Any: ...

    async def collect_any(self, tickets: Sequence[Any], seconds: float) -> Any: ...

    def abandon(self, ticket: Any) -> None: ...

    async def sleep(self, seconds: float) -> None: ...

    def now(self) -> float: ...

    def random(self) -> float: ...

    def lock(self) -> AbstractAsyncContextManager[None]: ...

    def reachable(self, address: str) -> bool: ...


class Ends(Protocol):
    """Which clients are over, and who has heard of it: the manager."""

    def last_end(self) -> int:
        """The version of the routing in which a client ended last."""

    def is_known(self, chains: Sequence[int], version: int) -> bool:
        """Whether everybody who could take updates of these chains works with this version by now."""


class Answer(NamedTuple):
    """What became of one operation: its row in a reply, or why there is none."""

    reply: Any
    row: int
    failure: StatusError | None = None


class Batch(NamedTuple):
    """One request to the head of some chains."""

    node: int
    address: str
    positions: list[int]
    versions: list[int]  # position by position, of its chain
    chains: list[int]  # each once
    several: bool  # one of them has more than one member


Build = Callable[[Sequence[int], Sequence[int]], Message]  # (positions, chain versions) -> request


class StorageChunks:
    """Implements `namespace.seams.Chunks`. `table` is kept up to date by its owner (the manager in this process); without `ends`
    every change of the routing counts as the end of a client."""

    def __init__(
        self,
        env: Network,
        table: RoutingTable,
        space: Callable[[], Space],
        host: str = "",
        *,
        ends: Ends | None = None,
    ) -> None:
        self._ends = ends
        self._env = env
        self._table = table
        self._space = space
        self._host = host or boot_id()
        self._locks: dict[int, AbstractAsyncContextManager[None]] = {}
        self._sequences: dict[int, int] = {}

    def space(self) -> Space:
        return self._space()

    def _chains(self, layout: Layout) -> list[int]:
        table = self._table.table(layout.table, layout.table_version)
        return stripe_chains(table, layout.base, layout.stripe, layout.seed)

    async def truncate(
        self, inode: int, layout: Layout, old_length: int, new_length: int, truncate_version: int
    ) -> None:
        """See the seam."""
        chains = self._chains(layout)
        index, rest = divmod(new_length, layout.chunk_size)
        if rest:
            await self._truncate_chunk(inode, index, rest, chains[index % len(chains)], layout, truncate_version)
            index += 1
        if index > CHUNK_INDEX_MAX:
            return
        removed = await self._remove([(chain, inode) for chain in chains], index, truncate_version)
        _raise_first(removed)

    async def _truncate_chunk(
        self, inode: int, index: int, length: int, chain: int, layout: Layout, truncate_version: int
    ) -> None:
        channel = channel_of(inode, index)
        async with self._locks.setdefault(channel, self._env.lock()):
            sequence = self._sequences[channel] = self._sequences.get(channel, 0) + 1

            def build(_: Sequence[int], versions: Sequence[int]) -> Message:
                return TruncateChunkRequest(
                    chain=[chain],
                    chain_version=versions,
                    inode=[inode],
                    index=[index],
                    length=[length],
                    truncate_version=[truncate_version],
                    channel=[channel],
                    sequence=[sequence],
                    chunk_size=[layout.chunk_size],
                )

            [answer] = await self._run(STORAGE.Truncate, [chain], build)
        done = (Status.CHUNK_NOT_FOUND, Status.STALE_TRUNCATE_VERSION)  # nothing is there, or a later cut was faster
        if answer.failure is not None and answer.failure.status not in done:
            raise answer.failure

    async def remove(self, files: Sequence[DeadFile]) -> list[StatusError | None]:
        """See the seam."""
        results: list[StatusError | None] = [None] * len(files)
        for start in range(0, len(files), FILES_PER_REMOVE_MAX):
            operations: list[tuple[int, int]] = []
            owners: list[int] = []
            for place, file in enumerate(files[start : start + FILES_PER_REMOVE_MAX], start):
                try:
                    chains = self._chains(file.layout)
                except StatusError as unknown:
                    results[place] = unknown
                    continue
                operations += [(chain, file.inode) for chain in chains]
                owners += [place] * len(chains)
            for place, failure in zip(owners, await self._remove(operations, 0, None), strict=True):
                results[place] = results[place] or failure
        return results

    async def _remove(
        self, operations: Sequence[tuple[int, int]], first: int, truncate_version: int | None, tenant: int = 0
    ) -> list[StatusError | None]:
        """Remove chunks `first` and up of (chain, inode) pairs, again while there are more."""
        results: list[StatusError | None] = [None] * len(operations)
        left = list(range(len(operations)))
        while left:
            now = left

            def build(positions: Sequence[int], versions: Sequence[int], now: list[int] = now) -> Message:
                chosen = [operations[now[p]] for p in positions]
                return RemoveChunksRequest(
                    chain=[chain for chain, _ in chosen],
                    chain_version=versions,
                    inode=[inode for _, inode in chosen],
                    first=[first] * len(chosen),
                    last=[CHUNK_INDEX_MAX + 1] * len(chosen),
                    chunks_max=CHUNKS_PER_REMOVE_MAX,
                    tenant=tenant,
                    truncate_version=None if truncate_version is None else [truncate_version] * len(chosen),
                )

            answers = await self._run(STORAGE.Remove, [operations[i][0] for i in now], build)
            left = []
            for i, answer in zip(now, answers, strict=True):
                results[i] = answer.failure
                if answer.failure is None and answer.row < len(answer.reply.more) and answer.reply.more[answer.row]:
                    left.append(i)
        return results

    async def query_last(self, inode: int, layout: Layout, truncate_version: int) -> int:
        """See the seam."""
        chains = self._chains(layout)
        # Storage servers that have not heard yet which clients are over by now might take a late write after it: neither may the
        # head answer, nor one that could become the head.
        known = self._ends.last_end() if self._ends is not None else self._table.version
        await self._heard_of(chains, known)

        def build(positions: Sequence[int], versions: Sequence[int]) -> Message:
            return QueryLastRequest(
                chain=[chains[p] for p in positions],
                chain_version=versions,
                inode=[inode] * len(positions),
                truncate_version=[truncate_version] * len(positions),
                routing_version=known,
            )

        answers = await self._run(STORAGE.QueryLast, chains, build)
        _raise_first([a.failure for a in answers])
        return max(
            (a.reply.index[a.row] * layout.chunk_size + a.reply.length[a.row] for a in answers if a.reply.found[a.row]),
            default=0,
        )

    async def _heard_of(self, chains: Sequence[int], version: int) -> None:
        end = self._env.now() + TOTAL_SECONDS * time_scale()
        while self._ends is not None and not self._ends.is_known(chains, version):
            if self._env.now() >= end:
                raise error(Status.UNAVAILABLE, f"not every member of its chains has routing version {version} yet")
            await self._env.sleep(CONFIRM_SECONDS * time_scale())

    async def sync(self, inode: int, layout: Layout) -> None:
        """See the seam."""
        chains = self._chains(layout)

        def build(positions: Sequence[int], versions: Sequence[int]) -> Message:
            return SyncRequest(chain=[chains[p] for p in positions], chain_version=versions)

        _raise_first([a.failure for a in await self._run(STORAGE.Sync, chains, build)])

    async def write_first(self, inode: int, layout: Layout, data: bytes, truncate_version: int) -> None:
        """See the seam."""
        chain = self._chains(layout)[0]
        since = self.losses(chain)
        await self._write_chunk(chain, inode, 0, data, layout.chunk_size, truncate_version)
        await self.sync_chain(chain, since)

    # Chunks that are no file's (meta/backup.py).

    async def write_piece(self, number: int, index: int, chain: int, data: bytes) -> None:
        """A whole chunk of the system's own, of at most POOL_BYTES of the environment. Raises what the chain's head answers."""
        await self._write_chunk(chain, number, index, data, PIECE_CHUNK_BYTES, tenant=SYSTEM_TENANT)

    async def _write_chunk(
        self,
        chain: int,
        inode: int,
        index: int,
        data: bytes,
        chunk_size: int,
        truncate_version: int = 0,
        tenant: int = 0,
    ) -> None:
        channel = channel_of(inode, index)
        slice_ = self._env.pool.take(len(data))
        try:
            slice_.view[:] = data
            async with self._locks.setdefault(channel, self._env.lock()):
                sequence = self._sequences[channel] = self._sequences.get(channel, 0) + 1

                def build(_: Sequence[int], versions: Sequence[int]) -> Message:
                    return WriteRequest(
                        chain=[chain],
                        chain_version=versions,
                        inode=[inode],
                        index=[index],
                        offset=[0],
                        length=[len(data)],
                        checksum=[crc32c(data)],
                        channel=[channel],
                        sequence=[sequence],
                        truncate_version=[truncate_version],
                        chunk_size=[chunk_size],
                        tenant=tenant,
                    )

                _raise_first([a.failure for a in await self._run(STORAGE.Write, [chain], build, [slice_])])
        finally:
            self._env.pool.give(slice_)

    def losses(self, chain: int) -> int:
        """For `sync_chain`, before anything is written. Raises STALE_ROUTING."""
        return self._table.route(chain).losses

    async def sync_chain(self, chain: int, since: int) -> None:
        """What was written to this chain since its `losses` were so many survives power loss. Raises UNAVAILABLE where some of it may have
        been lost before: it has to be written again."""

        def build(_: Sequence[int], versions: Sequence[int]) -> Message:
            return SyncRequest(chain=[chain], chain_version=versions)

        _raise_first([a.failure for a in await self._run(STORAGE.Sync, [chain], build)])
        if self.losses(chain) != since:
            raise error(Status.UNAVAILABLE, f"chain {chain} lost power before what was written there had been synced")

    async def remove_pieces(self, number: int, chain: int) -> None:
        """All chunks that `write_piece` wrote under this number."""
        _raise_first(await self._remove([(chain, number)], 0, None, SYSTEM_TENANT))

    # The loop.

    async def _run(
        self, method: Method, chains: Sequence[int], build: Build, source: Sequence[Slice] = ()
    ) -> list[Answer]:
        """One operation per entry of `chains`, each sent to its chain's head until it is answered for good. A single one may have bytes
        (`source`)."""
        answers: list[Answer] = [Answer(None, 0, error(Status.DEADLINE))] * len(chains)
        end = self._env.now() + TOTAL_SECONDS * time_scale()
        pause = PAUSE_SECONDS_MIN
        pending, attempt = list(range(len(chains))), 0
        while pending:
            batches, pending = self._plan(chains, pending, answers, attempt)
            requests = [build(batch.positions, batch.versions) for batch in batches]
            for batch, reply in zip(batches, await self._send(method, batches, requests, source), strict=True):
                pending += self._take(batch.positions, reply, answers)
            attempt += 1
            if pending and self._env.now() + pause >= end:
                break
            if pending:
                await self._env.sleep(pause * (0.5 + self._env.random()))
                pause = min(2 * pause, PAUSE_SECONDS_MAX)
        return answers

    async def _send(
        self, method: Method, batches: Sequence[Batch], requests: Sequence[Message], source: Sequence[Slice]
    ) -> list[Any]:
        """All at once; per batch the reply or its StatusError."""
        scale = time_scale()
        tickets = []
        for batch, request in zip(batches, requests, strict=True):
            connect = CONNECT_SECONDS * scale if batch.several else 0.0
            call = Call(batch.address, method, request, CALL_SECONDS * scale, source, connect=connect)
            tickets.append(self._env.start(call))
        replies: list[Any] = []
        try:
            for batch, ticket in zip(batches, tickets, strict=True):
                seconds = LOOK_SECONDS * scale
                try:
                    # The table changes by itself: its owner is the manager in this process.
                    waiting = answer_of_head(
                        self._env, self._table, ticket, batch.node, batch.chains, seconds, lambda: None
                    )
                    replies.append(await waiting)
                except StatusError as failure:
                    replies.append(failure)
        except BaseException:
            for ticket in tickets[len(replies) :]:
                self._env.abandon(ticket)
            raise
        return replies

    def _plan(
        self, chains: Sequence[int], pending: Sequence[int], answers: list[Answer], attempt: int
    ) -> tuple[list[Batch], list[int]]:
        """The requests to be sent, and the positions that nobody can take at the moment."""
        by_node: dict[tuple[int, str], list[int]] = {}
        addresses: dict[int, str] = {}  # finding one asks the file system
        stuck = []
        for position in pending:
            try:
                node = self._table.head(chains[position]).node
                address = addresses.get(node) or addresses.setdefault(node, self._address(node, attempt))
                by_node.setdefault((node, address), []).append(position)
            except StatusError as nobody:
                answers[position] = Answer(None, 0, nobody)
                stuck.append(position)
        batches = []
        for (node, address), positions in by_node.items():
            for start in range(0, len(positions), OPERATIONS_MAX):
                part = positions[start : start + OPERATIONS_MAX]
                routes = [self._table.route(chains[position]) for position in part]
                several = any(route.several for route in routes)
                named = list({route.chain for route in routes})
                batches.append(Batch(node, address, part, [route.version for route in routes], named, several))
        return batches, stuck

    def _address(self, node: int, attempt: int) -> str:
        usable = [a for a in self._table.node_addresses(node, self._host) if self._env.reachable(a)]
        if not usable:
            raise error(Status.UNAVAILABLE, f"node {node} has no address that this server can reach; see its --listen")
        return usable[attempt % len(usable)]

    def _take(self, positions: Sequence[int], reply: Any, answers: list[Answer]) -> list[int]:
        """Note the answers of one reply; the positions to be tried again."""
        if isinstance(reply, StatusError):
            if isinstance(reply.detail, Message):
                self._table.learn_chain(reply.detail)  # type: ignore[arg-type]
            for position in positions:
                answers[position] = Answer(None, 0, reply)
            return list(positions) if _try_again(reply) else []
        for chain in reply.chains:
            self._table.learn_chain(chain)
        again = []
        for row, (position, code) in enumerate(zip(positions, reply.status, strict=True)):
            failure = error(status_of(code), f"storage answered {status_of(code).name}") if code else None
            answers[position] = Answer(reply, row, failure)
            if failure is not None and _try_again(failure):
                again.append(position)
        return again


def _try_again(failure: StatusError) -> bool:
    return (failure.retryable and failure.status not in _FINAL) or failure.status in _AGAIN


def _raise_first(failures: Sequence[StatusError | None]) -> None:
    for failure in failures:
        if failure is not None:
            raise failure
