"""Chains of files and chains of KV blocks: tables of their own, members of their own, and what makes a chain leave its table."""

from __future__ import annotations

import pytest

from emberfs.meta.cluster.administration import change_chain, create_chains, drain, set_target
from emberfs.meta.cluster.nodes import Nodes
from emberfs.meta.cluster.registration import register
from emberfs.meta.cluster.routing import Book, State
from emberfs.meta.cluster.table import DEAD_SECONDS, TABLE_SECONDS, TableKeeper
from emberfs.proto.blocks import TABLE_OF_BLOCKS, TABLE_OF_FILES
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen.cluster_pb2 import NODE_KIND_STORAGE, ChainMembers, ChangeChainRequest, Node, Target

LEASE_SECONDS = 5.0
BLOCKS = TABLE_OF_BLOCKS


class World:
    """Storage nodes, each with a target for files and one for blocks, and a clock."""

    def __init__(self, nodes: int, spare: tuple[int, ...] = ()) -> None:
        self.book = Book(State("c", b"k" * 32))
        self.now = 100.0
        self.nodes = Nodes([], self.now, LEASE_SECONDS)
        self.keeper = TableKeeper()
        self.told: dict[int, list[Target]] = {}
        for number in range(1, nodes + 1):
            targets = [
                Target(incarnation=10 * number + table, path=f"/{number}/{table}", table=table)
                for table in (TABLE_OF_FILES, TABLE_OF_BLOCKS)
            ]
            node = Node(kind=NODE_KIND_STORAGE, process=number, name=f"s{number}", addresses=["unix:/s"])
            found = register(self.book, node, targets, spare=spare)
            self.book.apply(found.draft)
            self.nodes.registered(found.node, 0, found.targets, self.now)
            self.told[found.node] = found.targets

    def pass_time(self, seconds: float, *, silent: tuple[int, ...] = ()) -> None:
        """Let everybody but these report, and the keeper look, each second."""
        for _ in range(int(seconds)):
            self.now += 1.0
            for node, targets in self.told.items():
                if node not in silent:
                    self.nodes.reported(node, targets, {}, self.now)
            self.nodes.look(self.now)
            draft = self.keeper.plan(self.book, self.nodes, self.now)
            if draft:
                self.book.apply(draft)

    def table(self, table: int) -> list[int]:
        return list(self.book.tables[table].chains)

    def chain_of(self, node: int, table: int) -> int:
        target = next(t.id for t in self.told[node] if t.table == table)
        chain = self.book.chain_of(target)
        assert chain is not None
        return chain.id


def test_each_kind_has_a_table_of_its_own() -> None:
    world = World(3)
    assert len(world.book.chains) == 6
    files, blocks = world.table(TABLE_OF_FILES), world.table(BLOCKS)
    assert files == [world.chain_of(node, TABLE_OF_FILES) for node in (1, 2, 3)]
    assert blocks == [world.chain_of(node, BLOCKS) for node in (1, 2, 3)]
    assert {world.book.tables[table].version for table in (TABLE_OF_FILES, BLOCKS)} == {3}
    world.pass_time(5)
    assert world.table(TABLE_OF_FILES) == files and world.table(BLOCKS) == blocks


def test_targets_of_one_kind_may_wait_while_the_others_get_chains() -> None:
    world = World(2, spare=(TABLE_OF_FILES,))
    assert TABLE_OF_FILES not in world.book.tables and len(world.table(BLOCKS)) == 2


def test_a_target_stays_of_its_kind_whatever_a_registration_says() -> None:
    world = World(1)
    known = world.told[1][1]
    again = Target(id=known.id, incarnation=known.incarnation, path=known.path)
    draft = register(world.book, world.book.nodes[1], [world.told[1][0], again]).draft
    world.book.apply(draft)
    assert world.book.targets[known.id].table == BLOCKS
    with pytest.raises(StatusError, match="chain table 7") as raised:
        register(world.book, world.book.nodes[1], [Target(incarnation=99, table=7)])
    assert raised.value.status is Status.INVALID


def test_chains_are_made_of_targets_of_one_kind() -> None:
    world = World(2, spare=(TABLE_OF_FILES, BLOCKS))
    files = [world.told[node][0].id for node in (1, 2)]
    blocks = [world.told[node][1].id for node in (1, 2)]

    def create(targets: list[int], table: int) -> list[int]:
        draft, made = create_chains(world.book, world.nodes, [ChainMembers(targets=targets)], world.now, table)
        world.book.apply(draft)
        return made

    for targets, table in ((files, BLOCKS), (blocks, TABLE_OF_FILES), ([files[0], blocks[1]], BLOCKS), (files, 3)):
        with pytest.raises(StatusError) as raised:
            create(targets, table)
        assert raised.value.status is Status.INVALID
    assert create(blocks, BLOCKS) == world.table(BLOCKS)
    assert world.book.tables[BLOCKS].replicas == 2
    [chain] = create(files[:1], TABLE_OF_FILES)
    with pytest.raises(StatusError, match="is for KV blocks"):
        request = ChangeChainRequest(chain=chain, add=blocks[1])
        change_chain(world.book, world.nodes, request, world.now)


