"""Routing as its consumers see it: nodes, targets, chains and chain tables, and the pure choice of a replica.

The manager publishes the whole routing once and what changed afterwards; a `RoutingTable` applies both. It is plain data
without I/O: the client, the storage servers and the metadata server's own storage access each keep one.

Threads: one applier at a time (the keeper, or whoever holds the client's lock); readers need no lock, because a delta replaces
single dictionary entries and a full routing replaces whole dictionaries. A reader may therefore see a chain that is newer than its
node; that is what STALE_CHAIN_VERSION and a retry are for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .capability import VALID_EPOCHS
from .errors import Status, error
from .gen.cluster_pb2 import ChainTable, KvNamespace, Node, Routing, Target
from .gen.common_pb2 import TARGET_STATE_SERVING, TARGET_STATE_SYNCING, Chain

UNIX = "unix:"


class Replica(NamedTuple):
    """One member of a chain: which target, in which node's process."""

    target: int
    node: int


class Route(NamedTuple):
    """A chain, digested once per version for hot paths."""

    chain: int
    version: int
    serving: tuple[Replica, ...]  # in the order of forwarding: the first is the head, the last the tail
    receiving: tuple[Replica, ...]  # what a write runs through: SERVING, then the SYNCING one
    several: bool  # it has more members than one: another may take over what one does now
    losses: int = 0  # see `Chain`: what was acknowledged under less and not synced may be missing


@dataclass(frozen=True, slots=True)
class Change:
    """What one `apply` changed, by id. Empty (and false) when the message was old news."""

    nodes: frozenset[int] = frozenset()
    targets: frozenset[int] = frozenset()
    chains: frozenset[int] = frozenset()
    tables: frozenset[int] = frozenset()
    ended_clients: frozenset[bytes] = frozenset()
    namespaces: frozenset[int] = frozenset()  # of the KV cache, dropped ones included
    tenants: frozenset[str] = frozenset()  # whose quotas
    full: bool = False
    any: bool = False

    def __bool__(self) -> bool:
        return self.any


NOTHING = Change()


def route_of(chain: Chain) -> Route:
    """Digest a chain entry."""
    serving = tuple(Replica(m.target, m.node) for m in chain.members if m.state == TARGET_STATE_SERVING)
    syncing = tuple(Replica(m.target, m.node) for m in chain.members if m.state == TARGET_STATE_SYNCING)
    return Route(chain.id, chain.version, serving, serving + syncing[:1], len(chain.members) > 1, chain.losses)


def choose_replica(
    replicas: Sequence[Replica],
    *,
    local: Collection[int] = (),
    near: Collection[int] = (),
    load: Mapping[int, int] | None = None,
    avoid: Collection[int] = (),
    first: int = 0,
) -> Replica:
    """The replica to read from: not one in `avoid` (targets that just failed) if there is another, then one on a `local` node, then one
    on a `near` one, then the one whose node has the least `load`, then the next one from number `first` (modulo their number) on. Raises
    UNAVAILABLE when there is none."""
    if len(replicas) == 1:
        return replicas[0]
    if not replicas:
        raise error(
            Status.UNAVAILABLE, "the chain has no serving replica; 'emberfs status' shows which targets are down"
        )
    loads = load or {}
    start = first % len(replicas)
    ordered = (*replicas[start:], *replicas[:start]) if start else replicas
    return min(
        ordered, key=lambda r: (r.target in avoid, r.node not in local, r.node not in near, loads.get(r.node, 0))
    )


