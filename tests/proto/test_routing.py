"""The routing table: full routing, deltas, newer chains learned on the way, and the choice of a replica."""

import pytest

from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen.cluster_pb2 import ChainTable, Node, Routing, Target
from emberfs.proto.gen.common_pb2 import (
    TARGET_STATE_OFFLINE,
    TARGET_STATE_SERVING,
    TARGET_STATE_SYNCING,
    Chain,
    ChainMember,
)
from emberfs.proto.routing import NOTHING, Replica, RoutingTable, choose_replica, route_of

S, Y, O = TARGET_STATE_SERVING, TARGET_STATE_SYNCING, TARGET_STATE_OFFLINE  # noqa: E741


def chain(chain_id: int, version: int, *states: int) -> Chain:
    members = [ChainMember(target=10 * chain_id + i, node=i + 1, state=state) for i, state in enumerate(states)]
    return Chain(id=chain_id, version=version, members=members)


def full(version: int = 5, **fields: object) -> Routing:
    routing = Routing(
        version=version,
        cluster="c1",
        nodes=[Node(id=1, host="h1", addresses=["unix:/a", "tcp:h1:1"]), Node(id=2, host="h2", addresses=["tcp:h2:1"])],
        targets=[Target(id=10, node=1), Target(id=11, node=2)],
        chains=[chain(1, 3, S, S), chain(2, 1, S)],
        tables=[ChainTable(id=1, version=1, chains=[1]), ChainTable(id=1, version=2, chains=[1, 2])],
        capability_epoch=1,
    )
    routing.MergeFrom(Routing(**fields))  # type: ignore[arg-type]
    return routing


def loaded() -> RoutingTable:
    table = RoutingTable()
    assert table.apply(full()).full
    return table


def status_of(call: object, *arguments: object) -> Status:
    with pytest.raises(StatusError) as failed:
        call(*arguments)  # type: ignore[operator]
    return failed.value.status


def test_full_routing_answers_every_question() -> None:
    table = loaded()
    assert (table.version, table.cluster) == (5, "c1")
    assert table.chain(1).version == 3
    assert table.head(1) == Replica(10, 1)
    assert table.table(1) == (1, 2)
    assert table.table(1, 1) == (1,)
    assert status_of(table.chain, 9) is Status.STALE_ROUTING
    assert status_of(table.table, 1, 3) is Status.STALE_ROUTING
    assert status_of(table.node_addresses, 9) is Status.STALE_ROUTING


def test_a_unix_socket_is_only_for_the_same_machine() -> None:
    table = loaded()
    assert table.node_addresses(1, "h1") == ("unix:/a", "tcp:h1:1")
    assert table.node_addresses(1, "h2") == ("tcp:h1:1",)
    assert table.node_addresses(1) == ("tcp:h1:1",)
    assert table.local_nodes("h2") == {2}
    assert table.local_nodes("") == frozenset()
    table.nodes[2].rack = "r7"
    assert table.near_nodes("r7") == {2} and table.near_nodes("") == frozenset()


def test_a_delta_changes_what_it_names_and_nothing_else() -> None:
    table = loaded()
    delta = Routing(
        version=7,
        since=5,
        cluster="c1",
        chains=[chain(2, 2, O)],
        removed_nodes=[2],
        tables=[ChainTable(id=1, version=3, chains=[1, 2, 3])],
        ended_clients=[b"x" * 16],
        capability_epoch=1,
    )
    change = table.apply(delta)
    assert (change.chains, change.nodes, change.tables) == ({2}, {2}, {1})
    assert change.ended_clients == {b"x" * 16}
    assert change and not change.full
    assert (table.version, table.chain(1).version, table.chain(2).version) == (7, 3, 2)
    assert status_of(table.head, 2) is Status.UNAVAILABLE
    assert table.table(1) == (1, 2, 3) and table.table(1, 2) == (1, 2)


