"""Eviction: keeps a target's blocks below its watermarks and tenants below their quotas, and takes away what is over.

All of it happens in the background, in batches of removes, at the head of the chain. Slots come back with the next checkpoint, so
watermarks leave room for what is put in between (watermarks.py); which blocks go is said by the policy (policy.py). A put that finds
no room is told to come back (WOULD_BLOCK): what was acknowledged is lost by eviction alone, never to make room for a put at once.

A quota is the tenant's in the whole cluster; keys are spread evenly, so every chain of the table of blocks has an equal share of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from ...proto.blocks import TABLE_OF_BLOCKS
from ...proto.env import Environment, Promise
from ...proto.errors import Status
from ...proto.routing import RoutingTable
from ...proto.settings import time_scale
from ..engine.slots import CLASS_BYTES
from .directory import OVER_MAX
from .policy import Policy
from .watermarks import Watermarks

if TYPE_CHECKING:
    from .store import Store

TICK_SECONDS = 1.0  # between looks at what is over; scaled
PINNED_PART = 2  # pins take at most half of a target, and half of a share where the tenant has a quota: what is pinned never makes room
PINS_SECONDS = 1.0  # between two looks for pins that are over, while the limit is met
DROPPED_SECONDS = 60.0  # that a namespace has been missing in the routing until its blocks go; scaled
QUOTA_PART = (
    32  # of a quota's share: above share - share/32 the tenant's own blocks are evicted down to share - share/16
)

_OK = Status.OK


class Tenants:
    """Numbers for tenants, the same for all targets of the process. Number 0 has what no known namespace has. A tenant that has neither a
    namespace nor a quota is forgotten, its number is not used again."""

    def __init__(self, routing: RoutingTable) -> None:
        self._routing = routing
        self._numbers: dict[str, int] = {}
        self._given = 0  # the last number
        self.of_namespace: dict[int, int] = {}
        self.shares: dict[int, int] = {}  # tenant -> bytes of its quota for one chain

    def refresh(self) -> None:
        """The routing was changed."""
        routing = self._routing
        known = {namespace.tenant for namespace in routing.namespaces.values()} | routing.quotas.keys()
        self._numbers = {tenant: number for tenant, number in self._numbers.items() if tenant in known}
        self.of_namespace = {each.id: self.number(each.tenant) for each in routing.namespaces.values()}
        version = routing.table_versions.get(TABLE_OF_BLOCKS, 0)
        chains = max(1, len(routing.tables.get((TABLE_OF_BLOCKS, version), ())))
        self.shares = {self.number(tenant): max(1, quota // chains) for tenant, quota in routing.quotas.items()}

    def number(self, tenant: str) -> int:
        number = self._numbers.get(tenant)
        if number is None:
            self._given = number = self._numbers[tenant] = self._given + 1
        return number

    @property
    def names(self) -> Mapping[str, int]:
        return self._numbers


class Evictor:
    """Of one target: follows its directory, and says whether there is room."""

    def __init__(self, store: Store, tenants: Tenants, routing: RoutingTable, env: Environment, log: Any) -> None:
        self._store = store
        self._tenants = tenants
        self._routing = routing
        self._env = env
        self._log = log
        self._space = store.target.engine.space
        self.policy = Policy(self._space.limit_new)
        self._watermarks = Watermarks(self._space.limit_new)
        self._tenant_of: dict[int, int] = {}  # namespace -> tenant, as the policy was told
        self._coming: dict[int, int] = {}  # tenant -> bytes that are being written
        self._pins_looked = float("-inf")  # when pins that are over were looked for
        self._missing: dict[int, float] = {}  # namespaces that the routing does not have, and since when
        self._working = False
        self._done: Promise[None] | None = None  # told when the work that is under way is over
        self._stuck: set[int | None] = set()  # of what nothing more can be evicted: a tenant, None: the target
        directory = store.directory
        for _, blocks in groupby(directory.oldest_first(), directory.namespace.__getitem__):
            self.inserted(list(blocks))
        directory.followers.append(self)

    # --- what the directory tells ---

    def inserted(self, blocks: Sequence[int]) -> None:
        directory = self._store.directory
        keys, place, depth = directory.keys, directory.place, directory.depth
        sizes = [CLASS_BYTES[place[block] >> 48] for block in blocks]
        tenant = self._tenant(directory.namespace[blocks[0]])
        self.policy.inserted_many(
            blocks, [keys[block] for block in blocks], sizes, [depth[block] for block in blocks], tenant
        )

    def _tenant(self, namespace: int) -> int:
        tenant = self._tenant_of.get(namespace)
        if tenant is None:
            tenant = self._tenant_of[namespace] = self._tenants.of_namespace.get(namespace, 0)
        return tenant

    def removed(self, block: int) -> None:
        self.policy.removed(block)
        self._stuck.clear()

    def routing_changed(self) -> None:
        """A namespace that was not known has a tenant now."""
        directory = self._store.directory
        self._stuck.clear()
        for namespace, was in self._tenant_of.items():
            tenant = self._tenants.of_namespace.get(namespace, 0)
            if tenant == was or not tenant:
                continue
            self._tenant_of[namespace] = tenant
            for slot in directory.shelf(namespace).slots.values():
                self.policy.removed(slot)
                self.inserted((slot,))

    # --- is there room ---

    def admit(self, namespace: int, size: int, ahead: int) -> Status:
        """Whether a block whose slot takes `size` bytes may be put, behind others of the same request that take `ahead`."""
        tenant = self._tenants.of_namespace.get(namespace, 0)
        share = self._tenants.shares.get(tenant, 0)
        if share and self.policy.bytes_of(tenant) + self._coming.get(tenant, 0) + ahead + size > share:
            self.wake()
            return Status.QUOTA_EXCEEDED if size > share or tenant in self._stuck else Status.WOULD_BLOCK
        limit = self._space.limit_new
        if self._space.used_bytes + ahead + size > limit:
            self.wake()
            return Status.NO_SPACE if size > limit or None in self._stuck else Status.WOULD_BLOCK
        return _OK

    def may_pin(self, namespace: int, size: int) -> Status:
        """Whether blocks whose slots take `size` bytes together may be pinned."""
        if self._pins_fit(namespace, size):
            return _OK
        now = self._env.now()
        if now >= self._pins_looked + PINS_SECONDS:
            self._pins_looked = now
            self._store.directory.forget_pins(self._env.wall_ns() / 1e9)
        return _OK if self._pins_fit(namespace, size) else Status.QUOTA_EXCEEDED

    def _pins_fit(self, namespace: int, size: int) -> bool:
        pinned, of_namespace = self._store.directory.pinned, self._tenants.of_namespace
        if sum(pinned.values()) + size > self._space.capacity // PINNED_PART:
            return False
        tenant = of_namespace.get(namespace, 0)
        share = self._tenants.shares.get(tenant, 0)
        mine = [there for number, there in pinned.items() if of_namespace.get(number, 0) == tenant] if share else []
        return not share or sum(mine) + size <= share // PINNED_PART

    def tenant_of(self, namespace: int) -> int:
        return self._tenants.of_namespace.get(namespace, 0)

    def expect(self, tenant: int, size: int) -> None:
        """So many bytes of slots are being written; negative: they were, or will not be."""
        coming = self._coming.get(tenant, 0) + size
        if coming > 0:
            self._coming[tenant] = coming
        else:
            self._coming.pop(tenant, None)

    def look(self) -> None:
        """Blocks were put: perhaps others have to go."""
        space = self._space
        if not self._working and self._watermarks.excess(space.used_bytes, space.retired_bytes):
            self.wake()

    def wake(self) -> None:
        """Evict what is too much, in the background."""
        if not self._working and self._store.is_head and not self._store.target.engine.failed:
            self._working = True
            self._env.spawn(self._work, "eviction")

    # --- the work ---

    async def keep(self) -> None:
        """Background: what time alone brings."""
        engine = self._store.target.engine
        while not engine.failed:
            await self._env.sleep(TICK_SECONDS * time_scale())
            now = self._env.now()
            self._store.leases.expire(now)
            self._stuck.clear()
            if self._store.tier.is_over:
                self._store.trim()
            if self._store.is_head and not self._working:
                self._working = True
                await self._work()

    async def _work(self) -> None:
        try:
            await self._expire()
            await self._drop_namespaces()
            for tenant, share in self._tenants.shares.items():
                await self._hold_quota(tenant, share)
            await self._make_room()
        except Exception as bug:
            self._log.error("eviction failed", target=self._store.target.id, exc_info=bug)
        finally:
            self._working = False
            if self._done is not None:
                self._done.set(None)
                self._done = None

    async def settle(self) -> None:
        """Do what there is to do now, and wait for it."""
        if self._working:
            self._done = self._done or self._env.promise()
            await self._done
        if not self._working:
            self._working = True
            await self._work()

    async def _make_room(self) -> None:
        space, target = self._space, self._store.target
        while (excess := self._watermarks.excess(space.used_bytes, space.retired_bytes)) > 0:
            if not await self._evict(excess, None):
                break
            await self._env.sleep(0)  # others have their turn
        if space.retired_bytes and space.used_bytes > self._watermarks.high and not target.engine.failed:
            await target.checkpoint()

    async def _hold_quota(self, tenant: int, share: int) -> None:
        if self.policy.bytes_of(tenant) <= share - share // QUOTA_PART:
            return
        low = share - 2 * (share // QUOTA_PART)
        while (excess := self.policy.bytes_of(tenant) - low) > 0:
            if not await self._evict(excess, tenant):
                return
            await self._env.sleep(0)

    async def _evict(self, size: int, tenant: int | None) -> bool:
        """One batch. Whether anything went."""
        store, directory = self._store, self._store.directory
        now, wall = self._env.now(), self._env.wall_ns() / 1e9
        store.leases.expire(now)

        def protected(slot: int) -> bool:
            return store.is_protected(slot, now, wall)

        victims = self.policy.victims(size, protected, tenant)
        namespaces = [directory.namespace[slot] for slot in victims]
        went = 0
        for namespace, status in zip(namespaces, await store.remove(victims, quiet=True), strict=True):
            if status is _OK:
                directory.shelf(namespace).evictions += 1
                went += 1
        if not went:
            self._stuck.add(tenant)
        return went > 0

    async def _expire(self) -> None:
        while await self._expire_some() == OVER_MAX:
            await self._env.sleep(0)

    async def _expire_some(self) -> int:
        """How many were found: there may be more."""
        store, directory = self._store, self._store.directory
        wall = self._env.wall_ns() / 1e9
        due = directory.over(wall)
        held = [slot for slot in due if store.is_leased(slot, self._env.now())]
        if held:
            directory.not_yet(held, wall)
        going = [slot for slot in due if slot not in set(held)]
        namespaces = [directory.namespace[slot] for slot in going]
        statuses = await store.remove(going, quiet=True)
        for namespace, status in zip(namespaces, statuses, strict=True):
            directory.shelf(namespace).expired += status is _OK
        left = [slot for slot, status in zip(going, statuses, strict=True) if status is not _OK]
        if left:
            directory.not_yet(left, wall)
        return len(due)

    async def _drop_namespaces(self) -> None:
        """Blocks of namespaces that the manager has dropped. One that is missing may be news that has not come yet."""
        known, now = self._routing.namespaces, self._env.now()
        if not self._routing.version:
            return
        for namespace, shelf in list(self._store.directory.shelves.items()):
            if namespace in known:
                self._missing.pop(namespace, None)
                continue
            since = self._missing.setdefault(namespace, now)
            if now - since < DROPPED_SECONDS * time_scale():
                continue
            if shelf.slots:
                self._log.info("blocks of a dropped namespace go", namespace=namespace, blocks=len(shelf.slots))
                await self._store.empty(namespace)
            elif not shelf.leaving and all(number != namespace for number, _ in self._store.reserved):
                del self._store.directory.shelves[namespace]
                del self._missing[namespace]
                self._tenant_of.pop(namespace, None)
