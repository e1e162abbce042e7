"""Writing chunks: a batch of updates -> one request per storage process, exactly once however often it is sent.

Each update is numbered by (channel, sequence): the channel is a hash of the chunk, one update is in flight per channel, the sequence
only ever rises, and a retry repeats it. A storage server that has seen the number answers what it answered then.

A `WriteBatch` is begun (requests are sent) and settled later (replies are collected, failures retried), so writing overlaps with the
caller's work. Whoever needs its channels may settle it, whichever file or thread began it; that is why settling never raises:
what went wrong is kept on the file, which reports it once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...proto.env import Ticket
from ...proto.errors import Status, StatusError, error, status_of
from ...proto.gen.storage_pb2 import SyncReply, SyncRequest, WriteReply, WriteRequest
from ...proto.ids import ChunkId, channel_of
from ...proto.region import Slice
from ...proto.rpc import STORAGE
from .budget import Budget
from .channels import Channels
from .cluster import Cluster
from .inode import Inode
from .lease import Lease
from .retry import Patience
from .verify import crc32c


@dataclass(slots=True)
class Update:
    """New bytes for one chunk. The buffer is ours alone until the update is settled."""

    file: Inode
    index: int
    offset: int  # bytes into the chunk
    source: Slice  # what is written
    buffer: Slice  # what it lies in, to be given back
    checksum: int = 0
    sequence: int = 0
    truncate_version: int = 0

    @property
    def channel(self) -> int:
        return channel_of(self.file.id, self.index)

    @property
    def end(self) -> int:
        """Where it ends in the file, in bytes."""
        return self.index * self.file.chunk_size + self.offset + self.source.length

    @property
    def chain(self) -> int:
        return self.file.chains[self.index % len(self.file.chains)]

    def __str__(self) -> str:
        return f"chunk {ChunkId(0, self.file.id, self.index)} (chain {self.chain})"


@dataclass(slots=True)
class _Part:
    """One request to one storage process."""

    node: int
    updates: list[Update]
    ticket: Ticket | None = None
    failure: StatusError | None = None  # nothing was sent

    @property
    def chains(self) -> list[int]:
        return list({update.chain for update in self.updates})


class WriteBatch:
    """Updates of distinct channels on their way to storage.

    Whoever waits for it may be cancelled: what was not answered then is sent again, under the same numbers, by whoever settles next.
    """

    __slots__ = (
        "_begun",
        "_budget",
        "_channels",
        "_cluster",
        "_lease",
        "_lock",
        "_parts",
        "_unsent",
        "bytes",
        "done",
        "updates",
    )

    def __init__(
        self, cluster: Cluster, channels: Channels, lease: Lease, budget: Budget, updates: list[Update]
    ) -> None:
        self._cluster = cluster
        self._channels = channels
        self._lease = lease
        self._budget = budget
        self._lock = cluster.env.lock()
        self._parts: list[_Part] = []
        self._unsent: list[Update] = []
        self._begun = False  # all updates are numbered
        self.updates = updates
        self.bytes = sum(update.source.length for update in updates)
        self.done = False

    async def begin(self) -> None:
        """Number and send the updates, unless that is done. What cannot be sent is told by the files' errors when the batch is settled."""
        if self._begun:
            return
        async with self._lock:
            if not self._begun and not self.done:
                await self._begin()

    async def settle(self) -> None:
        """Wait until every update is on every replica or has failed for good; then the channels and buffers are free."""
        async with self._lock:
            if self.done:
                return
            if not self._begun:
                await self._begin()
            await self._finish()
            self._end()

    def abandon(self) -> None:
        """Forget the batch (the lease is over, or the environment): what was sent may or may not be applied."""
        parts, self._parts = self._parts, []
        for part in parts:
            if part.ticket is not None:
                self._cluster.env.abandon(part.ticket)
        self._end()

    async def _begin(self) -> None:
        for update in self.updates:
            update.checksum = crc32c(update.source.view)
            update.truncate_version = update.file.truncate_version
        sequences = await self._channels.take(self, [update.channel for update in self.updates])
        for update, sequence in zip(self.updates, sequences, strict=True):
            update.sequence = sequence
        # Whoever is interrupted before this line has begun nothing.
        self._unsent, self._begun = list(self.updates), True
        self._send()

    def _end(self) -> None:
        if not self.done:
            self.done = True
            self._channels.release(self, [update.channel for update in self.updates])
            for update in self.updates:
                self._budget.give(update.buffer)

    # --- sending --------------------------------------------------------------------------------------------------------------------

    def _send(self) -> None:
        """Send what is unsent: one request per node, which holds the heads of its chains."""
        nodes: dict[int, list[Update]] = {}
        for update in self._unsent:
            try:
                nodes.setdefault(self._cluster.table.head(update.chain).node, []).append(update)
            except StatusError as failure:
                self._parts.append(_Part(0, [update], failure=failure))
        made = [_Part(node, updates) for node, updates in nodes.items()]
        self._parts += made
        self._unsent = []
        for part in made:
            self._send_part(part)

    def _send_part(self, part: _Part) -> None:
        try:
            self._lease.check()
            call = self._cluster.head_call(
                part.node,
                STORAGE.Write,
                self._request(part.updates),
                part.chains,
                source=[update.source for update in part.updates],
            )
            part.ticket = self._cluster.env.start(call)
        except StatusError as failure:
            part.failure = failure

    def _request(self, updates: list[Update]) -> WriteRequest:
        table = self._cluster.table
        capabilities: dict[bytes, int] = {}
        capability = [capabilities.setdefault(u.file.capability_write, len(capabilities)) for u in updates]
        return WriteRequest(
            chain=[u.chain for u in updates],
            chain_version=[table.route(u.chain).version for u in updates],
            inode=[u.file.id for u in updates],
            index=[u.index for u in updates],
            offset=[u.offset for u in updates],
            length=[u.source.length for u in updates],
            checksum=[u.checksum for u in updates],
            channel=[u.channel for u in updates],
            sequence=[u.sequence for u in updates],
            truncate_version=[u.truncate_version for u in updates],
            chunk_size=[u.file.chunk_size for u in updates],
            capabilities=list(capabilities),
            capability=capability,
        )

    # --- collecting -----------------------------------------------------------------------------------------------------------------

    async def _finish(self) -> None:
        patience = self._cluster.patience()
        while (self._parts or self._unsent) and not self.done:
            if self._unsent:
                self._send()
            await self._collect(patience)

    async def _collect(self, patience: Patience) -> None:
        """All replies in; what has to be sent again is in `_unsent` afterwards."""
        failed: list[tuple[Update, StatusError]] = []
        try:
            while self._parts:
                part = self._parts[0]
                failed += await self._reply(part)
                if self._parts and self._parts[0] is part:  # the batch may have been abandoned meanwhile
                    self._parts.pop(0)
            again = await self._prepare(failed, patience)
        except BaseException:
            self._unsent += [update for update, _ in failed]
            raise
        self._unsent += again

    async def _reply(self, part: _Part) -> list[tuple[Update, StatusError]]:
        """The updates of a request that failed, and why."""
        try:
            if part.ticket is None:
                raise part.failure or error(Status.MAYBE_COMMITTED, "whoever waited for the answer gave up")
            reply: WriteReply = await self._cluster.answer_of_head(part.ticket, part.node, part.chains)
            if len(reply.status) != len(part.updates):
                raise error(
                    Status.PROTOCOL, f"storage node {part.node} answered {len(part.updates)} writes with other columns"
                )
        except StatusError as failure:
            part.ticket, part.failure = None, failure
            await self._cluster.recover(failure, part.node)
            return [(update, failure) for update in part.updates]
        except BaseException:
            part.ticket = None  # cancelled with us
            raise
        part.ticket = None
        self._cluster.learn_chains(reply.chains)
        failed = []
        for update, code in zip(part.updates, reply.status, strict=True):
            if code:
                failed.append((update, _failure(update, code)))
            else:
                update.file.arrived_end = max(update.file.arrived_end, update.end)
        return failed

    async def _prepare(self, failed: list[tuple[Update, StatusError]], patience: Patience) -> list[Update]:
        """Do what each failure asks for; the updates to be sent again. The others have failed: their files say why."""
        again: list[Update] = []
        wait: StatusError | None = None
        for update, why in failed:
            failure = why
            try:
                if failure.status is Status.STALE_TRUNCATE_VERSION:
                    await self._after_truncate(update)
                elif failure.status is Status.CAPABILITY_EXPIRED:
                    await update.file.renew_capability(writing=True)
                    failure = error(Status.BUSY, failure.strerror or "")
                elif not failure.retryable and failure.status is not Status.DEADLINE:
                    raise failure
                wait = failure
                again.append(update)
            except StatusError as final:
                if final.status is Status.SESSION_ENDED:
                    self._lease.end()
                update.file.fail(final)
        if wait is not None:
            try:
                await patience.again(wait)
            except StatusError as final:
                for update in again:
                    update.file.fail(final)
                return []
        return again

    async def _after_truncate(self, update: Update) -> None:
        # Refused, so certainly not applied: it is a write that comes after the truncate, with a number of its own.
        attributes = await update.file.ask()
        update.truncate_version = attributes.truncate_version
        update.sequence = self._channels.next(update.channel)
        update.file.came_after(attributes.truncate_version, update.end)