@dataclass(slots=True)
class RoutingTable:
    """The newest routing known here. `generation` grows with every change, so that caches built from it know when to go."""

    cluster: str = ""
    version: int = 0
    generation: int = 0
    nodes: dict[int, Node] = field(default_factory=dict)
    targets: dict[int, Target] = field(default_factory=dict)
    chains: dict[int, Chain] = field(default_factory=dict)
    tables: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)  # (table, version) -> chain ids
    table_versions: dict[int, int] = field(default_factory=dict)  # table -> newest version
    ended_clients: dict[bytes, int] = field(default_factory=dict)  # client -> capability epoch when we heard of it
    namespaces: dict[int, KvNamespace] = field(default_factory=dict)
    quotas: dict[str, int] = field(default_factory=dict)  # tenant of the KV cache -> bytes
    capability_epoch: int = 0
    capability_key: bytes = b""
    _routes: dict[int, Route] = field(default_factory=dict)

    def apply(self, routing: Routing) -> Change:
        """Take over a full routing or a delta; an older one changes nothing. Raises WRONG_CLUSTER, and STALE_ROUTING for a delta that
        starts after our version (ask for `since=version` again, or for everything)."""
        if self.cluster and routing.cluster and routing.cluster != self.cluster:
            raise error(
                Status.WRONG_CLUSTER, f"routing of cluster {routing.cluster}, but this is a peer of {self.cluster}"
            )
        if routing.version < self.version or (routing.version == self.version and self.version):
            # Same version, but this peer may now be trusted with the key (a storage server asks before and after it registered).
            self._take_capability(routing)
            return NOTHING
        if routing.since > self.version:
            raise error(Status.STALE_ROUTING, f"routing delta since {routing.since}, but {self.version} is all we have")
        self.cluster = routing.cluster or self.cluster
        change = self._apply_delta(routing) if routing.since else self._apply_full(routing)
        self._take_capability(routing)
        self.version = routing.version
        self.generation += 1
        return change

    def _apply_full(self, routing: Routing) -> Change:
        chains = {c.id: self._newer(c) for c in routing.chains}
        ended = {c: self.ended_clients.get(c, routing.capability_epoch) for c in routing.ended_clients}
        fresh = frozenset(ended.keys() - self.ended_clients.keys())
        self.nodes = {n.id: n for n in routing.nodes}
        self.targets = {t.id: t for t in routing.targets}
        self.chains = chains
        self._routes = {}
        self.tables, self.table_versions = {}, {}
        self._take_tables(routing.tables)
        self.ended_clients = ended
        self.namespaces = {n.id: n for n in routing.namespaces}
        self.quotas = {q.tenant: q.bytes for q in routing.quotas if q.bytes}
        return Change(
            frozenset(self.nodes),
            frozenset(self.targets),
            frozenset(chains),
            frozenset(self.table_versions),
            fresh,
            frozenset(self.namespaces),
            frozenset(self.quotas),
            full=True,
            any=True,
        )

    def _apply_delta(self, routing: Routing) -> Change:
        for node in routing.nodes:
            self.nodes[node.id] = node
        for gone in routing.removed_nodes:
            self.nodes.pop(gone, None)
        for target in routing.targets:
            self.targets[target.id] = target
        for gone in routing.removed_targets:
            self.targets.pop(gone, None)
        chains = [c.id for c in routing.chains if self._take_chain(c)]
        self._take_tables(routing.tables)
        fresh = [c for c in routing.ended_clients if c not in self.ended_clients]
        for client in fresh:
            self.ended_clients[client] = routing.capability_epoch
        self._take_namespaces(routing)
        return Change(
            frozenset(n.id for n in routing.nodes) | frozenset(routing.removed_nodes),
            frozenset(t.id for t in routing.targets) | frozenset(routing.removed_targets),
            frozenset(chains),
            frozenset(t.id for t in routing.tables),
            frozenset(fresh),
            frozenset(n.id for n in routing.namespaces) | frozenset(routing.removed_namespaces),
            frozenset(q.tenant for q in routing.quotas),
            any=True,
        )

    def _take_namespaces(self, routing: Routing) -> None:
        for namespace in routing.namespaces:
            self.namespaces[namespace.id] = namespace
        for gone in routing.removed_namespaces:
            self.namespaces.pop(gone, None)
        for quota in routing.quotas:
            if quota.bytes:
                self.quotas[quota.tenant] = quota.bytes
            else:
                self.quotas.pop(quota.tenant, None)

    def learn_chain(self, chain: Chain) -> bool:
        """Take over one newer chain entry (it travels with a refusal for a stale chain version). Whether it was news."""
        if not self._take_chain(chain):
            return False
        self.generation += 1
        return True

    def _take_chain(self, chain: Chain) -> bool:
        known = self.chains.get(chain.id)
        if known is not None and known.version >= chain.version:
            return False
        self.chains[chain.id] = chain
        self._routes.pop(chain.id, None)
        return True

    def _newer(self, chain: Chain) -> Chain:
        # A refusal may have taught us an entry that is newer than the routing that was on its way.
        known = self.chains.get(chain.id)
        return known if known is not None and known.version > chain.version else chain

    def _take_tables(self, tables: Iterable[ChainTable]) -> None:
        for table in tables:
            self.tables[table.id, table.version] = tuple(table.chains)
            self.table_versions[table.id] = max(table.version, self.table_versions.get(table.id, 0))

    def _take_capability(self, routing: Routing) -> None:
        self.capability_key = routing.capability_key or self.capability_key
        if routing.capability_epoch > self.capability_epoch:
            self.capability_epoch = routing.capability_epoch
            # Whoever ended so long ago holds no valid capability any more: the list stays bounded without removal messages.
            oldest = self.capability_epoch - VALID_EPOCHS
            self.ended_clients = {c: epoch for c, epoch in self.ended_clients.items() if epoch >= oldest}

    def chain(self, chain_id: int) -> Chain:
        """The newest entry of a chain. Raises STALE_ROUTING for an unknown one: routing is older than the layout."""
        chain = self.chains.get(chain_id)
        if chain is None:
            raise error(Status.STALE_ROUTING, f"chain {chain_id} is not in routing version {self.version}")
        return chain

    def route(self, chain_id: int) -> Route:
        """The chain, digested; cheap to ask again. Raises STALE_ROUTING."""
        route = self._routes.get(chain_id)
        if route is None:
            route = self._routes[chain_id] = route_of(self.chain(chain_id))
        return route

    def head(self, chain_id: int) -> Replica:
        """Where writes enter. Raises STALE_ROUTING, or UNAVAILABLE when no member is serving."""
        route = self.route(chain_id)
        if not route.serving:
            raise error(
                Status.UNAVAILABLE, f"chain {chain_id} has no serving target; 'emberfs status' shows which are down"
            )
        return route.serving[0]

    def table(self, table_id: int, version: int = 0) -> tuple[int, ...]:
        """The chain ids of a version of a chain table (0: the newest). Raises STALE_ROUTING."""
        version = version or self.table_versions.get(table_id, 0)
        chains = self.tables.get((table_id, version))
        if chains is None:
            raise error(
                Status.STALE_ROUTING,
                f"chain table {table_id} version {version} is not in routing version {self.version}",
            )
        return chains

    def node_addresses(self, node_id: int, host: str = "") -> tuple[str, ...]:
        """The addresses of a node that can be used from a machine (its boot id), best first: Unix sockets only on the same machine.
        Raises STALE_ROUTING for an unknown node; empty when the node is on another machine and listens on no network."""
        node = self.nodes.get(node_id)
        if node is None:
            raise error(Status.STALE_ROUTING, f"node {node_id} is not in routing version {self.version}")
        same = bool(host) and node.host == host
        return tuple(a for a in node.addresses if same or not a.startswith(UNIX))

    def local_nodes(self, host: str) -> frozenset[int]:
        """The nodes on a machine: replicas there are preferred."""
        return frozenset(n.id for n in list(self.nodes.values()) if host and n.host == host)

    def near_nodes(self, rack: str) -> frozenset[int]:
        """The nodes in a rack: replicas there come next."""
        return frozenset(n.id for n in list(self.nodes.values()) if rack and n.rack == rack)
