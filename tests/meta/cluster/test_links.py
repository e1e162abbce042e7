"""Links that are cut, as the members of chains say: how long that holds, and who is moved. Chains of a, b, c on nodes 1, 2, 3."""

from __future__ import annotations

import pytest

from emberfs.meta.cluster.chain import Report
from emberfs.meta.cluster.links import HELD_LEASES, HELD_LEASES_MAX, PROBED_LEASES, Links
from emberfs.meta.cluster.nodes import Nodes
from emberfs.meta.cluster.routing import Book, Draft, Kind, State
from emberfs.proto.gen.cluster_pb2 import LOCAL_STATE_UPTODATE, NODE_KIND_STORAGE, Node, Target
from emberfs.proto.gen.common_pb2 import Chain, ChainMember

from .test_chain_states import STATE

L = 5.0  # a lease
HELD = HELD_LEASES * L
VERSION = 4


def test_a_link_that_failed_is_let_alone_for_a_while_and_longer_each_time() -> None:
    links, now = Links(L), 100.0
    for length in (HELD, 2 * HELD, 4 * HELD, 8 * HELD, 8 * HELD):
        links.failed(1, 22, 2, now, probed=False)
        assert links.cut(1, 11, 2, 22, now + length - 1) and links.cut(2, 22, 1, 11, now + length - 1)
        assert not links.over(now + length - 1)
        now += length
        assert not links.cut(1, 11, 2, 22, now)
        assert links.over(now) == {2} and not links.over(now + 0.1)
        now += 1.0
    assert length == HELD_LEASES_MAX * L
    now += length
    assert not links.over(now) and not links  # forgotten
    links.failed(1, 22, 2, now, probed=False)
    assert not links.cut(1, 11, 2, 22, now + HELD)


def test_what_is_said_while_it_holds_makes_it_no_longer() -> None:
    links = Links(L)
    for now in (0.0, 1.0, 2.0):
        links.failed(1, 22, 2, now, probed=False)
    assert links.cut(1, 11, 2, 22, 1.0 + HELD) and not links.cut(1, 11, 2, 22, 2.0 + HELD)


def test_a_probe_holds_for_a_moment() -> None:
    links = Links(L)
    links.failed(1, 22, 2, 0.0, probed=True)
    assert links.cut(1, 11, 2, 22, PROBED_LEASES * L - 0.1) and not links.cut(1, 11, 2, 22, PROBED_LEASES * L)
    links.failed(1, 22, 2, 5.0, probed=False)
    links.failed(1, 22, 2, 6.0, probed=True)  # takes nothing back
    assert links.cut(1, 11, 2, 22, 5.0 + HELD - 0.1)


def test_a_link_has_two_ends() -> None:
    links = Links(L)
    links.failed(1, 22, 2, 0.0, probed=False)
    links.failed(1, 23, 2, 0.0, probed=False)  # another target of the same node
    links.failed(1, 33, 3, 0.0, probed=True)
    assert links.partners(1.0) == {1: {2, 3}, 2: {1}, 3: {1}}
    assert links.partners(PROBED_LEASES * L) == {1: {2}, 2: {1}}


class Heard:
    """A chain in these states, of whose members everything is well but what they say of each other."""

    def __init__(self, states: str) -> None:
        count = len(states)
        members = [ChainMember(target=i + 1, node=i + 1, state=STATE[s], incarnation=9) for i, s in enumerate(states)]
        self.book = Book(State(cluster="c", capability_key=b""), {})
        draft = Draft(self.book)
        draft.put(Kind.CHAIN, Chain(id=1, version=VERSION, members=members), 1)
        for number in range(1, count + 1):
            draft.put(Kind.NODE, Node(id=number, kind=NODE_KIND_STORAGE), number)
            draft.put(Kind.TARGET, Target(id=number, node=number, incarnation=9), number)
        self.book.apply(draft)
        self.nodes = Nodes(range(1, count + 1), 0.0, L)
        for number in range(1, count + 1):
            self.say(number)

    def say(self, node: int, *unreached: int, version: int = VERSION) -> None:
        found = self.nodes.unreached(self.book, node, dict.fromkeys(unreached, version), 1.0)
        entry = Target(id=node, incarnation=9, state=LOCAL_STATE_UPTODATE)
        self.nodes.reported(node, [entry], {1: VERSION}, 1.0, unreached=found)

    def reports(self, now: float = 1.0) -> dict[int, Report]:
        return self.nodes.reports(self.book, self.book.chains.values(), now)

    def cut(self, now: float = 1.0) -> list[int]:
        return [target for target, report in self.reports(now).items() if report.cut]


@pytest.mark.parametrize(
    ("states", "said", "cut"),
    [
        ("SSS", {1: [2]}, [2]),  # nothing else is known: the one behind
        ("SSS", {2: [3]}, [3]),
        ("SSS", {1: [2, 3]}, [1]),  # it gets no answer from anybody
        ("SSS", {1: [2], 2: [3]}, [2]),  # nor does this one
        ("SSS", {1: [3]}, []),  # it does not send to that one
        ("SSS", {3: [2]}, []),
        ("SSY", {1: [2], 2: [3]}, [2, 3]),  # who copies loses the link in any case
        ("SSW", {2: [3]}, [3]),
        ("SSW", {1: [3]}, []),  # not the one that would copy to it
        ("SYW", {3: [1]}, []),  # not its business: it does not serve
        ("S", {}, []),
    ],
)
def test_who_is_cut_off(states: str, said: dict[int, list[int]], cut: list[int]) -> None:
    heard = Heard(states)
    for node, unreached in said.items():
        heard.say(node, *unreached)
    assert heard.cut() == cut


def test_only_what_is_said_under_the_present_version_and_with_a_lease_counts() -> None:
    heard = Heard("SSS")
    heard.say(1, 2, version=VERSION - 1)
    assert heard.cut() == []
    heard.say(1, 2)
    assert heard.cut() == [2]
    assert heard.cut(1.0 + L / 2) == []  # no renewal has come
    heard.say(1)
    assert heard.cut() == []  # it was an answer that took long


def test_who_became_syncing_for_it_is_not_copied_to_over_the_same_link() -> None:
    heard = Heard("SY")
    heard.nodes._links.failed(1, 2, 2, 0.0, probed=False)
    assert heard.cut() == [2]
    other = Heard("SSY")
    other.nodes._links.failed(1, 3, 3, 0.0, probed=False)
    assert other.cut() == []  # another member copies


def test_the_first_look_after_it_held_says_whose_chains_to_look_at() -> None:
    heard = Heard("SW")
    heard.say(1, 2)
    heard.nodes.look(1.0)
    heard.say(1)
    assert heard.cut() == [2]
    for node in (1, 2):
        heard.nodes.reported(node, [], {1: VERSION}, 1.0 + PROBED_LEASES * L)
    assert heard.nodes.look(1.0 + PROBED_LEASES * L) == {2}
    assert heard.cut(1.0 + PROBED_LEASES * L) == []


def test_late_reports() -> None:
    heard = Heard("SS")
    heard.nodes.reported(1, [], {1: VERSION}, 1.0, number=7)
    assert heard.nodes.is_late(1, 6) and not heard.nodes.is_late(1, 7) and not heard.nodes.is_late(1, 8)
    assert not heard.nodes.is_late(1, 0) and not heard.nodes.is_late(5, 1)
    heard.nodes.registered(1, 55, [], 2.0)
    assert not heard.nodes.is_late(1, 1)  # another process counts anew
