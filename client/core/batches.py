"""Batches of chunk updates: one request per storage process, exactly once however often it is sent.

Each update is numbered by (channel, sequence): the channel is a hash of the chunk, one update is in flight per channel, the sequence
only ever rises, and a retry repeats it. A storage server that has seen the number answers what it answered then.

A batch is begun (requests are sent) and settled later (replies are collected, failures retried), so updating overlaps with the caller's
work. Whoever needs its channels may settle it, whichever file or thread began it; that is why settling never raises: what went wrong is
kept on the file, which reports it once. What is sent and what becomes of it is up to the kind of batch: writes.py, clone.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from ...proto.env import Call, Ticket
from ...proto.errors import Status, StatusError, error, status_of
from ...proto.ids import ChunkId, channel_of
from .channels import Channels
from .cluster import Cluster
from .inode import Inode
from .lease import Lease
from .retry import Patience


@dataclass(slots=True)
class ChunkUpdate:
    """One change of one chunk."""

    file: Inode
    index: int
    sequence: int = field(default=0, kw_only=True)
    losses: int = field(default=-1, kw_only=True)  # of its chain, when it may have been taken first; -1: it never was
    truncate_version: int = field(default=0, kw_only=True)

    @property
    def channel(self) -> int:
        return channel_of(self.file.id, self.index)

    @property
    def chain(self) -> int:
        return self.file.chains[self.index % len(self.file.chains)]

    @property
    def extent(self) -> tuple[int, int]:
        """The bytes of the file [begin, end) that it may change."""
        return self.index * self.file.chunk_size, (self.index + 1) * self.file.chunk_size

    def __str__(self) -> str:
        return f"chunk {ChunkId(0, self.file.id, self.index)} (chain {self.chain})"


_Update = TypeVar("_Update", bound=ChunkUpdate)


@dataclass(slots=True)
class Part(Generic[_Update]):
    """One request to one storage process."""

    node: int
    updates: list[_Update]
    losses: list[int] = field(default_factory=list)  # of the chain of each, under the version that is asked for
    ticket: Ticket | None = None
    failure: StatusError | None = None  # nothing was sent

    @property
    def chains(self) -> list[int]:
        return list({update.chain for update in self.updates})

    def doubt(self) -> None:
        """Nobody knows what became of it: what is answered later may have been taken now."""
        for update, losses in zip(self.updates, self.losses, strict=True):
            if update.losses < 0:
                update.losses = losses


class UpdateBatch(Generic[_Update]):
    """Updates of distinct channels on their way to storage.

    Whoever waits for it may be cancelled: what was not answered then is sent again, under the same numbers, by whoever settles next.
    """

    __slots__ = (
        "_begun",
        "_lock",
        "_parts",
        "_unsent",
        "channels",
        "cluster",
        "done",
        "lease",
        "updates",
    )

    def __init__(self, cluster: Cluster, channels: Channels, lease: Lease, updates: list[_Update]) -> None:
        self.cluster = cluster
        self.channels = channels
        self.lease = lease
        self._lock = cluster.env.lock()
        self._parts: list[Part[_Update]] = []
        self._unsent: list[_Update] = []
        self._begun = False  # all updates are numbered
        self.updates = updates
        self.done = False

    # --- what a kind of batch says ------------------------------------------------------------------------------------------------------

    def stamp(self, update: _Update) -> None:
        """Before the update is numbered: what it was made under."""
        update.truncate_version = update.file.truncate_version

    def call(self, part: Part[_Update]) -> Call:
        """The request. Its reply has the columns `status` and `chains`. Raises StatusError."""
        raise NotImplementedError

    def succeeded(self, update: _Update, reply: Any, row: int) -> None:
        """It is on every replica."""

    async def look_again(self, update: _Update) -> None:
        """It was refused as older than a truncate, so certainly not applied: it comes after that one, under a number of its own. Raises
        StatusError."""
        attributes = await update.file.ask()
        update.truncate_version = attributes.truncate_version

    async def renew_capability(self, update: _Update) -> None:
        """Whatever it has to show has expired. Raises StatusError."""
        await update.file.renew_capability(writing=True)

    def released(self) -> None:
        """The batch is over."""

    # --- its life -----------------------------------------------------------------------------------------------------------------------

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
                self.cluster.env.abandon(part.ticket)
        self._end()

    async def _begin(self) -> None:
        for update in self.updates:
            self.stamp(update)
        sequences = await self.channels.take(self, [update.channel for update in self.updates])
        for update, sequence in zip(self.updates, sequences, strict=True):
            update.sequence = sequence
        # Whoever is interrupted before this line has begun nothing.
        self._unsent, self._begun = list(self.updates), True
        self._send()

    def _end(self) -> None:
        if not self.done:
            self.done = True
            self.channels.release(self, [update.channel for update in self.updates])
            self.released()

    # --- sending --------------------------------------------------------------------------------------------------------------------

    def _send(self) -> None:
        """Send what is unsent: one request per node, which holds the heads of its chains."""
        nodes: dict[int, list[_Update]] = {}
        for update in self._unsent:
            try:
                nodes.setdefault(self.cluster.table.head(update.chain).node, []).append(update)
            except StatusError as failure:
                self._parts.append(Part(0, [update], failure=failure))
        made = [Part(node, updates) for node, updates in nodes.items()]
        self._parts += made
        self._unsent = []
        for part in made:
            self._send_part(part)

    def _send_part(self, part: Part[_Update]) -> None:
        try:
            self.lease.check()
            part.losses = [self.cluster.table.route(update.chain).losses for update in part.updates]
            part.ticket = self.cluster.env.start(self.call(part))
        except StatusError as failure:
            part.failure = failure

    # --- collecting -----------------------------------------------------------------------------------------------------------------

    async def _finish(self) -> None:
        patience = self.cluster.patience()
        while (self._parts or self._unsent) and not self.done:
            if self._unsent:
                self._send()
            await self._collect(patience)

    async def _collect(self, patience: Patience) -> None:
        """All replies in; what has to be sent again is in `_unsent` afterwards."""
        failed: list[tuple[_Update, StatusError]] = []
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

    async def _reply(self, part: Part[_Update]) -> list[tuple[_Update, StatusError]]:
        """The updates of a request that failed, and why."""
        try:
            if part.ticket is None:
                raise part.failure or error(Status.MAYBE_COMMITTED, "whoever waited for the answer gave up")
            reply = await self.cluster.answer_of_head(part.ticket, part.node, part.chains)
            if len(reply.status) != len(part.updates):
                raise error(
                    Status.PROTOCOL, f"storage node {part.node} answered {len(part.updates)} updates with other columns"
                )
        except StatusError as failure:
            if part.ticket is not None and failure.maybe_committed:
                part.doubt()
            part.ticket, part.failure = None, failure
            await self.cluster.recover(failure, part.node)
            return [(update, failure) for update in part.updates]
        except BaseException:
            part.doubt()
            part.ticket = None  # cancelled with us
            raise
        part.ticket = None
        self.cluster.learn_chains(reply.chains)
        failed = []
        for row, (update, code) in enumerate(zip(part.updates, reply.status, strict=True)):
            refusal = _failure(update, code) if code else None
            if update.losses < 0 and (refusal is None or refusal.maybe_committed):
                update.losses = part.losses[row]
            if refusal is not None:
                failed.append((update, refusal))
            else:
                update.file.arrived(update.chain, update.losses)
                self.succeeded(update, reply, row)
        return failed

    async def _prepare(self, failed: list[tuple[_Update, StatusError]], patience: Patience) -> list[_Update]:
        """Do what each failure asks for; the updates to be sent again. The others have failed: their files say why."""
        again: list[_Update] = []
        wait: StatusError | None = None
        for update, why in failed:
            failure = why
            try:
                if failure.status is Status.STALE_TRUNCATE_VERSION:
                    await self.look_again(update)
                    update.sequence = self.channels.next(update.channel)
                elif failure.status is Status.CAPABILITY_EXPIRED:
                    await self.renew_capability(update)
                    failure = error(Status.BUSY, failure.strerror or "")
                elif not failure.retryable and failure.status is not Status.DEADLINE:
                    raise failure
                wait = failure
                again.append(update)
            except StatusError as final:
                if final.status is Status.SESSION_ENDED:
                    self.lease.end()
                update.file.fail(final, update.extent)
        if wait is not None:
            try:
                await patience.again(wait)
            except StatusError as final:
                for update in again:
                    update.file.fail(final, update.extent)
                return []
        return again


def _failure(update: ChunkUpdate, code: int) -> StatusError:
    status = status_of(code)
    return error(status, f"writing {update}: {error(status).strerror}")
