"""The core of a KV cache client: namespaces, where their blocks lie, and the operations on batches of keys.

One core serves all threads or tasks of a client. What is done with blocks answers with statuses and raises nothing; what is wrong with the
call itself (keys of another length, buffers that are no memory) raises TypeError or ValueError before anything is sent; what concerns
namespaces and quotas raises StatusError, as everything else in emberfs does.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ...client.core.cluster import Cluster
from ...client.core.options import Options
from ...client.core.retry import Patience
from ...proto.blocks import GRACE_SECONDS, HARD_PIN, KEY_BYTES, TABLE_OF_BLOCKS
from ...proto.env import Call, Environment
from ...proto.errors import Status, StatusError, error
from ...proto.gen.cluster_pb2 import (
    DropNamespaceRequest,
    KvNamespace,
    PutNamespaceRequest,
    SetTenantQuotaRequest,
    TenantQuota,
)
from ...proto.gen.kvcache_pb2 import (
    BlockEventsRequest,
    DeleteRequest,
    ListBlocksRequest,
    TouchRequest,
    UsageReply,
    UsageRequest,
)
from ...proto.routing import Route
from ...proto.rpc import CLUSTER, KVCACHE
from ..buffers import Registry
from ..keys import Placement, packed
from ..namespace import MODE_DEFAULT, TTL_SECONDS_MAX, Namespace, NamespaceSpec
from ..places import places_of
from .batch import Stop
from .get import Get
from .lookup import Delete, Lookup, Touch
from .put import Put
from .results import BlockEvent, BlockInfo, Counters, Lease, Match, Usage, usage_of

OPERATION_SECONDS = 5.0  # default patience: engines compute what they do not get in time
ROUTING_SECONDS = 30.0  # at least so often does a busy client look for news of the routing. Scaled
UNKNOWN_SECONDS = 1.0  # between two looks for namespaces that this client does not know. Scaled
LIST_BLOCKS = 4096  # of one page
DEPTH_MAX = (1 << 32) - 1
ACKS = ("replicated", "durable")

Deadline = float | None  # milliseconds


@dataclass(slots=True)
class _Known:
    """Where the blocks of a namespace lie, as one version of the routing says."""

    version: tuple[int, ...]  # of the table of blocks, newest first
    newest: Placement
    older: list[Placement] = field(default_factory=list)
    failure: StatusError | None = None  # why an older version is missing


class KvCore:
    """Of one client of one cluster. Long because it is the list of what can be done with blocks."""

    def __init__(self, env: Environment, addresses: Sequence[str], options: Options) -> None:
        self.env = env
        self.options = options
        self.cluster = Cluster(env, addresses, options)
        self.registry = Registry(env.unregister)
        self.counters = Counters()
        self.listeners: list[Any] = []  # of what is stored and removed here (kvcache/events.py)
        self.closed = False
        self._counting = env.lock()
        self._entries: dict[int, KvNamespace] = {}  # as the manager answered, until the routing says more
        self._known: dict[int, _Known] = {}
        self._tables: dict[int, Placement] = {}  # version of the table -> placement
        self._look_due = 0.0
        self._ask_due = 0.0  # after a namespace that we do not know, no look at the routing before

    async def connect(self) -> None:
        """The first contact. Raises UNAVAILABLE, WRONG_CLUSTER, UNAUTHENTICATED."""
        await self.cluster.connect()

    def after_fork_in_child(self) -> None:
        """Nothing of the parent's connections, locks and shared memory is ours."""
        self.cluster.after_fork_in_child()
        self.registry.after_fork_in_child()
        self._counting = self.env.lock()
        self.listeners = []

    async def close(self) -> None:
        """Ends connections and registrations. Doing it twice is no harm."""
        if self.closed:
            return
        self.closed = True
        self.registry.close()
        closing = self.env.close()
        if closing is not None:
            await closing

    # --- namespaces -----------------------------------------------------------------------------------------------------------------

    async def namespace(self, spec: NamespaceSpec, *, ttl_s: int = 0, mode: int = MODE_DEFAULT) -> Namespace:
        """Register a namespace, or find it. `ttl_s` and `mode` count for who is first. Raises StatusError."""
        if not isinstance(spec, NamespaceSpec):
            raise TypeError(f"a namespace is described by a NamespaceSpec, not {type(spec).__name__}")
        if not 0 <= ttl_s <= TTL_SECONDS_MAX or not 0 <= mode <= 0o777:
            raise ValueError(f"ttl_s={ttl_s!r}, mode={mode:#o}: seconds from 0, permission bits")
        wanted = KvNamespace(
            descriptor=spec.descriptor,
            name=spec.name,
            tenant=spec.tenant,
            block_bytes=spec.object_bytes or 0,
            ttl_s=ttl_s,
            mode=mode,
        )
        request = PutNamespaceRequest(namespace=wanted, routing_version=self.cluster.table.version)
        reply = await self.cluster.meta(CLUSTER.PutNamespace, request)
        found = reply.namespace
        if found.digest != spec.digest:
            raise error(Status.PROTOCOL, f"namespace {found.id} has another digest than its descriptor")
        if reply.HasField("routing"):
            await self.cluster.learn(reply.routing)
        self._entries[found.id] = found
        return Namespace.from_message(found, spec)

    async def namespaces(self) -> list[Namespace]:
        """All that are registered."""
        await self.cluster.refresh()
        entries = sorted(self.cluster.table.namespaces.values(), key=lambda entry: entry.id)
        return [Namespace.from_message(entry, _spec_of(entry)) for entry in entries]

    async def drop(self, namespace: Namespace) -> None:
        """Forget a namespace: its blocks are gone at once for readers, their space comes back in the background. Raises StatusError."""
        placements = await self._everywhere(namespace)
        chains = sorted({chain for placement in placements for chain in placement.chains})
        await self.cluster.meta(CLUSTER.DropNamespace, DropNamespaceRequest(id=namespace.id))
        for chain in chains:
            with suppress(StatusError):  # a server that is away now hears that the namespace is gone
                replica, route = self.cluster.table.head(chain), self.cluster.table.route(chain)
                request = DeleteRequest(
                    namespace=namespace.id, chain=[chain], chain_version=[route.version], count=[0], everything=True
                )
                await self._ask(replica.node, KVCACHE.Delete, request)
        self._entries.pop(namespace.id, None)
        self._known.pop(namespace.id, None)
        await self.cluster.refresh()

    async def set_quota(
        self, tenant: str, bytes_max: int, *, users: Sequence[int] = (), groups: Sequence[int] = ()
    ) -> None:
        """How much all namespaces of a tenant may hold together; 0: as much as there is. Raises StatusError."""
        quota = TenantQuota(tenant=tenant, bytes=bytes_max, uids=users, gids=groups)
        await self.cluster.meta(CLUSTER.SetTenantQuota, SetTenantQuotaRequest(quota=quota))
        await self.cluster.refresh()

    # --- where blocks lie -----------------------------------------------------------------------------------------------------------

    async def _placements(self, namespace: Namespace) -> list[Placement]:
        """Where to look, newest first: older versions of the table only for a while. Raises StatusError."""
        known = await self._find(namespace)
        if known.older and self.env.wall_ns() // 1_000_000_000 - self._entry(namespace).changed_s < GRACE_SECONDS:
            return [known.newest, *known.older]
        return [known.newest]

    async def _everywhere(self, namespace: Namespace) -> list[Placement]:
        """Wherever blocks of it may ever have been put. Raises StatusError, also where only an older version of the table is missing."""
        known = await self._find(namespace)
        if known.failure is not None:
            raise error(Status.UNAVAILABLE, f"where blocks may lie is not known: {known.failure.strerror}")
        return [known.newest, *known.older]

    async def _find(self, namespace: Namespace) -> _Known:
        """Kept only if it is all. Raises StatusError without the newest version."""
        if not self.is_registered(namespace) and self.env.now() >= self._ask_due:
            self._ask_due = self.env.now() + self.options.scaled(UNKNOWN_SECONDS)
            await self.cluster.refresh()  # another client registered it
        entry = self._entry(namespace)
        version = (entry.table_version, *entry.older_versions)
        known = self._known.get(namespace.id)
        if known is None or known.version != version:
            known = _Known(version, await self._table(entry.table_version))
            if not known.newest.chains:
                raise error(Status.UNAVAILABLE, "no storage server has a target for blocks: 'emberfs up' makes them")
            for older in entry.older_versions:
                try:
                    placement = await self._table(older)
                except StatusError as failure:
                    known.failure = failure
                else:
                    known.older += [placement] if placement.chains else []
            if known.failure is None:
                self._known[namespace.id] = known
        return known

    def _entry(self, namespace: Namespace) -> KvNamespace:
        entry = self.cluster.table.namespaces.get(namespace.id)
        if entry is not None:
            self._entries.pop(namespace.id, None)  # from now on the routing says when it is gone
        else:
            entry = self._entries.get(namespace.id)
        if entry is None:
            raise error(Status.NOT_FOUND, f"namespace {namespace.id} ({namespace.name}) is not registered any more")
        return entry

    def is_registered(self, namespace: Namespace) -> bool:
        """As far as we know."""
        return namespace.id in self.cluster.table.namespaces or namespace.id in self._entries

    async def _table(self, version: int) -> Placement:
        """A version of the table of blocks. Versions never change. Raises STALE_ROUTING."""
        placement = self._tables.get(version)
        if placement is None:
            if (TABLE_OF_BLOCKS, version) not in self.cluster.table.tables:
                await self.cluster.refresh()
            placement = self._tables[version] = Placement(self.cluster.table.table(TABLE_OF_BLOCKS, version))
        return placement

    async def _carry_out(self, batch: Any, *, everywhere: bool = False) -> list[int]:
        """Run a batch; what hinders all of it is the status of all its keys."""
        self._look()
        try:
            find = self._everywhere if everywhere else self._placements
            return await batch.run(await find(batch.namespace))  # type: ignore[no-any-return]
        except StatusError as failure:
            batch.fail_all(failure)
            return batch.statuses  # type: ignore[no-any-return]

    def _look(self) -> None:
        """Now and then for news of the routing, in the background: nobody tells a client that a new table was made."""
        now = self.env.now()
        if now >= self._look_due:
            if self._look_due:
                self.cluster.refresh_soon()
            self._look_due = now + self.options.scaled(ROUTING_SECONDS)

    def _patience(self, deadline_ms: Deadline) -> Patience:
        return self.cluster.patience(None if deadline_ms is None else max(deadline_ms, 0.0) / 1000)

    # --- blocks ---------------------------------------------------------------------------------------------------------------------

    async def match(
        self,
        namespace: Namespace,
        keys: Any,
        *,
        trailing: int = 0,
        lease_ms: int = 0,
        deadline_ms: Deadline = None,
        stop: Stop | None = None,
    ) -> Match:
        """How much of a prefix is there."""
        batch = Lookup(
            self, namespace, packed(keys), self._patience(deadline_ms), stop or Stop(), lease_ms=_whole(lease_ms)
        )
        statuses = await self._carry_out(batch)
        lease = Lease(namespace, tuple(batch.leases)) if batch.leases else None
        return Match.of(statuses, trailing=trailing, lease=lease)

    async def get_into(
        self,
        namespace: Namespace,
        keys: Any,
        dsts: Any,
        *,
        ranges: Any = None,
        stop_on_miss: bool = False,
        verify: bool = True,
        deadline_ms: Deadline = None,
        stop: Stop | None = None,
    ) -> list[int]:
        """Blocks, or parts of them, into memory."""
        joined = packed(keys)
        count = len(joined) // KEY_BYTES
        places = places_of(dsts, count, self.registry, writable=True)
        offsets = None if ranges is None else _offsets(ranges, places.lengths)
        batch = Get(
            self,
            namespace,
            joined,
            self._patience(deadline_ms),
            stop or Stop(),
            places=places,
            offsets=offsets,
            verify=verify,
            stop_on_miss=stop_on_miss,
        )
        statuses = await self._carry_out(batch)
        async with self._counting:
            self.counters.got(statuses)
        return statuses

    async def put_from(
        self,
        namespace: Namespace,
        keys: Any,
        srcs: Any,
        *,
        depth: int | Sequence[int] = 0,
        ttl_s: int = 0,
        pin_s: int = 0,
        ack: str = "replicated",
        deadline_ms: Deadline = None,
        stop: Stop | None = None,
    ) -> list[int]:
        """Blocks out of memory."""
        joined = packed(keys)
        count = len(joined) // KEY_BYTES
        if ack not in ACKS:
            raise ValueError(f"ack={ack!r}: must be one of {', '.join(ACKS)}")
        batch = Put(
            self,
            namespace,
            joined,
            self._patience(deadline_ms),
            stop or Stop(),
            places=places_of(srcs, count, self.registry, writable=False),
            depths=_depths(depth, count),
            ttl_s=_whole(ttl_s),
            pin_s=_whole(pin_s),
            durable=ack == "durable",
        )
        statuses = await self._carry_out(batch)
        async with self._counting:
            self.counters.put(statuses, len(batch.stored), batch.existed)
        for listener in self.listeners:
            listener.stored(namespace, joined, batch.stored, batch.depths)
        return statuses

    async def get(self, namespace: Namespace, key: Any, *, deadline_ms: Deadline = None) -> bytes | None:
        """One block as bytes; None where it is not there, or did not come."""
        length = namespace.block_bytes
        if not length:
            found = (await self.match(namespace, [key], deadline_ms=deadline_ms)).statuses[0]
            if found <= 0:
                return None
            length = found
        data = bytearray(length)
        statuses = await self.get_into(namespace, [key], [data], deadline_ms=deadline_ms)
        return bytes(data) if statuses[0] == length else None

    async def touch(self, namespace: Namespace, keys: Any, *, deadline_ms: Deadline = None) -> list[int]:
        """As if they had been read: eviction takes others first."""
        return await self._touch(namespace, keys, TouchRequest.TOUCH, 0, deadline_ms)

    async def pin(
        self, namespace: Namespace, keys: Any, seconds: int | None, *, deadline_ms: Deadline = None
    ) -> list[int]:
        """Keep them from eviction for so long; None: until they are unpinned."""
        wanted = HARD_PIN if seconds is None else _whole(seconds)
        return await self._touch(namespace, keys, TouchRequest.PIN, wanted, deadline_ms)

    async def unpin(self, namespace: Namespace, keys: Any, *, deadline_ms: Deadline = None) -> list[int]:
        return await self._touch(namespace, keys, TouchRequest.UNPIN, 0, deadline_ms)

    async def set_ttl(
        self, namespace: Namespace, keys: Any, seconds: int, *, deadline_ms: Deadline = None
    ) -> list[int]:
        """How long they live from now on; 0: until they are evicted."""
        return await self._touch(namespace, keys, TouchRequest.TTL, _whole(seconds), deadline_ms)

    async def prefetch(self, namespace: Namespace, keys: Any, *, deadline_ms: Deadline = None) -> list[int]:
        """Have the servers read them into memory, in the background."""
        return await self._touch(namespace, keys, TouchRequest.PREFETCH, 0, deadline_ms)

    async def _touch(
        self, namespace: Namespace, keys: Any, action: TouchRequest.Action, seconds: int, deadline_ms: Deadline
    ) -> list[int]:
        patience = self._patience(deadline_ms)
        return await self._carry_out(
            Touch(self, namespace, packed(keys), patience, action=action, seconds_wanted=seconds)
        )

    async def delete(self, namespace: Namespace, keys: Any, *, deadline_ms: Deadline = None) -> list[int]:
        """Delete blocks, wherever they were ever placed."""
        batch = Delete(self, namespace, packed(keys), self._patience(deadline_ms))
        statuses = await self._carry_out(batch, everywhere=True)
        for listener in self.listeners:
            listener.removed(namespace, batch.keys, [row for row, code in enumerate(statuses) if not code])
        return statuses

    # --- leases ---------------------------------------------------------------------------------------------------------------------

    async def renew(self, lease: Lease, lease_ms: int) -> bool:
        """Whether all of it holds for so long from now on."""
        return await self._tell(lease, TouchRequest.RENEW, _whole(lease_ms))

    async def release(self, lease: Lease) -> None:
        """Give it back; it ends by itself otherwise."""
        await self._tell(lease, TouchRequest.RELEASE, 0)

    async def _tell(self, lease: Lease, action: TouchRequest.Action, lease_ms: int) -> bool:
        holds = True
        for node, number in lease.parts:
            request = TouchRequest(namespace=lease.namespace.id, action=action, lease=number, lease_ms=lease_ms)
            try:
                reply = await self._ask(node, KVCACHE.Touch, request)
                holds = holds and not any(reply.status)
            except StatusError:
                holds = False  # whoever granted it is gone, and with it the lease
        return holds

    # --- looking ----------------------------------------------------------------------------------------------------------------------

    async def chains_of(self, namespace: Namespace) -> list[int]:
        """The chains that may have blocks of it."""
        return list(dict.fromkeys(c for placement in await self._everywhere(namespace) for c in placement.chains))

    async def list_page(self, namespace: Namespace, chain: int, after: bytes) -> tuple[list[BlockInfo], bytes | None]:
        """A page of a chain's blocks behind a key, and where the next one begins (None: there is none)."""
        patience = self._patience(None)
        while True:
            try:
                head, route = self.cluster.table.head(chain), self.cluster.table.route(chain)
                request = ListBlocksRequest(
                    namespace=namespace.id,
                    chain=chain,
                    chain_version=route.version,
                    after=after,
                    blocks_max=LIST_BLOCKS,
                )
                reply = await self._ask(head.node, KVCACHE.ListBlocks, request)
                self.cluster.learn_chains(reply.chains)
                if (
                    reply.more and not reply.keys
                ):  # no page: the server knows another version of the chain, newer or not yet ours
                    raise error(Status.STALE_CHAIN_VERSION, f"chain {chain} is being changed")
            except StatusError as failure:
                await patience.again(failure)
                await self.cluster.recover(failure)
                continue
            blocks = BlockInfo.of(reply, namespace.block_bytes)
            return blocks, blocks[-1].key if reply.more and blocks else None

    async def block_events(self, namespace: Namespace, seen: dict[int, int]) -> tuple[list[BlockEvent], bool]:
        """What came and went since the last time, whoever did it, in the order of each server; and whether some events are lost. `seen`: by
        storage node, the number of the last event; empty at first: from now on."""
        found: list[BlockEvent] = []
        heads = {route.serving[0].node for route in map(self._route, await self.chains_of(namespace)) if route.serving}
        lost = bool(seen) and not heads <= seen.keys()  # a server that leads since a moment ago
        for node in sorted(heads):
            request = BlockEventsRequest(namespace=namespace.id, after=seen.get(node, 0))
            try:
                reply = await self._ask(node, KVCACHE.BlockEvents, request)
            except StatusError as failure:
                self.cluster.refresh_soon([failure])
                seen.setdefault(node, 1)  # what is missed until it answers is lost
                continue
            seen[node] = reply.last
            lost = lost or reply.lost
            found += BlockEvent.of(reply)
        return found, lost

    def _route(self, chain: int) -> Route:
        return self.cluster.table.route(chain)

    async def usage(self) -> Usage:
        """What the storage servers hold and have done since they were started, all together. Those that do not answer are left out."""
        await self.cluster.refresh()
        table = self.cluster.table
        chains = {chain for (number, _), found in table.tables.items() if number == TABLE_OF_BLOCKS for chain in found}
        nodes = sorted({m.node for chain in chains if chain in table.chains for m in table.chains[chain].members})
        replies: list[UsageReply] = []
        for node in nodes:
            with suppress(StatusError):
                replies.append(await self._ask(node, KVCACHE.Usage, UsageRequest()))
        return usage_of(replies, table.namespaces, table.quotas, len(nodes))

    async def _ask(self, node: int, method: Any, request: Any) -> Any:
        """One request to a storage server, once."""
        timeout = self.cluster.attempt_seconds
        try:
            return await self.env.call(Call(self.cluster.node_address(node), method, request, timeout))
        except StatusError as failure:
            self.cluster.note(failure, node)
            raise


