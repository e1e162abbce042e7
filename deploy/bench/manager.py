"""What a large cluster costs the manager: a scan of all chains, a look at all leases, and what a change sends to those who watch.

Nothing runs but the manager's own decisions, in this process: the figures are CPU time, and bytes that a thousand watchers are sent when
one node of many is lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ...meta.cluster.chain import next_chain
from ...meta.cluster.nodes import Nodes
from ...meta.cluster.routing import Book, Draft, Kind, State
from ...meta.cluster.table import append_to_table
from ...proto.gen.cluster_pb2 import LOCAL_STATE_UPTODATE, NODE_KIND_STORAGE, Node, Target
from ...proto.gen.common_pb2 import TARGET_STATE_SERVING, Chain, ChainMember
from ...proto.gen.rpc_pb2 import Notice
from ...proto.subscription import Hub, Subscription
from .measure import row

CHAINS, NODES = 10_000, 500
WATCHERS = 1000
REPLICAS = 3
LEASE = 5.0
AIM_SCAN_MS = 50.0


def run(quick: bool = False) -> dict[str, Any]:
    """Measure; takes about 10 s, with `quick` 3."""
    rounds = 1 if quick else 5
    book, nodes = made(CHAINS, NODES)
    chains = book.chains_of(set(book.nodes))
    reports = nodes.reports(book, chains, 10.1)
    scan = best_of(rounds, lambda: [next_chain(chain, reports) for chain in chains])
    heard = best_of(rounds, lambda: nodes.reports(book, chains, 10.1))
    one = best_of(rounds, lambda: follow(book, nodes, {1}, 10.1))
    everything = book.routing()
    assert everything is not None
    sent, changed = delta_bytes(CHAINS, NODES)
    fewer, _ = delta_bytes(CHAINS // 20, NODES // 20)
    text = f"routing delta to each of {WATCHERS:,} watchers, {changed} of {CHAINS:,} chains changed"
    return {
        "rows": [
            row(f"next state of {CHAINS:,} chains, CPU", scan * 1000, "ms", aim=AIM_SCAN_MS, least=False),
            row("before that, what is known about their members, CPU", heard * 1000, "ms"),
            row("the chains of one node, as with a heartbeat that has news, CPU", one * 1000, "ms"),
            row(text, sent / WATCHERS, "bytes", everything.ByteSize()),
            row(f"the same, against {changed} of {CHAINS // 20:,} chains", sent / WATCHERS, "bytes", fewer / WATCHERS),
        ]
    }


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
