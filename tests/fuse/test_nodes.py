"""What the kernel knows: lookups are counted, versions are told, and a mixture is never taken for a version."""

from __future__ import annotations

import sys
from itertools import permutations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from emberfs.client.core.steps import RUNS_MAX, Runs, noted, since
from emberfs.fuse.nodes import SHRINK_MIN, Nodes

FILE = 1 << 50


@pytest.fixture
def nodes() -> Nodes:
    made = Nodes()
    made.looked_up(FILE, 5)
    return made


def test_lookups_are_taken_back(nodes: Nodes) -> None:
    nodes.looked_up(FILE, 5)
    nodes.looked_up(FILE, 6)
    assert nodes.lookups(FILE) == 3
    nodes.forget(FILE, 2)
    assert FILE in nodes
    nodes.forget(FILE, 1)
    assert FILE not in nodes
    nodes.forget(FILE, 1)  # of a daemon before this one
    assert len(nodes) == 0


def test_more_forgets_than_lookups_forget(nodes: Nodes) -> None:
    nodes.forget(FILE, 1 << 63)
    assert FILE not in nodes


def test_without_pages_the_newest_attributes_are_what_the_kernel_holds(nodes: Nodes) -> None:
    assert nodes.told(FILE) == 5
    nodes.tell(FILE, 9)
    assert nodes.told(FILE) == 9
    nodes.looked_up(FILE, 10)
    assert nodes.told(FILE) == 10


def test_new_attributes_over_old_pages_are_a_mixture_until_it_is_invalidated(nodes: Nodes) -> None:
    nodes.opened(FILE)
    nodes.tell(FILE, 6)
    assert nodes.told(FILE) == 0
    nodes.tell(FILE, 5)
    assert nodes.told(FILE) == 0
    nodes.invalidated(FILE, 6)
    assert nodes.told(FILE) == 6
    nodes.looked_up(FILE, 7)
    assert nodes.told(FILE) == 0
    assert nodes.lookups(FILE) == 2


def test_a_change_of_our_own_is_followed_from_the_version_before_it_only(nodes: Nodes) -> None:
    nodes.opened(FILE)
    nodes.advanced(FILE, 6)
    assert nodes.told(FILE) == 6
    nodes.advanced(FILE, 6)  # said twice
    assert nodes.told(FILE) == 6
    nodes.advanced(FILE, 8)  # 7 was somebody else's
    assert nodes.told(FILE) == 0
    nodes.advanced(FILE, 9)
    assert nodes.told(FILE) == 0


@pytest.mark.parametrize("order", list(permutations((6, 7, 8))))
def test_a_chain_of_own_changes_stays_ours_in_whatever_order_their_replies_come(
    nodes: Nodes, order: tuple[int, ...]
) -> None:
    """Of a settlement, an unlock and an fsync through three handles: each reply knows its own step only."""
    nodes.opened(FILE)
    runs: Runs = ()
    newest, before = 5, 5
    for change in order:
        newest, runs = max(newest, change), noted(runs, change)
        nodes.followed(FILE, since(runs, newest), newest)
        assert nodes.told(FILE) >= before
        before = nodes.told(FILE)
    assert nodes.told(FILE) == 8


def test_an_own_change_that_another_reply_showed_first_is_ours_once_its_reply_comes(nodes: Nodes) -> None:
    nodes.opened(FILE)
    runs = noted((), 6)
    nodes.followed(FILE, since(runs, 7), 7)  # a lock's reply, or GETATTR's, shows 7; who made it is not known yet
    assert nodes.told(FILE) == 5  # which is what the kernel holds
    runs = noted(runs, 7)
    nodes.followed(FILE, since(runs, 7), 7)
    assert nodes.told(FILE) == 7


def test_another_clients_change_among_our_own_is_never_followed(nodes: Nodes) -> None:
    nodes.opened(FILE)
    runs: Runs = ()
    for change in (6, 8, 9):  # 7 is missing
        runs = noted(runs, change)
        nodes.followed(FILE, since(runs, change), change)
    assert nodes.told(FILE) == 6
    assert since(runs, 9) == 7
    assert since(runs, 10) == 10


def test_what_the_kernel_was_told_never_goes_back(nodes: Nodes) -> None:
    nodes.opened(FILE)
    nodes.followed(FILE, 5, 8)
    nodes.followed(FILE, 7, 7)  # a handle that still is at an older version
    assert nodes.told(FILE) == 8
    nodes.invalidated(FILE, 7)  # asked for before that, done after it
    assert nodes.told(FILE) == 8


