"""The KvCache service: blocks of attention state over the targets of this process.

One request names one namespace and runs of keys, a run for each chain. What concerns a run (a stale chain version, a target that is
out) is the status of its keys, what concerns the request is raised. Matches and gets are answered by any member that serves; puts, deletes,
touches and whatever takes a lease by the head of the chain, which evicts.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from ...proto.blocks import TABLE_OF_BLOCKS
from ...proto.env import Environment, Promise
from ...proto.errors import Status, StatusError, error
from ...proto.gen.cluster_pb2 import KvNamespace
from ...proto.gen.kvcache_pb2 import (
    BlockEventsReply,
    BlockEventsRequest,
    DeleteReply,
    DeleteRequest,
    GetReply,
    GetRequest,
    ListBlocksReply,
    ListBlocksRequest,
    MatchReply,
    MatchRequest,
    PutReply,
    PutRequest,
    TouchReply,
    TouchRequest,
    UsageReply,
    UsageRequest,
)
from ...proto.routing import RoutingTable
from ...proto.rpc import KVCACHE, Context
from ..service import StorageService
from ..target import Target
from .evictor import Tenants
from .feed import Feed
from .gets import Get
from .leases import LEASE_MS_MAX, new_lease
from .listing import Listings
from .puts import Puts
from .requests import READ, WRITE, Run, Runs, keys_of, need_rights, runs_of
from .store import Store
from .touches import Touches

LIST_BLOCKS_MAX = 4096  # of one page
REFRESH_SECONDS = 1.0  # between two questions to the manager for a namespace that seems to be dropped
NEWS_SECONDS = 0.01  # and for one that seems to be new

_OK = Status.OK


class KvCacheService:
    """Handlers of proto.rpc.KVCACHE. `storage` knows the targets; `refresh` asks the manager for newer routing;
    `memory` is how many bytes of the page cache blocks may take, 0: any number."""

    spec = KVCACHE

    def __init__(
        self,
        routing: RoutingTable,
        storage: StorageService,
        env: Environment,
        log: Any,
        refresh: Callable[[], Awaitable[Any]] | None = None,
        memory: int = 0,
    ) -> None:
        self._routing = routing
        self._storage = storage
        self._env = env
        self._log = log
        self._refresh = refresh
        self._memory = memory
        self.observers: dict[str, Callable[[float], None]] = {}  # by method: told how many seconds a request took
        self._asked = float("-inf")  # when the manager has answered last
        self._answer: Promise[None] | None = None  # of the manager, which was asked
        self._stores: dict[int, Store] = {}  # by id() of the target
        self._tenants = Tenants(routing)
        self._puts = Puts(env)
        self._feed = Feed(env)
        self._listings = Listings(env)
        self._touches = Touches(env)
        storage.watchers.append(self.routing_changed)
        self.routing_changed()

    # --- which target, which namespace ---

    @property
    def stores(self) -> list[Store]:
        """Of all targets that hold blocks, or may."""
        return list(self._stores.values())

    def store(self, target: Target) -> Store:
        store = self._stores.get(id(target))
        if store is None or store.target is not target:
            store = Store(target, self._tenants, self._routing, self._env, self._log)
            self._stores[id(target)] = store
        return store

    def _runs(self, request: Any, allowed: Callable[[Store, int], Status]) -> Runs:
        """Each run with its store, or with why it is refused."""
        found: list[tuple[Run, Store | Status]] = []
        for run in runs_of(request):
            store = self._store_of(run.chain)
            if store is None:
                found.append((run, Status.STALE_ROUTING))
                continue
            status = allowed(store, run.version)
            found.append((run, store if status is _OK else status))
        return found

    def _store_of(self, chain: int) -> Store | None:
        """Where we are a member of a chain of blocks, not of files."""
        target = self._storage.member(chain)
        return self.store(target) if target is not None and _is_for_blocks(target) else None

    async def _namespace(self, number: int, context: Context, wanted: int) -> KvNamespace:
        """Raises NOT_FOUND, PERMISSION_DENIED."""
        namespace = self._routing.namespaces.get(number)
        if namespace is None:
            namespace = await self._look_again(number)
        need_rights(context.peer, namespace, wanted)
        return namespace

    async def _look_again(self, number: int) -> KvNamespace:
        """It may have been registered a moment ago. Numbers only rise, so one below others that are known was dropped, probably."""
        namespaces = self._routing.namespaces
        is_new = number > max(namespaces, default=0)
        if self._refresh is not None:
            await self._ask_manager(NEWS_SECONDS if is_new else REFRESH_SECONDS)
        namespace = self._routing.namespaces.get(number)
        if namespace is None:
            raise error(Status.NOT_FOUND, f"there is no namespace {number}; it may have been dropped")
        return namespace

    async def _ask_manager(self, seconds: float) -> None:
        """For newer routing, unless that was asked for within so many seconds. Who comes meanwhile waits for the same answer."""
        assert self._refresh is not None
        if self._answer is not None:
            await self._answer
            return
        if self._env.now() < self._asked + seconds:
            return
        self._answer = self._env.promise()
        try:
            await self._refresh()
        except StatusError as failed:
            self._log.info("cannot ask the manager for namespaces", error=failed.strerror)
        finally:
            self._asked = self._env.now()
            self._answer.set(None)
            self._answer = None

    def _newer(self, runs: Iterable[tuple[Run, Store | Status]]) -> list[Any]:
        """The chains' entries that go with refusals for a stale version."""
        stale = [run.chain for run, store in runs if store is Status.STALE_CHAIN_VERSION]
        return self._storage.newer([Status.STALE_CHAIN_VERSION] * len(stale), stale) if stale else []

    def _wall(self) -> float:
        return self._env.wall_ns() / 1e9

    def _observe(self, method: str, began: float) -> None:
        if (tell := self.observers.get(method)) is not None:
            tell(self._env.now() - began)

    # --- reads ---

    def routing_changed(self) -> None:
        """Namespaces, quotas, targets or chains may be others now."""
        self._tenants.refresh()
        hosted = {id(target) for target in self._storage.targets}
        self._stores = {number: store for number, store in self._stores.items() if number in hosted}
        for target in self._storage.targets:
            if _is_for_blocks(target):
                self.store(target).evictor.routing_changed()
        for store in self._stores.values():
            store.tier.budget = self._memory // len(self._stores)

    # --- reads ---

    async def match(self, request: MatchRequest, context: Context) -> MatchReply:
        began = self._env.now()
        namespace = await self._namespace(request.namespace, context, READ)
        leased = min(request.lease_ms, LEASE_MS_MAX) / 1000
        runs = self._runs(request, Store.may_change if leased else Store.may_read)
        keys = keys_of(request.keys)
        present, lengths = bytearray(len(keys)), [0] * len(keys)
        now, lease = self._wall(), new_lease() if leased else 0
        held: list[Store] = []
        for run, store in runs:
            if not isinstance(store, Store):
                continue
            directory = store.directory
            found = directory.find(directory.shelf(namespace.id), keys[run.begin : run.end], now)
            present[run.begin : run.end] = bytes([slot >= 0 for slot in found])
            if not namespace.block_bytes:
                length = directory.length
                lengths[run.begin : run.end] = [length[slot] if slot >= 0 else 0 for slot in found]
            if leased:
                blocks = [(slot, directory.generation[slot]) for slot in found if slot >= 0]
                if blocks:
                    held.append(store)
                    leases, until = store.leases, self._env.now() + leased
                    if not leases.take(lease, blocks, until, leases.holder(context.peer)):
                        # Half a lease would be none: it is an answer without one, which is better than no answer.
                        for other in held:
                            other.leases.release(lease)
                        held, leased = [], 0
        reply = MatchReply(present=bytes(present), lease=lease if held else 0, chains=self._newer(runs))
        if not namespace.block_bytes:
            reply.length.extend(lengths)
        if any(not isinstance(store, Store) for _, store in runs):
            reply.run_status.extend([0 if isinstance(store, Store) else int(store) for _, store in runs])
        self._observe("match", began)
        return reply

    async def get(self, request: GetRequest, context: Context) -> GetReply:
        began = self._env.now()
        namespace = await self._namespace(request.namespace, context, READ)
        runs = self._runs(request, Store.may_read)
        reply = await Get(request, context, namespace, runs, self._wall()).answer()
        reply.chains.extend(self._newer(runs))
        self._observe("get", began)
        return reply

    # --- changes ---

    async def put(self, request: PutRequest, context: Context) -> PutReply:
        began = self._env.now()
        namespace = await self._namespace(request.namespace, context, WRITE)
        runs = self._runs(request, Store.may_change)
        reply = await self._puts.put(request, context, namespace, runs)
        reply.chains.extend(self._newer(runs))
        self._observe("put", began)
        return reply

    async def touch(self, request: TouchRequest, context: Context) -> TouchReply:
        actions = TouchRequest.Action
        reads = (actions.TOUCH, actions.PREFETCH, actions.RENEW, actions.RELEASE)
        namespace = await self._namespace(request.namespace, context, READ if request.action in reads else WRITE)
        if request.action in (actions.RENEW, actions.RELEASE):
            return TouchReply(status=self._touches.lease(self.stores, request))
        anywhere = request.action in (actions.TOUCH, actions.PREFETCH)
        runs = self._runs(request, Store.may_read if anywhere else Store.may_change)
        statuses = await self._touches.touch(request, namespace, runs)
        return TouchReply(status=statuses if any(statuses) else (), chains=self._newer(runs))

    async def delete(self, request: DeleteRequest, context: Context) -> DeleteReply:
        namespace = await self._namespace(request.namespace, context, WRITE)
        runs = self._runs(request, Store.may_change)
        keys, now, wall = keys_of(request.keys), self._env.now(), self._wall()
        statuses = [0] * (len(runs) if request.everything else len(keys))
        for number, (run, store) in enumerate(runs):
            places = [number] if request.everything else range(run.begin, run.end)
            if not isinstance(store, Store):
                for place in places:
                    statuses[place] = int(store)
            elif request.everything:
                store.drop(namespace.id)
            else:
                await self._delete(store, namespace, keys, places, statuses, now, wall)
        return DeleteReply(status=statuses if any(statuses) else (), chains=self._newer(runs))

    @staticmethod
    async def _delete(
        store: Store,
        namespace: KvNamespace,
        keys: Sequence[bytes],
        places: Iterable[int],
        statuses: list[int],
        now: float,
        wall: float,
    ) -> None:
        find = store.directory.shelf(namespace.id).slots.get
        slots: dict[int, int] = {}
        for place in places:
            slot = find(keys[place], -1)
            if slot < 0:
                statuses[place] = int(Status.NOT_FOUND)
            elif store.is_leased(slot, now):
                statuses[place] = int(Status.BUSY_RESOURCE)
            else:
                slots.setdefault(slot, place)
        for place, status in zip(slots.values(), await store.remove(list(slots)), strict=True):
            statuses[place] = int(status)

    # --- what there is ---

    async def list_blocks(self, request: ListBlocksRequest, context: Context) -> ListBlocksReply:
        namespace = await self._namespace(request.namespace, context, READ)
        store = self._store_of(request.chain)
        if store is None:
            raise error(Status.STALE_ROUTING, f"chain {request.chain} is no chain of blocks with a member here")
        status = store.may_read(request.chain_version)
        if status is Status.STALE_CHAIN_VERSION:
            return ListBlocksReply(more=True, chains=self._storage.newer((status,), (request.chain,)))
        if status is not _OK:
            raise error(status, f"chain {request.chain}: {status.name}")
        directory = store.directory
        limit = min(request.blocks_max or LIST_BLOCKS_MAX, LIST_BLOCKS_MAX)
        name, after = (context.peer.client, namespace.id, request.chain), request.after
        found: list[tuple[bytes, int]] = []
        more = True
        while more and not found:  # all of a page may have gone meanwhile
            page = await self._listings.page(
                name, after, limit + 1, directory.shelf(namespace.id), store.target.blocking
            )
            more = len(page) > limit
            slots_of = directory.shelf(namespace.id).slots
            found = [(key, slot) for key in page[:limit] if (slot := slots_of.get(key, -1)) >= 0]
            after = page[limit - 1] if more else b""
        now = self._wall()
        slots = [slot for _, slot in found]
        return ListBlocksReply(
            keys=b"".join([key for key, _ in found]),
            length=[directory.length[slot] for slot in slots],
            generation=[directory.generation[slot] for slot in slots],
            depth=[directory.depth[slot] for slot in slots],
            ttl_s=[max(1, int(directory.expiry[slot] - now)) if directory.expiry[slot] else 0 for slot in slots],
            pinned=[directory.is_pinned(slot, now) for slot in slots],
            more=more,
        )

    async def block_events(self, request: BlockEventsRequest, context: Context) -> BlockEventsReply:
        namespace = await self._namespace(request.namespace, context, READ)
        return self._feed.answer(namespace.id, request.after, self.stores)

    async def usage(self, request: UsageRequest, context: Context) -> UsageReply:
        """Of the namespaces that the peer may read."""
        reply = UsageReply()
        reply.capacity, reply.used = self.space
        reply.memory_used, reply.memory_budget = self.memory
        for number, row in sorted(self._rows().items()):
            if self._may_see(number, context):
                reply.namespace.append(number)
                for name, value in row.items():
                    getattr(reply, name).append(value)
        return reply

    @property
    def space(self) -> tuple[int, int]:
        """Bytes of the targets for blocks, and of the slots in use there."""
        infos = [store.target.engine.space_info() for store in self.stores]
        return sum([info.capacity for info in infos]), sum([info.used - info.reclaimable for info in infos])

    @property
    def memory(self) -> tuple[int, int]:
        """Bytes of blocks in memory, and how many there may be."""
        return sum([store.tier.used for store in self.stores]), self._memory

    def rows(self) -> list[tuple[tuple[str, str], dict[str, int]]]:
        """What there is and was done, by namespace and tenant."""
        known = self._routing.namespaces
        return [
            ((known[number].name or str(number), known[number].tenant), row)
            for number, row in self._rows().items()
            if number in known
        ]

    def _rows(self) -> dict[int, dict[str, int]]:
        rows: dict[int, dict[str, int]] = {}
        now = self._wall()
        for store in self.stores:
            pinned = store.directory.pinned_bytes(now)
            for number, shelf in store.directory.shelves.items():
                row = rows.setdefault(number, dict.fromkeys(USAGE, 0))
                row["blocks"] += len(shelf.slots)
                row["bytes"] += shelf.bytes_here
                row["pinned_bytes"] += pinned.get(number, 0)
                for name in USAGE[3:]:
                    row[name] += getattr(shelf, name)
        return rows

    def _may_see(self, number: int, context: Context) -> bool:
        namespace = self._routing.namespaces.get(number)
        if namespace is None:
            return context.peer.identity.trusted
        try:
            need_rights(context.peer, namespace, READ)
        except StatusError:
            return False
        return True


USAGE = (
    "blocks",
    "bytes",
    "pinned_bytes",
    "hits",
    "misses",
    "puts",
    "puts_existing",
    "puts_refused",
    "evictions",
    "expired",
    "bytes_read",
    "bytes_written",
)


def _is_for_blocks(target: Target) -> bool:
    return target.table == TABLE_OF_BLOCKS or len(target.directory) > 0