def test_a_delta_may_overlap_but_leave_no_gap() -> None:
    table = loaded()
    assert table.apply(Routing(version=6, since=3, cluster="c1", chains=[chain(1, 4, S)]))
    gap = Routing(version=9, since=8, cluster="c1")
    assert status_of(table.apply, gap) is Status.STALE_ROUTING
    assert table.version == 6


def test_old_news_changes_nothing() -> None:
    table = loaded()
    generation = table.generation
    assert table.apply(full()) is NOTHING
    assert table.apply(full(version=4, chains=[chain(1, 9, O)])) is NOTHING
    assert table.apply(Routing(version=5, since=4, cluster="c1", chains=[chain(1, 9, O)])) is NOTHING
    assert table.generation == generation and table.chain(1).version == 3


def test_another_cluster_is_refused() -> None:
    other = full(version=9)
    other.cluster = "c2"
    assert status_of(loaded().apply, other) is Status.WRONG_CLUSTER


def test_a_chain_learned_from_a_refusal_survives_older_routing() -> None:
    table = loaded()
    assert table.learn_chain(chain(1, 8, O, S))
    assert not table.learn_chain(chain(1, 7, S, S))
    assert table.head(1) == Replica(11, 2)
    table.apply(Routing(version=6, since=5, cluster="c1", chains=[chain(1, 4, S, S)]))
    assert table.chain(1).version == 8
    table.apply(full(version=7))
    assert table.chain(1).version == 8
    assert table.head(1) == Replica(11, 2)


def test_routes_follow_their_chain() -> None:
    table = loaded()
    before = table.route(1)
    assert table.route(1) is before
    table.learn_chain(chain(1, 4, S, Y))
    assert table.route(1).serving == (Replica(10, 1),)
    assert table.route(1).receiving == (Replica(10, 1), Replica(11, 2))


def test_writes_run_through_serving_and_the_syncing_one() -> None:
    route = route_of(chain(3, 1, S, S, Y, O))
    assert [r.target for r in route.serving] == [30, 31]
    assert [r.target for r in route.receiving] == [30, 31, 32]


def test_ended_clients_are_forgotten_when_no_capability_of_theirs_can_be_good() -> None:
    table = loaded()
    table.apply(Routing(version=6, since=5, cluster="c1", ended_clients=[b"x"], capability_epoch=1))
    table.apply(Routing(version=7, since=6, cluster="c1", capability_epoch=2))
    assert b"x" in table.ended_clients
    table.apply(Routing(version=8, since=7, cluster="c1", capability_epoch=3))
    assert not table.ended_clients


def test_the_key_is_taken_from_a_reply_of_the_same_version() -> None:
    table = loaded()
    keyed = full(capability_key=b"k" * 32)
    assert table.apply(keyed) is NOTHING
    assert table.capability_key == b"k" * 32
    table.apply(full(version=9))
    assert table.capability_key == b"k" * 32


REPLICAS = [Replica(1, 1), Replica(2, 2), Replica(3, 3)]


@pytest.mark.parametrize(
    ("options", "target"),
    [
        ({}, 1),
        ({"local": {2}}, 2),
        ({"avoid": {1}}, 2),
        ({"avoid": {2}, "local": {2}}, 1),
        ({"avoid": {1, 2, 3}}, 1),
        ({"load": {1: 3, 2: 2, 3: 2}}, 2),
        ({"load": {1: 3, 2: 2, 3: 1}, "local": {1, 2}}, 2),
        ({"near": {2, 3}}, 2),
        ({"near": {2, 3}, "load": {2: 1}}, 3),
        ({"near": {2}, "load": {2: 9}}, 2),
        ({"near": {2}, "local": {3}}, 3),
        ({"near": {2}, "avoid": {2}}, 1),
        ({"first": 4}, 2),
        ({"first": 2, "load": {3: 1}}, 1),
    ],
)
def test_choice_of_a_replica(options: dict[str, object], target: int) -> None:
    assert choose_replica(REPLICAS, **options).target == target  # type: ignore[arg-type]


def test_no_replica_to_choose() -> None:
    assert choose_replica(REPLICAS[:1], avoid={1}).target == 1
    assert status_of(choose_replica, []) is Status.UNAVAILABLE
