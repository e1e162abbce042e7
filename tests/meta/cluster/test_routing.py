"""Versioned routing: a delta has what changed, deltas add up to the whole, lost history gives everything."""

import random

import pytest

from emberfs.meta.cluster import routing
from emberfs.meta.cluster.chain import new_chain
from emberfs.meta.cluster.routing import Book, Draft, Kind, State
from emberfs.proto.gen.cluster_pb2 import ChainTable, Node, Routing, Target
from emberfs.proto.routing import RoutingTable

STATE = State(cluster="c1", capability_key=b"k" * 32)


def changed(book: Book, *messages: object, ended: bytes = b"") -> None:
    draft = Draft(book)
    for message in messages:
        if isinstance(message, Node):
            draft.put(Kind.NODE, message, message.id)
        elif isinstance(message, Target):
            draft.put(Kind.TARGET, message, message.id)
        elif isinstance(message, ChainTable):
            draft.put(Kind.TABLE, message, message.id, message.version)
        else:
            draft.put(Kind.CHAIN, message, message.id)  # type: ignore[arg-type, attr-defined]
    if ended:
        draft.end_client(ended)
    book.apply(draft)


def routing_of(book: Book, since: int = 0) -> Routing:
    found = book.routing(since)
    assert found is not None
    return found


def agrees(follower: RoutingTable, everything: RoutingTable) -> bool:
    fields = ("cluster", "version", "nodes", "targets", "chains", "tables", "table_versions", "capability_epoch")
    # A follower counts an ended client from when it heard of it: it may remember it longer, never shorter.
    return all(getattr(follower, f) == getattr(everything, f) for f in fields) and set(everything.ended_clients) <= set(
        follower.ended_clients
    )


def test_a_delta_costs_what_changed_not_what_there_is() -> None:
    book = Book(STATE)
    changed(book, *(new_chain(i, i, 1, 5) for i in range(1, 1001)))
    version = book.state.version
    changed(book, new_chain(500, 9, 1, 6), Node(id=1, name="n"))
    delta = routing_of(book, version)
    assert (delta.since, delta.version) == (version, version + 1)
    assert [c.id for c in delta.chains] == [500] and [n.id for n in delta.nodes] == [1]


def test_nothing_new_is_none() -> None:
    book = Book(STATE)
    assert book.routing(book.state.version) is None


def test_a_version_from_nowhere_gets_everything() -> None:
    book = Book(STATE)
    changed(book, Node(id=1))
    everything = routing_of(book)
    assert everything.since == 0
    assert routing_of(book, book.state.version + 7) == everything


def test_only_servers_get_the_key() -> None:
    book = Book(STATE)
    assert not routing_of(book).capability_key
    served = book.routing(server=True)
    assert served is not None and served.capability_key == STATE.capability_key


def test_a_draft_without_changes_is_none() -> None:
    book = Book(STATE)
    changed(book, Node(id=1, name="a"))
    draft = Draft(book)
    draft.put(Kind.NODE, Node(id=1, name="a"), 1)
    assert not draft
    draft.put(Kind.NODE, Node(id=1, name="b"), 1)
    assert draft
    draft.put(Kind.NODE, Node(id=1, name="a"), 1)
    assert not draft


def test_numbers_are_never_given_twice() -> None:
    book = Book(STATE)
    draft = Draft(book)
    assert [draft.new_id(Kind.NODE), draft.new_id(Kind.NODE), draft.new_id(Kind.CHAIN)] == [1, 2, 1]
    book.apply(draft)
    assert Draft(book).new_id(Kind.NODE) == 3


def test_removed_nodes_leave_tombstones_until_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "REMOVED_MAX", 3)
    book = Book(STATE)
    changed(book, *(Node(id=i) for i in range(1, 7)))
    start = book.state.version
    for number in range(1, 6):
        draft = Draft(book)
        draft.remove(Kind.NODE, number)
        book.apply(draft)
    full = routing_of(book)
    assert [n.id for n in full.nodes] == [6] and not full.removed_nodes
    assert sorted(routing_of(book, start + 3).removed_nodes) == [4, 5]
    lost = routing_of(book, start)  # the tombstones of 1 and 2 are gone
    assert lost.since == 0 and [n.id for n in lost.nodes] == [6]


def test_ended_clients_go_when_their_capabilities_have_expired() -> None:
    book = Book(STATE)
    changed(book, ended=b"a" * 16)
    for expected in (1, 0):
        draft = Draft(book)
        draft.next_epoch()
        book.apply(draft)
        assert len(book.ended) == len(routing_of(book).ended_clients) == expected


@pytest.mark.parametrize("seed", range(20))
def test_deltas_add_up_to_the_whole(seed: int) -> None:
    choose = random.Random(seed)
    book = Book(STATE)
    followers = [RoutingTable() for _ in range(4)]
    for follower in followers:
        follower.apply(routing_of(book))
    for step in range(60):
        change(book, choose, step)
        for follower in followers:
            if choose.random() < 0.3:
                follow(follower, book)
    everything = RoutingTable()
    everything.apply(routing_of(book))
    for follower in followers:
        follow(follower, book)
        assert agrees(follower, everything)


def follow(follower: RoutingTable, book: Book) -> None:
    delta = book.routing(follower.version)
    if delta is not None:
        assert delta.since == follower.version
        assert follower.apply(delta)


def change(book: Book, choose: random.Random, step: int) -> None:
    draft = Draft(book)
    for _ in range(choose.randint(1, 3)):
        kind, number = choose.randrange(6), choose.randint(1, 6)
        if kind == 0:
            draft.put(Kind.NODE, Node(id=number, name=f"{step}"), number)
        elif kind == 1:
            draft.put(Kind.TARGET, Target(id=number, node=step), number)
        elif kind == 2:
            old = book.chains.get(number)
            chain = new_chain(number, number, step, 1)
            chain.version = old.version + 1 if old else 1
            draft.put(Kind.CHAIN, chain, number)
        elif kind == 3:
            newest = book.tables.get(1)
            version = newest.version + 1 if newest else 1
            draft.put(Kind.TABLE, ChainTable(id=1, version=version, chains=[step]), 1, version)
        elif kind == 4:
            draft.end_client(step.to_bytes(16, "big"))  # a client ends once
        elif number in book.nodes:
            draft.remove(Kind.NODE, number)
    if choose.random() < 0.05:
        draft.next_epoch()
    if draft:
        book.apply(draft)
