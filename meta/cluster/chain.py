"""The next state of a chain: a pure function of its entry and of what is known about its members.

Public states are the manager's (SERVING, LASTSRV, …), local states are the storage server's report of its target. A chain changes
only by `next_chain`, and with every change its version grows by one, so that whoever still uses the old entry is refused and
fetches the new one.

Rules:
1. A member counts only with the incarnation that the chain recorded: a disk that was replaced or formatted anew holds none of
   the chain's chunks, whatever it reports.
2. A sole member stays SERVING through silence and restarts: there is nobody to hand its place to, so it needs no lease.
   A restart still costs a version: requests that were sent to the old process are not taken by the new one.
3. A sole member whose target is gone is LASTSRV: nobody serves, and the same incarnation revives the chain when it returns.

Chains of several members add rows to `TRANSITIONS` (and the rule that a restarted member is demoted first when another one serves).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ...proto.gen.cluster_pb2 import LOCAL_STATE_OFFLINE, LOCAL_STATE_ONLINE, LOCAL_STATE_UPTODATE, LocalState
from ...proto.gen.common_pb2 import (
    TARGET_STATE_LASTSRV,
    TARGET_STATE_SERVING,
    Chain,
    ChainMember,
    TargetState,
)


class Report(NamedTuple):
    """What is known about one target right now."""

    state: LocalState
    incarnation: int  # of what lies on the disk
    restarted: bool = False  # by a process that the chain has not seen yet


# (public, local) -> public, for a member without any other. An impossible transition is a missing key.
TRANSITIONS: dict[tuple[int, int], TargetState] = {
    (TARGET_STATE_SERVING, LOCAL_STATE_UPTODATE): TARGET_STATE_SERVING,
    (TARGET_STATE_SERVING, LOCAL_STATE_ONLINE): TARGET_STATE_SERVING,
    (TARGET_STATE_SERVING, LOCAL_STATE_OFFLINE): TARGET_STATE_LASTSRV,
    (TARGET_STATE_LASTSRV, LOCAL_STATE_UPTODATE): TARGET_STATE_SERVING,
    (TARGET_STATE_LASTSRV, LOCAL_STATE_ONLINE): TARGET_STATE_SERVING,
    (TARGET_STATE_LASTSRV, LOCAL_STATE_OFFLINE): TARGET_STATE_LASTSRV,
}


def new_chain(chain_id: int, target: int, node: int, incarnation: int) -> Chain:
    """A chain of one: its target serves from the start, there is nothing to copy."""
    member = ChainMember(target=target, node=node, state=TARGET_STATE_SERVING, incarnation=incarnation)
    return Chain(id=chain_id, version=1, members=[member])


def next_chain(chain: Chain, reports: Mapping[int, Report], nodes: Mapping[int, int] | None = None) -> Chain:
    """The chain after these reports (by target; a target without one stays as it is); the same object when nothing changes.
    `nodes` says which node owns a target now: a disk may move to another server."""
    changed = False
    states: dict[int, tuple[TargetState, int]] = {}  # by target
    for member in chain.members:
        report = reports.get(member.target)
        if report is None:
            continue
        node = nodes.get(member.target, member.node) if nodes else member.node
        state = TRANSITIONS[member.state, local_state(member, report)]
        states[member.target] = state, node
        restarted = report.restarted and state == TARGET_STATE_SERVING
        changed = changed or state != member.state or node != member.node or restarted
    if not changed:
        return chain
    after = Chain(id=chain.id, version=chain.version + 1, members=chain.members)
    for member in after.members:
        member.state, member.node = states.get(member.target, (member.state, member.node))
    return after


def local_state(member: ChainMember, report: Report) -> LocalState:
    """The local state that counts for the chain (rule 1)."""
    return report.state if report.incarnation == member.incarnation else LOCAL_STATE_OFFLINE