def _spec_of(entry: KvNamespace) -> NamespaceSpec | None:
    try:
        return NamespaceSpec.of(entry.descriptor)
    except (ValueError, TypeError):
        return None


def _whole(number: int) -> int:
    if not 0 <= number <= TTL_SECONDS_MAX:
        raise ValueError(f"{number!r}: must be 0 to {TTL_SECONDS_MAX}")
    return int(number)


def _depths(depth: int | Sequence[int], count: int) -> Sequence[int]:
    depths = range(depth, depth + count) if isinstance(depth, int) else [int(one) for one in depth]
    if len(depths) != count or (count and not 0 <= min(depths) <= max(depths) <= DEPTH_MAX):
        raise ValueError(f"depth={depth!r}: one number of blocks, or one for each of {count} keys")
    return depths


def _offsets(ranges: Any, lengths: Sequence[int]) -> list[int]:
    """Where the wanted parts begin. `ranges`: (offset, length) of each key, or one for all."""
    rows = [ranges] * len(lengths) if isinstance(ranges, tuple) else list(ranges)
    if len(rows) != len(lengths):
        raise ValueError(f"{len(rows)} ranges for {len(lengths)} keys")
    for (offset, length), memory in zip(rows, lengths, strict=True):
        if offset < 0 or length != memory:
            raise ValueError(f"a range of {length} bytes at {offset} for a buffer of {memory} bytes")
    return [int(offset) for offset, _ in rows]
