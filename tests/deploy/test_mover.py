"""The shell around the moves: what it does with refusals, limits, and members that stay away."""

from __future__ import annotations

import pytest

from emberfs.deploy.mover import FAILURES_MAX, Absences, Limits, Mover, Pace
from emberfs.deploy.placement.moves import Wish
from emberfs.deploy.placement.view import view_of
from emberfs.proto.errors import Status, StatusError, error
from emberfs.proto.gen.cluster_pb2 import (
    LOCAL_STATE_OFFLINE,
    LOCAL_STATE_UPTODATE,
    NODE_KIND_META,
    NODE_KIND_STORAGE,
    ChainTable,
    Node,
    StatusReply,
    Target,
)
from emberfs.proto.gen.common_pb2 import (
    TARGET_STATE_OFFLINE,
    TARGET_STATE_SERVING,
    TARGET_STATE_SYNCING,
    Chain,
    ChainMember,
)


class Manager:
    """Answers an administrator as the cluster's servers do: four nodes, one chain of three, the fourth target waits. A member that
    joined serves when it has been looked at twice."""

    def __init__(self) -> None:
        self.time = 0.0
        self.calls: list[str] = []
        self.refuse: list[StatusError] = []
        self.state = StatusReply()
        routing = self.state.routing
        routing.nodes.add(id=9, kind=NODE_KIND_META)
        for number in range(1, 5):
            routing.nodes.append(Node(id=number, kind=NODE_KIND_STORAGE, name=f"storage-{number}"))
            used = {"chunks": 5, "used": 1 << 20} if number < 4 else {}
            path = f"/data/{number}/target-1"
            target = Target(id=number, node=number, capacity=1 << 30, path=path, state=LOCAL_STATE_UPTODATE, **used)
            routing.targets.append(target)
        members = [ChainMember(target=number, node=number, state=TARGET_STATE_SERVING) for number in (1, 2, 3)]
        routing.chains.append(Chain(id=1, version=1, members=members))
        routing.tables.append(ChainTable(id=1, version=1, chains=[1], replicas=3))
        self.looks = 0

    def status(self) -> StatusReply:
        for member in self.state.routing.chains[0].members:
            if member.state == TARGET_STATE_SYNCING:
                self.looks += 1
                if self.looks == 2:
                    member.state = TARGET_STATE_SERVING
                    self.state.routing.chains[0].version += 1
        reply = StatusReply()
        reply.CopyFrom(self.state)
        return reply

    def change_chain(self, chain: int, version: int = 0, *, add: int = 0, remove: int = 0, revive: int = 0) -> Chain:
        if self.refuse:
            raise self.refuse.pop()
        entry = self.state.routing.chains[0]
        assert version == entry.version
        entry.version += 1
        if add:
            entry.members.append(ChainMember(target=add, node=add, state=TARGET_STATE_SYNCING))
        else:
            entry.members.remove(next(member for member in entry.members if member.target == remove))
        self.calls.append(f"add {add}" if add else f"remove {remove}")
        return entry

    def drop_target(self, node: int, target: int) -> None:
        self.state.routing.targets.remove(next(t for t in self.state.routing.targets if t.id == target))
        self.calls.append(f"drop {target} of node {node}")

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


@pytest.fixture
def manager() -> Manager:
    made = Manager()
    made.state.routing.nodes[1].draining = True
    return made


def mover(manager: Manager, limits: Limits | None = None) -> Mover:
    return Mover(manager, limits or Limits())  # type: ignore[arg-type]


def test_a_drain_to_its_end(manager: Manager) -> None:
    assert mover(manager).run(Wish()).is_done
    assert manager.calls == ["add 4", "remove 1", "drop 1 of node 1"]


def test_a_refusal_is_looked_at_again(manager: Manager) -> None:
    manager.refuse = [error(Status.STALE_CHAIN_VERSION, "version 2"), error(Status.UNAVAILABLE, "it restarts")]
    assert mover(manager).run(Wish()).is_done


def test_what_looking_cannot_cure_is_told(manager: Manager) -> None:
    manager.refuse = [error(Status.UNAUTHENTICATED, "not you")]
    with pytest.raises(StatusError, match="not you"):
        mover(manager).run(Wish())
    manager.refuse = [error(Status.UNAVAILABLE, f"{i}") for i in range(2 * FAILURES_MAX)]
    with pytest.raises(StatusError):
        mover(manager).run(Wish())
    assert len(manager.refuse) == FAILURES_MAX


def test_a_limited_rate() -> None:
    pace = Pace(rate=100)
    assert pace.may_begin(0.0)
    pace.begun(0.0, 1000)
    assert not pace.may_begin(9.9) and pace.may_begin(10.0)
    assert Pace(rate=0).may_begin(0.0)
    with pytest.raises(ValueError, match="at least one"):
        Limits(at_once=0)


def test_who_stays_away_is_lost(manager: Manager) -> None:
    """A silent node may be rebooting; a disk that its server reports as failed is given up sooner; a disabled one never."""
    absences = Absences(away_seconds=600, failed_seconds=60)
    manager.state.silent_nodes.append(2)
    manager.state.routing.targets[2].state = LOCAL_STATE_OFFLINE
    manager.state.routing.targets[3].state = LOCAL_STATE_OFFLINE
    manager.state.routing.targets[3].disabled = True
    view = view_of(manager.status())
    assert absences.lost(view, 0.0) == frozenset()
    assert absences.lost(view, 60.0) == {3}
    assert absences.lost(view, 600.0) == {2, 3}
    del manager.state.silent_nodes[:]
    assert absences.lost(view_of(manager.status()), 601.0) == {3}, "it is back"
    assert 2 not in absences.since


def test_a_silent_node_heals_in_time() -> None:
    """As `chain apply --keep` does: what is lost is found anew at every look."""
    manager = Manager()
    manager.state.silent_nodes.append(2)
    manager.state.routing.targets[1].state = LOCAL_STATE_OFFLINE
    manager.state.routing.chains[0].members[1].state = TARGET_STATE_OFFLINE
    absences, keeper = Absences(away_seconds=600, failed_seconds=60), mover(manager)
    while "remove 2" not in manager.calls:
        keeper.look(lambda view: Wish(absences.lost(view, manager.now())))
        keeper.rest(False)
        assert manager.calls == [] or manager.time >= 600
    assert manager.calls == ["add 4", "remove 2"] and manager.time < 620


def test_the_cluster_as_the_planner_sees_it(manager: Manager) -> None:
    view = view_of(manager.status())
    assert set(view.nodes) == {1, 2, 3, 4} and view.nodes[1].draining and view.replicas == 3
    assert view.targets[1].folder == "/data/1" and view.chains[0].serving == 3
    del manager.state.routing.tables[:]
    assert view_of(manager.status()).replicas == 3, "as most chains have"
