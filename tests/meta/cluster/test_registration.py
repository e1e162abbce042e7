"""Registrations, as a story of one small cluster, and everything that is refused."""

import pytest

from emberfs.meta.cluster.registration import TARGETS_PER_NODE_MAX, register
from emberfs.meta.cluster.routing import Book, State
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen.cluster_pb2 import (
    LOCAL_STATE_OFFLINE,
    LOCAL_STATE_ONLINE,
    NODE_KIND_META,
    NODE_KIND_STORAGE,
    Node,
    Target,
)
from emberfs.proto.gen.common_pb2 import TARGET_STATE_LASTSRV, TARGET_STATE_SERVING


def node(number: int = 0, process: int = 1, **fields: object) -> Node:
    return Node(id=number, kind=NODE_KIND_STORAGE, process=process, name="s", addresses=["unix:/s"], **fields)  # type: ignore[arg-type]


def target(number: int = 0, incarnation: int = 11, **fields: object) -> Target:
    return Target(id=number, incarnation=incarnation, path=f"/t/{incarnation}", **fields)  # type: ignore[arg-type]


def told(book: Book, *registration: object) -> int:
    """Register, and return by how much the routing version grew."""
    draft = register(book, registration[0], registration[1:]).draft  # type: ignore[arg-type]
    before = book.state.version
    if draft:
        book.apply(draft)
    return book.state.version - before


@pytest.fixture
def book() -> Book:
    """One node with two targets."""
    book = Book(State("c", b"k" * 32))
    assert told(book, node(), target(0, 11), target(0, 22)) == 1
    return book


def test_new_targets_become_chains_of_one_in_one_table_version(book: Book) -> None:
    assert [(t.id, t.node, t.state) for t in book.targets.values()] == [
        (1, 1, LOCAL_STATE_ONLINE),
        (2, 1, LOCAL_STATE_ONLINE),
    ]
    assert [(c.id, c.version, c.members[0].target) for c in book.chains.values()] == [(1, 1, 1), (2, 1, 2)]
    assert all(c.members[0].state == TARGET_STATE_SERVING for c in book.chains.values())
    assert (book.tables[1].version, list(book.tables[1].chains)) == (1, [1, 2])


def test_the_same_again_changes_nothing(book: Book) -> None:
    assert told(book, node(1), target(1, 11), target(2, 22)) == 0


def test_who_crashed_before_writing_its_numbers_down_is_recognised(book: Book) -> None:
    assert told(book, node(0), target(0, 11), target(0, 22)) == 0
    assert len(book.nodes) == 1 and len(book.targets) == 2


def test_a_restart_costs_every_chain_a_version_and_nothing_else(book: Book) -> None:
    assert told(book, node(1, process=2), target(1, 11), target(2, 22)) == 1
    assert [(c.version, c.members[0].state) for c in book.chains.values()] == [(2, TARGET_STATE_SERVING)] * 2
    assert book.tables[1].version == 1


def test_another_target_is_appended_to_the_table(book: Book) -> None:
    told(book, node(1), target(1, 11), target(2, 22), target(0, 33))
    assert (book.tables[1].version, list(book.tables[1].chains)) == (2, [1, 2, 3])
    told(book, node(0, process=9), target(0, 44))
    assert sorted(book.nodes) == [1, 2]
    assert list(book.tables[1].chains) == [1, 2, 3, 4]
    full = book.routing()
    assert full is not None
    assert {t.version: list(t.chains) for t in full.tables}[1] == [1, 2]  # old versions stay


def test_a_target_that_is_not_there_any_more_stops_serving_and_comes_back(book: Book) -> None:
    told(book, node(1, process=2), target(1, 11))
    assert book.targets[2].state == LOCAL_STATE_OFFLINE
    assert book.chains[2].members[0].state == TARGET_STATE_LASTSRV
    told(book, node(1, process=3), target(1, 11), target(2, 22))
    assert book.chains[2].members[0].state == TARGET_STATE_SERVING
    assert book.chains[2].version == 3


def test_a_formatted_disk_does_not_revive_its_chain(book: Book) -> None:
    told(book, node(1, process=2), target(1, 11), target(2, 999))
    assert book.chains[2].members[0].state == TARGET_STATE_LASTSRV
    assert book.chains[2].members[0].incarnation == 22
    told(book, node(1, process=3), target(1, 11), target(2, 22))  # the right disk again
    assert book.chains[2].members[0].state == TARGET_STATE_SERVING


def test_a_disk_moves_to_another_node(book: Book) -> None:
    told(book, node(0, process=7), target(0, 77))
    told(book, node(2, process=8), target(3, 77), target(2, 22))
    assert book.targets[2].node == 2
    assert book.chains[2].members[0].node == 2


def test_a_metadata_server_has_no_targets(book: Book) -> None:
    assert told(book, Node(kind=NODE_KIND_META, process=5, name="m")) == 1
    assert book.nodes[2].kind == NODE_KIND_META


@pytest.mark.parametrize(
    ("registration", "status"),
    [
        ((node(9), target(1)), Status.NOT_FOUND),
        ((node(1), target(9)), Status.NOT_FOUND),
        ((Node(id=1, kind=NODE_KIND_META, process=1),), Status.NOT_FOUND),
        ((Node(name="x"),), Status.INVALID),
        ((node(1, process=0),), Status.INVALID),
        ((Node(kind=NODE_KIND_META, process=1), target(1)), Status.INVALID),
        ((node(1), target(1, 0)), Status.INVALID),
        ((node(1), target(1, 11), target(2, 11)), Status.INVALID),
        ((Node(kind=NODE_KIND_STORAGE, process=1, addresses=["http://x"]),), Status.INVALID),
        ((Node(kind=NODE_KIND_STORAGE, process=1, addresses=["tcp:a:1"] * 17),), Status.TOO_LARGE),
        ((Node(kind=NODE_KIND_STORAGE, process=1, name="x" * 4097),), Status.TOO_LARGE),
        ((node(1), *(target(0, i + 100) for i in range(TARGETS_PER_NODE_MAX + 1))), Status.TOO_LARGE),
    ],
)
def test_what_cannot_be_is_refused(book: Book, registration: tuple[object, ...], status: Status) -> None:
    with pytest.raises(StatusError) as refused:
        told(book, *registration)
    assert refused.value.status is status