def test_runs_of_own_changes_are_bounded() -> None:
    runs: Runs = ()
    for change in range(2, 200, 2):
        runs = noted(runs, change)
    assert len(runs) == RUNS_MAX
    assert since(runs, 198) == 197


def test_the_first_version_does_not_follow_the_unknown() -> None:
    nodes = Nodes()
    nodes.looked_up(FILE, 3)
    nodes.unknown(FILE)
    nodes.advanced(FILE, 1)
    assert nodes.told(FILE) == 0


def test_of_a_daemon_before_this_one_the_kernel_may_have_any_pages() -> None:
    nodes = Nodes(inherited=True)
    nodes.looked_up(FILE, 5)
    assert nodes.told(FILE) == 0
    nodes.invalidated(FILE, 5)
    assert nodes.told(FILE) == 5
    nodes.looked_up(FILE + 1, 1)  # just made
    assert nodes.told(FILE + 1) == 1


def test_what_the_kernel_does_not_know_is_not_noted() -> None:
    nodes = Nodes()
    nodes.tell(FILE, 5)
    nodes.opened(FILE)
    nodes.invalidated(FILE, 5)
    nodes.advanced(FILE, 5)
    nodes.unknown(FILE)
    assert FILE not in nodes
    assert nodes.told(FILE) == 0
    assert nodes.lookups(FILE) == 0


def test_a_million_inodes_fit_and_their_memory_comes_back() -> None:
    """ "memory of the daemon after a `find` over 1,000,000 files: 300 MB, and it falls after FORGET". A tenth of them here."""
    nodes = Nodes()
    count = 100_000
    for inode in range(FILE, FILE + count):
        nodes.looked_up(inode, 3)
    table = nodes._known
    each = sys.getsizeof(table) / count + sys.getsizeof(FILE) + sys.getsizeof(table[FILE])
    assert each < 150  # bytes
    for inode in range(FILE, FILE + count - 10):
        nodes.forget(inode, 1)
    assert len(nodes) == 10
    assert sys.getsizeof(nodes._known) < 100 * SHRINK_MIN


class Model(RuleBasedStateMachine):
    """One inode, against the kernel that it describes: its lookups, the version of its size, the versions of its pages."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes = Nodes()
        self.version = 1  # at the server
        self.lookups = 0
        self.attributes = 0  # the version that the kernel's attributes have; 0: none that it believes
        self.pages: set[int] = set()  # the versions that the kernel's pages have

    @rule()
    def somebody_else_writes(self) -> None:
        self.version += 1

    @rule()
    def lookup(self) -> None:
        self.nodes.looked_up(FILE, self.version)
        self.lookups += 1
        self.attributes = self.version

    @rule()
    def getattr(self) -> None:
        if self.lookups:
            self.nodes.tell(FILE, self.version)
            self.attributes = self.version

    @rule()
    def open_and_read(self) -> None:
        if not self.lookups:
            return
        if self.nodes.told(FILE) != self.version:
            self.attributes = 0
            self.pages.clear()
            self.nodes.invalidated(FILE, self.version)
        self.nodes.opened(FILE)
        assert self.pages <= {self.version}, "an open that sees old pages"
        assert self.attributes in (0, self.version), "an open that sees an old size"
        self.pages.add(self.version)

    @rule()
    def read_through_a_descriptor_that_is_open(self) -> None:
        if self.lookups and self.nodes.has_pages(FILE):
            self.pages.add(self.version)

    @rule()
    def write_and_close(self) -> None:
        """Of this mount: its pages and size follow, if they were of the version before."""
        if self.lookups and self.nodes.has_pages(FILE):
            before = self.version
            self.version += 1
            self.nodes.advanced(FILE, self.version)
            self.pages = {self.version if page == before else page for page in self.pages}
            self.attributes = self.version if self.attributes == before else self.attributes

    @rule(count=st.integers(1, 3))
    def forget(self, count: int) -> None:
        count = min(count, self.lookups)
        if count:
            self.nodes.forget(FILE, count)
            self.lookups -= count
            if not self.lookups:
                self.attributes = 0
                self.pages.clear()

    @invariant()
    def lookups_agree(self) -> None:
        assert self.nodes.lookups(FILE) == self.lookups
        assert (FILE in self.nodes) == bool(self.lookups)


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