def test_a_chain_with_fewer_members_does_not_cost_the_others_theirs() -> None:
    """As that of a server that was started without --spare: it is the one that is short, and not the others that have too many."""
    world = World(3, spare=(TABLE_OF_FILES, BLOCKS))
    members = [ChainMembers(targets=[world.told[node][0].id for node in (1, 2)])]
    world.book.apply(create_chains(world.book, world.nodes, members, world.now)[0])
    alone = [ChainMembers(targets=[world.told[3][0].id])]
    world.book.apply(create_chains(world.book, world.nodes, alone, world.now)[0])
    assert world.book.tables[TABLE_OF_FILES].replicas == 2
    node = Node(kind=NODE_KIND_STORAGE, process=4, name="s4", addresses=["unix:/s"])
    world.book.apply(register(world.book, node, [Target(incarnation=44, path="/4", table=TABLE_OF_FILES)]).draft)
    assert len(world.table(TABLE_OF_FILES)) == 3
    assert world.book.tables[TABLE_OF_FILES].replicas == 2


def test_keys_go_around_a_chain_that_is_down_for_a_minute_and_come_back() -> None:
    world = World(3)
    lost, files = world.chain_of(2, BLOCKS), world.chain_of(2, TABLE_OF_FILES)
    world.pass_time(DEAD_SECONDS, silent=(2,))
    assert lost in world.table(BLOCKS)
    world.pass_time(2 * LEASE_SECONDS, silent=(2,))
    assert lost not in world.table(BLOCKS) and files not in world.table(TABLE_OF_FILES)
    world.pass_time(TABLE_SECONDS + 2)
    assert sorted(world.table(BLOCKS)) == [world.chain_of(node, BLOCKS) for node in (1, 2, 3)]


def test_a_full_target_for_blocks_makes_room_itself() -> None:
    world = World(2)
    for target in world.told[1]:
        world.book.targets[target.id].full = True
    world.pass_time(5)
    assert world.table(TABLE_OF_FILES) == [world.chain_of(2, TABLE_OF_FILES)]
    assert len(world.table(BLOCKS)) == 2


@pytest.mark.parametrize("how", ["drained", "disabled"])
def test_the_only_copy_is_not_waited_for(how: str) -> None:
    """Its chain leaves the table, then its member leaves it; it stays empty, and its number is used no more."""
    world = World(2)
    [target] = [t.id for t in world.told[1] if t.table == BLOCKS]
    chain = world.chain_of(1, BLOCKS)
    world.book.apply(
        drain(world.book, 1, draining=True) if how == "drained" else set_target(world.book, target, disabled=True)
    )
    request = ChangeChainRequest(chain=chain, remove=target)
    with pytest.raises(StatusError) as raised:
        change_chain(world.book, world.nodes, request, world.now)
    assert raised.value.status is Status.BUSY_RESOURCE, "keys still go there"
    world.pass_time(2)
    assert world.table(BLOCKS) == [world.chain_of(2, BLOCKS)]
    draft, done = change_chain(world.book, world.nodes, request, world.now)
    world.book.apply(draft)
    assert done and not world.book.chains[chain].members and world.book.chain_of(target) is None
    world.pass_time(DEAD_SECONDS + TABLE_SECONDS)
    assert world.table(BLOCKS) == [world.chain_of(2, BLOCKS)]
    assert (world.chain_of(1, TABLE_OF_FILES) in world.table(TABLE_OF_FILES)) is True, "files are moved, not dropped"


def test_the_last_chain_cannot_leave_the_table_and_may_go_all_the_same() -> None:
    world = World(1)
    chain = world.chain_of(1, BLOCKS)
    [target] = [t.id for t in world.told[1] if t.table == BLOCKS]
    world.book.apply(drain(world.book, 1, draining=True))
    world.pass_time(5)
    assert world.table(BLOCKS) == [chain]
    draft, done = change_chain(world.book, world.nodes, ChangeChainRequest(chain=chain, remove=target), world.now)
    assert done and draft
    file_target = world.told[1][0].id
    with pytest.raises(StatusError, match="last member"):
        request = ChangeChainRequest(chain=world.chain_of(1, TABLE_OF_FILES), remove=file_target)
        change_chain(world.book, world.nodes, request, world.now)
