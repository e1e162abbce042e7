"""What a large cluster costs the manager: a scan of all chains, a look at all leases, and what a change sends to those who watch."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from emberfs.meta.cluster.chain import next_chain
from emberfs.meta.cluster.nodes import Nodes
from emberfs.meta.cluster.routing import Book, Draft, Kind, State
from emberfs.meta.cluster.table import append_to_table
from emberfs.proto.gen.cluster_pb2 import LOCAL_STATE_UPTODATE, NODE_KIND_STORAGE, Node, Target
from emberfs.proto.gen.common_pb2 import TARGET_STATE_SERVING, Chain, ChainMember
from emberfs.proto.gen.rpc_pb2 import Notice
from emberfs.proto.subscription import Hub, Subscription

WATCHERS = 1000
REPLICAS = 3
LEASE = 5.0


def made(chains: int, nodes: int) -> tuple[Book, Nodes]:
    """A cluster in which every node holds the same number of members, and all have just reported."""
    book = Book(State("c", b"k" * 32))
    draft = Draft(book)
    for number in range(1, nodes + 1):
        node = Node(
            id=number,
            kind=NODE_KIND_STORAGE,
            name=f"s{number}",
            addresses=[f"tcp:10.0.{number // 256}.{number % 256}:9440"],
        )
        draft.put(Kind.NODE, node, number)
    for number in range(1, chains + 1):
        chain = Chain(id=number, version=3)
        for i in range(REPLICAS):
            target, node_id = REPLICAS * (number - 1) + i + 1, (number + i * 7) % nodes + 1
            record = Target(
                id=target, node=node_id, incarnation=target, state=LOCAL_STATE_UPTODATE, path=f"/t/{target}"
            )
            draft.put(Kind.TARGET, record, target)
            chain.members.append(
                ChainMember(target=target, node=node_id, state=TARGET_STATE_SERVING, incarnation=target)
            )
        draft.put(Kind.CHAIN, chain, number)
    append_to_table(book, draft, range(1, chains + 1), REPLICAS)
    book.apply(draft)
    known = Nodes(book.nodes, 0.0, LEASE)
    for number in book.nodes:
        entries = [book.targets[target] for target in book.targets_of(number)]
        known.reported(number, entries, {chain.id: 3 for chain in book.chains_of([number])}, 10.0)
    known.look(10.0)
    return book, known


def follow(book: Book, nodes: Nodes, changed: set[int], now: float) -> Draft:
    """As the manager does."""
    draft = Draft(book)
    chains = book.chains_of(changed)
    reports = nodes.reports(book, chains, now)
    for chain in chains:
        after = next_chain(chain, reports)
        if after is not chain:
            draft.put(Kind.CHAIN, after, chain.id)
    return draft


def best_of(rounds: int, work: Callable[[], object]) -> float:
    """CPU seconds of the fastest round."""
    found = []
    for _ in range(rounds):
        begin = time.thread_time()
        work()
        found.append(time.thread_time() - begin)
    return min(found)


def test_a_scan_of_all_chains_and_a_look_at_all_leases(capsys: pytest.CaptureFixture[str]) -> None:
    book, nodes = made(10_000, 500)
    scan = best_of(3, lambda: follow(book, nodes, set(book.nodes), 10.1))
    look = best_of(3, lambda: nodes.look(10.1))
    one = best_of(3, lambda: follow(book, nodes, {1}, 10.1))
    with capsys.disabled():
        print(
            f" [10,000 chains: scan {scan * 1000:.0f} ms, of one node {one * 1000:.2f} ms, look {look * 1000:.2f} ms] ",
            end="",
        )
    assert scan < 0.4 and look < 0.02 and one < 0.02  # a loaded or emulated machine; the figures are for people


def delta_bytes(chains: int, nodes: int) -> tuple[int, int]:
    """What 1,000 watchers are sent when one node is lost that holds 60 members, and how many chains changed."""
    book, known = made(chains, nodes)
    hub = Hub()
    sent = 0
    queue: list[Subscription] = []
    for number in range(WATCHERS):
        subscription = Subscription(number, "routing", lambda: None)
        hub.subscribe(subscription, 0)
        subscription.take()
        queue.append(subscription)
    for number in book.nodes:
        if number != 1:
            entries = [book.targets[target] for target in book.targets_of(number)]
            known.reported(number, entries, {chain.id: 3 for chain in book.chains_of([number])}, 20.0)
    assert known.look(20.0) == {1}
    before = book.state.version
    book.apply(follow(book, known, {1}, 20.0))
    delta = book.routing(before)
    assert delta is not None
    hub.publish("routing", delta.version, delta.SerializeToString())
    for subscription in queue:
        notice = subscription.take()
        assert isinstance(notice, Notice) and not notice.resync
        sent += notice.ByteSize()
    return sent, len(delta.chains)


def test_a_delta_to_a_thousand_watchers_is_as_large_as_the_change(capsys: pytest.CaptureFixture[str]) -> None:
    """ "routing delta to 1,000 watchers: proportional to the change, not to the table" """
    small, changed = delta_bytes(500, 25)
    large, same = delta_bytes(10_000, 500)
    book, _ = made(10_000, 500)
    everything = book.routing()
    assert everything is not None
    with capsys.disabled():
        each = large // WATCHERS
        print(f" [{changed} of 10,000 chains changed: {each} bytes each of {everything.ByteSize():,}] ", end="")
    assert changed == same == 60
    assert large < 1.2 * small  # only the numbers in it are longer
    assert large / WATCHERS < 100 * changed
