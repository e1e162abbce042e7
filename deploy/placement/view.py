"""A cluster as the planner of moves sees it: plain values, without what only servers and clients need; chains and targets of one kind,
as those for files and those for KV blocks never take each other's members."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from ...proto.blocks import TABLE_OF_BLOCKS, TABLE_OF_FILES
from ...proto.gen.cluster_pb2 import LOCAL_STATE_OFFLINE, NODE_KIND_STORAGE, ChainTable, StatusReply
from ...proto.gen.common_pb2 import TARGET_STATE_SERVING, TargetState
from .model import Domain


@dataclass(frozen=True, slots=True)
class NodeView:
    """A storage process."""

    id: int
    name: str
    host: str = ""
    rack: str = ""
    draining: bool = False
    up: bool = True  # it renews its lease


@dataclass(frozen=True, slots=True)
class TargetView:
    id: int
    node: int
    folder: str  # that it lies in: targets of one folder share a disk
    capacity: int  # bytes
    used: int = 0
    chunks: int = 0
    up: bool = True  # its process is there, and its disk works
    takes: bool = True  # neither full, nor damaged, nor disabled
    disabled: bool = False
    disk: int = 0  # bytes of the file system that it lies in; 0: not known
    sync_done: int = 0  # chunks compared, while it copies to its successor
    sync_total: int = 0


@dataclass(frozen=True, slots=True)
class MemberView:
    target: int
    state: TargetState

    @property
    def serves(self) -> bool:
        return self.state == TARGET_STATE_SERVING


@dataclass(frozen=True, slots=True)
class ChainView:
    id: int
    version: int
    members: tuple[MemberView, ...]  # those that serve first, the head first of all

    @property
    def serving(self) -> int:
        return sum(member.serves for member in self.members)


@dataclass(frozen=True, slots=True)
class ClusterView:
    nodes: dict[int, NodeView]
    targets: dict[int, TargetView]
    chains: tuple[ChainView, ...]
    replicas: int  # members that each chain is meant to have
    table: int = TABLE_OF_FILES  # that the chains belong to
    placed: frozenset[int] = frozenset()  # chains in the newest version of the table: new files or keys go to them

    @property
    def is_cache(self) -> bool:
        """Whether the chains hold the only copy of what can be made again: then nothing is copied away, the chain goes instead."""
        return self.table == TABLE_OF_BLOCKS and self.replicas == 1

    def node_of(self, target: int) -> NodeView:
        return self.nodes[self.targets[target].node]

    def chain_of(self, target: int) -> ChainView | None:
        return next((chain for chain in self.chains if any(m.target == target for m in chain.members)), None)

    def members(self) -> set[int]:
        """Targets that are in a chain."""
        return {member.target for chain in self.chains for member in chain.members}

    def size(self, chain: ChainView) -> int:
        """Bytes on each member."""
        return max((self.targets[m.target].used for m in chain.members if m.target in self.targets), default=0)

    def widest_domain(self) -> Domain:
        """The widest failure domain that there are enough of, counting nodes that are being drained: draining one must not quietly
        put two members of a chain where they fail together."""
        hosts = {node.host or f"node {node.id}" for node in self.nodes.values()}
        racks = {node.rack for node in self.nodes.values()}
        if "" not in racks and len(racks) >= max(2, self.replicas):
            return Domain.RACK
        return Domain.HOST if len(hosts) >= max(2, self.replicas) else Domain.NODE


def view_of(status: StatusReply, table: int = TABLE_OF_FILES) -> ClusterView:
    """What the manager said of the chains of one table, for the planner."""
    routing, silent = status.routing, set(status.silent_nodes)
    nodes = {
        node.id: NodeView(node.id, node.name, node.host, node.rack, node.draining, node.id not in silent)
        for node in routing.nodes
        if node.kind == NODE_KIND_STORAGE
    }
    targets = {
        target.id: TargetView(
            id=target.id,
            node=target.node,
            folder=posixpath.dirname(target.path),
            capacity=target.capacity,
            used=target.used,
            chunks=target.chunks,
            up=target.node not in silent and target.state != LOCAL_STATE_OFFLINE,
            takes=not (target.full or target.damaged or target.disabled),
            disabled=target.disabled,
            disk=target.disk,
            sync_done=target.sync_done,
            sync_total=target.sync_total,
        )
        for target in routing.targets
        if target.node in nodes and (target.table or TABLE_OF_FILES) == table
    }
    others = {target.id for target in routing.targets if (target.table or TABLE_OF_FILES) != table}
    chains = tuple(
        ChainView(chain.id, chain.version, tuple(MemberView(m.target, m.state) for m in chain.members))
        for chain in sorted(routing.chains, key=lambda chain: chain.id)
        if chain.members and not any(m.target in others for m in chain.members)
    )
    newest = max((t for t in routing.tables if t.id == table), key=lambda t: t.version, default=None)
    placed = frozenset(newest.chains) if newest is not None else frozenset()
    return ClusterView(nodes, targets, chains, _replicas(newest, chains), table, placed)


def _replicas(newest: ChainTable | None, chains: Collection[ChainView]) -> int:
    """As the newest version of the chain table says; of one from before it said so, the number that most chains have."""
    if newest is not None and newest.replicas:
        return newest.replicas
    return _most_common(len(chain.members) for chain in chains)


def _most_common(numbers: Iterable[int]) -> int:
    found = sorted(numbers)
    return max(found, key=found.count, default=1)
