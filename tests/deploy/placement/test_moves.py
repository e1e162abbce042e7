"""Moves decided step by step, on a model of a cluster that syncs when it likes, loses nodes, and forgets who asked.

Quoted rules are those of deploy/placement/moves.py.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from emberfs.deploy.cli.planning import settled
from emberfs.deploy.placement.model import Domain
from emberfs.deploy.placement.moves import AddTarget, Decision, Drop, Join, Leave, Step, Wish, decide, plan_of, text_of
from emberfs.deploy.placement.view import ChainView, ClusterView, MemberView, NodeView, TargetView
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen.common_pb2 import TARGET_STATE_OFFLINE, TARGET_STATE_SERVING, TARGET_STATE_SYNCING

SERVING, SYNCING, OFFLINE = TARGET_STATE_SERVING, TARGET_STATE_SYNCING, TARGET_STATE_OFFLINE
GIB = 1 << 30
ROUNDS_MAX = 2000


class Model:
    """Nodes 1..N with `targets` each; chains of `replicas` over the first `of` nodes, in turn. Carries out steps as the manager would."""

    def __init__(self, nodes: int, replicas: int, targets: int, of: int = 0, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.replicas = replicas
        self.nodes = {n: NodeView(n, f"storage-{n}") for n in range(1, nodes + 1)}
        self.targets: dict[int, TargetView] = {}
        for node in self.nodes:
            for _ in range(targets):
                self.make(node, "/d")
        self.chains: dict[int, list[MemberView]] = {}
        self.versions: Counter[int] = Counter()
        self.joined = 0
        self.least = replicas  # members that serve when one leaves
        used: set[int] = set()
        of = of or nodes
        for number in range(of * targets // replicas):
            chosen: list[int] = []
            for k in range(replicas):
                node = (number * replicas + k) % of + 1
                chosen.append(next(t.id for t in self.targets.values() if t.node == node and t.id not in used))
                used.add(chosen[-1])
            self.chains[number + 1] = [MemberView(target, SERVING) for target in chosen]
            for target in chosen:
                self.targets[target] = replace(self.targets[target], used=GIB, chunks=1024)

    def make(self, node: int, folder: str) -> int:
        number = max(self.targets, default=0) + 1
        self.targets[number] = TargetView(number, node, folder, capacity=100 * GIB)
        return number

    def view(self) -> ClusterView:
        chains = tuple(ChainView(c, self.versions[c], tuple(members)) for c, members in sorted(self.chains.items()))
        return ClusterView(dict(self.nodes), dict(self.targets), chains, self.replicas)

    def serving(self, chain: int) -> int:
        return sum(member.serves for member in self.chains[chain])

    def perform(self, step: Step) -> None:
        if isinstance(step, AddTarget):
            self.make(step.node, step.folder)
        elif isinstance(step, Drop):
            assert all(m.target != step.target for members in self.chains.values() for m in members)
            assert self.targets[step.target].node == step.node
            del self.targets[step.target]
        elif step.version != self.versions[step.chain]:
            return  # refused: somebody else was faster
        elif isinstance(step, Join):
            target = self.targets[step.target]
            assert target.up and target.takes and not target.chunks
            members = self.chains[step.chain]
            assert target.node not in {self.targets[m.target].node for m in members if m.target in self.targets}
            assert all(m.serves or not self.targets[m.target].up for m in members if m.target in self.targets)
            members.append(MemberView(step.target, SYNCING))
            self.targets[step.target] = replace(target, used=GIB, chunks=1024)
            self.versions[step.chain] += 1
            self.joined += 1
        elif isinstance(step, Leave):
            members = self.chains[step.chain]
            rest = [m for m in members if m.target != step.target]
            assert len(rest) < len(members) and sum(m.serves for m in rest) >= self.least, "rule 1"
            self.chains[step.chain] = rest
            self.versions[step.chain] += 1

    def synced(self, chance: float) -> None:
        """Some of those that are copied to serve from now on."""
        for chain, members in self.chains.items():
            for i, member in enumerate(members):
                if member.state == SYNCING and self.targets[member.target].up and self.random.random() < chance:
                    members[i] = MemberView(member.target, SERVING)
                    self.versions[chain] += 1

    def fail(self, node: int) -> None:
        self.nodes[node] = replace(self.nodes[node], up=False)
        for target in [t for t in self.targets.values() if t.node == node]:
            self.targets[target.id] = replace(target, up=False)
        for chain, members in self.chains.items():
            self.chains[chain] = [
                MemberView(m.target, OFFLINE) if self.targets[m.target].node == node else m for m in members
            ]
            self.versions[chain] += 1

    def back(self, node: int) -> None:
        self.nodes[node] = replace(self.nodes[node], up=True)
        for target in [t for t in self.targets.values() if t.node == node]:
            self.targets[target.id] = replace(target, up=True)
        for members in self.chains.values():
            for i, member in enumerate(members):
                if member.state == OFFLINE and self.targets[member.target].up:
                    members[i] = MemberView(member.target, SYNCING)

    def run(self, wish: Wish, at_once: int = 2, chance: float = 0.5) -> Decision:
        """Until nothing is left to do, or nothing can be done."""
        for _ in range(ROUNDS_MAX):
            found = decide(self.view(), wish)
            if found.is_done:
                return found
            free = max(0, at_once - len(found.moving))
            steps = [*found.finish, *found.begin[:free]]
            if not steps and not found.moving:
                return found
            self.random.shuffle(steps)
            for step in steps:
                text_of(step, self.view())
                self.perform(step)
            self.synced(chance)
        raise AssertionError("it does not come to an end")

    def check(self) -> None:
        """Every chain is as it should be, and no target was forgotten."""
        for members in self.chains.values():
            assert len(members) == self.replicas and all(m.serves for m in members)
            assert len({self.targets[m.target].node for m in members}) == self.replicas
        used = {m.target for members in self.chains.values() for m in members}
        assert not [t for t in self.targets.values() if t.chunks and t.id not in used]

    def on(self, node: int) -> int:
        return sum(self.targets[m.target].node == node for members in self.chains.values() for m in members)


def test_nothing_to_do() -> None:
    model = Model(nodes=3, replicas=3, targets=3)
    for balance in (False, True):
        assert decide(model.view(), Wish(balance=balance)).is_done


def test_a_move_step_by_step() -> None:
    """'a target is made on the disk that it moves to, it joins the chain, ... then the old member leaves, and its target is dropped'"""
    model = Model(nodes=4, replicas=3, targets=1, of=3)
    model.targets[4] = replace(model.targets[4], chunks=1)  # the one on the fourth node has left another chain
    model.nodes[1] = replace(model.nodes[1], draining=True)
    wish = Wish()
    assert decide(model.view(), wish).finish == [Drop(4, 4)]
    assert decide(model.view(), wish).begin == [AddTarget(4, "/d", GIB)]
    model.perform(Drop(4, 4))
    assert not decide(model.view(), wish).begin, "no folder of the fourth node is known any more"
    model.make(4, "/d")
    step = Join(1, 0, 4, GIB)
    found = decide(model.view(), wish)
    assert found.begin == [step] and found.moves == 1 and found.bytes_left == GIB
    model.perform(step)
    found = decide(model.view(), wish)
    assert not found.finish and not found.begin and [m.target for m in found.moving] == [4] and not found.is_done
    model.synced(1.0)
    assert decide(model.view(), wish).finish == [Leave(1, 2, 1)]
    model.perform(Leave(1, 2, 1))
    assert decide(model.view(), wish).finish == [Drop(1, 1)]
    model.perform(Drop(1, 1))
    assert decide(model.view(), wish).is_done
    model.check()


@pytest.mark.parametrize("seed", range(20))
def test_a_drained_node_ends_empty(seed: int) -> None:
    draw = random.Random(seed)
    replicas = draw.choice([1, 2, 3])
    model = Model(nodes=replicas + draw.randint(1, 3), replicas=replicas, targets=draw.randint(1, 4), seed=seed)
    drained = draw.randint(1, len(model.nodes))
    moved = model.on(drained)
    model.nodes[drained] = replace(model.nodes[drained], draining=True)
    model.run(Wish(balance=draw.random() < 0.5), at_once=draw.randint(1, 4))
    model.check()
    assert not [t for t in model.targets.values() if t.node == drained]
    assert model.joined == moved, "each of its members moves once, and no other one"
    loads = [model.on(node) for node in model.nodes if node != drained]
    assert max(loads) - min(loads) <= 2, loads


@pytest.mark.parametrize("seed", range(20))
def test_new_nodes_get_their_share(seed: int) -> None:
    """'moves members to targets that wait empty, and makes none'"""
    draw = random.Random(seed)
    replicas, targets, old = draw.choice([1, 2, 3]), draw.randint(2, 4), draw.randint(3, 5)
    model = Model(nodes=old + draw.randint(1, 3), replicas=replicas, targets=targets, of=old, seed=seed)
    assert decide(model.view(), Wish()).is_done, "only when asked"
    least = decide(model.view(), Wish(balance=True)).moves
    targets_before = len(model.targets)
    model.run(Wish(balance=True))
    model.check()
    loads = [model.on(node) for node in model.nodes]
    assert max(loads) - min(loads) <= 1, loads
    assert model.joined == least > 0 and len(model.targets) <= targets_before
    assert decide(model.view(), Wish(balance=True)).is_done, "and it stays so"


@pytest.mark.parametrize("seed", range(10))
def test_a_lost_node_is_replaced(seed: int) -> None:
    model = Model(nodes=4, replicas=3, targets=3, seed=seed)
    model.fail(2)
    assert not decide(model.view(), Wish()).begin, "it may come back: 'left alone ... unless it is given up as lost'"
    gone = frozenset(t.id for t in model.targets.values() if t.node == 2)
    moved = model.on(2)
    model.run(Wish(lost=gone))
    for members in model.chains.values():
        assert all(m.serves for m in members) and len(members) == 3
    assert model.on(2) == 0 and model.joined == moved
    model.back(2)
    model.run(Wish())
    assert model.on(2) == 0 and not [t for t in model.targets.values() if t.node == 2 and t.chunks], "old chunks go"
    model.check()


@pytest.mark.parametrize("seed", range(30))
def test_nodes_that_come_and_go_meanwhile(seed: int) -> None:
    """Whatever happens between two steps, a chain never loses a member that serves because of us (the model asserts it), and in the end
    everything is done."""
    model = Model(nodes=6, replicas=3, targets=2, seed=seed)
    draw = random.Random(seed)
    drained = draw.randint(1, 6)
    model.nodes[drained] = replace(model.nodes[drained], draining=True)
    wish = Wish(balance=True)
    for _ in range(30):
        up = [n for n, node in model.nodes.items() if node.up]
        if len(up) == 6 and draw.random() < 0.4:
            model.fail(draw.choice(up))
        elif len(up) < 6:
            model.back(next(n for n, node in model.nodes.items() if not node.up))
        found = decide(model.view(), wish)
        for step in [*found.finish, *found.begin]:
            if draw.random() < 0.7:  # the rest never arrived: we were interrupted
                model.perform(step)
        model.synced(0.3)
    for node in model.nodes:
        if not model.nodes[node].up:
            model.back(node)
    model.run(wish)
    model.check()
    assert model.on(drained) == 0


def test_a_target_is_replaced_where_it_was_when_there_is_no_other_node() -> None:
    """'one that was given up, and can only be replaced in its own process, leaves first'"""
    model = Model(nodes=2, replicas=2, targets=1)
    model.least = 1
    model.run(Wish(lost=frozenset({1})))
    model.check()
    assert set(model.targets) == {2, 3} and model.on(1) == 1
    sole = Model(nodes=1, replicas=1, targets=1)
    assert "add a node" in sole.run(Wish(lost=frozenset({1}))).blocked[0]
    model.fail(1)
    assert model.run(Wish(lost=frozenset({3}))).blocked, "its node is away"


def test_what_stands_in_the_way_is_told() -> None:
    model = Model(nodes=3, replicas=3, targets=1)
    model.nodes[1] = replace(model.nodes[1], draining=True)
    assert "3 replicas need as many failure domains" in model.run(Wish()).blocked[0]

    model = Model(nodes=4, replicas=3, targets=1, of=3)
    model.chains[1] = [MemberView(m.target, OFFLINE) for m in model.chains[1]]
    model.nodes[1] = replace(model.nodes[1], draining=True)
    assert "no member that serves" in model.run(Wish()).blocked[0]

    model = Model(nodes=4, replicas=3, targets=1, of=3)
    model.nodes[1] = replace(model.nodes[1], draining=True)
    model.fail(2)
    assert "waits for target 2, which is away" in model.run(Wish()).blocked[0]

    model = Model(nodes=4, replicas=3, targets=1, of=3)
    model.nodes[1] = replace(model.nodes[1], draining=True)
    model.targets[1] = replace(model.targets[1], used=200 * GIB)
    assert "more than a target of node 4 may take" in model.run(Wish()).blocked[0]


def test_full_targets_and_nodes_that_are_away_get_nothing() -> None:
    model = Model(nodes=5, replicas=3, targets=2, of=3)
    for target in [t for t in model.targets.values() if t.node == 4]:
        model.targets[target.id] = replace(target, takes=False)
    model.fail(5)
    assert not decide(model.view(), Wish(balance=True)).begin
    model.back(5)
    model.run(Wish(balance=True))
    assert model.on(4) == 0 and model.on(5) > 0


def test_members_on_one_host_are_parted_when_hosts_come() -> None:
    model = Model(nodes=3, replicas=2, targets=2)
    model.nodes = {n: replace(node, host="h1" if n < 3 else "h2") for n, node in model.nodes.items()}
    assert model.view().widest_domain() is Domain.HOST
    model.run(Wish())
    for members in model.chains.values():
        assert {model.view().node_of(m.target).host for m in members} == {"h1", "h2"}


def test_two_racks_of_one_host_are_told() -> None:
    """A mistyped EMBERFS_RACK is the operator's to mend, not a bug of ours."""
    model = Model(nodes=3, replicas=2, targets=2)
    model.nodes = {n: replace(node, host="h", rack=f"r{n}") for n, node in model.nodes.items()}
    for ask in (decide, plan_of):
        with pytest.raises(StatusError, match="said to be in two racks") as refused:
            ask(model.view(), Wish(balance=True, domain=Domain.HOST))
        assert refused.value.status is Status.INVALID


def test_nothing_to_move_is_not_called_well_where_a_member_is_away() -> None:
    model = Model(nodes=3, replicas=3, targets=1)
    assert settled([model.view()]) == "All members are where they should be."
    (chain, members), *_ = model.chains.items()
    members[-1] = replace(members[-1], state=TARGET_STATE_OFFLINE)
    assert f"chain {chain} lacks" in settled([model.view()])
