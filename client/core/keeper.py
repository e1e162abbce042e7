"""The keeper: one background worker for each connected client, with connections of its own.

A blocking client runs only inside its calls; while its caller computes for minutes, the keeper renews the one lease, reports which
inodes are open for reading, applies routing changes, tells what was read and writes out what has been dirty for long. It touches
only the table of inodes, each under its lock. It starts with the first open file and ends with the client. What waits for storage, or
for an inode's lock, is done by a second, short-lived worker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...proto.env import Call
from ...proto.errors import Status, StatusError
from ...proto.gen.cluster_pb2 import RenewClientReply, RenewClientRequest
from ...proto.rpc import CLUSTER
from .inode import Inode
from .lease import RENEWALS_PER_LEASE

if TYPE_CHECKING:
    from .client import Core

TICK_SECONDS = 1.0
DIRTY_SECONDS_MAX = 5.0  # older write-back is sent
RENEW_TIMEOUT_SECONDS = 5.0  # one attempt; the next tick tries again


class Keeper:
    """Started at most once per identity of a client."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._env = core.env
        self._renewal_due = 0.0
        self._renewals = 0
        self._asked = False  # to report all that is open
        self._writing_out = False
        self.started = False

    def begin(self, number: int) -> None:
        """Renewals are counted from this number."""
        self._renewals = number

    def start(self) -> None:
        """Start the worker unless it runs."""
        if not self.started:
            self.started = True
            self._env.spawn(self._run, "keeper")

    async def _run(self) -> None:
        core, scaled = self._core, self._core.options.scaled
        while not core.closed and core.keeper is self:
            if self._env.now() >= self._renewal_due:
                await self.renew()
            if self._anything_old() and not self._writing_out:
                # In a worker of its own: while storage is down, or another thread holds a file, the lease is renewed all the same.
                self._writing_out = True
                self._env.spawn(self._write_out, "write-back")
            until_due = self._renewal_due - self._env.now()
            tick = scaled(TICK_SECONDS)
            await self._env.sleep(until_due if 0 < until_due < tick else tick)

    async def renew(self) -> None:
        """Renew the lease once; a failure is tried again with the next tick, until the lease is over."""
        core, cluster = self._core, self._core.cluster
        lease, held, sent = core.lease, core.held, self._env.now()
        report = held.report(everything=self._asked)
        self._renewals += 1
        request = RenewClientRequest(
            open_inodes=report.inodes,
            acknowledged_request=await cluster.requests.acknowledged(),
            routing_version=cluster.table.version,
            name=core.options.name,
            reported=report.mark,
            renewal=self._renewals,
        )
        timeout, address = core.options.scaled(RENEW_TIMEOUT_SECONDS), cluster.manager_address()
        try:
            reply: RenewClientReply = await self._env.call(Call(address, CLUSTER.RenewClient, request, timeout))
        except StatusError as failure:
            if failure.status is Status.SESSION_ENDED:
                await core.lose_lease(lease)
            elif failure.status is not Status.CANCELLED:
                await cluster.recover_from(failure, address)
            return
        held.mark = reply.mark or held.mark
        self._asked = bool(reply.report_ms)
        self._renewal_due = sent + (reply.report_ms or reply.lease_ms / RENEWALS_PER_LEASE) / 1000
        if lease.over or not lease.renewed(sent, reply.lease_ms, reply.epoch):
            await core.lose_lease(lease)
        if reply.HasField("routing"):
            await cluster.learn(reply.routing)

    def _anything_old(self) -> bool:
        moment = self._env.now() - self._core.options.scaled(DIRTY_SECONDS_MAX)
        inodes = list(self._core.inodes.values())
        if self._core.orphans or self._core.read_times.due or self._core.ended:
            return True
        return any(inode.unsettled and inode.unsettled_since < moment for inode in inodes)

    async def _write_out(self) -> None:
        try:
            await self._close_orphans()
            await self._flush_old(self._env.now() - self._core.options.scaled(DIRTY_SECONDS_MAX))
            if self._core.read_times.due:
                await self._core.read_times.tell()
            await self._core.tell_ended()
        finally:
            self._writing_out = False

    async def _flush_old(self, moment: float) -> None:
        for inode in list(self._core.inodes.values()):
            if inode.unsettled and inode.unsettled_since < moment:
                await self._flush(inode)

    async def _close_orphans(self) -> None:
        while self._core.orphans:
            await self._core.close_orphan()

    async def _flush(self, inode: Inode) -> None:
        try:
            async with inode.lock:
                await self._core.flush_inode(inode)
        except StatusError as failure:
            # Published later, or never: then `flush`, `fsync` or `close` tells, as with every write in the background.
            if not failure.retryable and failure.status is not Status.DEADLINE:
                inode.fail(failure)