def _failure(update: Update, code: int) -> StatusError:
    status = status_of(code)
    return error(status, f"writing {update}: {error(status).strerror}")


async def sync_chains(cluster: Cluster, chains: Sequence[int]) -> None:
    """Make all that was written to these chains durable on every replica. Raises StatusError."""
    patience = cluster.patience()
    left = sorted(set(chains))
    while left:
        nodes: dict[int, list[int]] = {}
        failure: StatusError | None = None
        try:
            for chain in left:
                nodes.setdefault(cluster.table.head(chain).node, []).append(chain)
            replies = await _sync(cluster, nodes)
        except StatusError as broken:
            failure = broken
            await cluster.recover(broken)
        else:
            left = []
            for (node, chosen), reply in zip(nodes.items(), replies, strict=True):
                broken_chains, why = await _sync_result(cluster, node, chosen, reply)
                left += broken_chains
                failure = why or failure
        if failure is not None:
            await patience.again(failure)


async def _sync(cluster: Cluster, nodes: dict[int, list[int]]) -> list[SyncReply | StatusError]:
    """Ask every node about the chains that it leads, all at once; per node its reply or its error."""
    calls = []
    for node, chains in nodes.items():
        versions = [cluster.table.route(chain).version for chain in chains]
        request = SyncRequest(chain=chains, chain_version=versions)
        calls.append((node, chains, cluster.head_call(node, STORAGE.Sync, request, chains)))
    tickets = [cluster.env.start(call) for _, _, call in calls]
    replies: list[SyncReply | StatusError] = []
    try:
        for (node, chains, _), ticket in zip(calls, tickets, strict=True):
            try:
                replies.append(await cluster.answer_of_head(ticket, node, chains))
            except StatusError as failure:
                replies.append(failure)
    except BaseException:
        for ticket in tickets[len(replies) :]:
            cluster.env.abandon(ticket)
        raise
    return replies


async def _sync_result(
    cluster: Cluster, node: int, chains: list[int], reply: SyncReply | StatusError
) -> tuple[list[int], StatusError | None]:
    """Which of a request's chains are not synced yet, and why."""
    if isinstance(reply, StatusError):
        await cluster.recover(reply, node)
        return chains, reply
    cluster.learn_chains(reply.chains)
    failed = [(chain, status_of(code)) for chain, code in zip(chains, reply.status, strict=True) if code]
    if not failed:
        return [], None
    return [chain for chain, _ in failed], error(failed[0][1], f"syncing chain {failed[0][0]}: {failed[0][1].name}")
