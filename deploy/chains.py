"""The first chains of a replicated cluster: planned over the targets that wait for one, then made in one step."""

from __future__ import annotations

from collections.abc import Sequence

from ..proto.blocks import TABLE_OF_BLOCKS, TABLE_OF_FILES
from ..proto.errors import Status, error
from ..proto.gen.cluster_pb2 import LOCAL_STATE_OFFLINE, Routing, Target
from .administration import Administration
from .placement import Disk, Domain, Request, plan
from .placement.view import ClusterView, view_of

PLAN_SECONDS = 1.0  # for improving the greedy answer, which is the best one for most small clusters


def make_first_chains(administration: Administration, replicas: int, table: int = TABLE_OF_FILES) -> int:
    """Put the targets that wait into chains of one kind, unless there are such: then adding targets to them is a rebalance, not a start.
    Returns how many members each chain is meant to have. Raises INVALID when they do not give a single chain."""
    status = administration.status()
    view = view_of(status, table)
    if view.chains:
        return view.replicas
    spare = spare_targets(status.routing, table)
    administration.create_chains(plan_new_chains(status.routing, spare, replicas, Domain.NODE), table)
    return replicas


def begin_blocks(administration: Administration, view: ClusterView, node: int) -> int:
    """Make a target for KV blocks on a node; with one copy of each block also its chain. Its number."""
    target = administration.add_target(node, table=TABLE_OF_BLOCKS)
    if view.is_cache:
        administration.create_chains([[target]], TABLE_OF_BLOCKS)
    return target


def spare_targets(routing: Routing, table: int = TABLE_OF_FILES) -> list[Target]:
    """Targets that are in no chain of this kind and could be."""
    used = {member.target for chain in routing.chains for member in chain.members}
    return [
        target
        for target in routing.targets
        if target.id not in used
        and (target.table or TABLE_OF_FILES) == table
        and target.state != LOCAL_STATE_OFFLINE
        and not (target.disabled or target.full or target.damaged)
    ]


def plan_new_chains(
    routing: Routing, targets: Sequence[Target], replicas: int, domain: Domain, count: int = 0
) -> list[list[int]]:
    """New chains over these targets, one seat each, heads first; `count` 0: as many as there can be."""
    nodes = {node.id: node for node in routing.nodes}
    disks = [
        Disk(
            name=f"{target.id}",
            node=f"{target.node}",
            capacity=max(1, target.capacity),
            host=nodes[target.node].host,
            rack=nodes[target.node].rack,
            seats_max=1,
        )
        for target in sorted(targets, key=lambda target: target.id)
    ]
    try:
        found = plan(Request(disks, replicas, domain, chains=count), PLAN_SECONDS)
    except ValueError as impossible:  # among them InfeasibleError
        raise error(Status.INVALID, f"no chain of {replicas} can be made: {impossible}") from impossible
    return [[int(name) for name in chain.members] for chain in found.chains]
