"""The chain tables: that of files, which new files are laid out over, and that of KV blocks, which keys are placed by. A version never
changes, and old ones stay for what was placed by them, so a new version is all it takes to go around chains that are full or dead. Pure.

What a chain is for is said by its members' targets. The two tables differ in what makes a chain unfit: one of files when it is full, as
files stay; one of blocks never, as it makes room itself. A chain of blocks with one member leaves the table when its node is drained or
its target taken out of service: nobody copies a cache.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from ...proto.blocks import TABLE_OF_BLOCKS, TABLE_OF_FILES
from ...proto.gen.cluster_pb2 import ChainTable
from ...proto.gen.common_pb2 import TARGET_STATE_SERVING, Chain
from .chain import Lease
from .nodes import Nodes
from .routing import Book, Draft, Kind

DEAD_SECONDS = 60.0  # that nobody serves a chain, before new files and keys go around it; scaled
TABLE_SECONDS = 60.0  # between two versions made around what is full or dead, as they stay for ever; scaled
TABLES = (TABLE_OF_FILES, TABLE_OF_BLOCKS)


def append_to_table(
    book: Book, draft: Draft, chains: Sequence[int], replicas: int = 1, table: int = TABLE_OF_FILES
) -> None:
    """A new version with more chains at its end, of so many members each. The number that all are meant to have never gets less by
    that: the next 'chain apply' would take copies from the others."""
    newest = book.tables.get(table)
    if newest is not None:  # one from before it said so goes on saying nothing
        replicas = max(replicas, newest.replicas) if newest.replicas else 0
    _put(book, draft, table, [*(newest.chains if newest else ()), *chains], replicas)


def _put(book: Book, draft: Draft, table: int, chains: Sequence[int], replicas: int) -> None:
    newest = book.tables.get(table)
    version = newest.version + 1 if newest else 1
    draft.put(Kind.TABLE, ChainTable(id=table, version=version, chains=chains, replicas=replicas), table, version)


class TableKeeper:
    """Which chains new files and keys go to, and since when the others have been dead. To be asked every few seconds."""

    def __init__(self, scale: float = 1.0) -> None:
        self._scale = scale
        self._dead_since: dict[int, float] = {}
        self._next = dict.fromkeys(TABLES, float("-inf"))  # when another version may be made

    def plan(self, book: Book, nodes: Nodes, now: float) -> Draft:
        """The next version of each table, where one is due: without unfit and dead chains, with those that have recovered. Where no chain
        is any good the newest version stays as it is."""
        draft = Draft(book)
        good: defaultdict[int, list[int]] = defaultdict(list)
        for number in sorted(book.chains):
            chain = book.chains[number]
            table = book.table_of_chain(chain)
            if self._lives(chain, nodes, now) and _is_fit(book, chain, table):
                good[table].append(number)
        for table in TABLES:
            newest = book.tables.get(table)
            if newest is not None and good[table] and now >= self._next[table] and good[table] != sorted(newest.chains):
                kept = set(good[table])
                stay = [number for number in newest.chains if number in kept]
                _put(book, draft, table, [*stay, *sorted(kept.difference(stay))], newest.replicas)
                self._next[table] = now + TABLE_SECONDS * self._scale
        return draft

    def _lives(self, chain: Chain, nodes: Nodes, now: float) -> bool:
        if any(m.state == TARGET_STATE_SERVING and nodes.lease(m.node, now) is not Lease.OVER for m in chain.members):
            self._dead_since.pop(chain.id, None)
            return True
        return now - self._dead_since.setdefault(chain.id, now) < DEAD_SECONDS * self._scale


def _is_fit(book: Book, chain: Chain, table: int) -> bool:
    if table == TABLE_OF_BLOCKS:
        leaving = [book.nodes[m.node].draining or m.target in book.disabled for m in chain.members]
        return leaving != [True]
    return not any(m.target in book.targets and book.targets[m.target].full for m in chain.members)
